"""What to tell someone whose certificate was refused: the best risk within reach, and how many rows are missing.

All of it is a guide, not a promise: it looks at every row at hand, those the refused test was made on among them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from madewithml import risk_control
from madewithml.risk_control import Outcome, Outlook, Rows

TARGET_POWER = 0.8
MAX_NEEDED_ROWS = 1_000_000
# Enough to find the best threshold to a per cent of coverage or two; each is tried at some 20 row counts.
NUM_THRESHOLDS = 60
# The best of many thresholds looks better than it is. Simulated second tries after refusals on 100 to 500 rows, asked
# for 80 % power, had 77 to 100 % with one error more than was seen and 32 to 75 % without, on calibrated scores; on
# over-confident ones 46 to 100 % and 4 to 59 %.
EXTRA_ERRORS = 1
RISK_STEP = 1.03


class Needed(NamedTuple):
    """How many rows to label, and the share of inputs expected to be accepted then."""

    rows: int
    coverage: float


class Refusal(NamedTuple):
    """Why there is no certificate and what would change that; see the fields of the same names in `Certificate`."""

    reason: str
    needed_rows: int | None
    expected_coverage: float | None
    best_max_risk: float | None


def explain(
    tune: Rows, certify: Rows, outcome: Outcome | None, *, max_risk: float, delta: float, share: float = 1.0
) -> Refusal:
    """The guide for one refused level.

    Args:
        tune: The tune rows.
        certify: The certify rows.
        outcome: The failed test; None where there was no tune row to plan one with.
        max_risk: The risk that was asked for.
        delta: The level of the test.
        share: Share of all labelled rows that `tune` and `certify` are; below 1 for the rows of one predicted label.
    """
    reason = _reason(certify, outcome, max_risk=max_risk, delta=delta)
    if outcome is None:
        return Refusal(reason, None, None, None)
    best = best_max_risk(tune, certify, max_risk=max_risk, delta=delta)
    needed = needed_rows(_joined(tune, certify), max_risk=max_risk, delta=delta)
    if needed is None:
        lowest = float(_guide_outlook(_joined(tune, certify)).risk.min())
        reason += (
            f"; no threshold looks good enough for more rows to help (lowest risk estimated: {lowest:.2g}): "
            "improve the model or ask for a higher risk"
        )
        return Refusal(reason, None, None, best)
    return Refusal(reason, math.ceil(needed.rows / share), needed.coverage, best)


def best_max_risk(tune: Rows, certify: Rows, *, max_risk: float, delta: float) -> float | None:
    """Smallest risk above `max_risk` at which the same procedure passes on the same rows, to about 3 %.

    Found by search on the certify rows, so it is not itself a certificate: asking for this very risk next, on these
    rows, would be choosing the question by the answer. None where nothing below 1 passes.

    Args:
        tune: At least 1 row.
        certify: The certify rows.
        max_risk: The risk that was refused.
        delta: Level of each test.
    """
    risk = _rounded_up(max_risk * RISK_STEP)
    while risk < 1:
        if risk_control.control(tune, certify, max_risk=risk, delta=delta).passed:
            return risk
        risk = _rounded_up(risk * RISK_STEP)
    return None


def needed_rows(rows: Rows, *, max_risk: float, delta: float, target_power: float = TARGET_POWER) -> Needed | None:
    """Fewest fresh certify rows with which the most promising threshold passes with the power asked for.

    Exact binomial power at the estimated risk and coverage of each threshold. The rows are fresh: those at hand have
    been looked at, and serve as tune rows next time. The estimate leans to caution by one error; where confidence says
    little about errors (an over-confident model, few rows) the true power is still below the target.

    Args:
        rows: All rows at hand, at least 1.
        max_risk: The risk to certify.
        delta: Level of each test.
        target_power: Probability of success, in (0, 1).

    Returns:
        Rows and expected coverage; None where even 1,000,000 rows would not do.
    """
    view = _guide_outlook(rows)

    def best(num_rows: int) -> tuple[float, int]:
        chances = risk_control.power(view, num_rows, max_risk=max_risk, delta=delta)
        return float(chances.max()), int(np.argmax(chances))

    low, high = 0, MAX_NEEDED_ROWS
    if best(high)[0] < target_power:
        return None
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if best(middle)[0] >= target_power else (middle, high)
    return Needed(high, float(view.coverage[best(high)[1]]))


def _guide_outlook(rows: Rows) -> Outlook:
    thresholds = risk_control.threshold_grid(rows.confidence, max_thresholds=NUM_THRESHOLDS)
    view = risk_control.outlook(rows, thresholds)
    weight = view.coverage * len(rows) + risk_control.PRIOR_ROWS
    return view._replace(risk=np.minimum(view.risk + EXTRA_ERRORS / weight, 1.0))


def _joined(tune: Rows, certify: Rows) -> Rows:
    return Rows(
        np.concatenate([tune.confidence, certify.confidence]),
        np.concatenate([tune.wrong, certify.wrong]),
    )


def _reason(certify: Rows, outcome: Outcome | None, *, max_risk: float, delta: float) -> str:
    if outcome is None:
        return "no tune row has this predicted label, so there is nothing to choose a threshold from"
    least = math.ceil(math.log(delta) / math.log1p(-max_risk))
    if len(certify) < least:
        return (
            f"{len(certify)} certify rows are too few: max_risk {max_risk:g} at confidence level {1 - delta:g} takes "
            f"at least {least} accepted rows without a single error"
        )
    allowed = int(risk_control.allowed_errors(np.array([outcome.num_accepted]), max_risk, delta)[0])
    found = (
        f"the most promising threshold, {outcome.threshold:.4g}, accepted {outcome.num_accepted} of {len(certify)} "
        f"certify rows, {outcome.num_errors} of them wrong"
    )
    if allowed < 0:
        return f"{found}; it takes at least {least} accepted rows, without a single error"
    return f"{found}; at most {allowed} were allowed"


def _rounded_up(risk: float) -> float:
    digits = 2 - math.floor(math.log10(risk))
    return float(math.ceil(round(risk * 10.0**digits, 6)) / 10.0**digits)
