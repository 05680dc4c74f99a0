from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from madewithml import calibration, checkpoint, config, data, encoders, errors, fitting, predict, runs, texts, train
from tests.conftest import EXPERIMENT, LABELS, MAX_TOKENS, tiny_parameters


@pytest.fixture
def options(small_file: Path, tiny_encoder: Path) -> train.TrainOptions:
    """The options of the session's training run."""
    return train.TrainOptions(
        dataset_loc=str(small_file),
        experiment_name=EXPERIMENT,
        encoder=str(tiny_encoder),
        parameters=tiny_parameters(),
    )


def written(folder: Path, lines: list[str], header: str = "title,description,tag") -> str:
    path = folder / "rows.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def test_training_gives_a_run_with_a_whole_checkpoint_that_names_what_made_it(
    trained: train.TrainResult, options: train.TrainOptions, tiny_encoder: Path
) -> None:
    found = checkpoint.read(trained.checkpoint)
    found.verify()
    rows = data.read_labelled(options.dataset_loc, text_fields=options.text_fields, label_field="tag")
    assert found.metadata.labels == LABELS
    assert found.metadata.text_fields == ["title", "description"]
    assert found.metadata.max_length == MAX_TOKENS
    assert found.metadata.data_sha256 == rows.sha256
    assert found.metadata.encoder == {"name": str(tiny_encoder), "sha256": encoders.find(str(tiny_encoder)).sha256}


def test_the_run_records_parameters_data_hash_and_metrics_of_every_epoch(
    trained: train.TrainResult, options: train.TrainOptions, settings: config.Settings
) -> None:
    store = runs.connect(settings)
    run = store.run(trained.run_id)
    assert (run.info.status, run.data.params["text_fields"]) == ("FINISHED", "title,description")
    assert run.data.params["data_sha256"] == checkpoint.read(trained.checkpoint).metadata.data_sha256
    assert float(run.data.params["learning_rate"]) == options.parameters.learning_rate
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
    trained: train.TrainResult, options: train.TrainOptions, settings: config.Settings
) -> None:
    rows = data.read_labelled(options.dataset_loc, text_fields=options.text_fields, label_field="tag")
    parts = data.split(rows.labels, shares=options.shares, seed=0)
    table = runs.connect(settings).read_splits(trained.run_id)
    assert table is not None
    for part, positions in parts.items():
        expected = {texts.text_sha256(rows.texts[i]) for i in positions}
        assert set(table.loc[table["split"] == part, "text_sha256"]) == expected


def test_training_again_gives_the_same_weights(
    trained: train.TrainResult, options: train.TrainOptions, settings: config.Settings
) -> None:
    again = train.train(options, settings)
    assert again.run_id != trained.run_id
    assert again.metrics == trained.metrics
    weights = [checkpoint.read(result.checkpoint).weights_sha256 for result in (again, trained)]
    assert weights[0] == weights[1]


def test_two_workers_train_one_model_even_with_ten_megabytes_in_one_cell(
    options: train.TrainOptions, settings: config.Settings, tmp_path: Path
) -> None:
    table = pd.read_csv(options.dataset_loc)
    giant = pd.DataFrame([{"title": "giant", "description": "images " * 1_500_000, "tag": "computer-vision"}])
    path = tmp_path / "with-a-giant.csv"
    pd.concat([table, giant]).to_csv(path, index=False)
    parameters = dataclasses.replace(options.parameters, num_fits=2, start_share=0.1, batch_size=8, class_weights=True)
    changed = dataclasses.replace(options, dataset_loc=str(path), num_workers=2, parameters=parameters)
    result = train.train(changed, settings)
    store = runs.connect(settings)
    run = store.run(result.run_id)
    assert (run.data.params["num_workers"], run.data.params["class_weights"]) == ("2", "True")
    steps = {metric.step for metric in store.client.get_metric_history(result.run_id, "val_loss")}
    assert steps == {1, 2, 3, 4, 5}  # two fits of two epochs, and their average
    assert result.metrics["val_accuracy"] > 0.4  # by chance: 0.25
    assert predict.TorchPredictor.from_checkpoint(result.checkpoint).check_golden() < 1e-4


