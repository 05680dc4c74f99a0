"""The gate before another model takes over: contract, labels, coverage and speed, each against its limit."""

import dataclasses

import numpy as np
import pytest

from madewithml import errors
from madewithml.serving import gate

from .conftest import ConstantEngine

LIMITS = gate.Limits(
    max_flip_rate=0.2, max_coverage_change=0.1, max_latency_ratio=2.0, min_samples=4, allow_uncertified=False
)
TEXTS = [f"Row {i} about layers and serving" for i in range(10)]


def behaviour(labels, accepted):
    return gate.Behaviour(list(labels), np.array(accepted, dtype=bool))


def report(**changes):
    same = gate.Report(
        num_rows=10, flip_rate=0.0, coverage=0.5, candidate_coverage=0.5, latency_s=0.01, candidate_latency_s=0.01
    )
    return dataclasses.replace(same, **changes)


class TestFaults:
    def test_a_model_that_behaves_the_same_passes(self):
        assert gate.faults(report(), LIMITS) == []

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"flip_rate": 0.3}, "another label on 30.0% of 10 texts (gate_max_flip_rate is 0.2)"),
            ({"candidate_coverage": 0.3}, "coverage goes from 50.0% to 30.0% (gate_max_coverage_change is 0.1)"),
            ({"candidate_coverage": 0.7}, "coverage goes from 50.0% to 70.0% (gate_max_coverage_change is 0.1)"),
            ({"candidate_latency_s": 0.03}, "a batch takes 30 ms instead of 10 ms (gate_max_latency_ratio is 2)"),
        ],
    )
    def test_each_limit_is_named_with_what_was_measured(self, changes, said):
        (fault,) = gate.faults(report(**changes), LIMITS)

        assert fault.startswith(said)

    @pytest.mark.parametrize(
        "changes", [{"flip_rate": 0.2}, {"candidate_coverage": 0.6}, {"candidate_latency_s": 0.02}]
    )
    def test_a_limit_itself_is_within(self, changes):
        assert gate.faults(report(**changes), LIMITS) == []

    def test_too_few_texts_say_nothing_of_labels_and_coverage(self):
        assert gate.faults(report(num_rows=3, flip_rate=1.0, candidate_coverage=0.0), LIMITS) == []

    def test_everything_that_is_wrong_is_said(self):
        assert len(gate.faults(report(flip_rate=1.0, candidate_coverage=1.0, candidate_latency_s=1.0), LIMITS)) == 3


class TestCompare:
    def test_flips_and_coverage_are_shares_of_the_rows(self):
        own = behaviour("aabb", [True, True, False, False])
        other = behaviour("abbb", [True, True, True, False])

        assert gate.compare(own, other, (0.01, 0.02)) == gate.Report(4, 0.25, 0.5, 0.75, 0.01, 0.02)

    def test_no_rows_have_no_shares(self):
        nothing = behaviour("", [])

        assert gate.compare(nothing, nothing, (0.01, 0.02)) == gate.Report(0, None, None, None, 0.01, 0.02)


class TestReplay:
    def test_it_says_what_the_model_answers(self, predictor):
        seen = gate.replay(predictor, TEXTS)
        answers = [predictor.predict([{"title": text}])[0] for text in TEXTS]

        assert seen.labels == [answer["label"] for answer in answers]
        assert seen.accepted.tolist() == [answer["decision"] == "accepted" for answer in answers]

    def test_logits_that_are_no_numbers_are_the_models_fault(self, predictor):
        broken = dataclasses.replace(predictor, engine=ConstantEngine(predictor.engine, float("nan")))
        with pytest.raises(errors.CheckpointError):
            gate.replay(broken, TEXTS)

    def test_latencies_tell_a_slow_engine(self, predictor):
        class Thrice:
            name, precision, pads = "thrice", "fp32", True

            def logits(self, ids, mask):
                for _ in range(5):
                    predictor.engine.logits(ids, mask)
                return predictor.engine.logits(ids, mask)

        own, other = gate.latencies(predictor, dataclasses.replace(predictor, engine=Thrice()), TEXTS)
        assert other > 2 * own


class TestContract:
    def test_the_same_model_keeps_it(self, predictor):
        own = predictor.checkpoint
        assert gate.contract_faults(own, own, LIMITS) == []

    def test_other_labels_and_text_fields_are_named(self, predictor):
        metadata = dataclasses.replace(
            predictor.checkpoint.metadata, text_fields=["body"], labels=["mlops", "computer-vision", "other", "news"]
        )
        changed = dataclasses.replace(predictor.checkpoint, metadata=metadata)
        labels, fields = gate.contract_faults(predictor.checkpoint, changed, LIMITS)

        assert labels.startswith("other labels: natural-language-processing missing, news new")
        assert fields == "other text fields: body instead of title, description"

    @pytest.mark.parametrize("allowed", [False, True])
    def test_a_certificate_is_not_lost_unless_the_operator_says_so(self, predictor, monkeypatch, allowed):
        own, other = predictor.checkpoint, dataclasses.replace(predictor.checkpoint)
        monkeypatch.setattr(gate, "_is_certified", lambda one: one is own)
        faults = gate.contract_faults(own, other, dataclasses.replace(LIMITS, allow_uncertified=allowed))

        assert [fault.startswith("no certificate") for fault in faults] == ([] if allowed else [True])
