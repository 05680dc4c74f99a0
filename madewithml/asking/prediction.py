"""A typed answer, and how the body of a call becomes some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from madewithml.asking import problems


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer to one row.

    Attributes:
        prediction: The label if the answer is accepted, else the abstain label.
        label: The most probable class.
        confidence: Its calibrated probability, 0 to 1.
        decision: Whether the answer is let through. "I am sure it is other" and "I abstain" differ here alone.
        reason: Why it abstains; None for an accepted answer.
        threshold: The confidence that was asked for; None where no answer of this label is let through.
        probabilities: Calibrated probability by class; they add up to 1.
        truncated: Whether the text was cut to fit the model.
        source: Where the threshold comes from: `certificate`, `operator`, `default` or `caller`.
        candidates: The classes that remain possible, most probable first; None unless a certified model abstains.
        run_id: The run that the answer came from.
        request_id: Names the call that the row went in.
        row: Where the row stood in that call, from 0. A long list goes in several calls, so that `feedback` needs both.
    """

    prediction: str
    label: str
    confidence: float
    decision: Literal["accepted", "abstained"]
    reason: str | None
    threshold: float | None
    probabilities: Mapping[str, float]
    truncated: bool
    source: str
    candidates: tuple[str, ...] | None = None
    run_id: str
    request_id: str
    row: int


def read_predictions(document: Any, *, rows: int) -> list[Prediction]:
    """The answers in the body of one call; keys that are not known are passed over.

    Args:
        document: The body of the service's answer.
        rows: How many rows were sent.

    Raises:
        AnswerError: A key is missing, or there is not one answer per row.
    """
    try:
        results, whole = document["results"], {name: document[name] for name in ("run_id", "request_id")}
        predictions = [_read_prediction(result, row=row, **whole) for row, result in enumerate(results)]
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        told = f"it has no {err}" if isinstance(err, KeyError) else str(err)
        msg = f"the answer is not one of this service: {told}. {problems.WHOSE}"
        raise problems.AnswerError(msg) from err
    if len(predictions) != rows:
        raise problems.AnswerError(f"{rows} rows were sent and {len(predictions)} answers came back")
    return predictions


def _read_prediction(result: Mapping[str, Any], *, row: int, run_id: str, request_id: str) -> Prediction:
    candidates = result.get("candidates")
    return Prediction(
        prediction=result["prediction"],
        label=result["label"],
        confidence=result["confidence"],
        decision=result["decision"],
        reason=result["reason"],
        threshold=result["threshold"],
        probabilities=dict(result["probabilities"]),
        truncated=result["truncated"],
        source=result["source"],
        candidates=None if candidates is None else tuple(candidates),
        run_id=run_id,
        request_id=request_id,
        row=row,
    )
