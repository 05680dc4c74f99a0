"""Bounds, thresholds and the order of tests, against SciPy and MAPIE."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from madewithml import errors, risk_control
from madewithml.risk_control import Rows

quick = settings(deadline=None, max_examples=100)
COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
CONFIDENCES = st.lists(st.sampled_from([0.3, 0.5, 0.7, 0.9, 0.99]) | st.floats(0.2, 1.0), min_size=1, max_size=60)


def random_rows(seed, num_rows):
    """Calibrated rows: the chance of an error is 1 - confidence."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(6, 0.5, num_rows)
    return Rows(confidence, rng.random(num_rows) > confidence)


class TestRiskUpperBound:
    @quick
    @given(COUNTS, st.floats(0.001, 0.5))
    def test_it_agrees_with_clopper_pearson_in_scipy(self, counts, delta):
        num_errors, num_accepted = counts
        test = stats.binomtest(num_errors, num_accepted, alternative="less")
        expected = test.proportion_ci(1 - delta, method="exact").high

        assert pytest.approx(expected, abs=1e-9) == risk_control.risk_upper_bound(num_errors, num_accepted, delta)

    @quick
    @given(COUNTS, st.floats(0.001, 0.5), st.floats(0.001, 0.9))
    def test_it_is_the_inverse_of_the_p_value(self, counts, delta, max_risk):
        bound = risk_control.risk_upper_bound(*counts, delta)
        p_value = risk_control.risk_p_value(*counts, max_risk)
        if abs(bound - max_risk) > 1e-9:
            assert (bound <= max_risk) == (p_value <= delta)

    @pytest.mark.parametrize(("max_risk", "rows"), [(0.05, 59), (0.02, 149), (0.01, 299)])
    def test_without_errors_it_takes_the_known_numbers_of_rows(self, max_risk, rows):
        assert risk_control.risk_upper_bound(0, rows, 0.05) <= max_risk
        assert risk_control.risk_upper_bound(0, rows - 1, 0.05) > max_risk

    def test_nothing_accepted_means_nothing_known(self):
        assert risk_control.risk_upper_bound(0, 0, 0.05) == 1.0
        assert risk_control.risk_p_value(0, 0, 0.05) == 1.0

    def test_all_wrong_gives_one(self):
        assert risk_control.risk_upper_bound(7, 7, 0.05) == 1.0

    def test_counts_that_do_not_fit_are_quoted(self):
        message = "4 errors among 3 accepted rows; expected 0 <= errors <= accepted"
        with pytest.raises(errors.InputError, match=message):
            risk_control.risk_upper_bound(4, 3, 0.05)
        with pytest.raises(errors.InputError, match=message):
            risk_control.risk_p_value(4, 3, 0.05)

    def test_delta_outside_its_range_is_quoted(self):
        with pytest.raises(errors.InputError, match=r"delta is 1\.5; expected a number between 0 and 1"):
            risk_control.risk_upper_bound(0, 3, 1.5)


@quick
@given(st.integers(0, 500), st.floats(0.005, 0.5), st.floats(0.005, 0.5))
def test_allowed_errors_is_the_last_count_that_passes(num_accepted, max_risk, delta):
    allowed = int(risk_control.allowed_errors(np.array([num_accepted]), max_risk, delta)[0])

    if allowed >= 0:
        assert risk_control.risk_p_value(allowed, num_accepted, max_risk) <= delta
    if allowed < num_accepted:
        assert risk_control.risk_p_value(allowed + 1, num_accepted, max_risk) > delta


class TestFixedSequence:
    @quick
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 0.5))
    def test_it_agrees_with_mapie(self, p_values, delta):
        mapie = pytest.importorskip("mapie.risk_control")
        expected = mapie.control_fwer(np.array(p_values), delta, fwer_method="fixed_sequence")

        assert len(expected) == risk_control.fixed_sequence(np.array(p_values), delta)

    def test_a_pass_behind_a_failure_does_not_count(self):
        assert risk_control.fixed_sequence(np.array([0.01, 0.05, 0.2, 0.001]), 0.05) == 2


