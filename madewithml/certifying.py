"""Certifying a run: its labelled rows become a certificate in its checkpoint.

    recorded calibration rows, or --dataset-loc -> logits -> certify.certify -> decision policy -> decision.json

The run's own validation rows, which chose its best epoch and so can certify nothing, still serve to tune temperature
and thresholds; every calibration row is then left to certify with. Rows of a file are split into both instead. Rows
that the model was fitted on are found by hash and refused. A refusal never replaces a certificate that is there.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from madewithml import (
    calibration,
    certificate,
    certify,
    checkpoint,
    config,
    data,
    decision,
    errors,
    predict,
    runs,
    texts,
)

logger = logging.getLogger(__name__)

ASSUMPTION = "future inputs are drawn like the rows it was certified on"
DEFAULT_CANDIDATE_COVERAGE = 0.9


@dataclass(frozen=True)
class CertifyOptions:
    """What is to be certified.

    Attributes:
        run_id: The run.
        dataset_loc: Labelled rows the model was not fitted on; None takes the run's own calibration rows.
        label_field: Column with the label, in `dataset_loc`.
        max_risk: Share of errors among the accepted that shall not be exceeded.
        confidence_level: Probability with which that shall hold.
        joint: Whether all levels of the ladder shall hold at once.
        per_class: Whether each label gets a threshold and certificate of its own.
        candidate_coverage: Share of inputs whose true class shall be among an abstained answer's candidates.
    """

    run_id: str
    dataset_loc: str | None = None
    label_field: str = "tag"
    max_risk: float = certify.DEFAULT_MAX_RISK
    confidence_level: float = certify.DEFAULT_CONFIDENCE_LEVEL
    joint: bool = False
    per_class: bool = False
    candidate_coverage: float = DEFAULT_CANDIDATE_COVERAGE


def certify_run(options: CertifyOptions, settings: config.Settings) -> dict[str, Any]:
    """Certify a run's best checkpoint and record the decision policy in it.

    Returns:
        The document of `madewithml certify`: the certification, what it is bound to, and whether it was `recorded`.

    Raises:
        InputError: The rows cannot be used, or the model was fitted on some of them.
        NotFoundError: No such run, or it recorded no calibration rows and no file was given.
    """
    store = runs.connect(settings)
    predictor = predict.TorchPredictor.from_checkpoint(store.best_checkpoint(options.run_id))
    rows, dataset = _rows(options, store, predictor)
    tuning = _tune_rows(options, store)
    both = [tuning, rows] if tuning else [rows]
    truth = predictor.label_indices([label for part in both for label in part.labels])
    logits = predictor.text_logits([text for part in both for text in part.texts])
    tune_mask = np.arange(len(truth)) < len(tuning) if tuning else certify.split_rows(len(truth))
    certification = certify.certify(
        logits,
        truth,
        max_risk=options.max_risk,
        confidence_level=options.confidence_level,
        joint=options.joint,
        per_class=options.per_class,
        tune_rows=tune_mask,
    )
    # From the certify rows alone: the temperature has seen the others.
    held = calibration.softmax(logits[~tune_mask], temperature=certification.temperature)
    quantile = calibration.conformal_quantile(held, truth[~tune_mask], options.candidate_coverage)
    document = {
        "run_id": options.run_id,
        "dataset": dataset,
        **certification.to_dict(),
        "labels": predictor.classes,
        "candidate_coverage": options.candidate_coverage,
        "candidate_quantile": quantile,
        "data_sha256": rows.sha256,
        "weights_sha256": predictor.checkpoint.weights_sha256,
        "date": datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
        "assumption": ASSUMPTION,
    }
    policy = _policy(certification, document, predictor)
    recorded = _record(store, options.run_id, predictor.checkpoint, policy, certification)
    store.log_json(options.run_id, document, "certification.json")
    return {**document, "recorded": recorded}


def _rows(options: CertifyOptions, store: runs.Store, predictor: predict.Predictor) -> tuple[data.LabelledText, str]:
    """The rows to certify on and what to call them."""
    if options.dataset_loc is None:
        return store.recorded_rows(options.run_id, "calibration"), "calibration rows of the run"
    rows = unfitted_rows(options.dataset_loc, predictor, store, options.run_id, label_field=options.label_field)
    return rows, options.dataset_loc


def _tune_rows(options: CertifyOptions, store: runs.Store) -> data.LabelledText | None:
    """The validation rows beside the run's own calibration rows; None where the rows are to be split instead."""
    if options.dataset_loc is not None:
        return None
    try:
        return store.recorded_rows(options.run_id, "validation")
    except errors.NotFoundError:  # an imported run has none
        return None


