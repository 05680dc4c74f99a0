"""Certificates: what is promised, what is refused, and what each says."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from madewithml import calibration, certify, errors, refusal, risk_control
from madewithml.risk_control import Rows

quick = settings(deadline=None, max_examples=40)


def draw(seed, num_rows, separation=3.0, scale=1.0, num_classes=3):
    """Logits [n, k] whose posterior is softmax(logits / scale), labels [n], and the true chance of error [n]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_rows)
    points = rng.normal(size=(num_rows, num_classes))
    points[np.arange(num_rows), labels] += separation
    logits = points * separation
    return logits * scale, labels, 1 - special.softmax(logits, axis=1).max(axis=1)


@pytest.fixture(scope="module")
def rows():
    """Logits and labels of 500 rows, about 8 % wrong and over-confident by a factor of 3."""
    logits, labels, _ = draw(0, 500, separation=2.3, scale=3.0)
    return logits, labels


@pytest.fixture(scope="module")
def certification(rows):
    return certify.certify(*rows)


class TestCertificate:
    def test_its_counts_can_be_recomputed_from_the_rows(self, rows, certification):
        """Confidence from its temperature, at least its threshold, on the rows that were not tuned on."""
        logits, labels = rows
        held = ~certify.split_rows(len(labels))
        own = certification.certificate
        shares = calibration.softmax(logits[held], temperature=own.temperature)
        accepted = shares.max(axis=1) >= own.threshold
        wrong = accepted & (shares.argmax(axis=1) != labels[held])

        assert own.certified
        assert (held.sum(), accepted.sum(), wrong.sum()) == (own.num_rows, own.num_accepted, own.num_errors)
        assert accepted.mean() == own.coverage
        expected = stats.binomtest(own.num_errors, own.num_accepted, alternative="less").proportion_ci(0.95, "exact")
        assert pytest.approx(expected.high) == own.risk_upper_bound

    def test_the_temperature_comes_from_the_tune_rows_alone(self, rows, certification):
        logits, labels = rows
        tuning = certify.split_rows(len(labels))

        assert calibration.fit_temperature(logits[tuning], labels[tuning]) == certification.temperature

    def test_certify_labels_change_nothing_but_the_verdict(self, rows):
        """With every certify label scrambled, temperature and tested thresholds stay; the certificate does not."""
        logits, labels = rows
        held = ~certify.split_rows(len(labels))
        scrambled = np.where(held, (labels + 1) % 3, labels)

        assert certify.certify(logits, scrambled).temperature == certify.certify(logits, labels).temperature
        assert certify.certify(logits, scrambled).certificate.status == "refused"

    def test_the_ladder_has_the_usual_levels_and_the_one_asked_for(self, rows):
        found = certify.certify(*rows, max_risk=0.03)

        assert [level.max_risk for level in found.levels] == [0.01, 0.02, 0.03, 0.05, 0.10]
        assert found.certificate == found.levels[2]
        assert [pytest.approx(level.confidence_level) for level in found.levels] == [0.95] * 5

    def test_each_level_is_what_asking_for_it_alone_gives(self, rows, certification):
        for level in certification.levels:
            assert level == certify.certify(*rows, max_risk=level.max_risk, levels=()).certificate

    def test_joint_levels_share_delta_evenly(self, rows):
        found = certify.certify(*rows, joint=True)

        assert [pytest.approx(1 - 0.05 / 4)] * 4 == [level.confidence_level for level in found.levels]
        assert (found.joint, found.asked_confidence_level) == (True, 0.95)

    def test_each_label_gets_its_own_certificate_at_its_share_of_delta(self):
        logits, labels, _ = draw(1, 1200)
        found = certify.certify(logits, labels, per_class=True)
        held = ~certify.split_rows(len(labels))
        predicted = logits.argmax(axis=1)

        assert [int((held & (predicted == label)).sum()) for label in range(3)] == [c.num_rows for c in found.per_class]
        assert [pytest.approx(1 - 0.05 / 3)] * 3 == [c.confidence_level for c in found.per_class]
        assert all(c.certified for c in found.per_class)

    def test_a_label_that_is_never_predicted_is_refused_with_the_reason(self):
        logits, labels, _ = draw(1, 300)
        logits = np.column_stack([logits, np.full(300, -50.0)])

        never = certify.certify(logits, labels, per_class=True).per_class[3]

        assert (never.status, never.num_rows, never.needed_rows) == ("refused", 0, None)
        assert never.reason == "no tune row has this predicted label, so there is nothing to choose a threshold from"

    def test_the_same_seed_gives_the_same_certificate(self, rows, certification):
        assert certification == certify.certify(*rows)
        assert certification.temperature != certify.certify(*rows, seed=1).temperature

    def test_chosen_tune_rows_replace_the_random_split(self, rows):
        tuning = np.arange(500) < 100

        found = certify.certify(*rows, tune_rows=tuning)

        assert (found.num_tune_rows, found.num_certify_rows) == (100, 400)
        assert calibration.fit_temperature(rows[0][:100], rows[1][:100]) == found.temperature

    def test_ties_at_the_threshold_are_accepted_together(self):
        """Two values of confidence only: the certified threshold is one of them, and takes all rows that have it."""
        sure, unsure = [6.0, 0.0, 0.0], [0.4, 0.0, 0.0]
        logits = np.array([sure] * 300 + [unsure] * 100)
        labels = np.array([0] * 295 + [1] * 5 + [0] * 40 + [2] * 60)

        own = certify.certify(logits, labels).certificate

        held = ~certify.split_rows(400)
        expected = calibration.softmax(logits[:1], temperature=own.temperature).max()
        assert (expected, int(held[:300].sum())) == (own.threshold, own.num_accepted)

    @quick
    @given(
        seed=st.integers(0, 10_000),
        num_rows=st.integers(20, 600),
        separation=st.floats(0.5, 5),
        scale=st.floats(0.2, 5),
        max_risk=st.floats(0.01, 0.3),
        level=st.floats(0.5, 0.99),
    )
    def test_a_certified_bound_never_exceeds_its_risk(self, seed, num_rows, separation, scale, max_risk, level):
        logits, labels, _ = draw(seed, num_rows, separation, scale)

        found = certify.certify(
            logits, labels, max_risk=max_risk, confidence_level=level, joint=True, per_class=True, guide=False
        )

        for own in (*found.levels, *found.per_class):
            if own.certified:
                assert own.risk_upper_bound <= own.max_risk
                assert own.num_errors / own.num_accepted <= own.max_risk
            else:
                assert (own.threshold, own.coverage, own.risk_upper_bound) == (None, 0.0, 1.0)

    def test_true_risks_exceed_the_target_at_most_delta_of_the_time(self):
        """Judged by the generator's own posterior on 20,000 rows; base error 10 %, so that abstaining is needed."""
        logits, _, chance = draw(0, 20_000, separation=2.4)
        broken = 0
        for seed in range(400):
            sample, labels, _ = draw(seed + 1, 300, separation=2.4)
            own = certify.certify(sample, labels, levels=(), guide=False, seed=seed).certificate
            if own.certified:
                accepted = calibration.softmax(logits, temperature=own.temperature).max(axis=1) >= own.threshold
                broken += chance[accepted].mean() > 0.05

        assert stats.binom.sf(broken - 1, 400, 0.05) > 0.001


