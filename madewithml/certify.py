"""The certificate: a threshold, and evidence that the risk of the answers it lets through is at most max_risk.

    logits [n, k], labels [n] -> tune rows | certify rows (a random split)
    tune rows    -> temperature, the thresholds to test and their order
    certify rows -> exact binomial tests in that order (`risk_control`) -> Certificate, or a refusal and what is missing

A certificate says: with probability at least `confidence_level` over the draw of the certify rows, the share of errors
among future accepted answers is at most `max_risk`. It rests on one assumption: future inputs are drawn like the
certify rows. It is silent about any single label, customer or day.

Going back with more rows after a refusal is a second try, and each try may fail with probability delta. Label fresh
rows, and pass the old ones as `tune_rows`: the new certificate then holds at its own level whatever happened before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from madewithml import calibration, errors, refusal, risk_control
from madewithml.certificate import CERTIFIED, REFUSED, Certificate, Certification
from madewithml.risk_control import Outcome, Rows, risk_p_value, risk_upper_bound

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Certificate",
    "Certification",
    "certify",
    "risk_p_value",
    "risk_upper_bound",
    "split_rows",
]

DEFAULT_MAX_RISK = 0.05
DEFAULT_CONFIDENCE_LEVEL = 0.95
DEFAULT_LEVELS = (0.01, 0.02, 0.05, 0.10)
DEFAULT_TUNE_SHARE = 0.15
DEFAULT_SEED = 0
MIN_ROWS = 20

Bools = npt.NDArray[np.bool_]
_LEVEL_HINT = "such as 0.95 (0.95 means right in 19 of 20 certifications)"
_RISK_HINT = "such as 0.05 (0.05 means 5 % errors among the accepted)"


def certify(
    logits: npt.NDArray[np.floating[Any]],
    labels: npt.ArrayLike,
    *,
    max_risk: float = DEFAULT_MAX_RISK,
    confidence_level: float = DEFAULT_CONFIDENCE_LEVEL,
    levels: Sequence[float] = DEFAULT_LEVELS,
    joint: bool = False,
    per_class: bool = False,
    tune_share: float = DEFAULT_TUNE_SHARE,
    tune_rows: npt.ArrayLike | None = None,
    seed: int = DEFAULT_SEED,
    guide: bool = True,
) -> Certification:
    """Certify thresholds for several risks on labelled rows that the model was not trained on.

    The default tune share is 15 %. Mean coverage with 200 / 500 / 2,000 rows, by `benchmarks/certificates.py
    --tune-share`: 44.2 / 65.1 / 77.0 % at 10 %, 43.7 / 64.7 / 76.9 % at 15 %, 42.3 / 63.9 / 76.6 % at 20 %, 40.1 /
    62.0 / 75.9 % at 30 %. Every row that tunes cannot certify, and the thresholds need few; but callers also see the
    probabilities, whose temperature rests on these rows alone, and half a point is a fair price for half as many again.

    Args:
        logits: Raw scores [n, k].
        labels: Index of the true class [n].
        max_risk: The risk asked for, in (0, 1).
        confidence_level: 1 - delta, in (0, 1).
        levels: Further risks to certify, the ladder. Each holds at the confidence level by itself.
        joint: Split delta evenly among all risks, so that all certificates hold at once.
        per_class: Also certify each predicted label on its own rows, at delta / k each: all k hold at once.
        tune_share: Share of the rows, in (0, 1), to tune on.
        tune_rows: Which rows to tune on, bool [n], in place of a random split. They may be any rows, biased or looked
            at before; the other rows must be drawn like future inputs and not have been used for anything.
        seed: Of the random split. Trying several and keeping the best breaks the promise.
        guide: Whether a refusal says what is missing; that is most of its computing time.

    Raises:
        InputError: Fewer than 20 rows, all labels the same, NaN or infinite logits, shapes that do not fit, labels out
            of range, no row to tune or to certify on, or a risk, level or share outside (0, 1).
    """
    scores, truth = calibration.checked_rows(logits, labels)
    _check_rows(truth)
    risks = _checked_risks(max_risk, levels)
    calibration.check_share(confidence_level, "confidence_level", hint=_LEVEL_HINT)
    mask = split_rows(len(truth), tune_share, seed=seed) if tune_rows is None else tune_rows
    tuning = _checked_mask(mask, len(truth))

    temperature = calibration.fit_temperature(scores[tuning], truth[tuning])
    probabilities = calibration.softmax(scores, temperature=temperature)
    predicted = probabilities.argmax(axis=1)
    rows = Rows(probabilities[np.arange(len(truth)), predicted], predicted != truth)

    delta = (1 - confidence_level) / (len(risks) if joint else 1)
    ladder = tuple(_certificate(rows, tuning, temperature, max_risk=risk, delta=delta, guide=guide) for risk in risks)
    by_label: tuple[Certificate, ...] = ()
    if per_class:
        options = {"max_risk": max_risk, "delta": (1 - confidence_level) / scores.shape[1], "guide": guide}
        by_label = tuple(
            _certificate(rows, tuning, temperature, only=predicted == label, **options)
            for label in range(scores.shape[1])
        )
    return Certification(
        certificate=ladder[risks.index(max_risk)],
        levels=ladder,
        per_class=by_label,
        joint=joint,
        asked_confidence_level=confidence_level,
        num_tune_rows=int(tuning.sum()),
        num_certify_rows=int((~tuning).sum()),
    )


def split_rows(num_rows: int, tune_share: float = DEFAULT_TUNE_SHARE, *, seed: int = DEFAULT_SEED) -> Bools:
    """Which rows `certify` tunes on, bool [num_rows]; the others certify, and may calibrate candidate sets.

    A plain random split. Stratifying by label would look at the certify labels before the test and tie their mix to
    that of the tune rows; their errors would then no longer be binomial given the thresholds.

    Args:
        num_rows: At least 2.
        tune_share: In (0, 1); at least one row goes to either side.
        seed: Of the permutation.

    Raises:
        InputError: `tune_share` is outside (0, 1).
    """
    calibration.check_share(tune_share, "tune_share", hint=f"such as {DEFAULT_TUNE_SHARE}")
    num_tune = min(max(round(num_rows * tune_share), 1), num_rows - 1)
    tuning = np.zeros(num_rows, dtype=np.bool_)
    tuning[np.random.default_rng(seed).permutation(num_rows)[:num_tune]] = True
    return tuning


def _certificate(
    rows: Rows,
    tuning: Bools,
    temperature: float,
    *,
    max_risk: float,
    delta: float,
    guide: bool,
    only: Bools | None = None,
) -> Certificate:
    """One level, on all rows or on those where `only` [n] is true."""
    chosen = np.ones(len(rows), dtype=np.bool_) if only is None else only
    tune, held = rows.pick(tuning & chosen), rows.pick(~tuning & chosen)
    outcome = risk_control.control(tune, held, max_risk=max_risk, delta=delta) if len(tune) else None
    if outcome is not None and outcome.passed:
        return _certified(outcome, len(held), temperature, max_risk=max_risk, delta=delta)
    missing = refusal.Refusal("", None, None, None)
    if guide:
        missing = refusal.explain(
            tune, held, outcome, max_risk=max_risk, delta=delta, share=float(np.mean(chosen)) or 1.0
        )
    return Certificate(
        status=REFUSED,
        max_risk=max_risk,
        confidence_level=1 - delta,
        threshold=None,
        temperature=temperature,
        num_rows=len(held),
        num_accepted=0,
        num_errors=0,
        risk_upper_bound=1.0,
        coverage=0.0,
        **missing._asdict(),
    )


def _certified(outcome: Outcome, num_rows: int, temperature: float, *, max_risk: float, delta: float) -> Certificate:
    bound = risk_upper_bound(outcome.num_errors, outcome.num_accepted, delta)
    return Certificate(
        status=CERTIFIED,
        max_risk=max_risk,
        confidence_level=1 - delta,
        threshold=outcome.threshold,
        temperature=temperature,
        num_rows=num_rows,
        num_accepted=outcome.num_accepted,
        num_errors=outcome.num_errors,
        # The test is on the p-value, of which the bound is the inverse: only rounding can put it above.
        risk_upper_bound=min(bound, max_risk),
        coverage=outcome.num_accepted / num_rows,
    )


def _check_rows(truth: npt.NDArray[np.int64]) -> None:
    if len(truth) < MIN_ROWS:
        msg = (
            f"{len(truth)} labelled rows are too few to certify on; expected at least {MIN_ROWS}, and some hundreds "
            "for a low risk (without a single error, 5 % at confidence level 0.95 takes 59 accepted rows)"
        )
        raise errors.InputError(msg)
    if (truth == truth[0]).all():
        msg = (
            f"all {len(truth)} labels are class {truth[0]}; expected rows of at least 2 classes, drawn like future "
            "inputs: a certificate from one class would say nothing about the others"
        )
        raise errors.InputError(msg)


def _checked_risks(max_risk: float, levels: Sequence[float]) -> tuple[float, ...]:
    calibration.check_share(max_risk, "max_risk", hint=_RISK_HINT)
    for level in levels:
        calibration.check_share(level, "a risk in levels", hint=_RISK_HINT)
    return tuple(sorted({*levels, max_risk}))


def _checked_mask(tune_rows: npt.ArrayLike, num_rows: int) -> Bools:
    tuning = np.asarray(tune_rows)
    if tuning.dtype != np.bool_ or tuning.shape != (num_rows,):
        msg = f"tune_rows is {tuning.dtype} of shape {tuning.shape}; expected bool, one per row: ({num_rows},)"
        raise errors.InputError(msg)
    if tuning.all() or not tuning.any():
        msg = f"tune_rows marks {int(tuning.sum())} of {num_rows} rows; expected some to tune and some to certify on"
        raise errors.InputError(msg)
    return tuning
