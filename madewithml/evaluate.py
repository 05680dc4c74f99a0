"""Evaluation of a predictor on labelled rows: overall, per class, per slice, calibration, and what a threshold does.

labelled rows -> score -> Scored: logits, true classes, decisions
Scored -> document -> metrics.classification_metrics, slice_metrics, selective figures before and after calibration
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from madewithml import calibration, config, data, decision, metrics, predict, risk_control, runs, selective

# Of the threshold table; the policy's own threshold is always among them.
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class Scored:
    """Labelled rows and what the model made of them.

    Attributes:
        rows: The n rows.
        true: Index of the true class, int64 [n].
        logits: Raw scores, float32 [n, k].
        decisions: What the policy decided.
    """

    rows: data.LabelledText
    true: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    decisions: decision.Decisions

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether the label is the true one, accepted or not, bool [n]."""
        return np.asarray(self.decisions.label == self.true)


def score(predictor: predict.Predictor, rows: data.LabelledText, *, dataset: str) -> Scored:
    """Run the model on labelled rows, once.

    Args:
        predictor: Its policy decides.
        rows: Labelled rows.
        dataset: Named in errors.

    Raises:
        InputError: A label is not one the model knows, or a logit is NaN or infinite.
    """
    data.require_known_labels(rows.labels, predictor.classes, dataset=dataset)
    logits = predictor.text_logits(predictor.texts(rows.rows))
    return Scored(
        rows, predictor.label_indices(rows.labels), logits, predictor.policy.decide(logits, predictor.classes)
    )


def document(
    predictor: predict.Predictor,
    scored: Scored,
    *,
    run_id: str,
    dataset: str,
    slices: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The result of an evaluation, ready for `json.dump`; see `evaluate`.

    Args:
        predictor: What was evaluated.
        scored: What `score` gave for it.
        run_id: Named in the result.
        dataset: Named in the result.
        slices: Extra slices, name to regular expression over the text.

    Raises:
        InputError: A slice's expression is bad.
    """
    classes, rows, decisions = predictor.classes, scored.rows, scored.decisions
    predicted = [classes[index] for index in decisions.label]
    masks = metrics.slice_masks(rows.texts, slices)
    thresholds = sorted({*THRESHOLDS, predictor.policy.threshold})
    return {
        "run_id": run_id,
        "dataset": dataset,
        **metrics.classification_metrics(rows.labels, predicted, decisions.probabilities, classes),
        "slices": metrics.slice_metrics(rows.labels, predicted, classes, masks),
        "selective": {
            "before": selective_figures(scored.logits, scored.true, temperature=1.0),
            "after": selective_figures(scored.logits, scored.true, temperature=predictor.policy.temperature),
        },
        "threshold_table": selective.threshold_table(decisions.confidence, scored.correct, thresholds),
        "policy": policy_figures(predictor.policy, scored),
        "notes": rows.notes,
    }


def selective_figures(
    logits: npt.NDArray[np.floating[Any]], true: npt.NDArray[np.int64], *, temperature: float
) -> dict[str, Any]:
    """How well the confidence at one temperature tells right from wrong.

    Args:
        logits: Raw scores [n, k].
        true: Index of the true class [n].
        temperature: Divides the logits; 1 is the model as it was trained.

    Returns:
        `temperature`, `aurc`, `e_aurc`, `augrc`, `ece`, `log_loss`, `reliability` (bins) and `coverage_at_risk`; see
        `selective` and `metrics` for each.
    """
    probabilities = calibration.softmax(logits, temperature=temperature)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == true
    return {
        "temperature": temperature,
        "aurc": selective.aurc(confidence, correct),
        "e_aurc": selective.e_aurc(confidence, correct),
        "augrc": selective.augrc(confidence, correct),
        "ece": metrics.expected_calibration_error(confidence, correct),
        "log_loss": metrics.log_loss(true, probabilities),
        "reliability": selective.reliability_curve(confidence, correct),
        "coverage_at_risk": selective.coverage_at_risk(confidence, correct),
    }


def policy_figures(policy: decision.DecisionPolicy, scored: Scored) -> dict[str, Any]:
    """What the policy as a whole, with its thresholds per class and its margin, did on these rows.

    Returns:
        `threshold`, `temperature`, `source`, `coverage`, `risk` (None where nothing was accepted), `risk_upper_bound`
        (exact, at confidence 0.95), `num_accepted` and `num_errors`.
    """
    accepted = scored.decisions.accepted
    num_accepted, num_errors = int(accepted.sum()), int((accepted & ~scored.correct).sum())
    return {
        "threshold": policy.threshold,
        "temperature": policy.temperature,
        "source": policy.source,
        "coverage": num_accepted / len(accepted),
        "risk": num_errors / num_accepted if num_accepted else None,
        "risk_upper_bound": risk_control.risk_upper_bound(num_errors, num_accepted, 0.05),
        "num_accepted": num_accepted,
        "num_errors": num_errors,
    }


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
        The document of `madewithml evaluate`: `run_id`, `dataset`, `overall`, `per_class`, `confusion_matrix`,
        `slices`, `selective` ({"before", "after"} calibration, see `selective_figures`), `threshold_table`, `policy`
        (see `policy_figures`), `notes`.

    Raises:
        InputError: A label is not one the model knows, or a slice's expression is bad.
    """
    scored = score(predictor, rows, dataset=dataset)
    return document(predictor, scored, run_id=run_id, dataset=dataset, slices=slices)


def evaluate_run(
    run_id: str, dataset_loc: str, settings: config.Settings, *, label_field: str = "tag"
) -> dict[str, Any]:
    """Evaluate a run's best checkpoint on a file and log the result to the run; see `evaluate`."""
    store = runs.connect(settings)
    predictor = predict.TorchPredictor.from_checkpoint(store.best_checkpoint(run_id))
    rows = data.read_labelled(
        dataset_loc, text_fields=predictor.checkpoint.metadata.text_fields, label_field=label_field
    )
    result = evaluate(predictor, rows, run_id=run_id, dataset=dataset_loc, slices=settings.slices)
    store.log_json(run_id, result, f"evaluation/{Path(dataset_loc).stem}.json")
    store.log_metrics(run_id, {f"eval_{k}": v for k, v in result["overall"].items() if isinstance(v, (int, float))})
    return result
