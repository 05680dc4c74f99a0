"""Calibrated probabilities and the sets of labels they leave open: temperature scaling and split-conformal sets.

    logits [n, k] -> fit_temperature (on tune rows) -> softmax(logits, temperature=T) -> probabilities [n, k]
    probabilities, labels (of rows the temperature was not fitted on) -> conformal_quantile -> candidate_sets

Pure functions on arrays; nothing is read or written.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from madewithml import errors

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
# The NLL is flat at its minimum: a finer step changes no probability by more than 1e-6.
LOG_TEMPERATURE_TOLERANCE = 1e-7


def softmax(logits: npt.NDArray[np.floating[Any]], *, temperature: float = 1.0) -> Floats:
    """Probabilities from logits z and temperature T: e^(z / T) over its row sum, in float64 whatever the logits are in.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 9. Finite logits never overflow.

    Args:
        logits: Raw scores [n, k], finite.
        temperature: T > 0; above 1 softens, below 1 sharpens. It never changes which class is highest.

    Returns:
        Probabilities, float64 [n, k]; each row sums to 1.
    """
    scores = np.asarray(logits, dtype=np.float64)
    powers = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
    probabilities: Floats = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def fit_temperature(logits: npt.NDArray[np.floating[Any]], labels: npt.ArrayLike) -> float:
    """The temperature that makes the true labels most likely: minimises the mean NLL over T in [0.05, 20].

    Source: Guo et al. 2017 (arXiv 1706.04599), section 4.2. In log T the NLL has one minimum. Where every row is right
    it has none: it falls all the way to T = 0, and following it would turn every confidence into 1 and lose their
    order. Such rows cannot tell how over-confident the model is, so T is then 1.

    Args:
        logits: Raw scores [n, k], finite.
        labels: Index of the true class [n].

    Raises:
        InputError: Shapes that do not fit, NaN or infinite logits, or labels out of range.
    """
    from scipy import optimize  # late: the serving process decides with this module and fits nothing

    scores, truth = checked_rows(logits, labels)
    scores = scores - scores.max(axis=1, keepdims=True)
    true_scores = scores[np.arange(len(truth)), truth]
    if (true_scores == 0).all():
        return 1.0

    def mean_nll(log_temperature: float) -> float:
        beta = math.exp(-log_temperature)
        return float(np.mean(np.log(np.exp(scores * beta).sum(axis=1)) - true_scores * beta))

    found = optimize.minimize_scalar(
        mean_nll,
        bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": LOG_TEMPERATURE_TOLERANCE},
    )
    return float(np.clip(math.exp(float(found.x)), MIN_TEMPERATURE, MAX_TEMPERATURE))


def conformal_quantile(probabilities: Floats, labels: npt.ArrayLike, coverage: float) -> float:
    """The score up to which a class stays a candidate, so that the true class is kept with the given probability.

    Split-conformal LAC: the score of a row is 1 - p(true class), the quantile its ceil((n + 1) coverage)-th smallest
    value. The promise holds for the mean over all new rows like these, not for the abstained ones alone.

    Source: Sadinle, Lei & Wasserman 2019 (arXiv 1609.00451); Angelopoulos & Bates 2021 (arXiv 2107.07511), section 1.

    Args:
        probabilities: Calibrated probabilities [n, k] of rows that the temperature was not fitted on.
        labels: Index of the true class [n].
        coverage: Share of inputs, in (0, 1), whose true class shall be among the candidates.

    Returns:
        A score in [0, 1]; 1, which keeps every class, where the rows are too few for the coverage.

    Raises:
        InputError: Shapes that do not fit, labels out of range, or coverage outside (0, 1).
    """
    check_share(coverage, "coverage", hint="such as 0.9")
    shares, truth = checked_rows(probabilities, labels)
    scores = np.sort(1.0 - shares[np.arange(len(truth)), truth])
    # (n + 1) * coverage may come out a hair above the whole number it is: 0.9 * 110 must be rank 99, not 100.
    rank = math.ceil(round((len(scores) + 1) * coverage, 9))
    return float(scores[rank - 1]) if rank <= len(scores) else 1.0


def candidate_sets(probabilities: Floats, quantile: float) -> npt.NDArray[np.bool_]:
    """Which classes stay candidates: those with score 1 - p at most the quantile.

    Written on the score, not as p >= 1 - quantile, which would lose the row at the quantile to rounding.

    Args:
        probabilities: Calibrated probabilities [n, k].
        quantile: From `conformal_quantile`.

    Returns:
        bool [n, k]. A row of a sure model may keep no class at all; its best class is then the honest candidate.
    """
    return np.asarray(1.0 - probabilities <= quantile)


def checked_rows(logits: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Ints]:
    """Logits as float64 [n, k] and labels as int64 [n], or an error that says what is wrong with which row.

    Raises:
        InputError: Shapes that do not fit, no rows, fewer than 2 classes, NaN or infinite logits, labels that are not
            whole numbers in 0 to k - 1.
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or scores.shape[0] < 1 or scores.shape[1] < 2:
        msg = f"logits have shape {scores.shape}; expected [n, k] with at least 1 row and 2 classes"
        raise errors.InputError(msg)
    if truth.shape != scores.shape[:1]:
        msg = f"labels have shape {truth.shape} and logits {scores.shape}; expected one label per row of logits"
        raise errors.InputError(msg)
    _check_finite(scores)
    _check_classes(truth, num_classes=scores.shape[1])
    return scores, truth.astype(np.int64)


def check_share(value: float, name: str, *, hint: str) -> None:
    """Pass if `value` is a number strictly between 0 and 1.

    Raises:
        InputError: It is not (NaN is not either); the message quotes name, value and hint.
    """
    if not 0 < value < 1:
        msg = f"{name} is {value!r}; expected a number between 0 and 1, both excluded, {hint}"
        raise errors.InputError(msg)


def _check_finite(scores: Floats) -> None:
    fine = np.asarray(np.isfinite(scores).all(axis=1))
    if not fine.all():
        row = int(np.argmin(fine))
        bad = scores[row][~np.isfinite(scores[row])][0]
        msg = (
            f"{int((~fine).sum())} of {len(fine)} rows have NaN or infinite logits, first row {row} ({bad}); "
            "expected finite numbers: check the model's weights and its precision"
        )
        raise errors.InputError(msg)


def _check_classes(truth: npt.NDArray[Any], *, num_classes: int) -> None:
    if truth.dtype.kind not in "iu":
        msg = f"labels have type {truth.dtype}; expected whole numbers, the index of each row's class"
        raise errors.InputError(msg)
    fine = (truth >= 0) & (truth < num_classes)
    if not fine.all():
        row = int(np.argmin(fine))
        msg = (
            f"label {truth[row]} of row {row} is not a class of the model; expected 0 to {num_classes - 1}: "
            "map label names to indices with the checkpoint's own label order"
        )
        raise errors.InputError(msg)
