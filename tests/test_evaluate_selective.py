"""What an evaluation says about confidence and thresholds, checked against the functions and by hand."""

import dataclasses
import io
import json

import numpy as np
import pytest
import rich.console

from madewithml import calibration, data, decision, errors, evaluate, metrics, selective, tables

TEMPERATURE = 1.7


@pytest.fixture(scope="module")
def rows(small_file):
    return data.read_labelled(str(small_file), text_fields=("title", "description"), label_field="tag").take(range(40))


@pytest.fixture(scope="module")
def calibrated(predictor):
    """The fixture's model under a policy with a temperature and a threshold of its own."""
    policy = decision.DecisionPolicy(temperature=TEMPERATURE, threshold=0.4321, source="operator")
    return dataclasses.replace(predictor, policy=policy)


@pytest.fixture(scope="module")
def document(calibrated, rows):
    return evaluate.evaluate(calibrated, rows, run_id="r", dataset="d")


def confidence_and_correct(predictor, rows, temperature):
    tokens = predictor.tokenizer.encode(predictor.texts(rows.rows))
    probabilities = calibration.softmax(predictor.logits([t.ids for t in tokens]), temperature=temperature)
    true = np.array([predictor.classes.index(label) for label in rows.labels])
    return probabilities, true, probabilities.max(axis=1), probabilities.argmax(axis=1) == true


class TestSelective:
    @pytest.mark.parametrize(("when", "temperature"), [("before", 1.0), ("after", TEMPERATURE)])
    def test_figures_are_those_of_the_selective_functions_at_that_temperature(
        self, document, calibrated, rows, when, temperature
    ):
        probabilities, true, confidence, correct = confidence_and_correct(calibrated, rows, temperature)
        assert document["selective"][when] == {
            "temperature": temperature,
            "aurc": pytest.approx(selective.aurc(confidence, correct)),
            "e_aurc": pytest.approx(selective.e_aurc(confidence, correct)),
            "augrc": pytest.approx(selective.augrc(confidence, correct)),
            "ece": pytest.approx(metrics.expected_calibration_error(confidence, correct)),
            "log_loss": pytest.approx(metrics.log_loss(true, probabilities)),
            "reliability": selective.reliability_curve(confidence, correct),
            "coverage_at_risk": selective.coverage_at_risk(confidence, correct),
        }

    def test_overall_figures_are_those_after_calibration(self, document):
        after = document["selective"]["after"]
        assert (document["overall"]["ece"], document["overall"]["log_loss"]) == (after["ece"], after["log_loss"])
        assert document["selective"]["before"]["log_loss"] != after["log_loss"]

    def test_coverage_is_given_for_four_risks(self, document):
        assert [entry["risk"] for entry in document["selective"]["after"]["coverage_at_risk"]] == [
            0.01,
            0.02,
            0.05,
            0.1,
        ]

    def test_the_document_can_be_written_as_json_without_nan(self, document):
        assert json.loads(json.dumps(document, allow_nan=False)).keys() == document.keys()

    def test_an_unknown_label_is_refused_by_name(self, calibrated):
        strange = data.LabelledText([{"title": "a", "description": "b"}], ["a b"], ["tabular"])
        with pytest.raises(errors.InputError, match="tabular"):
            evaluate.score(calibrated, strange, dataset="d")


class TestThresholdTable:
    def test_the_policys_own_threshold_is_among_the_usual_ones_in_order(self, document):
        thresholds = [row["threshold"] for row in document["threshold_table"]]
        assert thresholds == [0.4321, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99]

    def test_a_usual_threshold_is_not_listed_twice(self, predictor, rows):
        usual = dataclasses.replace(predictor, policy=decision.DecisionPolicy(threshold=0.9))
        found = evaluate.evaluate(usual, rows, run_id="r", dataset="d")["threshold_table"]
        assert [row["threshold"] for row in found] == list(evaluate.THRESHOLDS)

    def test_rows_are_those_of_the_selective_function(self, document, calibrated, rows):
        _, _, confidence, correct = confidence_and_correct(calibrated, rows, TEMPERATURE)
        assert document["threshold_table"][0] == selective.threshold_table(confidence, correct, [0.4321])[0]

    def test_the_row_of_a_plain_policy_agrees_with_what_the_policy_did(self, document):
        own, served = document["threshold_table"][0], document["policy"]
        for key in ("coverage", "risk", "risk_upper_bound", "num_accepted", "num_errors"):
            assert served[key] == own[key]


class TestPolicyFigures:
    # Three rows of two classes: label 0 at 0.9 (right), label 0 at 0.6 (wrong), label 1 at 0.8 (right).
    LOGITS = np.log(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], dtype=np.float32))
    TRUE = np.array([0, 1, 1])

    def figures(self, **options):
        policy = decision.DecisionPolicy(**options)
        texts = data.LabelledText([{"title": "t"}] * 3, ["t"] * 3, ["a", "b", "b"])
        scored = evaluate.Scored(texts, self.TRUE, self.LOGITS, policy.decide(self.LOGITS, ["a", "b"]))
        return evaluate.policy_figures(policy, scored)

    def test_counts_what_is_let_through(self):
        figures = self.figures(threshold=0.5, source="operator")
        assert figures == {
            "threshold": 0.5,
            "temperature": 1.0,
            "source": "operator",
            "coverage": 1.0,
            "risk": 1 / 3,
            "risk_upper_bound": pytest.approx(0.8646, abs=1e-4),  # 1 of 3: the root of 3 (1 - p)^2 p + (1 - p)^3 = 0.05
            "num_accepted": 3,
            "num_errors": 1,
        }

    def test_follows_thresholds_per_class(self):
        figures = self.figures(threshold=0.5, class_thresholds={"a": 0.7, "b": None})
        assert (figures["num_accepted"], figures["num_errors"]) == (1, 0)

    def test_knows_no_risk_where_nothing_is_let_through(self):
        figures = self.figures(threshold=1.0)
        assert (figures["coverage"], figures["risk"], figures["risk_upper_bound"]) == (0.0, None, 1.0)


def test_the_terminal_shows_confidence_before_and_after_calibration(document):
    console = rich.console.Console(file=io.StringIO(), width=120)
    tables.show_evaluation(document, console)
    printed = console.file.getvalue()
    assert "after (T = 1.7)" in printed
    before, after = document["selective"]["before"], document["selective"]["after"]
    line = next(line for line in printed.splitlines() if "AUGRC" in line)
    assert line.replace("│", " ").split() == ["AUGRC", f"{before['augrc']:.4f}", f"{after['augrc']:.4f}"]
    assert "coverage at 10% risk" in printed