class TestRefusal:
    def test_it_says_what_is_missing(self):
        logits, labels, _ = draw(3, 120, separation=2.0)

        own = certify.certify(logits, labels, max_risk=0.05).certificate

        assert own.status == "refused"
        assert own.needed_rows > 59
        assert 0 < own.expected_coverage <= 1
        assert 0.05 < own.best_max_risk < 1
        assert own.reason.startswith("the most promising threshold, ")

    def test_the_best_risk_is_one_that_passes_and_a_lower_one_does_not(self):
        tune, held = Rows(np.full(30, 0.9), np.arange(30) < 3), Rows(np.full(200, 0.9), np.arange(200) < 20)

        best = refusal.best_max_risk(tune, held, max_risk=0.05, delta=0.05)

        assert risk_control.risk_upper_bound(20, 200, 0.05) == pytest.approx(best, rel=0.04)
        assert risk_control.control(tune, held, max_risk=best, delta=0.05).passed

    def test_too_few_rows_name_the_number_it_takes(self):
        logits, labels, _ = draw(0, 60)

        own = certify.certify(logits, labels, max_risk=0.01).certificate

        assert own.reason.startswith(
            "51 certify rows are too few: max_risk 0.01 at confidence level 0.95 takes at least 299 accepted rows"
        )

    def test_all_wrong_is_refused_without_false_hope(self):
        logits, _, _ = draw(0, 200)
        wrong = (logits.argmax(axis=1) + 1) % 3

        own = certify.certify(logits, wrong).certificate

        assert (own.status, own.needed_rows, own.expected_coverage, own.best_max_risk) == ("refused", None, None, None)
        assert "no threshold looks good enough for more rows to help" in own.reason

    def test_all_right_is_certified_for_everything(self):
        logits, _, _ = draw(0, 200)

        own = certify.certify(logits, logits.argmax(axis=1)).certificate

        assert (own.status, own.threshold, own.coverage, own.num_errors) == ("certified", 0.0, 1.0, 0)

    def test_the_needed_rows_certify_about_as_often_as_promised(self):
        """80 % of second tries on that many fresh rows, the old ones tuning; 65 % leaves room for the estimate."""
        tries, certified = 0, 0
        for seed in range(120):
            logits, labels, _ = draw(seed, 120, separation=2.4)
            own = certify.certify(logits, labels, levels=()).certificate
            if own.certified or own.needed_rows is None:
                continue
            more, truth, _ = draw(10_000 + seed, own.needed_rows, separation=2.4)
            again = certify.certify(
                np.concatenate([logits, more]),
                np.concatenate([labels, truth]),
                levels=(),
                tune_rows=np.arange(120 + len(more)) < 120,
                guide=False,
            )
            tries, certified = tries + 1, certified + again.certificate.certified

        assert tries > 40
        assert certified / tries > 0.65

    def test_needed_rows_of_a_faultless_model_are_near_the_least_possible(self):
        needed = refusal.needed_rows(Rows(np.full(1000, 0.999), np.zeros(1000, dtype=bool)), max_risk=0.05, delta=0.05)

        assert 59 <= needed.rows <= 62
        assert needed.coverage == 1.0

    def test_without_a_guide_a_refusal_is_bare(self, rows):
        own = certify.certify(*rows, max_risk=0.001, guide=False).certificate

        assert (own.status, own.needed_rows, own.best_max_risk) == ("refused", None, None)


