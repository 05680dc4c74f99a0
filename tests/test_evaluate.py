from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from madewithml import config, data, errors, evaluate, predict, runs, train
from tests.conftest import LABELS

FIELDS = ("title", "description")


@pytest.fixture(scope="module")
def rows(small_file: Path) -> data.LabelledText:
    return data.read_labelled(str(small_file), text_fields=FIELDS, label_field="tag")


@pytest.fixture(scope="module")
def document(predictor: predict.Predictor, rows: data.LabelledText) -> dict:
    return evaluate.evaluate(predictor, rows, run_id="r", dataset="d.csv", slices={"images": "(?i)image"})


def test_the_document_has_the_promised_keys(document: dict) -> None:
    assert {"run_id", "dataset", "overall", "per_class", "slices", "confusion_matrix"} - set(document) == set()
    assert {
        "precision",
        "recall",
        "f1",
        "accuracy",
        "log_loss",
        "brier",
        "ece",
        "num_samples",
    } - set(document["overall"]) == set()
    assert list(document["per_class"]) == LABELS
    for scores in document["per_class"].values():
        assert {"precision", "recall", "f1", "num_samples"} - set(scores) == set()
    assert json.loads(json.dumps(document)) == document


def test_the_figures_are_scikit_learns_on_the_labels_and_not_on_the_abstained_predictions(
    document: dict, predictor: predict.Predictor, rows: data.LabelledText
) -> None:
    probabilities = predictor.predict_proba(rows.rows)
    predicted = [LABELS[i] for i in probabilities.argmax(axis=1)]
    assert document["overall"]["accuracy"] == pytest.approx(accuracy_score(rows.labels, predicted))
    assert document["overall"]["f1"] == pytest.approx(f1_score(rows.labels, predicted, average="weighted"))
    assert document["overall"]["log_loss"] == pytest.approx(log_loss(rows.labels, probabilities, labels=LABELS))
    assert document["overall"]["num_samples"] == len(rows)


def test_the_confusion_matrix_counts_every_row(document: dict, rows: data.LabelledText) -> None:
    counts = np.array(document["confusion_matrix"]["counts"])
    assert document["confusion_matrix"]["labels"] == LABELS
    assert counts.sum(axis=1).tolist() == [rows.labels.count(label) for label in LABELS]


def test_slices_of_the_house_and_of_the_person_are_both_there(document: dict, rows: data.LabelledText) -> None:
    slices = document["slices"]
    assert len(slices) == 3
    assert slices["images"]["num_samples"] == sum("image" in text.lower() for text in rows.texts)


def test_a_label_the_model_does_not_know_is_refused(predictor: predict.Predictor) -> None:
    rows = data.LabelledText([{"title": "a", "description": ""}], ["a"], ["astrology"])
    with pytest.raises(errors.InputError, match=r"'d\.csv' has the label 'astrology', which the model does not know"):
        evaluate.evaluate(predictor, rows, run_id="r", dataset="d.csv")


def test_a_slice_that_is_no_regular_expression_is_refused(
    predictor: predict.Predictor, rows: data.LabelledText
) -> None:
    with pytest.raises(errors.InputError, match=r"slice 'broken'"):
        evaluate.evaluate(predictor, rows, run_id="r", dataset="d.csv", slices={"broken": "("})


def test_evaluating_a_run_logs_the_document_and_the_figures_to_it(
    trained: train.TrainResult, small_file: Path, settings: config.Settings
) -> None:
    found = evaluate.evaluate_run(trained.run_id, str(small_file), settings)
    store = runs.connect(settings)
    logged = store.run(trained.run_id).data.metrics
    assert logged["eval_f1"] == pytest.approx(found["overall"]["f1"])
    artifact = store.client.download_artifacts(trained.run_id, "evaluation/small.json")
    assert json.loads(Path(artifact).read_text()) == found


def test_what_was_left_out_is_in_the_document(
    trained: train.TrainResult, tmp_path: Path, settings: config.Settings
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("title,description,tag\na,b,mlops\n,,mlops\na,b,mlops\n")
    found = evaluate.evaluate_run(trained.run_id, str(path), settings)
    assert found["notes"] == [
        "left out 1 row without any text (line 3)",
        "left out 1 row repeating an earlier text (line 4)",
    ]
    assert found["overall"]["num_samples"] == 1


def test_evaluating_an_unknown_run_names_it(small_file: Path, settings: config.Settings) -> None:
    with pytest.raises(errors.NotFoundError, match="no run 'nope'"):
        evaluate.evaluate_run("nope", str(small_file), settings)


def test_a_file_without_the_models_columns_is_refused(
    trained: train.TrainResult, tmp_path: Path, settings: config.Settings
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,tag\na,mlops\n")
    with pytest.raises(errors.InputError, match="has no column 'title'; it has 'text', 'tag'"):
        evaluate.evaluate_run(trained.run_id, str(path), settings)
