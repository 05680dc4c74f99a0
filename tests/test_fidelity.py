from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from madewithml import decision, fidelity, risk_control

GENERATOR = np.random.default_rng(0)
REFERENCE = GENERATOR.normal(scale=3.0, size=(400, 4)).astype(np.float32)


def compare(own: Any, alone: Any = None) -> fidelity.Fidelity:
    return fidelity.compare(REFERENCE, own, alone=alone or {}, temperature=1.0)


def test_the_same_logits_are_faithful() -> None:
    assert compare(REFERENCE) == (1.0, 0.0, 0.0)
    assert fidelity.fault(compare(REFERENCE)) is None


def test_one_changed_label_in_400_is_within_the_limit_and_four_are_not() -> None:
    def swapped(rows: int) -> Any:
        own = REFERENCE.copy()
        own[:rows] = own[:rows, ::-1]
        return compare(own)._replace(max_probability_change=0.0)

    assert fidelity.fault(swapped(1)) is None
    assert fidelity.fault(swapped(4)) == "another label on 1.0% of rows (at most 0.5%)"


def test_a_probability_that_moves_too_far_is_told() -> None:
    own = REFERENCE.copy()
    own[7] = [2.0, 1.8, 0.0, 0.0] if REFERENCE[7].argmax() == 0 else REFERENCE[7] * 0.5
    found = compare(own)
    assert fidelity.fault(found) == f"a probability changes by {found.max_probability_change:.3f} (at most 0.02)"


def test_an_answer_that_depends_on_its_batch_is_told() -> None:
    found = compare(REFERENCE, {3: np.stack([REFERENCE[3], REFERENCE[3] * 0.5])})
    assert found.max_batch_change > 0.02
    assert fidelity.fault(found) == f"an answer changes by {found.max_batch_change:.3f} with its batch (at most 0.02)"


def test_what_counts_is_the_probability_at_the_policys_temperature() -> None:
    softened = fidelity.compare(REFERENCE, REFERENCE * 1.2, alone={}, temperature=5.0)
    plain = fidelity.compare(REFERENCE, REFERENCE * 1.2, alone={}, temperature=1.0)
    assert softened.max_probability_change != plain.max_probability_change


def test_logits_that_are_no_numbers_are_never_faithful() -> None:
    assert fidelity.fault(fidelity.Fidelity(float("nan"), 0.0, 0.0)) is not None
    assert fidelity.fault(fidelity.Fidelity(1.0, float("nan"), 0.0)) is not None
    assert fidelity.fault(fidelity.Fidelity(1.0, 0.0, float("nan"))) is not None


def level(threshold: float, max_risk: float, status: str = "certified") -> dict[str, Any]:
    return {"status": status, "threshold": threshold, "max_risk": max_risk, "confidence_level": 0.95}


def policy(*levels: dict[str, Any], per_class: Any = ()) -> decision.DecisionPolicy:
    return decision.DecisionPolicy(
        source="certificate", certificates={"levels": list(levels), "per_class": list(per_class)}
    )


@pytest.fixture
def rows() -> fidelity.CertifyRows:
    """All rows, one in twenty labelled otherwise than the reference says."""
    truth = REFERENCE.argmax(axis=1)
    truth[::20] = (truth[::20] + 1) % 4
    return fidelity.CertifyRows(np.arange(400), truth)


def test_without_certificates_nothing_is_counted_again() -> None:
    assert fidelity.certificate_fault(decision.DecisionPolicy(), REFERENCE, None) is None


def test_a_refused_level_promises_nothing() -> None:
    refused = {**level(0.5, 0.01), "status": "refused", "threshold": None}
    assert fidelity.certificate_fault(policy(refused), REFERENCE, None) is None


def test_a_certificate_that_holds_passes_and_a_tighter_one_does_not(rows: fidelity.CertifyRows) -> None:
    bound = risk_control.risk_upper_bound(20, 400, 0.05)
    assert fidelity.certificate_fault(policy(level(0.0, bound + 1e-6)), REFERENCE, rows) is None
    told = fidelity.certificate_fault(policy(level(0.0, 0.05)), REFERENCE, rows)
    assert told == f"the certificate of max_risk 0.05 does not hold: its risk may be {bound:.3f}"


def test_a_certificate_of_one_class_is_counted_on_its_answers_alone(rows: fidelity.CertifyRows) -> None:
    label = REFERENCE.argmax(axis=1)
    wrong = int((label != rows.truth)[label == 2].sum())
    bound = risk_control.risk_upper_bound(wrong, int((label == 2).sum()), 0.05)
    refused = {**level(0.0, 0.1), "status": "refused"}
    holds = policy(per_class=[refused, refused, level(0.0, bound + 1e-6), refused])
    broken = policy(per_class=[refused, refused, level(0.0, bound - 1e-3), refused])
    assert fidelity.certificate_fault(holds, REFERENCE, rows) is None
    assert fidelity.certificate_fault(broken, REFERENCE, rows) is not None


def test_a_certificate_whose_rows_are_not_there_cannot_be_vouched_for() -> None:
    told = fidelity.certificate_fault(policy(level(0.5, 0.1)), REFERENCE, None)
    assert told == "its certificate cannot be counted again: give the rows it rests on with --dataset-loc"
