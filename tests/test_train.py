from __future__ import annotations

import dataclasses
import json
import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from madewithml import (
    calibration,
    checkpoint,
    config,
    data,
    encoders,
    errors,
    predict,
    runs,
    texts,
    train,
    train_worker,
)
from tests.conftest import LABELS, MAX_TOKENS


def written(folder: Path, lines: list[str], header: str = "title,description,tag") -> str:
    path = folder / "rows.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def test_training_gives_a_run_with_a_whole_checkpoint_that_names_what_made_it(
    trained: train.TrainResult, training_options: train.TrainOptions, tiny_encoder: Path
) -> None:
    found = checkpoint.read(trained.checkpoint)
    found.verify()
    rows = data.read_labelled(training_options.dataset_loc, text_fields=training_options.text_fields, label_field="tag")
    assert found.metadata.labels == LABELS
    assert found.metadata.text_fields == ["title", "description"]
    assert found.metadata.max_length == MAX_TOKENS
    assert found.metadata.data_sha256 == rows.sha256
    assert found.metadata.encoder == {"name": str(tiny_encoder), "sha256": encoders.find(str(tiny_encoder)).sha256}


def test_the_run_records_parameters_data_hash_and_metrics_of_every_epoch(
    trained: train.TrainResult, training_options: train.TrainOptions, settings: config.Settings
) -> None:
    store = runs.connect(settings)
    run = store.run(trained.run_id)
    assert (run.info.status, run.data.params["text_fields"]) == ("FINISHED", "title,description")
    assert run.data.params["data_sha256"] == checkpoint.read(trained.checkpoint).metadata.data_sha256
    assert float(run.data.params["learning_rate"]) == training_options.parameters.learning_rate
    for name in ("train_loss", "val_loss", "val_accuracy"):
        steps = {metric.step for metric in store.client.get_metric_history(trained.run_id, name)}
        assert steps == {1, 2}
    assert set(trained.metrics) == {"epoch", "train_loss", "val_loss", "val_accuracy"}


def test_the_metrics_of_the_result_are_those_of_the_best_epoch(
    trained: train.TrainResult, settings: config.Settings
) -> None:
    history = runs.connect(settings).client.get_metric_history(trained.run_id, "val_loss")
    assert trained.metrics["val_loss"] in [metric.value for metric in history]


def test_the_checkpoint_holds_the_weights_of_the_best_epoch(
    trained: train.TrainResult, settings: config.Settings
) -> None:
    validation = runs.connect(settings).recorded_rows(trained.run_id, "validation")
    logits = predict.TorchPredictor.from_checkpoint(trained.checkpoint).text_logits(validation.texts)
    truth = [LABELS.index(label) for label in validation.labels]
    temperature = max(1.0, calibration.fit_temperature(logits, truth))
    probabilities = calibration.softmax(logits, temperature=temperature)
    loss = -np.log(probabilities[np.arange(len(truth)), truth]).mean()
    assert loss == pytest.approx(trained.metrics["val_loss"], abs=1e-4)


def test_golden_rows_come_from_the_validation_rows(trained: train.TrainResult, settings: config.Settings) -> None:
    golden = checkpoint.read(trained.checkpoint).read_golden()
    assert golden is not None
    validation = runs.connect(settings).recorded_rows(trained.run_id, "validation")
    assert set(golden.texts) <= set(validation.texts)


def test_the_splits_recorded_are_those_of_the_seed(
    trained: train.TrainResult, training_options: train.TrainOptions, settings: config.Settings
) -> None:
    rows = data.read_labelled(training_options.dataset_loc, text_fields=training_options.text_fields, label_field="tag")
    parts = data.split(rows.labels, shares=training_options.shares, seed=0)
    table = runs.connect(settings).read_splits(trained.run_id)
    assert table is not None
    for part, positions in parts.items():
        expected = {texts.text_sha256(rows.texts[i]) for i in positions}
        assert set(table.loc[table["split"] == part, "text_sha256"]) == expected


def test_training_again_gives_the_same_weights(
    trained: train.TrainResult, training_options: train.TrainOptions, settings: config.Settings
) -> None:
    again = train.train(training_options, settings)
    assert again.run_id != trained.run_id
    assert again.metrics == trained.metrics
    weights = [checkpoint.read(result.checkpoint).weights_sha256 for result in (again, trained)]
    assert weights[0] == weights[1]


