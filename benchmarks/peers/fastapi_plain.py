"""FastAPI on uvicorn, no batching: each request calls the engine where it stands. What most people write first.

uvicorn --factory fastapi_plain:create_app --workers 2

The return type is what FastAPI's documentation asks for if JSON shall be fast. The handler is `async def` and calls the
engine at once: a thread of its own for each call, as with `def`, costs more than it brings on one core a process.
"""

from __future__ import annotations

import classifier
from fastapi import FastAPI
from messages import Answers, Row


def create_app() -> FastAPI:
    """Called by uvicorn in each process."""
    model = classifier.from_environment()
    app = FastAPI()

    @app.post("/predict/")
    async def predict(row: Row) -> Answers:
        return Answers(results=model.predict([classifier.text_of(row.model_dump())]))

    return app
