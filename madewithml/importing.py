"""Import: a classifier that was trained elsewhere becomes a run like any other.

    Transformers folder (+ labels, + labelled rows) -> checkpoint -> MLflow run

The weights are rewritten as safetensors (a `.bin` is read with weights-only loading), the texts reach the model just
as plain Transformers would feed them, and rows of `dataset_loc` are recorded for calibration and test.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from madewithml import checkpoint, config, data, decision, encoders, errors, models, packing, runs

SHARES = {"calibration": 2 / 3, "test": 1 / 3}


@dataclass(frozen=True)
class ImportOptions:
    """What an import is asked to do.

    Attributes:
        source: Transformers sequence-classification folder.
        experiment_name: MLflow experiment.
        text_fields: Columns whose texts are the input.
        labels: Class names in the order of the logits; None takes the folder's `id2label`.
        dataset_loc: Labelled rows the model was not fitted on; None if there are none.
        label_field: Column with the label.
        abstain_label: Prediction of an abstained answer.
        seed: Of the split into calibration and test rows.
    """

    source: Path
    experiment_name: str
    text_fields: tuple[str, ...] = ("title", "description")
    labels: tuple[str, ...] | None = None
    dataset_loc: str | None = None
    label_field: str = "tag"
    abstain_label: str = decision.ABSTAIN_LABEL
    seed: int = 0


def import_folder(options: ImportOptions, settings: config.Settings) -> str:
    """Import a classifier; returns the run id.

    Raises:
        InputError: The folder holds no usable classifier, its labels are unnamed, or the rows do not fit.
    """
    labels = _labels(options)
    rows = _rows(options, labels)
    store = runs.connect(settings)
    params = {"source": options.source.name, "labels": ",".join(labels), "dataset_loc": options.dataset_loc}
    with (
        tempfile.TemporaryDirectory() as scratch,
        store.new_run(options.experiment_name, params=params, tags={"madewithml.kind": "import"}) as run_id,
    ):
        folder = Path(scratch) / runs.MODEL_NAME
        folder.mkdir()
        metadata = _convert(options, labels, folder)
        packing.finish(folder, metadata, rows.texts if rows else [])
        if rows:
            store.log_splits(run_id, rows, data.split(rows.labels, shares=SHARES, seed=options.seed))
        store.log_checkpoint(run_id, folder, val_loss=None)
    return run_id


def _labels(options: ImportOptions) -> list[str]:
    config_file = options.source / "config.json"
    if not config_file.is_file():
        msg = (
            f"{str(options.source)!r} has no config.json: --from expects a Transformers sequence-classification folder"
        )
        raise errors.InputError(msg)
    try:
        found = json.loads(config_file.read_text(encoding="utf-8")).get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        named = [str(found[key]) for key in sorted(found, key=int)]
    except (ValueError, TypeError, AttributeError, LookupError) as err:
        msg = f"{str(config_file)!r} is no model configuration with id2label (index to name): {err}"
        raise errors.InputError(msg) from err
    labels = list(options.labels) if options.labels else named
    if len(labels) != len(found):
        raise errors.InputError(f"--labels names {len(labels)} classes, the model has {len(found)}")
    if len(set(labels)) != len(labels):
        raise errors.InputError(f"--labels repeats a class: {', '.join(labels)}")
    if not options.labels and all(label.startswith("LABEL_") for label in labels):
        raise errors.InputError(
            f"the model's {len(labels)} classes have no names (id2label): give --labels a,b,c in index order"
        )
    return labels


def _rows(options: ImportOptions, labels: list[str]) -> data.LabelledText | None:
    if options.dataset_loc is None:
        return None
    rows = data.read_labelled(options.dataset_loc, text_fields=options.text_fields, label_field=options.label_field)
    data.require_known_labels(rows.labels, labels, dataset=options.dataset_loc)
    return rows


def _convert(options: ImportOptions, labels: list[str], folder: Path) -> checkpoint.Metadata:
    model = models.from_folder(options.source)
    settings = cast("Any", model).config
    settings.id2label = dict(enumerate(labels))
    settings.label2id = {label: i for i, label in enumerate(labels)}
    models.save(model, folder)
    models.save_tokenizer(options.source, folder)
    return checkpoint.Metadata(
        labels=labels,
        text_fields=list(options.text_fields),
        max_length=models.max_length(options.source),
        pad_id=models.pad_id(options.source),
        abstain_label=options.abstain_label,
        encoder={"name": options.source.name, "sha256": encoders.file_sha256(folder / "model.safetensors")},
        data_sha256=None,
        libraries=packing.library_versions(),
    )
