"""The decision: logits to calibrated probabilities to a label, and whether the answer is let through.

    logits [n, k] -> softmax(z / T) -> label, confidence -> accepted or abstained, reason -> prediction

Pure and vectorised; no model rule lives anywhere else. A `DecisionPolicy` says how to decide, `Decisions` holds what
was decided for n rows, and `answers` gives one dictionary per row as callers see it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from madewithml import calibration, errors

Floats = npt.NDArray[np.float64]
Source = Literal["certificate", "operator", "default", "caller"]

DEFAULT_THRESHOLD = 0.9
ABSTAIN_LABEL = "other"
LOW_CONFIDENCE = "low_confidence"
SMALL_MARGIN = "small_margin"
NOT_CERTIFIED = "not_certified"


@dataclass(frozen=True)
class Decisions:
    """What was decided for n rows.

    Attributes:
        probabilities: Calibrated probabilities, float64 [n, k].
        label: Index of the most probable class, int [n].
        confidence: Its probability, float64 [n].
        threshold: The threshold that applied, float64 [n].
        accepted: Whether the answer is let through, bool [n].
    """

    probabilities: Floats
    label: npt.NDArray[np.intp]
    confidence: Floats
    threshold: Floats
    accepted: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DecisionPolicy:
    """How to decide.

    Attributes:
        threshold: Confidence below which an answer abstains; at the threshold it is accepted.
        temperature: Divides the logits before the softmax (Guo et al. 2017).
        source: Where the threshold comes from.
        abstain_label: The prediction of an abstained answer.
        class_thresholds: Thresholds that replace `threshold` for answers of that label; None: such an answer always
            abstains, since nothing could be certified for the label.
        min_margin: Smallest allowed difference between the two highest probabilities.
        candidate_quantile: Conformal score quantile; abstained answers then name the classes it keeps.
        candidate_coverage: Share of inputs whose true class is promised to be among the candidates.
        certificates: What the threshold rests on, as `certify` wrote it.
    """

    threshold: float = DEFAULT_THRESHOLD
    temperature: float = 1.0
    source: Source = "default"
    abstain_label: str = ABSTAIN_LABEL
    class_thresholds: Mapping[str, float | None] = field(default_factory=dict)
    min_margin: float = 0.0
    candidate_quantile: float | None = None
    candidate_coverage: float | None = None
    certificates: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        by_class = [(name, value) for name, value in self.class_thresholds.items() if value is not None]
        for name, value in (("threshold", self.threshold), ("min_margin", self.min_margin), *by_class):
            if not 0.0 <= value <= 1.0:
                raise errors.InputError(f"{name} is {value!r}: expected a number from 0 to 1")
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise errors.InputError(f"temperature is {self.temperature!r}: expected a finite number above 0")

    def with_threshold(self, threshold: float, *, source: Source) -> DecisionPolicy:
        """The same policy with one global threshold from another source."""
        return dataclasses.replace(self, threshold=threshold, source=source, class_thresholds={}, min_margin=0.0)

    @property
    def certified_levels(self) -> dict[float, float]:
        """Threshold of each level of risk that is certified."""
        levels = (self.certificates or {}).get("levels", ())
        return {level["max_risk"]: level["threshold"] for level in levels if level["status"] == "certified"}

    def at_risk(self, max_risk: float) -> DecisionPolicy:
        """The same policy at the certified threshold of one level of its ladder.

        Raises:
            InputError: That level is not certified; lists those that are.
        """
        certified = self.certified_levels
        if max_risk not in certified:
            there_are = ", ".join(f"{level:g}" for level in certified) or "none"
            msg = f"max_risk {max_risk:g} is not certified for this model; certified levels: {there_are}"
            raise errors.InputError(msg)
        return self.with_threshold(certified[max_risk], source="certificate")

    def decide(self, logits: npt.NDArray[np.floating[Any]], labels: Sequence[str]) -> Decisions:
        """Decide on n rows.

        Args:
            logits: Raw scores [n, k].
            labels: Class names in index order, length k.

        Raises:
            InputError: A logit is NaN or infinite.
        """
        if not np.isfinite(logits).all():
            raise errors.InputError("the model gave NaN or infinite logits: its weights are damaged")
        probabilities = calibration.softmax(logits, temperature=self.temperature)
        label = probabilities.argmax(axis=1)
        confidence = probabilities[np.arange(len(label)), label]
        threshold = self._thresholds(label, labels)
        accepted = confidence >= threshold
        if self.min_margin and probabilities.shape[1] > 1:
            two_best = np.partition(probabilities, -2, axis=1)[:, -2:]
            accepted &= two_best[:, 1] - two_best[:, 0] >= self.min_margin
        return Decisions(probabilities, label, confidence, threshold, accepted)

    def _thresholds(self, label: npt.NDArray[np.intp], labels: Sequence[str]) -> Floats:
        if not self.class_thresholds:
            return np.full(len(label), self.threshold)
        chosen = (self.class_thresholds.get(name, self.threshold) for name in labels)
        by_class = np.array([np.inf if value is None else value for value in chosen])
        return by_class[label]

    def answers(self, decisions: Decisions, labels: Sequence[str]) -> list[dict[str, Any]]:
        """One dictionary per row, as callers see it: plain strings, floats and None."""
        columns = zip(
            decisions.probabilities.tolist(),
            decisions.label.tolist(),
            decisions.confidence.tolist(),
            decisions.threshold.tolist(),
            decisions.accepted.tolist(),
            strict=True,
        )
        answers = []
        for probabilities, label, confidence, threshold, accepted in columns:
            answer = {
                "prediction": labels[label] if accepted else self.abstain_label,
                "probabilities": dict(zip(labels, probabilities, strict=True)),
                "label": labels[label],
                "confidence": confidence,
                "decision": "accepted" if accepted else "abstained",
                "reason": None if accepted else _reason(confidence, threshold),
                "threshold": threshold if threshold <= 1.0 else None,
                "source": self.source,
            }
            if not accepted and self.candidate_quantile is not None:
                answer["candidates"] = self._candidates(probabilities, labels)
            answers.append(answer)
        return answers

    def _candidates(self, probabilities: Sequence[float], labels: Sequence[str]) -> list[str]:
        """The classes of the conformal set, most probable first; never none."""
        # The score as `calibration.candidate_sets` writes it: `p >= 1 - quantile` would round the other way.
        scores = sorted((1.0 - probability, name) for probability, name in zip(probabilities, labels, strict=True))
        return [name for score, name in scores if score <= (self.candidate_quantile or 0.0)] or [scores[0][1]]

    def to_dict(self) -> dict[str, Any]:
        """The policy as JSON values, for `decision.json` and `GET /policy`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DecisionPolicy:
        """The inverse of `to_dict`.

        Raises:
            InputError: A key is unknown or a value cannot be used.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise errors.InputError(
                f"unknown key {unknown[0]!r} in a decision policy; known: {', '.join(sorted(known))}"
            )
        try:
            return cls(**values)
        except (TypeError, AttributeError) as err:
            raise errors.InputError(f"a value in the decision policy has the wrong type: {err}") from err


def _reason(confidence: float, threshold: float) -> str:
    if threshold > 1.0:
        return NOT_CERTIFIED
    return LOW_CONFIDENCE if confidence < threshold else SMALL_MARGIN
