"""MLflow's own scoring server over a pyfunc, a "model from code".

python mlflow_model.py FOLDER                                # saves the model, before anything is measured
mlflow models serve --model-uri FOLDER --env-manager local --workers 2

Its body is `{"dataframe_records": [ROW]}`, its response `{"predictions": [ANSWER]}`.
"""

from __future__ import annotations

import sys
from typing import Any

import classifier
import mlflow.pyfunc
import pandas as pd


class Model(mlflow.pyfunc.PythonModel):
    """One classifier in each process."""

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:  # noqa: ARG002 - MLflow passes it
        """Load the model."""
        self.classifier = classifier.from_environment()

    def predict(self, context: Any, model_input: pd.DataFrame) -> list[dict[str, Any]]:  # noqa: ARG002 - MLflow passes it
        """One answer per row."""
        return self.classifier.predict([classifier.text_of(row) for row in model_input.to_dict("records")])


mlflow.models.set_model(Model())  # at import: this is how a model from code says what the model is

if __name__ == "__main__":
    mlflow.pyfunc.save_model(sys.argv[1], python_model=__file__, pip_requirements=["mlflow"])
