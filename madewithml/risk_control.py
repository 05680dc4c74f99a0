"""Control of the selective risk: exact binomial tests along a sequence of thresholds, and where to start it.

    tune rows    -> threshold_grid -> outlook -> power -> the sequence: from the most promising threshold, loosening
    certify rows -> count_accepted -> risk_p_values -> fixed_sequence: the last threshold that passed

The sequence depends on the tune rows alone. For any one threshold fixed beforehand, the errors among the accepted
certify rows are binomial with the true risk, so the p-value is exact; and testing in a fixed order, each at the full
delta, stopping at the first failure, lets a threshold with risk above the target through with probability at most
delta (Angelopoulos et al. 2021, Learn then Test, arXiv 2110.01052, proposition 4). Good tune rows make the certificate
wider; bad ones make it narrower or a refusal. They cannot make it wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from madewithml import calibration, errors

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MAX_THRESHOLDS = 500
# Few tune rows say little about a risk of 2 %; the calibrated confidence says more. It counts as this many rows.
PRIOR_ROWS = 30
# Gauss-Hermite, 3 points: mean over a normal variable from its values at these many standard deviations.
NODES = np.array([-np.sqrt(3.0), 0.0, np.sqrt(3.0)])
WEIGHTS = np.array([1.0, 4.0, 1.0]) / 6.0


@dataclass(frozen=True)
class Rows:
    """Labelled rows as the tests see them.

    Attributes:
        confidence: Highest calibrated probability of each row, [n].
        wrong: Whether the label with that probability is not the true one, [n].
    """

    confidence: Floats
    wrong: Bools

    def __len__(self) -> int:
        return len(self.confidence)

    def pick(self, keep: Bools) -> Rows:
        """The rows where `keep` [n] is true."""
        return Rows(self.confidence[keep], self.wrong[keep])


class Outlook(NamedTuple):
    """What to expect at each of t thresholds, estimated on `num_rows` rows: `coverage` [t] and `risk` [t]."""

    coverage: Floats
    risk: Floats
    num_rows: int


@dataclass(frozen=True)
class Outcome:
    """How the tests went.

    Attributes:
        threshold: The loosest threshold that passed; where none did, the one that was tested first.
        num_accepted: Certify rows with at least that confidence.
        num_errors: Wrong ones among them.
        passed: Whether the threshold is certified.
    """

    threshold: float
    num_accepted: int
    num_errors: int
    passed: bool


def risk_upper_bound(num_errors: int, num_accepted: int, delta: float) -> float:
    """Exact one-sided upper bound of the risk at confidence 1 - delta; 1 where nothing was accepted or all was wrong.

    Source: Clopper & Pearson 1934: the 1 - delta quantile of Beta(e + 1, n - e).

    Args:
        num_errors: Errors e among the accepted rows.
        num_accepted: Accepted rows n.
        delta: Probability, in (0, 1), with which the bound may fail.

    Raises:
        InputError: Counts that do not fit, or delta outside (0, 1).
    """
    _check_counts(num_errors, num_accepted)
    calibration.check_share(delta, "delta", hint="such as 0.05")
    # SciPy answers NaN for Beta(n + 1, 0), whose whole mass is at 1.
    if num_errors == num_accepted:
        return 1.0
    return float(stats.beta.ppf(1 - delta, num_errors + 1, num_accepted - num_errors))


def risk_p_value(num_errors: int, num_accepted: int, max_risk: float) -> float:
    """Exact p-value of "the risk is above max_risk": the chance of so few errors if it were max_risk.

    It is at most delta just when `risk_upper_bound` at delta is at most `max_risk`; 1 where nothing was accepted.

    Source: Angelopoulos et al. 2021 (arXiv 2110.01052), section 2: P(Bin(n, max_risk) <= e).

    Args:
        num_errors: Errors e among the accepted rows.
        num_accepted: Accepted rows n.
        max_risk: The risk to rule out, in (0, 1).

    Raises:
        InputError: Counts that do not fit.
    """
    _check_counts(num_errors, num_accepted)
    return float(risk_p_values(np.array([num_errors]), np.array([num_accepted]), max_risk)[0])


def risk_p_values(num_errors: Ints, num_accepted: Ints, max_risk: float) -> Floats:
    """`risk_p_value` of many counts at once, [t]; the counts are not checked."""
    return np.asarray(stats.binom.cdf(num_errors, num_accepted, max_risk), dtype=np.float64)


def allowed_errors(num_accepted: Ints, max_risk: float, delta: float) -> Ints:
    """Largest number of errors among so many accepted rows that still passes, [t]; -1 where not even 0 does."""
    counts, where = np.unique(num_accepted, return_inverse=True)
    quantile = np.maximum(stats.binom.ppf(delta, counts, max_risk), 0).astype(np.int64)
    # ppf is the first count whose probability reaches delta; only an exact hit passes itself.
    allowed = np.where(risk_p_values(quantile, counts, max_risk) <= delta, quantile, quantile - 1)
    return np.asarray(allowed[where].reshape(num_accepted.shape), dtype=np.int64)


def threshold_grid(confidence: Floats, *, max_thresholds: int = MAX_THRESHOLDS) -> Floats:
    """Thresholds from the strictest to the loosest: distinct quantiles of the confidences, then 0, which accepts all.

    A fine grid costs nothing in a fixed sequence: neighbouring tests see nearly the same rows.

    Args:
        confidence: Confidences of tune rows [n]; may be empty.
        max_thresholds: How many quantiles at most.
    """
    distinct = np.unique(confidence)
    if len(distinct) > max_thresholds:
        picks = np.linspace(0, len(confidence) - 1, max_thresholds).round().astype(np.int64)
        distinct = np.unique(np.sort(confidence)[picks])
    return np.append(distinct[::-1], 0.0)


def count_accepted(rows: Rows, thresholds: Floats) -> tuple[Ints, Ints]:
    """Accepted rows and errors among them at each threshold, both [t]. Rows at the threshold are accepted."""
    order = np.argsort(rows.confidence)
    below = np.searchsorted(rows.confidence[order], thresholds, side="left")
    return (len(rows) - below).astype(np.int64), _sums_from(rows.wrong[order], below).astype(np.int64)


def outlook(rows: Rows, thresholds: Floats) -> Outlook:
    """Coverage and risk to expect at each threshold.

    The risk is the share of errors, drawn towards the mean of 1 - confidence among the accepted as if that were the
    share of errors among `PRIOR_ROWS` more rows.

    Args:
        rows: Rows to estimate on, at least 1.
        thresholds: [t].
    """
    accepted, wrong = count_accepted(rows, thresholds)
    order = np.argsort(rows.confidence)
    doubt = _sums_from(1.0 - rows.confidence[order], len(rows) - accepted)
    expected = doubt / np.maximum(accepted, 1)
    return Outlook(accepted / len(rows), (wrong + PRIOR_ROWS * expected) / (accepted + PRIOR_ROWS), len(rows))


def power(view: Outlook, num_rows: int, *, max_risk: float, delta: float) -> Floats:
    """Probability, [t], that each threshold passes its test on `num_rows` certify rows, if the outlook is true.

    Binomial in the errors; averaged over how many rows will be accepted, which is uncertain by the draw of the certify
    rows and by the coverage having been estimated on few rows. Without the latter the most promising threshold looks
    like the one that accepts just enough rows, and half of the time it accepts too few.
    """
    share = view.coverage
    deviation = np.sqrt(num_rows * share * (1 - share) * (1 + num_rows / view.num_rows))
    accepted = np.rint(num_rows * share + NODES[:, None] * deviation).clip(0, num_rows).astype(np.int64)
    allowed = allowed_errors(accepted, max_risk, delta)
    passes = np.where(allowed < 0, 0.0, special.bdtr(np.maximum(allowed, 0), accepted, view.risk))
    return np.asarray(WEIGHTS @ passes, dtype=np.float64)


def sequence(tune: Rows, num_certify: int, *, max_risk: float, delta: float) -> Floats:
    """The thresholds to test, in order: from the one most likely to pass, loosening to the one that accepts all.

    Args:
        tune: Tune rows, at least 1.
        num_certify: How many certify rows there will be; their number, nothing else of them, is used.
        max_risk: The risk to certify.
        delta: Level of each test.
    """
    thresholds = threshold_grid(tune.confidence)
    chances = power(outlook(tune, thresholds), num_certify, max_risk=max_risk, delta=delta)
    return thresholds[int(np.argmax(chances)) :]


def fixed_sequence(p_values: Floats, delta: float) -> int:
    """How many tests pass before the first failure, each at the full delta, in the order given.

    Source: Angelopoulos et al. 2021 (arXiv 2110.01052), algorithm 1 with one start; Bauer 1991.
    """
    failed = np.flatnonzero(p_values > delta)
    return int(failed[0]) if len(failed) else len(p_values)


def control(tune: Rows, certify: Rows, *, max_risk: float, delta: float) -> Outcome:
    """Test the sequence made from the tune rows on the certify rows.

    Args:
        tune: At least 1 row.
        certify: Rows of which nothing but their number has been used before; may be empty.
        max_risk: The risk to certify.
        delta: Probability with which the outcome may be a threshold of higher risk.
    """
    thresholds = sequence(tune, len(certify), max_risk=max_risk, delta=delta)
    accepted, wrong = count_accepted(certify, thresholds)
    passed = fixed_sequence(risk_p_values(wrong, accepted, max_risk), delta)
    last = max(passed - 1, 0)
    return Outcome(float(thresholds[last]), int(accepted[last]), int(wrong[last]), passed > 0)


def _sums_from(values: npt.NDArray[np.float64] | Bools, first: Ints) -> Floats:
    totals = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return np.asarray(totals[-1] - totals[first], dtype=np.float64)


def _check_counts(num_errors: int, num_accepted: int) -> None:
    if not 0 <= num_errors <= num_accepted:
        msg = f"{num_errors} errors among {num_accepted} accepted rows; expected 0 <= errors <= accepted"
        raise errors.InputError(msg)
