"""Evaluation of a predictor on labelled rows: overall, per class, per slice, calibration.

labelled rows -> Predictor.predict_proba -> metrics.classification_metrics, slice_metrics -> one document
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from madewithml import config, data, metrics, predict, runs

logger = logging.getLogger(__name__)


def evaluate(
    predictor: predict.Predictor,
    rows: data.LabelledText,
    *,
    run_id: str,
    dataset: str,
    slices: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Evaluate a predictor.

    Args:
        predictor: What is evaluated; its labels count, not whether an answer was let through.
        rows: Labelled rows.
        run_id: Named in the result.
        dataset: Named in the result.
        slices: Extra slices, name to regular expression over the text.

    Returns:
        The document of `madewithml evaluate`: `run_id`, `dataset`, `overall`, `per_class`, `slices`,
        `confusion_matrix`, `notes`.

    Raises:
        InputError: A label is not one the model knows, or a slice's expression is bad.
    """
    data.require_known_labels(rows.labels, predictor.classes, dataset=dataset)
    probabilities = predictor.predict_proba(rows.rows)
    predicted = [predictor.classes[i] for i in probabilities.argmax(axis=1)]
    masks = metrics.slice_masks(rows.texts, slices)
    return {
        "run_id": run_id,
        "dataset": dataset,
        **metrics.classification_metrics(rows.labels, predicted, probabilities, predictor.classes),
        "slices": metrics.slice_metrics(rows.labels, predicted, predictor.classes, masks),
        "notes": rows.notes,
    }


def evaluate_run(
    run_id: str, dataset_loc: str, settings: config.Settings, *, label_field: str = "tag"
) -> dict[str, Any]:
    """Evaluate a run's best checkpoint on a file and log the result to the run; see `evaluate`."""
    store = runs.connect(settings)
    predictor = predict.TorchPredictor.from_checkpoint(store.best_checkpoint(run_id))
    rows = data.read_labelled(
        dataset_loc, text_fields=predictor.checkpoint.metadata.text_fields, label_field=label_field
    )
    document = evaluate(predictor, rows, run_id=run_id, dataset=dataset_loc, slices=settings.slices)
    store.log_json(run_id, document, f"evaluation/{Path(dataset_loc).stem}.json")
    store.log_metrics(run_id, {f"eval_{k}": v for k, v in document["overall"].items() if isinstance(v, (int, float))})
    return document
