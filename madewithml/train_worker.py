"""The work of one training worker: fits from one start, their average, and the best of these as a checkpoint.

    start -> epochs ... -> best epoch, once a fit -> averaging.Soup -> validated -> the best -> Ray Train

Every worker does the same on its share of every batch; the first one speaks for all.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madewithml import averaging, encoders, errors, fitting, models


@dataclass(frozen=True)
class Job:
    """What every worker is given.

    Attributes:
        encoder: Name and SHA-256 of the encoder.
        labels: The classes in index order.
        train: Rows to fit on.
        validation: Rows that choose the epoch, and between the best fit and the average.
        pad_id: Token that fills short rows.
        parameters: What governs fitting.
    """

    encoder: dict[str, str]
    labels: list[str]
    train: fitting.Examples
    validation: fitting.Examples
    pad_id: int
    parameters: fitting.Hyperparameters


def work(assignment: dict[str, Any]) -> None:
    """The work of one training worker: fits from one start, their average, and a checkpoint of the best of these.

    Args:
        assignment: `job`, the `queue` to report progress to, and the `threads` this worker may use.
    """
    import ray.train.torch

    job, parameters = assignment["job"], assignment["job"].parameters
    model = _prepared_model(job, threads=assignment["threads"])
    wrapped = ray.train.torch.prepare_model(model)
    soup = averaging.Soup(model)
    best, train_losses = None, []
    for number in range(parameters.num_fits):
        soup.restart(model)
        fitted = _fit_once(job, model, wrapped, epochs_before=number * parameters.num_epochs, queue=assignment["queue"])
        if fitted is None:
            continue
        soup.add(fitted.model)
        train_losses.append(fitted.metrics["train_loss"])
        if best is None or fitted.validation.loss < best.validation.loss:
            best = fitted
    if best is None:
        _report({}, None)
        return
    if parameters.num_fits > 1:
        soup.pour(model)
        epoch = parameters.num_fits * parameters.num_epochs + 1
        averaged = _validated(job, model, epoch=epoch, train_loss=sum(train_losses) / len(train_losses))
        _say(assignment["queue"], dict(averaged.metrics))
        best = averaged if averaged.validation.is_no_worse_than(best.validation) else best
    _report(best.metrics, best.model)


@dataclass
class _Candidate:
    """A model that may become the checkpoint, and how it did on the validation rows."""

    model: Any
    validation: fitting.Validation
    metrics: dict[str, float]


def _validated(job: Job, model: Any, *, epoch: int, train_loss: float) -> _Candidate:
    validation = fitting.eval_step(model, job.validation, pad_id=job.pad_id)
    metrics = {
        "epoch": epoch,
        "train_loss": train_loss,
        "val_loss": validation.loss,
        "val_accuracy": validation.accuracy,
    }
    return _Candidate(model, validation, metrics)


def _fit_once(job: Job, model: Any, wrapped: Any, *, epochs_before: int, queue: Any) -> _Candidate | None:
    """Epochs, validation, early stopping; the model of the best epoch, if the loss was a number in any.

    Args:
        job: What to fit on and how.
        model: With the weights to start from.
        wrapped: The same as Ray Train has prepared it.
        epochs_before: Of earlier fits: no two epochs have the rows in the same order.
        queue: To report progress to.
    """
    import ray.train

    context = ray.train.get_context()
    world, parameters = context.get_world_size(), job.parameters
    share = fitting.Share(context.get_world_rank(), world, batch_size=parameters.batch_size, num_rows=len(job.train))
    optimizer, schedule = fitting.make_optimizer(
        model, models.head_parameters(model), parameters, total_steps=share.steps * parameters.num_epochs
    )
    average = averaging.running_average(model, decay=parameters.average_decay)
    stopping = fitting.EarlyStopping(parameters.patience)
    weights = fitting.balanced_weights(job.train.labels, len(job.labels)) if parameters.class_weights else None
    best = None
    for epoch in range(epochs_before + 1, epochs_before + parameters.num_epochs + 1):
        losses = []
        for batch in share.batches(job.train, pad_id=job.pad_id, seed=parameters.seed, epoch=epoch):
            losses.append(fitting.train_step(wrapped, optimizer, batch, weights))
            schedule.step()
            average.update_parameters(model)
            _say(queue, {"rows": len(batch[2]) * world})
        found = _validated(job, average.module, epoch=epoch, train_loss=sum(losses) / len(losses))
        _say(queue, dict(found.metrics))
        if stopping.keeps(found.validation):
            best = dataclasses.replace(found, model=copy.deepcopy(average.module))
        if stopping.should_stop:
            break
    return best


def _say(queue: Any, event: dict[str, Any]) -> None:
    """Tell the driver, if this is the worker that speaks for all."""
    import ray.train

    if ray.train.get_context().get_world_rank() == 0:
        queue.put(event)


def _prepared_model(job: Job, *, threads: int) -> Any:
    """A fresh classifier, the same in every worker."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(job.parameters.seed)
    torch.use_deterministic_algorithms(mode=True)
    encoder = encoders.find(job.encoder["name"])
    if encoder.sha256 != job.encoder["sha256"]:
        msg = f"encoder {encoder.name!r} differs between machines of the cluster"
        raise errors.InputError(msg)
    model = models.from_encoder(encoder, job.labels)
    if job.parameters.freeze_embeddings:
        models.freeze_embeddings(model)
    last = models.classifier_layer(model, len(job.labels))
    if last is not None:
        fitting.start_head(model, last, job.train, job.parameters, job.pad_id)
    return model


def _report(metrics: dict[str, float], model: Any) -> None:
    """Report to Ray Train, with a checkpoint if there is a model and this is the worker that speaks for all."""
    import ray.train

    if model is None or ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        models.save(model, Path(folder))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
