from __future__ import annotations

import mlflow.pyfunc
import pandas as pd
import pytest

from madewithml import config, predict, runs, train

ROWS = [
    {"title": "Intro to CNNs", "description": "Processing images with layers."},
    {"title": "Deploying models", "description": None},
]


@pytest.fixture(scope="module")
def loaded(trained: train.TrainResult, settings: config.Settings) -> mlflow.pyfunc.PyFuncModel:
    """The registered model, by its alias, as any user of MLflow loads it."""
    runs.connect(settings).promote(trained.run_id, name="tiny-pyfunc", alias="champion")
    mlflow.set_tracking_uri(settings.mlflow_uri)
    return mlflow.pyfunc.load_model("models:/tiny-pyfunc@champion")


def test_the_registered_model_gives_the_predictors_answers(
    loaded: mlflow.pyfunc.PyFuncModel, predictor: predict.Predictor
) -> None:
    table = pd.DataFrame(ROWS, index=[7, 3])
    answers = loaded.predict(table)
    expected = predictor.predict(ROWS)
    assert answers.index.tolist() == [7, 3]
    assert answers["prediction"].tolist() == [answer["prediction"] for answer in expected]
    assert answers["truncated"].tolist() == [False, False]
    for actual, answer in zip(answers["probabilities"], expected, strict=True):
        assert actual == pytest.approx(answer["probabilities"], abs=1e-4)


def test_missing_and_nan_texts_count_as_empty(loaded: mlflow.pyfunc.PyFuncModel) -> None:
    tables = [pd.DataFrame({"title": ["CNNs"]}), pd.DataFrame({"title": ["CNNs"], "description": [float("nan")]})]
    first, second = (loaded.predict(table)["probabilities"][0] for table in tables)
    assert first == second