def certify_mask(document: Mapping[str, Any], num_rows: int) -> npt.NDArray[np.bool_]:
    """Which of the rows that a certification names were its certify rows, bool [num_rows]; the rest tuned."""
    if document["num_certify_rows"] == num_rows:
        return np.ones(num_rows, dtype=bool)
    return ~certify.split_rows(num_rows)


def unfitted_rows(
    dataset_loc: str, predictor: predict.Predictor, store: runs.Store, run_id: str, *, label_field: str
) -> data.LabelledText:
    """The labelled rows of a file, all of labels the model knows, none of which the run was fitted on.

    Raises:
        InputError: The file cannot be used, a label is unknown, or the model was fitted on some rows.
    """
    fields = predictor.checkpoint.metadata.text_fields
    rows = data.read_labelled(dataset_loc, text_fields=fields, label_field=label_field)
    data.require_known_labels(rows.labels, predictor.classes, dataset=dataset_loc)
    refuse_fitted_rows(rows, store, run_id, dataset=dataset_loc)
    return rows


def refuse_fitted_rows(rows: data.LabelledText, store: runs.Store, run_id: str, *, dataset: str) -> None:
    """Check that none of the rows was used in fitting the run (train or validation), by the hash of its text.

    Raises:
        InputError: Some were; says how many and quotes the first.
    """
    recorded = store.recorded_hashes(run_id)
    if recorded is None:
        logger.warning("run %s recorded no training rows: that %s has none of them is taken on trust", run_id, dataset)
        return
    fitted = recorded.get("train", set()) | recorded.get("validation", set())
    if not fitted:
        logger.warning("run %s was imported: that %s has no row it was fitted on is taken on trust", run_id, dataset)
    seen = [text for text in rows.texts if texts.text_sha256(text) in fitted]
    if seen:
        msg = (
            f"{len(seen)} of {len(rows)} rows in {dataset!r} were used in fitting run {run_id} (the first: "
            f"{seen[0][:60]!r}): a certificate on them would promise too much. Leave them out, or leave out "
            "--dataset-loc to use the run's own calibration rows."
        )
        raise errors.InputError(msg)


def _policy(
    certification: certificate.Certification, document: dict[str, Any], predictor: predict.Predictor
) -> decision.DecisionPolicy:
    asked = certification.certificate
    by_class = zip(predictor.classes, certification.per_class, strict=False)  # empty unless asked for
    found = [level.certified for level in (*certification.per_class, asked)]
    return decision.DecisionPolicy(
        threshold=asked.threshold if asked.threshold is not None else decision.DEFAULT_THRESHOLD,
        temperature=certification.temperature,
        source="certificate" if any(found) else "default",
        abstain_label=predictor.checkpoint.metadata.abstain_label,
        class_thresholds={label: level.threshold for label, level in by_class} if any(found) else {},
        candidate_quantile=document["candidate_quantile"],
        candidate_coverage=document["candidate_coverage"],
        certificates=document,
    )


def _record(
    store: runs.Store,
    run_id: str,
    source: checkpoint.Checkpoint,
    policy: decision.DecisionPolicy,
    certification: certificate.Certification,
) -> bool:
    """Write the policy into the run; a refusal leaves a certificate that is there."""
    before = decision.DecisionPolicy.from_dict(source.read_decision() or {})
    if before.source == "certificate" and not certification.certificate.certified:
        logger.warning("refused: run %s keeps the certificate it has", run_id)
        return False
    store.add_to_checkpoint(run_id, source.write_decision(policy.to_dict()))
    return True
