"""How two models agree: the tally against counting by hand, and McNemar's exact test against SciPy."""

import numpy as np
import pytest
import scipy.stats

from madewithml.serving import agreement


def pair(own, other, *, row=0, own_accepted=True, other_accepted=True):
    return agreement.Pair("abc", row, own, other, own_accepted, other_accepted)


def test_an_empty_tally_has_no_shares():
    report = agreement.Tally().report()

    assert (report["num_rows"], report["agreement"], report["coverage"], report["flips"]) == (0, None, None, [])


def test_a_tally_counts_in_all_by_class_and_by_what_was_let_through():
    tally = agreement.Tally()
    tally.add([pair("a", "a"), pair("a", "b", row=1, other_accepted=False), pair("b", "b", own_accepted=False)])
    report = tally.report()

    assert (report["num_rows"], report["agreement"]) == (3, 2 / 3)
    assert report["by_class"] == {
        "a": {"num_rows": 2, "agreement": 0.5},
        "b": {"num_rows": 1, "agreement": 1.0},
    }
    assert (report["coverage"], report["shadow_coverage"]) == (2 / 3, 2 / 3)
    assert report["flips"] == [{"request_id": "abc", "row": 1, "label": "a", "shadow": "b"}]


def test_models_are_judged_on_the_rows_whose_true_label_was_told():
    pairs = [
        agreement.Pair("a", 0, own="x", other="y", own_accepted=True, other_accepted=True),
        agreement.Pair("a", 1, own="x", other="y", own_accepted=True, other_accepted=True),
        agreement.Pair("b", 0, own="x", other="x", own_accepted=True, other_accepted=True),
        agreement.Pair("c", 0, own="x", other="y", own_accepted=True, other_accepted=True),
    ]
    judged = agreement.judge(pairs, {("a", 0): "y", ("a", 1): "x", ("b", 0): "x", ("elsewhere", 0): "x"})
    assert judged == {
        "num_rows": 3,
        "accuracy": pytest.approx(2 / 3),
        "shadow_accuracy": pytest.approx(2 / 3),
        "only_own_right": 1,
        "only_shadow_right": 1,
        "p_value": 1.0,
    }
    assert agreement.judge(pairs, {}) is None


def test_flips_are_bounded():
    tally = agreement.Tally()
    for row in range(agreement.MAX_FLIPS + 50):
        tally.add([pair("a", "b", row=row)])
    flips = tally.report()["flips"]

    assert [flip["row"] for flip in flips] == list(range(50, agreement.MAX_FLIPS + 50))


def test_answers_are_paired_row_by_row():
    answers = [{"label": "a", "decision": "accepted"}, {"label": "b", "decision": "abstained"}]
    others = [{"label": "a", "decision": "abstained"}, {"label": "a", "decision": "accepted"}]

    assert agreement.pairs_of("abc", answers, others) == [
        agreement.Pair("abc", 0, "a", "a", own_accepted=True, other_accepted=False),
        agreement.Pair("abc", 1, "b", "a", own_accepted=False, other_accepted=True),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_is_the_two_sided_binomial_test_on_the_discordant_rows(seed):
    random = np.random.default_rng(seed)
    truth, first, second = (random.choice(["a", "b"], 80).tolist() for _ in range(3))
    result = agreement.mcnemar(truth, first, second)

    discordant = result.only_first + result.only_second
    assert discordant == sum(a != b for a, b in zip(first, second, strict=True))
    assert result.p_value == pytest.approx(scipy.stats.binomtest(result.only_first, discordant).pvalue)


def test_mcnemar_of_equal_models_says_nothing():
    assert agreement.mcnemar(["a"], ["a"], ["a"]) == agreement.McNemar(0, 0, 1.0)
