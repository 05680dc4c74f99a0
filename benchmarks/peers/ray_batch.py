"""Ray Serve with `@serve.batch` behind Ray's Python proxy.

python ray_batch.py

A batch waits for nothing: with a model of a few milliseconds the default of 10 ms would be most of a request.
"""

# No `from __future__ import annotations`: FastAPI could not look the names up in a class that was sent to a replica.

from typing import Any

import classifier
import ray
from fastapi import FastAPI
from messages import Answers, Row
from ray import serve
from ray.serve.schema import LoggingConfig

app = FastAPI()


@serve.deployment(
    num_replicas=classifier.workers(),
    max_ongoing_requests=64,
    logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
)
@serve.ingress(app)
class ClassifierDeployment:
    """One classifier in each replica."""

    def __init__(self) -> None:
        self.classifier = classifier.from_environment()

    @serve.batch(max_batch_size=classifier.batch_size(), batch_wait_timeout_s=0.0)
    async def answer(self, texts: list[str]) -> list[dict[str, Any]]:
        """One answer per text."""
        return self.classifier.predict(texts)

    @app.post("/predict/")
    async def predict(self, row: Row) -> Answers:
        """The answer to one row, when its batch has been through."""
        return Answers(results=[await self.answer(classifier.text_of(row.model_dump()))])


def main() -> None:
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": classifier.port()})
    serve.run(ClassifierDeployment.bind(), blocking=True)


if __name__ == "__main__":
    main()
