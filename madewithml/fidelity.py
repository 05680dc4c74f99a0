"""The gate an engine must pass before it may answer: does it still give the model's own answers?

Four questions, each with its limit: the label of fp32 torch on at least 99.5 % of held-out rows; no probability more
than 0.02 away; no more than that whatever else is in the batch; every certificate still holding when it is counted
again with this engine's logits. Pure functions of logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from madewithml import calibration, decision

Logits = npt.NDArray[np.float32]

MIN_AGREEMENT = 0.995
MAX_PROBABILITY_CHANGE = 0.02


@dataclass(frozen=True)
class CertifyRows:
    """The rows a certificate was counted on.

    Attributes:
        positions: Where they are among the held-out rows, int [m].
        truth: Index of the true class of each, int [m].
    """

    positions: npt.NDArray[np.int64]
    truth: npt.NDArray[np.int64]


class Fidelity(NamedTuple):
    """How near an engine is to the reference."""

    agreement: float
    max_probability_change: float
    max_batch_change: float


def compare(reference: Logits, own: Logits, *, alone: Mapping[int, Logits], temperature: float) -> Fidelity:
    """Compare an engine's logits with the reference's.

    Args:
        reference: Of fp32 torch, [n, k].
        own: Of the engine, like lengths together, [n, k].
        alone: Of the engine for some of these rows in other company: position -> logits [m, k] of that row.
        temperature: Of the policy: what counts are the probabilities that callers see.
    """
    expected = calibration.softmax(reference, temperature=temperature)
    actual = calibration.softmax(own, temperature=temperature)
    batch_change = max(
        (
            float(np.abs(calibration.softmax(logits, temperature=temperature) - actual[position]).max())
            for position, logits in alone.items()
        ),
        default=0.0,
    )
    return Fidelity(
        agreement=float((expected.argmax(axis=1) == actual.argmax(axis=1)).mean()),
        max_probability_change=float(np.abs(expected - actual).max()),
        max_batch_change=batch_change,
    )


def fault(found: Fidelity) -> str | None:
    """What keeps an engine from serving, in words; None if nothing does."""
    if not found.agreement >= MIN_AGREEMENT:  # NaN fails too
        return f"another label on {1 - found.agreement:.1%} of rows (at most {1 - MIN_AGREEMENT:.1%})"
    if not found.max_probability_change <= MAX_PROBABILITY_CHANGE:
        return f"a probability changes by {found.max_probability_change:.3f} (at most {MAX_PROBABILITY_CHANGE:g})"
    if not found.max_batch_change <= MAX_PROBABILITY_CHANGE:
        return f"an answer changes by {found.max_batch_change:.3f} with its batch (at most {MAX_PROBABILITY_CHANGE:g})"
    return None


def certificate_fault(policy: decision.DecisionPolicy, own: Logits, rows: CertifyRows | None) -> str | None:
    """Which certificate of the policy does not hold with an engine's logits, in words; None if all do.

    Args:
        policy: With its certificates, if it has any.
        own: The engine's logits of the held-out rows [n, k].
        rows: What the certificates were counted on; None if those rows are not at hand.
    """
    levels = list(_certified(policy))
    if not levels:
        return None
    if rows is None:
        return "its certificate cannot be counted again: give the rows it rests on with --dataset-loc"
    from madewithml import risk_control  # late: scipy.stats, which the serving process does not need

    probabilities = calibration.softmax(own[rows.positions], temperature=policy.temperature)
    label, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    for level, of_class in levels:
        accepted = (confidence >= level["threshold"]) & ((label == of_class) if of_class is not None else True)
        num_errors = int((label != rows.truth)[accepted].sum())
        delta = 1.0 - level["confidence_level"]
        bound = risk_control.risk_upper_bound(num_errors, int(accepted.sum()), delta)
        if bound > level["max_risk"] * (1 + 1e-9):
            return f"the certificate of max_risk {level['max_risk']:g} does not hold: its risk may be {bound:.3f}"
    return None


def _certified(policy: decision.DecisionPolicy) -> Iterator[tuple[Mapping[str, Any], int | None]]:
    """Every certified level, with the class it is for or None for all."""
    document = policy.certificates or {}
    for level in document.get("levels", ()):
        if level["status"] == "certified":
            yield level, None
    for index, level in enumerate(document.get("per_class") or ()):
        if level["status"] == "certified":
            yield level, index