def test_a_fault_in_a_worker_is_one_line_that_says_what_failed(
    ray_session: None, job: train._Job, tmp_path: Path
) -> None:
    job.encoder["sha256"] = "0" * 64
    with pytest.raises(
        errors.InputError, match=r"training failed in a worker: .*encoder .* differs between machines of the cluster"
    ) as caught:
        train._run_workers(job, 1, tmp_path, lambda _metrics, *, step: None)
    assert "\n" not in caught.value.message


class Queue:
    """What the workers report to, in this process."""

    def __init__(self, *events: Any) -> None:
        self.events = list(events)

    def put(self, event: Any) -> None:
        self.events.append(dict(event))

    def get(self) -> Any:
        return self.events.pop(0) if self.events else None


@pytest.fixture
def job(options: train.TrainOptions, tiny_tokenizer: Path) -> train._Job:
    """What a worker is given for the small file."""
    encoder = encoders.find(options.encoder)
    rows = data.read_labelled(options.dataset_loc, text_fields=options.text_fields, label_field="tag")
    parts = data.split(rows.labels, shares=options.shares, seed=0)
    return train._job(tiny_tokenizer, train._metadata(options, encoder, LABELS, rows), rows, parts, options.parameters)


def test_another_encoder_on_another_machine_is_refused(job: train._Job) -> None:
    job.encoder["sha256"] = "0" * 64
    with pytest.raises(errors.InputError, match=r"encoder '.*/tiny' differs between machines of the cluster"):
        in_a_worker(lambda: train._prepared_model(job, threads=1))


def in_a_worker(work: Callable[[], Any]) -> Any:
    """Run something as Ray Train's only worker, in this process."""
    import ray.train
    import ray.train.torch
    import torch

    trainer = ray.train.torch.TorchTrainer(work, scaling_config=ray.train.ScalingConfig(num_workers=0))
    try:
        return trainer.fit()
    finally:
        torch.use_deterministic_algorithms(mode=False)


@dataclasses.dataclass
class Fitted:
    """What a worker did: the metrics of each look at the validation rows, and what it reported at the end."""

    seen: list[dict[str, float]]
    metrics: dict[str, float]
    model: Any

    def losses(self) -> list[float]:
        return [metrics["val_loss"] for metrics in self.seen]


