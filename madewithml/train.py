"""Training: a labelled file becomes an MLflow run with a checkpoint.

    file -> data.read_labelled -> data.split -> tokens -> Ray Train workers (`train_worker`) -> checkpoint -> MLflow

The same path serves one worker on a laptop and many on a cluster: Ray Train's `TorchTrainer` starts the workers, each
takes its share of every batch, and the best by validation loss, usually the average of several fits
(`averaging.Soup`), becomes the checkpoint. The driver, which is the person's own process, owns the terminal and
MLflow; workers report to it through a Ray queue.
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from madewithml import (
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
    train_worker,
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


def _job(
    folder: Path,
    metadata: checkpoint.Metadata,
    rows: data.LabelledText,
    parts: Mapping[str, Sequence[int]],
    parameters: fitting.Hyperparameters,
) -> train_worker.Job:
    """Tokenise the rows to fit and to validate on, with the tokenizer in `folder`."""
    tokenizer = tokenization.Tokenizer.from_file(
        folder / "tokenizer.json", max_length=metadata.max_length, pad_id=metadata.pad_id
    )
    index = {label: i for i, label in enumerate(metadata.labels)}

    def examples(part: str) -> fitting.Examples:
        tokens = tokenizer.encode([rows.texts[i] for i in parts[part]])
        return fitting.Examples([t.ids for t in tokens], [index[rows.labels[i]] for i in parts[part]])

    fitted, validated = examples("train"), examples("validation")
    return train_worker.Job(metadata.encoder, metadata.labels, fitted, validated, metadata.pad_id, parameters)


def _run_workers(job: train_worker.Job, num_workers: int, folder: Path, log_epoch: LogEpoch) -> dict[str, float]:
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
            train_worker.work,
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


def _relay(queue: Any, job: train_worker.Job, log_epoch: LogEpoch) -> None:
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
