from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from madewithml import decision, errors

LABELS = ["x", "y", "z"]


def logits_of(*probabilities: list[float]) -> np.ndarray[Any, Any]:
    return np.log(np.array(probabilities))


def answer(policy: decision.DecisionPolicy, *probabilities: float) -> dict[str, Any]:
    return policy.answers(policy.decide(logits_of(list(probabilities)), LABELS), LABELS)[0]


def test_an_answer_has_every_key_that_callers_read() -> None:
    expected = {
        "prediction": "x",
        "probabilities": pytest.approx({"x": 0.7, "y": 0.2, "z": 0.1}),
        "label": "x",
        "confidence": pytest.approx(0.7),
        "decision": "accepted",
        "reason": None,
        "threshold": 0.5,
    }
    found = answer(decision.DecisionPolicy(threshold=0.5), 0.7, 0.2, 0.1)
    assert {key: found[key] for key in expected} == expected


def test_below_the_threshold_the_prediction_is_the_abstain_label_and_the_label_stays() -> None:
    found = answer(decision.DecisionPolicy(threshold=0.8, abstain_label="no idea"), 0.7, 0.2, 0.1)
    actual = {key: found[key] for key in ("prediction", "label", "decision", "reason")}
    assert actual == {"prediction": "no idea", "label": "x", "decision": "abstained", "reason": "low_confidence"}


def test_at_the_threshold_an_answer_is_accepted() -> None:
    policy = decision.DecisionPolicy(threshold=0.5)
    decisions = policy.decide(np.array([[0.0, 0.0]]), ["x", "y"])
    assert (decisions.confidence.tolist(), decisions.accepted.tolist()) == ([0.5], [True])


def test_sure_of_other_and_abstained_never_look_alike() -> None:
    policy = decision.DecisionPolicy(threshold=0.9)
    labels = ["x", "other"]
    sure, unsure = policy.answers(policy.decide(logits_of([0.02, 0.98], [0.6, 0.4]), labels), labels)
    assert [(a["prediction"], a["label"], a["decision"]) for a in (sure, unsure)] == [
        ("other", "other", "accepted"),
        ("other", "x", "abstained"),
    ]


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, "accepted"), (1.0, "abstained")])
def test_the_outermost_thresholds_accept_all_and_none(threshold: float, expected: str) -> None:
    assert answer(decision.DecisionPolicy(threshold=threshold), 0.98, 0.01, 0.01)["decision"] == expected


def test_temperature_divides_the_logits_and_keeps_the_label() -> None:
    logits = np.array([[3.0, 1.0, 0.0]])
    decisions = decision.DecisionPolicy(temperature=2.0).decide(logits, LABELS)
    powers = np.exp(logits / 2.0)
    np.testing.assert_allclose(decisions.probabilities, powers / powers.sum(), rtol=1e-12)
    assert decisions.label.tolist() == [0]


def test_probabilities_sum_to_one_for_the_largest_float32_logits() -> None:
    decisions = decision.DecisionPolicy().decide(np.array([[3e38, -3e38, 0.0]], dtype=np.float32), LABELS)
    assert decisions.probabilities.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_refused_and_never_answered(bad: float) -> None:
    with pytest.raises(errors.InputError, match="NaN or infinite logits: its weights are damaged"):
        decision.DecisionPolicy().decide(np.array([[0.0, bad, 0.0]]), LABELS)


def test_a_class_threshold_replaces_the_global_one_for_answers_of_that_label() -> None:
    policy = decision.DecisionPolicy(threshold=0.9, class_thresholds={"y": 0.5})
    answers = policy.answers(policy.decide(logits_of([0.6, 0.3, 0.1], [0.3, 0.6, 0.1]), LABELS), LABELS)
    assert [(a["label"], a["threshold"], a["decision"]) for a in answers] == [
        ("x", 0.9, "abstained"),
        ("y", 0.5, "accepted"),
    ]


def test_a_small_margin_abstains_and_says_so() -> None:
    policy = decision.DecisionPolicy(threshold=0.3, min_margin=0.2)
    answers = policy.answers(policy.decide(logits_of([0.45, 0.4, 0.15], [0.6, 0.3, 0.1]), LABELS), LABELS)
    assert [(a["decision"], a["reason"]) for a in answers] == [("abstained", "small_margin"), ("accepted", None)]