def fitted(job: train._Job, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Fitted:
    """Let a worker of this process do the job, with other parameters."""
    reported = []
    monkeypatch.setattr(train, "_report", lambda metrics, model: reported.append((metrics, model)))
    changed = dataclasses.replace(job, parameters=dataclasses.replace(job.parameters, **changes))
    queue = Queue()
    in_a_worker(lambda: train.fit({"job": changed, "queue": queue, "threads": 1}))
    rows = [event.pop("rows") for event in queue.events if "rows" in event]
    seen = [event for event in queue.events if event]
    assert sum(rows) == len(job.train) * sum(metrics["epoch"] <= epochs(changed) for metrics in seen)
    ((metrics, model),) = reported
    return Fitted(seen, metrics, model)


def epochs(job: train._Job) -> int:
    return job.parameters.num_fits * job.parameters.num_epochs


def validation_loss(job: train._Job, model: Any) -> float:
    return fitting.eval_step(model, job.validation, pad_id=job.pad_id).loss


def test_the_best_epoch_is_kept(job: train._Job, ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fitted(job, monkeypatch, num_epochs=4, patience=9, learning_rate=0.03)
    assert [metrics["epoch"] for metrics in found.seen] == [1, 2, 3, 4]
    assert found.metrics in found.seen
    assert validation_loss(job, found.model) == pytest.approx(found.metrics["val_loss"], abs=1e-6)


def test_only_an_epoch_that_early_stopping_keeps_is_the_best(
    job: train._Job, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([True, False, True, False])
    monkeypatch.setattr(train.fitting.EarlyStopping, "keeps", lambda _self, _validation: next(answers))
    found = fitted(job, monkeypatch, num_epochs=4, patience=9)
    assert found.metrics == found.seen[2]
    assert validation_loss(job, found.model) == pytest.approx(found.metrics["val_loss"], abs=1e-6)


def test_training_stops_when_the_validation_loss_no_longer_falls(
    job: train._Job, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fitted(job, monkeypatch, num_epochs=9, patience=1, learning_rate=float("nan"), class_weights=True)
    assert [metrics["epoch"] for metrics in found.seen] == [1]
    assert (found.metrics, found.model) == ({}, None)


def test_the_average_of_the_fits_is_validated_last_and_kept_unless_it_is_worse(
    job: train._Job, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fitted(job, monkeypatch, num_epochs=1, num_fits=3, start_share=0.2)
    assert [metrics["epoch"] for metrics in found.seen] == [1, 2, 3, 4]
    assert found.metrics == found.seen[-1]
    assert found.metrics["train_loss"] == pytest.approx(np.mean([m["train_loss"] for m in found.seen[:3]]))
    assert validation_loss(job, found.model) == pytest.approx(found.metrics["val_loss"], abs=1e-6)


def test_a_worse_average_leaves_the_best_fit(
    job: train._Job, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.fitting.Validation, "is_no_worse_than", lambda _self, _other: False)
    found = fitted(job, monkeypatch, num_epochs=1, num_fits=2)
    assert found.metrics["val_loss"] == min(found.losses()[:2])
    assert validation_loss(job, found.model) == pytest.approx(found.metrics["val_loss"], abs=1e-6)


def test_each_fit_starts_at_the_same_weights_and_has_its_own_order(
    job: train._Job, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []
    once = train._fit_once

    def watched(job: train._Job, model: Any, wrapped: Any, *, epochs_before: int, queue: Any) -> Any:
        starts.append([weights.clone() for weights in model.parameters()])
        return once(job, model, wrapped, epochs_before=epochs_before, queue=queue)

    monkeypatch.setattr(train, "_fit_once", watched)
    found = fitted(job, monkeypatch, num_epochs=1, num_fits=2)
    assert all(bool((one == other).all()) for one, other in zip(*starts, strict=True))
    assert found.losses()[0] != found.losses()[1]


def test_a_model_that_is_reported_is_saved_and_leaves_no_folder(
    job: train._Job, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr(train.models, "save", lambda model, folder: saved.append((model, folder)))
    results = [in_a_worker(lambda given=given: train._report({"val_loss": 0.5}, given)) for given in (None, "model")]
    assert [result.metrics for result in results] == [{"val_loss": 0.5}] * 2
    assert [model for model, _ in saved] == ["model"]
    assert not saved[0][1].exists()


def test_without_a_single_good_epoch_the_learning_rate_is_blamed() -> None:
    with pytest.raises(errors.InputError, match="the validation loss was not a number in any epoch, so the learning"):
        train._best(SimpleNamespace(best_checkpoints=[]))


def test_what_the_workers_report_becomes_progress_and_logged_metrics(
    job: train._Job, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = []
    metrics = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.25, "val_accuracy": 1.0}
    queue = Queue({"rows": 2}, {"rows": 1}, metrics)
    train._relay(queue, job, lambda found, *, step: logged.append((dict(found), step)))
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
    options: train.TrainOptions, tmp_path: Path, header: str, lines: list[str], expected: str
) -> None:
    changed = dataclasses.replace(options, dataset_loc=written(tmp_path, lines, header))
    settings = config.load(home=tmp_path / "home")
    with pytest.raises(errors.InputError, match=expected):
        train.train(changed, settings)
    assert not settings.home.exists()


def test_an_unknown_encoder_is_refused_before_there_is_a_run(options: train.TrainOptions, tmp_path: Path) -> None:
    settings = config.load(home=tmp_path / "home")
    with pytest.raises(errors.NotFoundError, match="encoder 'nobody/nothing' not found"):
        train.train(dataclasses.replace(options, encoder="nobody/nothing"), settings)
    assert not settings.home.exists()


def test_classes_are_in_alphabetical_order() -> None:
    assert train.check_classes(["b", "a", "b", "c"]) == ["a", "b", "c"]


def test_texts_are_cut_to_the_length_asked_for_or_to_what_the_encoder_takes(
    options: train.TrainOptions, tiny_encoder: Path
) -> None:
    rows = data.LabelledText([], [], [])
    encoder = encoders.find(str(tiny_encoder))
    lengths = [
        train._metadata(dataclasses.replace(options, max_length=length), encoder, LABELS, rows).max_length
        for length in (16, 512)
    ]
    assert lengths == [16, MAX_TOKENS]


def test_options_are_recorded_as_plain_parameters(options: train.TrainOptions) -> None:
    params = train._params(options, data.LabelledText([], ["a"], ["x"]))
    assert (params["num_rows"], params["seed"], params["num_workers"]) == (1, 0, 1)
    assert "parameters" not in params
    assert json.dumps(params, default=str)
