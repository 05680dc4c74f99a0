"""BentoML: a service with a batchable method.

bentoml serve bentoml_service:ClassifierService

A batchable method takes a list and gives a list, so the body is `{"rows": [ROW]}` and the response the bare list: the
wrapper service that would give it the common form is one more process and one more hop.
"""

from __future__ import annotations

from typing import Any

import bentoml
import classifier
from messages import Row


@bentoml.service(workers=classifier.workers(), logging={"access": {"enabled": False}})
class ClassifierService:
    """One classifier in each worker."""

    def __init__(self) -> None:
        self.classifier = classifier.from_environment()

    @bentoml.api(route="/predict/", batchable=True, max_batch_size=classifier.batch_size(), max_latency_ms=30_000)
    def predict(self, rows: list[Row]) -> list[dict[str, Any]]:
        """One answer per row."""
        return self.classifier.predict([classifier.text_of(row.model_dump()) for row in rows])
