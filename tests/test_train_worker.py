from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from madewithml import errors, fitting, models, train_worker


def test_another_encoder_on_another_machine_is_refused(job: train_worker.Job) -> None:
    job.encoder["sha256"] = "0" * 64
    with pytest.raises(errors.InputError, match=r"encoder '.*/tiny' differs between machines of the cluster"):
        in_a_worker(lambda: train_worker._prepared_model(job, threads=1))


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


def fitted(job: train_worker.Job, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Fitted:
    """Let a worker of this process do the job, with other parameters."""
    reported = []
    monkeypatch.setattr(train_worker, "_report", lambda metrics, model: reported.append((metrics, model)))
    changed = dataclasses.replace(job, parameters=dataclasses.replace(job.parameters, **changes))
    events: list[dict[str, Any]] = []
    queue = SimpleNamespace(put=events.append)
    in_a_worker(lambda: train_worker.work({"job": changed, "queue": queue, "threads": 1}))
    rows = [event["rows"] for event in events if "rows" in event]
    seen = [event for event in events if "rows" not in event]
    assert sum(rows) == len(job.train) * sum(metrics["epoch"] <= epochs(changed) for metrics in seen)
    ((metrics, model),) = reported
    return Fitted(seen, metrics, model)


def epochs(job: train_worker.Job) -> int:
    return job.parameters.num_fits * job.parameters.num_epochs


def validation_loss(job: train_worker.Job, model: Any) -> float:
    return fitting.eval_step(model, job.validation, pad_id=job.pad_id).loss


def test_the_best_epoch_is_kept(job: train_worker.Job, ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fitted(job, monkeypatch, num_epochs=4, patience=9, learning_rate=0.03)
    assert [metrics["epoch"] for metrics in found.seen] == [1, 2, 3, 4]
    assert found.metrics in found.seen
    assert validation_loss(job, found.model) == pytest.approx(found.metrics["val_loss"], abs=1e-6)


def test_only_an_epoch_that_early_stopping_keeps_is_the_best(
    job: train_worker.Job, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([True, False, True, False])
    monkeypatch.setattr(fitting.EarlyStopping, "keeps", lambda _self, _validation: next(answers))
    found = fitted(job, monkeypatch, num_epochs=4, patience=9)
    assert found.metrics == found.seen[2]
    assert validation_loss(job, found.model) == pytest.approx(found.metrics["val_loss"], abs=1e-6)


def test_training_stops_when_the_validation_loss_no_longer_falls(
    job: train_worker.Job, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fitted(job, monkeypatch, num_epochs=9, patience=1, learning_rate=float("nan"), class_weights=True)
    assert [metrics["epoch"] for metrics in found.seen] == [1]
    assert (found.metrics, found.model) == ({}, None)


def test_the_average_of_the_fits_is_validated_last_and_kept_unless_it_is_worse(
    job: train_worker.Job, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fitted(job, monkeypatch, num_epochs=1, num_fits=3)
    assert [metrics["epoch"] for metrics in found.seen] == [1, 2, 3, 4]
    assert found.metrics == found.seen[-1]
    assert found.metrics["train_loss"] == pytest.approx(np.mean([m["train_loss"] for m in found.seen[:3]]))
    assert validation_loss(job, found.model) == pytest.approx(found.metrics["val_loss"], abs=1e-6)


def test_a_worse_average_leaves_the_best_fit(
    job: train_worker.Job, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting.Validation, "is_no_worse_than", lambda _self, _other: False)
    found = fitted(job, monkeypatch, num_epochs=1, num_fits=2)
    assert found.metrics["val_loss"] == min(found.losses()[:2])
    assert validation_loss(job, found.model) == pytest.approx(found.metrics["val_loss"], abs=1e-6)


def test_each_fit_starts_at_the_same_weights_and_has_its_own_order(
    job: train_worker.Job, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []
    once = train_worker._fit_once

    def watched(job: train_worker.Job, model: Any, wrapped: Any, *, epochs_before: int, queue: Any) -> Any:
        starts.append([weights.clone() for weights in model.parameters()])
        return once(job, model, wrapped, epochs_before=epochs_before, queue=queue)

    monkeypatch.setattr(train_worker, "_fit_once", watched)
    found = fitted(job, monkeypatch, num_epochs=1, num_fits=2)
    assert all(bool((one == other).all()) for one, other in zip(*starts, strict=True))
    assert found.losses()[0] != found.losses()[1]


def test_a_model_that_is_reported_is_saved_and_leaves_no_folder(
    job: train_worker.Job, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr(models, "save", lambda model, folder: saved.append((model, folder)))
    results = [
        in_a_worker(lambda given=given: train_worker._report({"val_loss": 0.5}, given)) for given in (None, "model")
    ]
    assert [result.metrics for result in results] == [{"val_loss": 0.5}] * 2
    assert [model for model, _ in saved] == ["model"]
    assert not saved[0][1].exists()