class TestThresholds:
    @quick
    @given(CONFIDENCES)
    def test_they_fall_from_strict_to_accepting_everything(self, confidences):
        thresholds = risk_control.threshold_grid(np.array(confidences))

        assert thresholds[-1] == 0.0
        assert (np.diff(thresholds) < 0).all()

    @quick
    @given(CONFIDENCES, CONFIDENCES)
    def test_raising_the_threshold_never_raises_coverage(self, confidences, thresholds):
        rows = Rows(np.array(confidences), np.zeros(len(confidences), dtype=bool))

        accepted, _ = risk_control.count_accepted(rows, np.sort(thresholds))

        assert (np.diff(accepted) <= 0).all()

    @quick
    @given(CONFIDENCES, CONFIDENCES)
    def test_accepted_and_abstained_rows_are_all_rows(self, confidences, thresholds):
        conf = np.array(confidences)
        rows = Rows(conf, conf < 0.6)

        accepted, wrong = risk_control.count_accepted(rows, np.array(thresholds))
        abstained = [int((conf < threshold).sum()) for threshold in thresholds]

        assert [len(conf)] * len(thresholds) == (accepted + abstained).tolist()
        assert [int(((conf >= t) & (conf < 0.6)).sum()) for t in thresholds] == wrong.tolist()

    def test_rows_at_the_threshold_are_accepted_together(self):
        rows = Rows(np.array([0.9, 0.8, 0.8, 0.8, 0.1]), np.array([False, True, False, True, False]))

        accepted, wrong = risk_control.count_accepted(rows, np.array([0.8, np.nextafter(0.8, 1)]))

        assert accepted.tolist() == [4, 1]
        assert wrong.tolist() == [2, 0]

    def test_many_confidences_are_thinned_to_quantiles(self):
        thresholds = risk_control.threshold_grid(np.linspace(0, 1, 10_001), max_thresholds=11)

        assert pytest.approx(np.append(np.linspace(1, 0, 11)[:-1], 0.0)) == np.unique(thresholds)[::-1]


class TestPower:
    def test_it_is_the_share_of_tests_that_pass(self):
        """Against simulation: risk 1 %, coverage 80 %, both known well."""
        view = risk_control.Outlook(np.array([0.8]), np.array([0.01]), 1_000_000)
        rng = np.random.default_rng(0)
        accepted = rng.binomial(200, 0.8, 20_000)
        wrong = rng.binomial(accepted, 0.01)
        expected = (risk_control.risk_p_values(wrong, accepted, 0.05) <= 0.05).mean()

        assert pytest.approx(expected, abs=0.03) == risk_control.power(view, 200, max_risk=0.05, delta=0.05)[0]

    def test_too_few_rows_have_none(self):
        view = risk_control.Outlook(np.array([1.0]), np.array([0.0]), 100)

        assert risk_control.power(view, 58, max_risk=0.05, delta=0.05).tolist() == [0.0]
        assert risk_control.power(view, 59, max_risk=0.05, delta=0.05)[0] == pytest.approx(1.0)

    def test_the_estimated_risk_lies_between_confidence_and_errors(self):
        """30 rows of confidence 0.9, 6 of them wrong: halfway between 10 % and 20 %."""
        rows = Rows(np.full(30, 0.9), np.arange(30) < 6)

        view = risk_control.outlook(rows, np.array([0.9]))

        assert pytest.approx(0.15) == view.risk[0]
        assert view.coverage.tolist() == [1.0]


class TestControl:
    def test_it_is_mapies_procedure_on_the_same_sequence(self):
        mapie = pytest.importorskip("mapie.risk_control")
        for seed in range(20):
            tune, held = random_rows(seed, 60), random_rows(1000 + seed, 400)
            thresholds = risk_control.sequence(tune, len(held), max_risk=0.05, delta=0.05)
            accepted = [int((held.confidence >= t).sum()) for t in thresholds]
            wrong = [int((held.wrong & (held.confidence >= t)).sum()) for t in thresholds]
            p_values = stats.binom.cdf(wrong, accepted, 0.05)
            passed = mapie.control_fwer(p_values, 0.05, fwer_method="fixed_sequence")

            outcome = risk_control.control(tune, held, max_risk=0.05, delta=0.05)

            assert (len(passed) > 0) == outcome.passed
            assert thresholds[max(len(passed) - 1, 0)] == outcome.threshold

    def test_the_sequence_does_not_depend_on_the_certify_rows(self):
        """Only on how many there are: with two sets of them, both tests run along the same thresholds."""
        tune = random_rows(0, 60)
        sequence = risk_control.sequence(tune, 400, max_risk=0.05, delta=0.05).tolist()

        for seed in range(1, 9):
            outcome = risk_control.control(tune, random_rows(seed, 400), max_risk=0.05, delta=0.05)
            assert outcome.threshold in sequence

    def test_no_certify_row_is_a_failed_test(self):
        nothing = Rows(np.empty(0), np.empty(0, dtype=bool))

        assert not risk_control.control(random_rows(0, 60), nothing, max_risk=0.05, delta=0.05).passed

    def test_thresholds_of_too_high_risk_pass_at_most_delta_of_the_time(self):
        """Rows whose risk is 5.5 % at every threshold: whatever passes for 5 % is wrong."""
        rng = np.random.default_rng(0)
        passed = 0
        for _ in range(1500):
            confidence = rng.uniform(0.5, 1.0, 460)
            rows = Rows(confidence, rng.random(460) < 0.055)
            tuning = np.arange(460) < 60
            passed += risk_control.control(rows.pick(tuning), rows.pick(~tuning), max_risk=0.05, delta=0.05).passed

        assert stats.binom.sf(passed - 1, 1500, 0.05) > 0.001
        # A test that nothing can fail shows nothing: some do pass.
        assert passed > 5
