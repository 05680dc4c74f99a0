"""FastAPI on uvicorn with the batcher that people write by hand: a queue, and up to 16 of what waits at a time.

uvicorn --factory fastapi_batched:create_app --workers 2

First come, first served, whatever the lengths; the engine runs in one thread beside the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import classifier
from fastapi import FastAPI
from messages import Answers, Row

Waiting = tuple[str, "asyncio.Future[dict[str, Any]]"]


class Batcher:
    """Texts that wait, and the loop that answers them."""

    def __init__(self, model: classifier.Classifier) -> None:
        self._model = model
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(max_workers=1)

    async def predict(self, text: str) -> dict[str, Any]:
        """The answer to a text, when its batch has been through the engine."""
        future = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((text, future))
        return await future

    async def run(self) -> None:
        """Take what waits, answer it, again."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < classifier.batch_size() and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            answers = await loop.run_in_executor(self._thread, self._model.predict, [text for text, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


def create_app() -> FastAPI:
    """Called by uvicorn in each process."""
    batcher = Batcher(classifier.from_environment())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/predict/")
    async def predict(row: Row) -> Answers:
        return Answers(results=[await batcher.predict(classifier.text_of(row.model_dump()))])

    return app
