"""Training: a labelled file becomes an MLflow run with a checkpoint.

    file -> data.read_labelled -> data.split -> tokens -> Ray Train workers (`fit`) -> checkpoint -> MLflow

The same path serves one worker on a laptop and many on a cluster: Ray Train's `TorchTrainer` starts the workers, each
takes its share of every batch, and the best by validation loss, usually the average of several fits
(`averaging.Soup`), becomes the checkpoint. The driver, which is the person's own process, owns the terminal and
MLflow; workers report to it through a Ray queue.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from madewithml import (
    averaging,
    checkpoint,
    cluster,
    config,
    data,
    decision,
    encoders,
    errors,
    fitting,
    models,
    packing,
    runs,
    tokenization,
)
from madewithml import progress as progress_

DEFAULT_MAX_LENGTH = 256


@dataclass(frozen=True)
class TrainOptions:
    """What a training run is asked to do.

    Attributes:
        dataset_loc: Path or URL of the labelled file.
        experiment_name: MLflow experiment.
        text_fields: Columns whose texts are the input.
        label_field: Column with the label.
        encoder: Pretrained encoder: a folder or a Hugging Face id.
        abstain_label: Prediction of an abstained answer.
        max_length: Tokens a text is cut to, special tokens included.
        num_workers: Ray Train workers.
        shares: Share of the rows in each split.
        parameters: What governs fitting.
    """

    dataset_loc: str
    experiment_name: str
    text_fields: tuple[str, ...] = ("title", "description")
    label_field: str = "tag"
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    abstain_label: str = decision.ABSTAIN_LABEL
    max_length: int = DEFAULT_MAX_LENGTH
    num_workers: int = 1
    shares: Mapping[str, float] = field(default_factory=lambda: dict(data.DEFAULT_SHARES))
    parameters: fitting.Hyperparameters = field(default_factory=fitting.Hyperparameters)


@dataclass(frozen=True)
class TrainResult:
    """What came of it: run id, metrics of the best epoch, and the checkpoint's folder."""

    run_id: str
    metrics: dict[str, float]
    checkpoint: Path


