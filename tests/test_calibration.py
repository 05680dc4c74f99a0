"""Temperature scaling and conformal candidate sets, against scikit-learn and MAPIE."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from madewithml import calibration, errors

quick = settings(deadline=None, max_examples=100)
LOGITS = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=8), elements=st.floats(-50, 50)
)


def overconfident_rows(seed, num_rows, num_classes=4, scale=3.0):
    """Logits [n, k] whose right temperature is `scale`, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_rows, num_classes)) * 2
    shares = calibration.softmax(logits)
    labels = (rng.random((num_rows, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(max=num_classes - 1)
    return scale * logits, labels


class TestSoftmax:
    @quick
    @given(LOGITS, st.floats(0.05, 20))
    def test_rows_are_probabilities(self, logits, temperature):
        shares = calibration.softmax(logits, temperature=temperature)

        assert np.float64 == shares.dtype
        assert (shares >= 0).all()
        assert pytest.approx(np.ones(len(logits))) == shares.sum(axis=1)

    @quick
    @given(LOGITS, st.floats(0.05, 20))
    def test_temperature_never_changes_the_label(self, logits, temperature):
        """The label's probability stays the highest; equal ones may only arise by rounding."""
        shares = calibration.softmax(logits, temperature=temperature)
        rows = np.arange(len(logits))

        assert shares.max(axis=1).tolist() == shares[rows, logits.argmax(axis=1)].tolist()

    def test_huge_logits_do_not_overflow(self):
        assert calibration.softmax(np.array([[1e300, -1e300]]), temperature=0.05).tolist() == [[1.0, 0.0]]

    def test_half_precision_logits_are_computed_in_double(self):
        logits = np.array([[0.1, 1.3, -2.0]], dtype=np.float16)

        expected = calibration.softmax(logits.astype(np.float64), temperature=1.7)

        assert expected.tolist() == calibration.softmax(logits, temperature=1.7).tolist()

    def test_temperature_two_halves_the_logits(self):
        logits = np.array([[2.0, 0.0]])

        assert pytest.approx(1 / (1 + np.exp(-1))) == calibration.softmax(logits, temperature=2.0)[0, 0]


class TestFitTemperature:
    @pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
    def test_it_agrees_with_scikit_learn(self, scale):
        logits, labels = overconfident_rows(0, 600, scale=scale)
        model = LogisticRegression().fit(logits, labels)
        # The identity as a model: its decision function returns the logits themselves.
        model.coef_, model.intercept_ = np.eye(4), np.zeros(4)
        fitted = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(logits, labels)

        temperature = calibration.fit_temperature(logits, labels)

        assert pytest.approx(1 / fitted.calibrated_classifiers_[0].calibrators[0].beta_, rel=1e-4) == temperature
        expected = fitted.predict_proba(logits)
        assert pytest.approx(expected, abs=1e-5) == calibration.softmax(logits, temperature=temperature)

    def test_it_finds_the_factor_the_logits_were_multiplied_by(self):
        logits, labels = overconfident_rows(1, 20_000, scale=3.0)

        assert pytest.approx(3.0, rel=0.05) == calibration.fit_temperature(logits, labels)

    def test_rows_that_are_all_right_leave_the_temperature_at_one(self):
        logits = np.eye(3) * 5

        assert calibration.fit_temperature(logits, [0, 1, 2]) == 1.0

    def test_rows_that_are_all_wrong_give_the_upper_bound(self):
        logits = np.eye(3) * 5

        assert pytest.approx(20.0, rel=1e-4) == calibration.fit_temperature(logits, [1, 2, 0])

    def test_one_row_is_enough(self):
        assert calibration.fit_temperature(np.array([[1.0, 0.0]]), [1]) <= 20.0

    @quick
    @given(LOGITS, st.integers(0, 2**32 - 1))
    def test_it_stays_within_its_bounds(self, logits, seed):
        labels = np.random.default_rng(seed).integers(0, logits.shape[1], len(logits))

        assert 0.05 <= calibration.fit_temperature(logits, labels) <= 20.0


class TestCandidateSets:
    @pytest.mark.parametrize("coverage", [0.7, 0.9, 0.95])
    def test_they_agree_with_mapie(self, coverage):
        pytest.importorskip("mapie")
        from mapie.classification import SplitConformalClassifier

        logits, labels = overconfident_rows(2, 300)
        model = LogisticRegression().fit(logits, labels)
        held, truth = logits[:137], labels[:137]
        mapie = SplitConformalClassifier(
            model, confidence_level=coverage, conformity_score="lac", prefit=True
        ).conformalize(held, truth)
        expected = mapie.predict_set(logits[137:])[1][:, :, 0]

        quantile = calibration.conformal_quantile(model.predict_proba(held), truth, coverage)
        actual = calibration.candidate_sets(model.predict_proba(logits[137:]), quantile)

        assert expected.tolist() == actual.tolist()

    def test_the_quantile_is_the_corrected_order_statistic(self):
        """9 rows and coverage 0.8: rank ceil(10 * 0.8) = 8 of the scores 0.1 to 0.9."""
        truth = np.arange(1, 10) / 10
        shares = np.column_stack([1 - truth, truth])

        assert pytest.approx(0.8) == calibration.conformal_quantile(shares, [0] * 9, 0.8)

    def test_the_row_at_the_quantile_keeps_its_class(self):
        shares = np.column_stack([np.linspace(0.05, 0.95, 19), 1 - np.linspace(0.05, 0.95, 19)])
        quantile = calibration.conformal_quantile(shares, [0] * 19, 0.5)

        assert calibration.candidate_sets(shares, quantile)[:, 0].sum() == 10

    def test_a_whole_rank_is_not_lifted_by_rounding(self):
        """0.07 * 100 is 7.000000000000001 in floats; the rank is 7."""
        truth = np.arange(1, 100) / 100
        shares = np.column_stack([1 - truth, truth])

        assert pytest.approx(0.07) == calibration.conformal_quantile(shares, [0] * 99, 0.07)

    def test_too_few_rows_keep_every_class(self):
        shares = np.array([[0.9, 0.1], [0.6, 0.4]])

        assert calibration.conformal_quantile(shares, [0, 0], 0.9) == 1.0
        assert calibration.candidate_sets(shares, 1.0).all()

    def test_the_true_class_is_kept_as_often_as_promised(self):
        kept = []
        for seed in range(40):
            logits, labels = overconfident_rows(seed, 1200)
            shares = calibration.softmax(logits)
            quantile = calibration.conformal_quantile(shares[:200], labels[:200], 0.9)
            kept.append(calibration.candidate_sets(shares[200:], quantile)[np.arange(1000), labels[200:]].mean())

        # Given the calibration rows the coverage varies by about 0.02; its mean over 40 draws by 0.0035.
        assert pytest.approx(0.9, abs=0.012) == np.mean(kept)


class TestBadInput:
    @pytest.mark.parametrize(
        ("logits", "labels", "message"),
        [
            (np.zeros(3), [0, 0, 0], r"logits have shape \(3,\); expected \[n, k\]"),
            (np.zeros((0, 2)), [], r"logits have shape \(0, 2\); expected \[n, k\] with at least 1 row"),
            (np.zeros((3, 1)), [0, 0, 0], r"logits have shape \(3, 1\); .* 2 classes"),
            (np.zeros((3, 2)), [0, 1], r"labels have shape \(2,\) and logits \(3, 2\); expected one label per row"),
            (np.array([[0.0, 1.0], [0.0, np.nan]]), [0, 1], r"1 of 2 rows have NaN or infinite .* row 1 \(nan\)"),
            (np.array([[np.inf, 1.0], [0.0, 1.0]]), [0, 1], r"first row 0 \(inf\); expected finite numbers: check"),
            (np.zeros((2, 2)), [0, 2], r"label 2 of row 1 is not a class of the model; expected 0 to 1: map label"),
            (np.zeros((2, 2)), [-1, 0], "label -1 of row 0 is not a class"),
            (np.zeros((2, 2)), [0.0, 1.0], "labels have type float64; expected whole numbers"),
            (np.zeros((2, 2)), ["a", "b"], "labels have type <U1; expected whole numbers"),
        ],
    )
    def test_an_unusable_array_is_named(self, logits, labels, message):
        with pytest.raises(errors.InputError, match=message):
            calibration.fit_temperature(logits, labels)

    @pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, 90, float("nan")])
    def test_a_coverage_that_is_no_share_is_quoted(self, coverage):
        with pytest.raises(errors.InputError, match=f"coverage is {coverage!r}; expected a number between 0 and 1"):
            calibration.conformal_quantile(np.full((2, 2), 0.5), [0, 1], coverage)