def test_an_abstained_answer_names_the_candidates_from_the_likeliest_on() -> None:
    policy = decision.DecisionPolicy(threshold=0.9, candidate_quantile=0.7, candidate_coverage=0.9)
    assert answer(policy, 0.2, 0.45, 0.35)["candidates"] == ["y", "z"]
    assert "candidates" not in answer(policy, 0.01, 0.98, 0.01)


def test_the_candidates_are_never_none() -> None:
    policy = decision.DecisionPolicy(threshold=0.9, candidate_quantile=0.1, candidate_coverage=0.9)
    assert answer(policy, 0.2, 0.45, 0.35)["candidates"] == ["y"]


def test_another_threshold_replaces_class_thresholds_and_margin_and_keeps_the_rest() -> None:
    policy = decision.DecisionPolicy(temperature=1.7, class_thresholds={"y": 0.5}, min_margin=0.1, abstain_label="no")
    assert policy.with_threshold(0.25, source="operator") == decision.DecisionPolicy(
        threshold=0.25, source="operator", temperature=1.7, abstain_label="no"
    )


def test_a_policy_survives_json() -> None:
    policy = decision.DecisionPolicy(
        threshold=0.8, temperature=1.3, source="certificate", class_thresholds={"x": 0.7}, certificates={"levels": []}
    )
    assert decision.DecisionPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"threshold": 1.1}, r"threshold is 1\.1: expected a number from 0 to 1"),
        ({"threshold": -0.1}, r"threshold is -0\.1: expected a number from 0 to 1"),
        ({"threshold": float("nan")}, r"threshold is nan: expected a number from 0 to 1"),
        ({"min_margin": 2}, r"min_margin is 2: expected a number from 0 to 1"),
        ({"class_thresholds": {"x": 7}}, r"x is 7: expected a number from 0 to 1"),
        ({"temperature": 0.0}, r"temperature is 0\.0: expected a finite number above 0"),
        ({"temperature": float("inf")}, r"temperature is inf: expected a finite number above 0"),
        ({"threshold": "0.9"}, "a value in the decision policy has the wrong type"),
        ({"threshold": None}, "a value in the decision policy has the wrong type"),
        ({"temperature": "1"}, "a value in the decision policy has the wrong type"),
        ({"class_thresholds": None}, "a value in the decision policy has the wrong type"),
        ({"treshold": 0.9}, r"unknown key 'treshold' in a decision policy; known: .*threshold"),
    ],
)
def test_a_policy_with_a_value_that_cannot_be_used_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(errors.InputError, match=expected):
        decision.DecisionPolicy.from_dict(values)


LEVELS = {
    "levels": [
        {"max_risk": 0.01, "status": "refused", "threshold": None},
        {"max_risk": 0.05, "status": "certified", "threshold": 0.7},
    ]
}


def test_a_certified_level_can_be_chosen_by_its_risk() -> None:
    policy = decision.DecisionPolicy(certificates=LEVELS, temperature=1.4).at_risk(0.05)
    assert (policy.threshold, policy.source, policy.temperature) == (0.7, "certificate", 1.4)


@pytest.mark.parametrize(("certificates", "there_are"), [(LEVELS, "0.05"), ({"levels": []}, "none"), (None, "none")])
def test_a_level_that_is_not_certified_is_refused_with_those_that_are(
    certificates: dict[str, Any] | None, there_are: str
) -> None:
    with pytest.raises(
        errors.InputError, match=rf"max_risk 0\.01 is not certified for this model; certified levels: {there_are}$"
    ):
        decision.DecisionPolicy(certificates=certificates).at_risk(0.01)


def test_a_label_without_a_certificate_of_its_own_always_abstains() -> None:
    policy = decision.DecisionPolicy(threshold=0.5, class_thresholds={"x": None})
    answers = policy.answers(policy.decide(logits_of([0.999, 0.0005, 0.0005], [0.1, 0.8, 0.1]), LABELS), LABELS)
    assert [answer["decision"] for answer in answers] == ["abstained", "accepted"]