def test_two_workers_train_one_model_even_with_ten_megabytes_in_one_cell(
    training_options: train.TrainOptions, settings: config.Settings, tmp_path: Path
) -> None:
    table = pd.read_csv(training_options.dataset_loc)
    giant = pd.DataFrame([{"title": "giant", "description": "images " * 1_500_000, "tag": "computer-vision"}])
    path = tmp_path / "with-a-giant.csv"
    pd.concat([table, giant]).to_csv(path, index=False)
    parameters = dataclasses.replace(training_options.parameters, num_fits=2, batch_size=8, class_weights=True)
    changed = dataclasses.replace(training_options, dataset_loc=str(path), num_workers=2, parameters=parameters)
    result = train.train(changed, settings)
    store = runs.connect(settings)
    run = store.run(result.run_id)
    assert (run.data.params["num_workers"], run.data.params["class_weights"]) == ("2", "True")
    steps = {metric.step for metric in store.client.get_metric_history(result.run_id, "val_loss")}
    assert steps == {1, 2, 3, 4, 5}  # two fits of two epochs, and their average
    assert result.metrics["val_accuracy"] > 0.4  # by chance: 0.25
    assert predict.TorchPredictor.from_checkpoint(result.checkpoint).check_golden() < 1e-4


def test_a_fault_in_a_worker_is_one_line_that_says_what_failed(
    ray_session: None, job: train_worker.Job, tmp_path: Path
) -> None:
    job.encoder["sha256"] = "0" * 64
    with pytest.raises(
        errors.InputError, match=r"training failed in a worker: .*encoder .* differs between machines of the cluster"
    ) as caught:
        train._run_workers(job, 1, tmp_path, lambda _metrics, *, step: None)
    assert "\n" not in caught.value.message


def test_without_a_single_good_epoch_the_learning_rate_is_blamed() -> None:
    with pytest.raises(errors.InputError, match="the validation loss was not a number in any epoch, so the learning"):
        train._best(SimpleNamespace(best_checkpoints=[]))


def test_what_the_workers_report_becomes_progress_and_logged_metrics(
    job: train_worker.Job, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = []
    metrics = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.25, "val_accuracy": 1.0}
    said: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for event in ({"rows": 2}, {"rows": 1}, metrics, None):
        said.put(event)
    train._relay(said, job, lambda found, *, step: logged.append((dict(found), step)))
    assert logged == [({"train_loss": 0.5, "val_loss": 0.25, "val_accuracy": 1.0}, 1)]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"training: 3/{2 * len(job.train)} epoch 1: val_loss 0.250, accuracy 1.000"


@pytest.mark.parametrize(
    ("header", "lines", "expected"),
    [
        (
            "title,description,tag",
            [f"text {i},,x" for i in range(20)],
            r"all rows have the label 'x': a classifier needs",
        ),
        (
            "title,description,tag",
            [*(f"text {i},,x" for i in range(20)), "lonely,,y"],
            r"class 'y' has 1 row\(s\); at least 4 are needed, one for each of train, validation, calibration, test\.",
        ),
        (
            "title,description,tag",
            [*(f"text {i},,x" for i in range(20)), *["the same,,y"] * 20],
            r"class 'y' has 1 row\(s\)",
        ),
        ("title,description,tag", [], "has no rows"),
        ("title,description,tag", [",,x", ",,y"], r"has no usable row: left out 2 rows without any text \(line 2, 3\)"),
        ("title,text,tag", ["a,b,x"], "has no column 'description'; it has 'title', 'text', 'tag'"),
        ("title,description,label", ["a,b,x"], "has no column 'tag'; it has 'title', 'description', 'label'"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused_before_there_is_a_run(
    training_options: train.TrainOptions, tmp_path: Path, header: str, lines: list[str], expected: str
) -> None:
    changed = dataclasses.replace(training_options, dataset_loc=written(tmp_path, lines, header))
    settings = config.load(home=tmp_path / "home")
    with pytest.raises(errors.InputError, match=expected):
        train.train(changed, settings)
    assert not settings.home.exists()


def test_an_unknown_encoder_is_refused_before_there_is_a_run(
    training_options: train.TrainOptions, tmp_path: Path
) -> None:
    settings = config.load(home=tmp_path / "home")
    with pytest.raises(errors.NotFoundError, match="encoder 'nobody/nothing' not found"):
        train.train(dataclasses.replace(training_options, encoder="nobody/nothing"), settings)
    assert not settings.home.exists()


def test_classes_are_in_alphabetical_order() -> None:
    assert train.check_classes(["b", "a", "b", "c"]) == ["a", "b", "c"]


def test_texts_are_cut_to_the_length_asked_for_or_to_what_the_encoder_takes(
    training_options: train.TrainOptions, tiny_encoder: Path
) -> None:
    rows = data.LabelledText([], [], [])
    encoder = encoders.find(str(tiny_encoder))
    lengths = [
        train._metadata(dataclasses.replace(training_options, max_length=length), encoder, LABELS, rows).max_length
        for length in (16, 512)
    ]
    assert lengths == [16, MAX_TOKENS]


def test_options_are_recorded_as_plain_parameters(training_options: train.TrainOptions) -> None:
    params = train._params(training_options, data.LabelledText([], ["a"], ["x"]))
    assert (params["num_rows"], params["seed"], params["num_workers"]) == (1, 0, 1)
    assert "parameters" not in params
    assert json.dumps(params, default=str)
