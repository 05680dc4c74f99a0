"""Ray Data inside the endpoint: each request builds a dataset of one row and maps a predictor over it.

python ray_data.py

The literal reading of "the endpoint scores a Ray dataset". The predictor is loaded once in each of Ray's workers.
"""

# No `from __future__ import annotations`: FastAPI could not look the names up in a class that was sent to a replica.

from typing import Any

import classifier
import ray
import ray.data
from fastapi import FastAPI
from messages import Answers, Row
from ray import serve
from ray.serve.schema import LoggingConfig

app = FastAPI()


def answer(row: dict[str, Any]) -> dict[str, Any]:
    """The answer to one row of a dataset."""
    return classifier.shared().predict([classifier.text_of(row)])[0]


# No core for the replica: the pipelines need them.
@serve.deployment(
    ray_actor_options={"num_cpus": 0}, logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING")
)
@serve.ingress(app)
class PipelineDeployment:
    """A pipeline for each request."""

    @app.post("/predict/")
    def predict(self, row: Row) -> Answers:
        """The answer to one row, when its pipeline has been through."""
        return Answers(results=ray.data.from_items([row.model_dump()]).map(answer).take_all())


def main() -> None:
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": classifier.port()})
    serve.run(PipelineDeployment.bind(), blocking=True)


if __name__ == "__main__":
    main()
