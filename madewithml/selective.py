"""How well does confidence tell right from wrong, and what would a threshold do: figures for the choice to abstain.

A model that may abstain is judged by two numbers that pull apart: coverage (share of inputs accepted) and risk (share
of errors among the accepted). Every function here takes the confidence of each row and whether its label was correct,
both [n], and is pure. A row is accepted if its confidence is *at least* the threshold, so rows with equal confidence
are accepted or refused together. Every figure describes the rows it was computed from; a promise about other rows is a
certificate, which `madewithml certify` makes.

    curve = selective.risk_coverage_curve(confidence, correct)
    selective.aurc(confidence, correct), selective.coverage_at_risk(confidence, correct, risks=(0.05,))
    selective.threshold_table(confidence, correct, [0.5, 0.8, 0.9])
"""

from collections.abc import Iterable
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from madewithml import calibration, errors, risk_control

NUM_BINS = 15
RISKS = (0.01, 0.02, 0.05, 0.10)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class ReliabilityBin(TypedDict):
    """Rows whose confidence is in (`lower`, `upper`]: their mean confidence and accuracy, None where there are none."""

    lower: float
    upper: float
    confidence: float | None
    accuracy: float | None
    count: int


class RiskCoverageCurve(NamedTuple):
    """One point per distinct confidence, [m], from the strictest threshold to the loosest (coverage 1)."""

    thresholds: FloatArray
    coverages: FloatArray
    risks: FloatArray
    num_accepted: IntArray
    num_errors: IntArray


class CoverageAtRisk(TypedDict):
    """Largest `coverage` whose empirical risk is at most `risk`; coverage 0 and no threshold where there is none."""

    risk: float
    coverage: float
    threshold: float | None


class ThresholdRow(TypedDict):
    """What one threshold does: shares, the exact upper bound of the risk, and answers per 1,000 inputs.

    `accepted_per_1000` counts right and wrong answers; `risk` is None where nothing is accepted.
    """

    threshold: float
    coverage: float
    risk: float | None
    risk_upper_bound: float
    num_accepted: int
    num_errors: int
    accepted_per_1000: float
    wrong_per_1000: float
    abstained_per_1000: float


def reliability_curve(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, *, num_bins: int = NUM_BINS
) -> list[ReliabilityBin]:
    """Mean confidence and accuracy in equal-width bins of confidence; equal in every bin means calibrated.

    Source: Guo et al. 2017 (arXiv 1706.04599); bins are closed on the right, and 0 is in the first.

    Args:
        confidence: [n], in [0, 1].
        correct: [n], whether the label was right.
        num_bins: Number of bins over [0, 1].

    Returns:
        `num_bins` bins in rising order, those without rows included.

    Raises:
        InputError: No rows, lengths that differ, a confidence outside [0, 1], or `num_bins` below 1.
    """
    conf, right = _checked(confidence, correct)
    if num_bins < 1:
        msg = f"num_bins is {num_bins}; expected at least 1"
        raise errors.InputError(msg)
    # Not linspace: of 10 bins, its third ends at 0.30000000000000004.
    edges = np.arange(num_bins + 1) / num_bins
    bin_of = np.maximum(np.searchsorted(edges, conf, side="left") - 1, 0)
    return [_reliability_bin(edges[i], edges[i + 1], conf[bin_of == i], right[bin_of == i]) for i in range(num_bins)]


