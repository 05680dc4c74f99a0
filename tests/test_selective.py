"""Figures of `madewithml.selective`: by hand, against scikit-learn and SciPy, by brute force, and as properties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from madewithml import errors, selective

# Few distinct values, so that ties are the rule.
ROWS = st.lists(st.tuples(st.integers(0, 12).map(lambda k: k / 12), st.booleans()), min_size=1, max_size=60)
quick = settings(deadline=None, max_examples=100)

CONFIDENCE = [0.9, 0.8, 0.8, 0.6, 0.5]
CORRECT = [True, True, False, True, False]


def random_rows(*, seed, rows=300):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.2, 1, size=rows)
    return confidence, rng.uniform(size=rows) < confidence


def columns(rows):
    confidence, correct = zip(*rows, strict=True)
    return np.array(confidence), np.array(correct)


def over_all_orders(area, confidence, correct):
    """Mean of `area(errors of the most confident 1..n rows)` over every order of the rows that respects confidence."""
    orders = itertools.permutations(range(len(confidence)))
    ranked = [order for order in orders if (np.diff(confidence[list(order)]) <= 0).all()]
    return np.mean([area(np.cumsum(~correct[list(order)])) for order in ranked])


class TestReliabilityCurve:
    def test_bins_hold_mean_confidence_accuracy_and_count(self):
        expected = [
            {"lower": 0.0, "upper": 0.5, "confidence": 0.5, "accuracy": 0.0, "count": 1},
            {"lower": 0.5, "upper": 1.0, "confidence": pytest.approx(0.775), "accuracy": 0.75, "count": 4},
        ]

        assert expected == selective.reliability_curve(CONFIDENCE, CORRECT, num_bins=2)

    def test_an_empty_bin_has_no_figures(self):
        first, *_ = selective.reliability_curve([0.9], [True], num_bins=3)

        assert first == {"lower": 0.0, "upper": 1 / 3, "confidence": None, "accuracy": None, "count": 0}

    @pytest.mark.parametrize(("confidence", "bin_index"), [(0.0, 0), (0.2, 2), (0.6, 8), (0.60001, 9), (1.0, 14)])
    def test_bins_are_closed_on_the_right_and_zero_is_in_the_first(self, confidence, bin_index):
        counts = [row["count"] for row in selective.reliability_curve([confidence], [True])]

        assert bin_index == counts.index(1)

    def test_edges_are_the_floats_that_people_write(self):
        expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]

        assert expected == [row["upper"] for row in selective.reliability_curve([0.5], [True], num_bins=10)]

    @pytest.mark.parametrize("seed", range(3))
    def test_it_agrees_with_scikit_learn(self, seed):
        confidence, correct = random_rows(seed=seed)
        accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=15)

        bins = [row for row in selective.reliability_curve(confidence, correct) if row["count"]]

        assert pytest.approx(accuracy) == [row["accuracy"] for row in bins]
        assert pytest.approx(mean_confidence) == [row["confidence"] for row in bins]

    @quick
    @given(rows=ROWS, num_bins=st.integers(1, 20))
    def test_every_row_is_in_exactly_one_bin(self, rows, num_bins):
        bins = selective.reliability_curve(*columns(rows), num_bins=num_bins)

        assert (num_bins, len(rows)) == (len(bins), sum(row["count"] for row in bins))


class TestRiskCoverageCurve:
    def test_tied_rows_make_one_point(self):
        curve = selective.risk_coverage_curve(CONFIDENCE, CORRECT)

        assert curve.thresholds.tolist() == [0.9, 0.8, 0.6, 0.5]
        assert curve.coverages.tolist() == [0.2, 0.6, 0.8, 1.0]
        assert curve.risks.tolist() == [0, 1 / 3, 1 / 4, 2 / 5]
        assert curve.num_accepted.tolist() == [1, 3, 4, 5]
        assert curve.num_errors.tolist() == [0, 1, 1, 2]

    @quick
    @given(rows=ROWS)
    def test_every_point_is_what_its_threshold_does(self, rows):
        confidence, correct = columns(rows)
        curve = selective.risk_coverage_curve(confidence, correct)

        for threshold, coverage, risk, *_ in zip(*curve, strict=True):
            accepted = confidence >= threshold
            assert (coverage, risk) == (accepted.mean(), (~correct[accepted]).mean())

    @quick
    @given(rows=ROWS)
    def test_raising_the_threshold_never_raises_coverage(self, rows):
        curve = selective.risk_coverage_curve(*columns(rows))

        assert (np.diff(curve.thresholds) < 0).all()
        assert (np.diff(curve.coverages) > 0).all()
        assert curve.coverages[-1] == 1.0


class TestAreas:
    def test_aurc_is_the_mean_risk_of_the_most_confident_rows(self):
        actual = selective.aurc([0.9, 0.8, 0.7], [True, False, True])

        assert pytest.approx((0 + 1 / 2 + 1 / 3) / 3) == actual

    def test_augrc_is_the_area_under_the_share_of_accepted_errors(self):
        actual = selective.augrc([0.9, 0.8, 0.7], [True, False, True])

        assert pytest.approx((0 + 1 / 2 + 1) / 9) == actual

    @settings(deadline=None, max_examples=40)
    @given(rows=st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=6))
    def test_ties_count_as_the_mean_over_all_their_orders(self, rows):
        confidence, correct = columns(rows)
        ranks = np.arange(1, len(rows) + 1)

        aurc = over_all_orders(lambda wrong: np.mean(wrong / ranks), confidence, correct)
        augrc = over_all_orders(lambda wrong: np.mean(wrong - 0.5 * np.diff(wrong, prepend=0)), confidence, correct)

        assert pytest.approx(aurc) == selective.aurc(confidence, correct)
        assert pytest.approx(augrc / len(rows)) == selective.augrc(confidence, correct)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("decimals", [1, 8])
    def test_augrc_follows_from_error_rate_and_auroc(self, seed, decimals):
        confidence, correct = random_rows(seed=seed)
        confidence = confidence.round(decimals)
        error_rate = 1 - correct.mean()

        expected = (1 - roc_auc_score(correct, confidence)) * error_rate * (1 - error_rate) + error_rate**2 / 2

        assert pytest.approx(expected) == selective.augrc(confidence, correct)

    @pytest.mark.parametrize(("correct", "aurc", "augrc"), [(True, 0.0, 0.0), (False, 1.0, 0.5)])
    def test_all_right_and_all_wrong_are_the_ends_of_the_scale(self, correct, aurc, augrc):
        confidence = [0.3, 0.6, 0.6, 0.9]

        assert aurc == selective.aurc(confidence, [correct] * 4)
        assert augrc == selective.augrc(confidence, [correct] * 4)
        assert selective.e_aurc(confidence, [correct] * 4) == 0.0

    def test_e_aurc_is_measured_from_the_exact_optimum(self):
        confidence, correct = [0.9, 0.8, 0.7, 0.6], [False, True, True, False]
        optimum = (0 + 0 + 1 / 3 + 2 / 4) / 4

        assert pytest.approx((1 + 1 / 2 + 1 / 3 + 2 / 4) / 4 - optimum) == selective.e_aurc(confidence, correct)

    @quick
    @given(num_right=st.integers(0, 30), num_wrong=st.integers(0, 30), tied=st.booleans())
    def test_a_perfect_ranking_has_no_excess(self, num_right, num_wrong, tied):
        total = num_right + num_wrong + 1
        correct = np.array([True] * (num_right + 1) + [False] * num_wrong)
        confidence = np.where(correct, 0.9, 0.1) if tied else np.linspace(1, 0, total)

        assert pytest.approx(0, abs=1e-12) == selective.e_aurc(confidence, correct)

    @quick
    @given(rows=ROWS)
    def test_areas_stay_in_their_ranges(self, rows):
        confidence, correct = columns(rows)

        aurc = selective.aurc(confidence, correct)

        assert 0 <= selective.e_aurc(confidence, correct) <= aurc <= 1
        assert 0 <= selective.augrc(confidence, correct) <= 0.5

    @quick
    @given(rows=ROWS, data=st.data())
    def test_the_order_of_the_rows_does_not_matter(self, rows, data):
        shuffled = data.draw(st.permutations(rows))

        assert selective.aurc(*columns(rows)) == selective.aurc(*columns(shuffled))
        assert selective.augrc(*columns(rows)) == selective.augrc(*columns(shuffled))


class TestCoverageAtRisk:
    def test_it_takes_the_last_point_that_is_good_enough(self):
        """Risk first rises to 1/3 and falls to 1/4 after that."""
        expected = [
            {"risk": 0.0, "coverage": 0.2, "threshold": 0.9},
            {"risk": 0.25, "coverage": 0.8, "threshold": 0.6},
            {"risk": 0.4, "coverage": 1.0, "threshold": 0.5},
        ]

        assert expected == selective.coverage_at_risk(CONFIDENCE, CORRECT, risks=[0.0, 0.25, 0.4])

    def test_without_such_a_point_coverage_is_zero_and_there_is_no_threshold(self):
        expected = [{"risk": 0.05, "coverage": 0.0, "threshold": None}]

        assert expected == selective.coverage_at_risk([0.9, 0.9], [True, False], risks=[0.05])

    def test_the_risks_asked_for_by_default_are_1_2_5_and_10_percent(self):
        """5 errors among 100 rows are exactly 5 %, which is good enough."""
        confidence, correct = np.linspace(1, 0.5, 100), np.arange(100) < 95

        actual = selective.coverage_at_risk(confidence, correct)

        expected = [(0.01, 0.95), (0.02, 0.96), (0.05, 1.0), (0.1, 1.0)]
        assert expected == [(row["risk"], row["coverage"]) for row in actual]

    @quick
    @given(rows=ROWS, risk=st.floats(0, 1))
    def test_its_threshold_keeps_the_empirical_risk(self, rows, risk):
        confidence, correct = columns(rows)

        [row] = selective.coverage_at_risk(confidence, correct, risks=[risk])

        accepted = confidence >= (row["threshold"] if row["threshold"] is not None else np.inf)
        assert row["coverage"] == accepted.mean()
        assert (~correct[accepted]).sum() <= risk * accepted.sum() + 1e-9


class TestThresholdTable:
    def test_a_row_says_what_the_threshold_does(self):
        [row] = selective.threshold_table(CONFIDENCE, CORRECT, [0.8])

        expected = {
            "threshold": 0.8,
            "coverage": 0.6,
            "risk": 1 / 3,
            "risk_upper_bound": pytest.approx(stats.binomtest(1, 3).proportion_ci(0.90).high),
            "num_accepted": 3,
            "num_errors": 1,
            "accepted_per_1000": 600.0,
            "wrong_per_1000": 200.0,
            "abstained_per_1000": 400.0,
        }
        assert expected == row

    def test_where_nothing_is_accepted_there_is_no_risk_and_no_knowledge(self):
        [row] = selective.threshold_table(CONFIDENCE, CORRECT, [1.0])

        expected = {"coverage": 0.0, "risk": None, "risk_upper_bound": 1.0, "abstained_per_1000": 1000.0}
        assert expected == {key: row[key] for key in expected}

    def test_single_precision_confidence_is_below_its_decimal(self):
        [row] = selective.threshold_table(np.array([0.9], dtype=np.float32), [True], [0.9])

        assert row["num_accepted"] == 0

    @quick
    @given(rows=ROWS, thresholds=st.lists(st.floats(0, 1), max_size=8))
    def test_raising_the_threshold_never_raises_coverage(self, rows, thresholds):
        table = selective.threshold_table(*columns(rows), sorted(thresholds))

        coverages = [row["coverage"] for row in table]
        assert sorted(coverages, reverse=True) == coverages

    @quick
    @given(rows=ROWS, threshold=st.floats(0, 1))
    def test_accepted_and_abstained_are_all(self, rows, threshold):
        [row] = selective.threshold_table(*columns(rows), [threshold])

        assert pytest.approx(1000) == row["accepted_per_1000"] + row["abstained_per_1000"]
        assert row["wrong_per_1000"] <= row["accepted_per_1000"]


class TestBadInput:
    @pytest.mark.parametrize(
        "figure", [selective.reliability_curve, selective.risk_coverage_curve, selective.aurc, selective.e_aurc]
    )
    @pytest.mark.parametrize(
        ("confidence", "correct", "message"),
        [
            ([], [], "there are no rows to evaluate; expected at least 1 labelled row"),
            ([0.5], [True, False], r"confidence has shape \(1,\) and correct \(2,\); expected one number per"),
            ([[0.5]], [[True]], r"confidence has shape \(1, 1\) and correct \(1, 1\); expected one number per row in"),
            ([0.5, 1.5], [True, True], r"confidence number 1 is 1.5; expected a number in \[0, 1\]"),
            ([np.nan], [True], r"confidence number 0 is nan; expected a number in \[0, 1\]"),
            ([0.5, 0.5], [1, 2], r"correct holds \[1, 2\]; expected only true and false \(or 1 and 0\)"),
        ],
    )
    def test_rows_that_cannot_be_used_are_refused(self, figure, confidence, correct, message):
        with pytest.raises(errors.InputError, match=f"^{message}"):
            figure(confidence, correct)

    def test_a_curve_needs_a_bin(self):
        with pytest.raises(errors.InputError, match=r"^num_bins is 0; expected at least 1$"):
            selective.reliability_curve(CONFIDENCE, CORRECT, num_bins=0)

    def test_a_risk_is_a_share(self):
        with pytest.raises(errors.InputError, match=r"^risk number 1 is 5.0; expected a number in \[0, 1\]$"):
            selective.coverage_at_risk(CONFIDENCE, CORRECT, risks=[0.01, 5])

    def test_a_threshold_is_a_share(self):
        with pytest.raises(errors.InputError, match=r"^threshold number 0 is 90.0; expected a number in \[0, 1\]$"):
            selective.threshold_table(CONFIDENCE, CORRECT, [90])

    @pytest.mark.parametrize("delta", [0.0, 1.0, float("nan")])
    def test_delta_is_between_0_and_1(self, delta):
        with pytest.raises(errors.InputError, match=f"^delta is {delta}; expected a number between 0 and 1, both excl"):
            selective.threshold_table(CONFIDENCE, CORRECT, [0.5], delta=delta)
