"""Populations whose risk at any threshold is known: a generator with known posterior, or a file taken as everything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

NUM_CLASSES = 5


class Truth(NamedTuple):
    """Coverage and risk of a threshold in the population."""

    coverage: float
    risk: float


@dataclass
class Population:
    """Rows that stand for all future inputs.

    Attributes:
        gaps: Each row's logits but the highest, minus the highest, [k - 1, n].
        error: Chance that the highest logit is wrong, or whether it is, [n].
        confidence: Highest probability at `temperature`, [n].
    """

    gaps: np.ndarray
    error: np.ndarray
    confidence: np.ndarray = field(init=False)
    temperature: float = field(default=0.0, init=False)

    @classmethod
    def of(cls, logits: np.ndarray, error: np.ndarray) -> Population:
        """From logits [n, k] and errors [n]."""
        return cls(np.sort(logits - logits.max(axis=1, keepdims=True), axis=1)[:, :-1].T.copy(), error)

    def at(self, temperature: float) -> Population:
        """Itself, with the confidences of that temperature."""
        if temperature != self.temperature:
            self.confidence = 1 / (1 + np.exp(self.gaps / self.gaps.dtype.type(temperature)).sum(axis=0))
            self.temperature = temperature
        return self

    def judge(self, threshold: float) -> Truth:
        """Coverage and risk of accepting what is at least as confident."""
        accepted = self.confidence >= threshold
        share = float(accepted.mean())
        return Truth(share, float(self.error @ accepted) / len(accepted) / share if share else 0.0)

    def oracle(self, max_risk: float) -> float:
        """Largest coverage whose risk is at most `max_risk`."""
        order = np.argsort(-self.confidence)
        risk = np.cumsum(self.error[order]) / np.arange(1, len(order) + 1)
        good = np.flatnonzero(risk <= max_risk)
        return float((good[-1] + 1) / len(order)) if len(good) else 0.0


def draw(rng: np.random.Generator, num_rows: int, separation: float, scores: str) -> tuple[np.ndarray, ...]:
    """Logits [n, k], labels [n] and the true chance [n] that the highest logit is wrong.

    Unit Gaussians around k orthogonal means, whose exact posterior is softmax(separation * x): calibrated logits.
    Over-confident ones are multiplied row by row by exp(N(ln 3, 0.5)): too sure by a factor of 3 on average, and out of
    order, so that no temperature mends them entirely.
    """
    labels = rng.integers(0, NUM_CLASSES, num_rows)
    points = rng.normal(size=(num_rows, NUM_CLASSES))
    points[np.arange(num_rows), labels] += separation
    logits = points * separation
    error = 1 - special.softmax(logits, axis=1).max(axis=1)
    if scores == "over-confident":
        logits = logits * np.exp(rng.normal(np.log(3), 0.5, size=(num_rows, 1)))
    return logits, labels, error


def separation_for(base_error: float) -> float:
    """How far apart the means must be for that share of errors without abstaining."""

    def excess(separation: float) -> float:
        return float(draw(np.random.default_rng(0), 50_000, separation, "calibrated")[2].mean()) - base_error

    return float(optimize.brentq(excess, 0.5, 9, xtol=1e-3))