def risk_coverage_curve(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> RiskCoverageCurve:
    """Empirical risk at every coverage that a threshold can reach; tied rows make one point.

    Source: El-Yaniv & Wiener 2010; Geifman & El-Yaniv 2017 (arXiv 1705.08500).

    Args:
        confidence: [n], in [0, 1].
        correct: [n], whether the label was right.

    Returns:
        Arrays [m], m the number of distinct confidences. Coverage rises; risk need not.

    Raises:
        InputError: No rows, lengths that differ, or a confidence outside [0, 1].
    """
    conf, right = _checked(confidence, correct)
    thresholds, group, sizes = np.unique(conf, return_inverse=True, return_counts=True)
    wrong = np.bincount(group[~right], minlength=len(thresholds))
    num_accepted, num_errors = np.cumsum(sizes[::-1]), np.cumsum(wrong[::-1])
    return RiskCoverageCurve(
        thresholds=thresholds[::-1],
        coverages=num_accepted / len(conf),
        risks=num_errors / num_accepted,
        num_accepted=num_accepted,
        num_errors=num_errors,
    )


def aurc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Area under the risk-coverage curve: mean risk of the k most confident rows, over k = 1 to n. Lower is better.

    Rows with equal confidence have no order; the figure is the expectation over all orders of them, so it does not
    depend on the order of the rows. It runs from 0 (no errors) to 1; confidence without information gives the error
    rate. It weighs errors at high confidence heavily: compare with `augrc`.

    Source: Geifman, Uziel & El-Yaniv 2019 (arXiv 1805.08206).

    Args:
        confidence: [n], in [0, 1].
        correct: [n], whether the label was right.

    Raises:
        InputError: No rows, lengths that differ, or a confidence outside [0, 1].
    """
    curve = risk_coverage_curve(confidence, correct)
    ranks = np.arange(1, curve.num_accepted[-1] + 1)
    expected_errors = np.interp(ranks, _from_zero(curve.num_accepted), _from_zero(curve.num_errors))
    return float(np.mean(expected_errors / ranks))


def e_aurc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Excess AURC: how far the ranking is from one that puts every error last; 0 means none could be better.

    The optimum is the exact sum of the source, not its approximation r + (1 - r) ln(1 - r), which is too low on few
    rows and would charge a perfect ranking for them.

    Source: Geifman, Uziel & El-Yaniv 2019 (arXiv 1805.08206).

    Args:
        confidence: [n], in [0, 1].
        correct: [n], whether the label was right.

    Raises:
        InputError: No rows, lengths that differ, or a confidence outside [0, 1].
    """
    conf, right = _checked(confidence, correct)
    optimum = aurc(right.astype(np.float64), right)
    # Never negative but for the last bit of a float.
    return max(0.0, aurc(conf, right) - optimum)


def augrc(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Area under the generalised risk-coverage curve: the mean share of rows that are accepted *and* wrong.

    The share of all rows, not of the accepted ones, is integrated over coverage by trapezoids from (0, 0), which
    is also the expectation over all orders of tied rows. It runs from 0 (no errors) to 1/2 (all wrong); lower is
    better. With error rate r and AUROC of confidence against correctness: (1 - AUROC) r (1 - r) + r^2 / 2.

    Source: Traub et al. 2024 (arXiv 2407.01032); they print 1,000 times this figure.

    Args:
        confidence: [n], in [0, 1].
        correct: [n], whether the label was right.

    Raises:
        InputError: No rows, lengths that differ, or a confidence outside [0, 1].
    """
    curve = risk_coverage_curve(confidence, correct)
    area = np.trapezoid(_from_zero(curve.num_errors), _from_zero(curve.num_accepted))
    return float(area / curve.num_accepted[-1] ** 2)


def coverage_at_risk(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, *, risks: Iterable[float] = RISKS
) -> list[CoverageAtRisk]:
    """Largest coverage whose empirical risk is at most the one asked for.

    Empirical, not certified: the threshold is picked on the very rows it is judged by, so on new rows the risk is
    above the target much more often than one likes. Use it to compare models, never to set a threshold.

    Args:
        confidence: [n], in [0, 1].
        correct: [n], whether the label was right.
        risks: Risks asked for, each in [0, 1].

    Returns:
        One entry per risk, in the order given.

    Raises:
        InputError: No rows, lengths that differ, or a confidence or risk outside [0, 1].
    """
    curve = risk_coverage_curve(confidence, correct)
    targets = np.array(list(risks), dtype=np.float64)
    _check_shares(targets, what="risk")
    return [_coverage_at(curve, risk) for risk in targets.tolist()]


def threshold_table(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, thresholds: Iterable[float], *, delta: float = 0.05
) -> list[ThresholdRow]:
    """What each threshold would do: coverage, risk, its exact upper bound, and answers per 1,000 inputs.

    Each bound holds with confidence 1 - delta for its own threshold, fixed beforehand. The bound of a threshold chosen
    by looking at the table holds less often; that choice is what a certificate is for.

    Args:
        confidence: [n], in [0, 1]. Compared as float64: a float32 0.9 is below the threshold 0.9.
        correct: [n], whether the label was right.
        thresholds: Each in [0, 1].
        delta: Probability, in (0, 1), with which a single bound may fail.

    Returns:
        One row per threshold, in the order given.

    Raises:
        InputError: No rows, lengths that differ, a confidence or threshold outside [0, 1], or delta outside (0, 1).
    """
    conf, right = _checked(confidence, correct)
    calibration.check_share(delta, "delta", hint="such as 0.05")
    candidates = np.array(list(thresholds), dtype=np.float64)
    _check_shares(candidates, what="threshold")
    return [_threshold_row(conf, right, threshold, delta) for threshold in candidates.tolist()]


def _reliability_bin(lower: float, upper: float, confidence: FloatArray, correct: BoolArray) -> ReliabilityBin:
    empty = len(confidence) == 0
    return {
        "lower": float(lower),
        "upper": float(upper),
        "confidence": None if empty else float(confidence.mean()),
        "accuracy": None if empty else float(correct.mean()),
        "count": len(confidence),
    }


def _coverage_at(curve: RiskCoverageCurve, risk: float) -> CoverageAtRisk:
    # Risk does not fall steadily with coverage: look for the last point that is good enough, not the first bad one.
    good = np.flatnonzero(curve.risks <= risk)
    if len(good) == 0:
        return {"risk": risk, "coverage": 0.0, "threshold": None}
    last = good[-1]
    return {"risk": risk, "coverage": float(curve.coverages[last]), "threshold": float(curve.thresholds[last])}


def _threshold_row(confidence: FloatArray, correct: BoolArray, threshold: float, delta: float) -> ThresholdRow:
    total = len(confidence)
    accepted = confidence >= threshold
    num_accepted, num_errors = int(accepted.sum()), int((accepted & ~correct).sum())
    return {
        "threshold": threshold,
        "coverage": num_accepted / total,
        "risk": num_errors / num_accepted if num_accepted else None,
        "risk_upper_bound": risk_control.risk_upper_bound(num_errors, num_accepted, delta),
        "num_accepted": num_accepted,
        "num_errors": num_errors,
        "accepted_per_1000": 1000 * num_accepted / total,
        "wrong_per_1000": 1000 * num_errors / total,
        "abstained_per_1000": 1000 * (total - num_accepted) / total,
    }


def _from_zero(counts: IntArray) -> FloatArray:
    return np.concatenate([[0.0], counts])


def _checked(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    conf, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct)
    if conf.ndim != 1 or conf.shape != right.shape:
        msg = f"confidence has shape {conf.shape} and correct {right.shape}; expected one number per row in both"
        raise errors.InputError(msg)
    if len(conf) == 0:
        msg = "there are no rows to evaluate; expected at least 1 labelled row"
        raise errors.InputError(msg)
    _check_shares(conf, what="confidence")
    if not np.isin(right, (0, 1)).all():
        msg = f"correct holds {np.unique(right).tolist()[:5]}; expected only true and false (or 1 and 0)"
        raise errors.InputError(msg)
    return conf, right.astype(np.bool_)


def _check_shares(values: FloatArray, *, what: str) -> None:
    # Written so that NaN fails, too.
    fine = (values >= 0) & (values <= 1)
    if not fine.all():
        row = int(np.argmin(fine))
        msg = f"{what} number {row} is {values[row]}; expected a number in [0, 1]"
        raise errors.InputError(msg)