class LogEpoch(Protocol):
    """Where the metrics of an epoch go."""

    def __call__(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log them."""
        ...


def train(options: TrainOptions, settings: config.Settings) -> TrainResult:
    """Train a classifier and log it as an MLflow run.

    Raises:
        InputError: The file or a class in it cannot be used.
        NotFoundError: The encoder or the tracking server cannot be reached.
    """
    rows = data.read_labelled(options.dataset_loc, text_fields=options.text_fields, label_field=options.label_field)
    labels = check_classes(rows.labels)
    parts = data.split(rows.labels, shares=options.shares, seed=options.parameters.seed)
    encoder = encoders.find(options.encoder)
    metadata = _metadata(options, encoder, labels, rows)
    store = runs.connect(settings)
    params, tags = _params(options, rows), {"madewithml.kind": "train"}
    with (
        tempfile.TemporaryDirectory() as scratch,
        store.new_run(options.experiment_name, params=params, tags=tags) as run_id,
    ):
        store.log_splits(run_id, rows, parts)
        folder = Path(scratch) / runs.MODEL_NAME
        folder.mkdir()
        models.save_tokenizer(encoder.folder, folder)
        job = _job(folder, metadata, rows, parts, options.parameters)
        with cluster.session():
            metrics = _run_workers(job, options.num_workers, folder, partial(store.log_metrics, run_id))
        packing.finish(folder, metadata, [rows.texts[i] for i in parts["validation"]])
        step = int(metrics["epoch"])
        store.log_checkpoint(run_id, folder, val_loss=metrics["val_loss"], step=step)
        store.log_metrics(run_id, metrics, step=step)
    return TrainResult(run_id, metrics, store.best_checkpoint(run_id))


def check_classes(labels: Sequence[str]) -> list[str]:
    """The classes in index order (sorted).

    Raises:
        InputError: There is only one.
    """
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise errors.InputError(f"all rows have the label {classes[0]!r}: a classifier needs at least two classes")
    return classes


def _params(options: TrainOptions, rows: data.LabelledText) -> dict[str, Any]:
    values = dataclasses.asdict(options)
    parameters = values.pop("parameters")
    values["text_fields"] = ",".join(options.text_fields)
    return {**values, **parameters, "data_sha256": rows.sha256, "num_rows": len(rows)}


def _metadata(
    options: TrainOptions, encoder: encoders.Encoder, labels: list[str], rows: data.LabelledText
) -> checkpoint.Metadata:
    return checkpoint.Metadata(
        labels=labels,
        text_fields=list(options.text_fields),
        max_length=min(options.max_length, models.max_length(encoder.folder)),
        pad_id=models.pad_id(encoder.folder),
        abstain_label=options.abstain_label,
        encoder={"name": encoder.name, "sha256": encoder.sha256},
        data_sha256=rows.sha256,
        libraries=packing.library_versions(),
    )


@dataclass(frozen=True)
class _Job:
    """What every worker is given."""

    encoder: dict[str, str]
    labels: list[str]
    train: fitting.Examples
    validation: fitting.Examples
    pad_id: int
    parameters: fitting.Hyperparameters


def _job(
    folder: Path,
    metadata: checkpoint.Metadata,
    rows: data.LabelledText,
    parts: Mapping[str, Sequence[int]],
    parameters: fitting.Hyperparameters,
) -> _Job:
    """Tokenise the rows to fit and to validate on, with the tokenizer in `folder`."""
    tokenizer = tokenization.Tokenizer.from_file(
        folder / "tokenizer.json", max_length=metadata.max_length, pad_id=metadata.pad_id
    )
    index = {label: i for i, label in enumerate(metadata.labels)}

    def examples(part: str) -> fitting.Examples:
        tokens = tokenizer.encode([rows.texts[i] for i in parts[part]])
        return fitting.Examples([t.ids for t in tokens], [index[rows.labels[i]] for i in parts[part]])

    fitted, validated = examples("train"), examples("validation")
    return _Job(metadata.encoder, metadata.labels, fitted, validated, metadata.pad_id, parameters)


def _run_workers(job: _Job, num_workers: int, folder: Path, log_epoch: LogEpoch) -> dict[str, float]:
    """Run the workers; leaves the best model in `folder` and returns its metrics."""
    import ray
    import ray.train
    import ray.train.torch
    import ray.util.queue

    cores = max(1, int(ray.cluster_resources().get("CPU", 1)) // num_workers)
    queue = ray.util.queue.Queue(actor_options={"num_cpus": 0})
    reader = threading.Thread(target=_relay, args=(queue, job, log_epoch), daemon=True)
    reader.start()
    with tempfile.TemporaryDirectory() as storage:
        trainer = ray.train.torch.TorchTrainer(
            fit,
            train_loop_config={"job": job, "queue": queue, "threads": cores},
            scaling_config=ray.train.ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": cores}),
            run_config=ray.train.RunConfig(storage_path=storage, name="train"),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as err:
            msg = f"training failed in a worker: {_last_line(err)}"
            raise errors.InputError(msg) from err
        finally:
            queue.put(None)
            reader.join(timeout=30)
        best, metrics = _best(result)
        best.to_directory(str(folder))
    return {name: float(metrics[name]) for name in ("epoch", "train_loss", "val_loss", "val_accuracy")}


def _best(result: Any) -> tuple[Any, dict[str, Any]]:
    """The checkpoint and its metrics, of a result of Ray Train."""
    if not result.best_checkpoints:
        msg = "training failed: the validation loss was not a number in any epoch, so the learning rate is too high"
        raise errors.InputError(msg)
    best: tuple[Any, dict[str, Any]] = result.best_checkpoints[0]
    return best


def _relay(queue: Any, job: _Job, log_epoch: LogEpoch) -> None:
    """Turn what the workers report into progress and MLflow metrics, in the driver."""
    epochs = job.parameters.num_fits * job.parameters.num_epochs
    with progress_.track("training", total=epochs * len(job.train)) as bar:
        while (event := queue.get()) is not None:
            if "rows" in event:
                bar.advance(event["rows"])
                continue
            epoch = int(event.pop("epoch"))
            log_epoch(event, step=epoch)
            what = f"epoch {epoch}" if epoch <= epochs else "average"
            bar.advance(0, f"{what}: val_loss {event['val_loss']:.3f}, accuracy {event['val_accuracy']:.3f}")


def _last_line(err: BaseException) -> str:
    lines = [line for line in str(err).splitlines() if line.strip()]
    return lines[-1] if lines else type(err).__name__


def fit(assignment: dict[str, Any]) -> None:
    """The work of one training worker: fits from one start, their average, and a checkpoint of the best of these.

    Args:
        assignment: `job`, the `queue` to report progress to, and the `threads` this worker may use.
    """
    import ray.train.torch

    job: _Job = assignment["job"]
    parameters = job.parameters
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
    if parameters.num_fits > 1 or parameters.start_share > 0:
        soup.pour(model, start_share=parameters.start_share)
        train_loss = sum(train_losses) / len(train_losses)
        averaged = _validated(job, model, epoch=parameters.num_fits * parameters.num_epochs + 1, train_loss=train_loss)
        _say(assignment["queue"], dict(averaged.metrics))
        if averaged.validation.is_no_worse_than(best.validation):
            best = averaged
    _report(best.metrics, best.model)


@dataclass
class _Candidate:
    """A model that may become the checkpoint, and how it did on the validation rows."""

    model: Any
    validation: fitting.Validation
    metrics: dict[str, float]


def _validated(job: _Job, model: Any, *, epoch: int, train_loss: float) -> _Candidate:
    validation = fitting.eval_step(model, job.validation, pad_id=job.pad_id)
    metrics = {
        "epoch": epoch,
        "train_loss": train_loss,
        "val_loss": validation.loss,
        "val_accuracy": validation.accuracy,
    }
    return _Candidate(model, validation, metrics)


def _fit_once(job: _Job, model: Any, wrapped: Any, *, epochs_before: int, queue: Any) -> _Candidate | None:
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


def _prepared_model(job: _Job, *, threads: int) -> Any:
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
    models.freeze_layers(model, share=job.parameters.frozen_layers)
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