class TestSplit:
    def test_it_draws_the_share_asked_for_without_looking_at_labels(self):
        assert certify.split_rows(200).sum() == 30
        assert certify.split_rows(200).tolist() == certify.split_rows(200).tolist()

    @quick
    @given(st.integers(2, 300), st.floats(0.001, 0.999))
    def test_both_sides_get_a_row(self, num_rows, share):
        assert 1 <= certify.split_rows(num_rows, share).sum() < num_rows


class TestBadInput:
    def test_too_few_rows_are_counted(self):
        logits, labels, _ = draw(0, 19)

        with pytest.raises(errors.InputError, match="19 labelled rows are too few to certify on; expected at least 20"):
            certify.certify(logits, labels)

    def test_labels_of_one_class_only_are_refused(self):
        with pytest.raises(errors.InputError, match="all 50 labels are class 1; expected rows of at least 2 classes"):
            certify.certify(np.zeros((50, 3)), np.ones(50, dtype=int))

    def test_nan_logits_are_refused(self):
        logits, labels, _ = draw(0, 50)
        logits[7, 1] = np.nan

        with pytest.raises(errors.InputError, match="1 of 50 rows have NaN or infinite logits, first row 7"):
            certify.certify(logits, labels)

    @pytest.mark.parametrize(
        ("name", "value"),
        list(itertools.product(["max_risk", "confidence_level", "tune_share"], [0, 1, -0.1, 5, math.nan])),
    )
    def test_a_share_outside_its_range_is_quoted(self, rows, name, value):
        with pytest.raises(errors.InputError, match=f"{name} is {value!r}; expected a number between 0 and 1"):
            certify.certify(*rows, **{name: value})

    def test_a_level_outside_its_range_is_quoted(self, rows):
        with pytest.raises(errors.InputError, match="a risk in levels is 2; expected a number between 0 and 1"):
            certify.certify(*rows, levels=(0.05, 2))

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (np.zeros(500, dtype=bool), "tune_rows marks 0 of 500 rows; expected some to tune and some to certify on"),
            (np.ones(500, dtype=bool), "tune_rows marks 500 of 500 rows"),
            (np.arange(75), r"tune_rows is int64 of shape \(75,\); expected bool, one per row: \(500,\)"),
        ],
    )
    def test_a_useless_choice_of_tune_rows_is_quoted(self, rows, mask, message):
        with pytest.raises(errors.InputError, match=message):
            certify.certify(*rows, tune_rows=mask)
