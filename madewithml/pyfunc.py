"""The MLflow flavour: `mlflow.pyfunc.load_model("models:/...")` gives an object with `predict(DataFrame)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from madewithml import data, predict

if TYPE_CHECKING:
    import pandas as pd


class TextClassifier:
    """What MLflow calls.

    Args:
        predictor: The predictor behind it.
    """

    def __init__(self, predictor: predict.Predictor) -> None:
        self.predictor = predictor

    def predict(
        self,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002 - MLflow passes it
    ) -> pd.DataFrame:
        """One row per input row, with the columns of an answer (prediction, probabilities, label, ...)."""
        import pandas as pd

        rows = data.as_rows(model_input)
        return pd.DataFrame(self.predictor.predict(rows), index=model_input.index)


def _load_pyfunc(path: str) -> TextClassifier:
    """Called by MLflow with the checkpoint folder."""
    return TextClassifier(predict.Predictor.from_checkpoint(path))
