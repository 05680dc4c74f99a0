"""Figures of `madewithml.metrics`, by hand on small cases and against scikit-learn on random ones."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle
from sklearn.calibration import calibration_curve

from madewithml import errors, metrics

CLASSES = ["computer-vision", "mlops", "other"]
LABELS = ["computer-vision", "computer-vision", "mlops", "mlops"]
PREDICTED = ["computer-vision", "mlops", "mlops", "mlops"]
PROBABILITIES = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.1, 0.9, 0.0], [0.0, 1.0, 0.0]])


def random_case(*, seed, rows=200, classes=4):
    """True indices, argmax indices and probabilities; the model is right more often than not."""
    rng = np.random.default_rng(seed)
    true = rng.integers(classes, size=rows)
    logits = rng.normal(size=(rows, classes)) + 2 * np.eye(classes)[true]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return true, probabilities.argmax(axis=1), probabilities


def named(indices):
    return [f"class-{index}" for index in indices]


@pytest.fixture(params=[0, 1, 2])
def case(request):
    return random_case(seed=request.param)


class TestOverall:
    def test_precision_recall_and_f1_are_weighted_by_the_rows_of_each_class(self):
        overall = metrics.classification_metrics(LABELS, PREDICTED, PROBABILITIES, CLASSES)["overall"]

        expected = {"precision": (1 + 2 / 3) / 2, "recall": 0.75, "f1": (2 / 3 + 0.8) / 2, "accuracy": 0.75}
        assert pytest.approx(expected) == {key: overall[key] for key in expected}
        assert overall["num_samples"] == 4

    def test_all_figures_agree_with_scikit_learn(self, case):
        true, guess, probabilities = case

        actual = metrics.classification_metrics(named(true), named(guess), probabilities, named(range(4)))["overall"]

        precision, recall, f1, _ = oracle.precision_recall_fscore_support(true, guess, average="weighted")
        expected = {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "accuracy": oracle.accuracy_score(true, guess),
            "log_loss": oracle.log_loss(true, probabilities),
            "brier": oracle.brier_score_loss(true, probabilities, labels=range(4), scale_by_half=False),
            "ece": metrics.expected_calibration_error(probabilities.max(axis=1), true == guess),
            "num_samples": 200,
        }
        assert pytest.approx(expected) == actual

    def test_brier_score_is_summed_over_classes_so_certain_and_wrong_costs_2(self):
        assert metrics.brier_score(np.array([0]), np.array([[0.0, 1.0]])) == 2.0

    def test_log_loss_of_a_certain_and_wrong_row_is_finite(self):
        actual = metrics.log_loss(np.array([0]), np.array([[0.0, 1.0]]))

        assert pytest.approx(-np.log(np.finfo(np.float64).eps)) == actual

    def test_one_row_of_the_only_class_is_enough(self):
        expected = {"precision": 1, "recall": 1, "f1": 1, "accuracy": 1, "log_loss": 0, "brier": 0, "ece": 0}

        actual = metrics.classification_metrics(["mlops"], ["mlops"], [[1.0]], ["mlops"])

        assert {**expected, "num_samples": 1} == actual["overall"]
        assert actual["confusion_matrix"] == {"labels": ["mlops"], "counts": [[1]]}

    def test_everything_can_be_written_as_strict_json(self, case):
        true, guess, probabilities = case
        scores = metrics.classification_metrics(named(true), named(guess), probabilities, named(range(4)))

        assert scores == json.loads(json.dumps(scores, allow_nan=False))

    def test_single_precision_probabilities_are_accepted(self, case):
        true, guess, probabilities = case
        arguments = named(true), named(guess)

        expected = metrics.classification_metrics(*arguments, probabilities, named(range(4)))["overall"]
        actual = metrics.classification_metrics(*arguments, probabilities.astype(np.float32), named(range(4)))

        assert pytest.approx(expected, abs=1e-5) == actual["overall"]


class TestPerClass:
    def test_a_class_without_rows_is_listed_with_zeros(self):
        per_class = metrics.classification_metrics(LABELS, PREDICTED, PROBABILITIES, CLASSES)["per_class"]

        assert per_class["other"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "num_samples": 0}
        assert list(per_class) == CLASSES

    def test_each_class_agrees_with_scikit_learn(self, case):
        true, guess, probabilities = case
        report = oracle.classification_report(true, guess, target_names=named(range(4)), output_dict=True)

        actual = metrics.classification_metrics(named(true), named(guess), probabilities, named(range(4)))

        for name in named(range(4)):
            precision, recall, f1, num_samples = report[name].values()
            expected = {"precision": precision, "recall": recall, "f1": f1, "num_samples": num_samples}
            assert expected == actual["per_class"][name]

    def test_rows_of_the_confusion_matrix_are_true_classes(self):
        matrix = metrics.classification_metrics(LABELS, PREDICTED, PROBABILITIES, CLASSES)["confusion_matrix"]

        assert matrix == {"labels": CLASSES, "counts": [[1, 1, 0], [0, 2, 0], [0, 0, 0]]}

    def test_the_confusion_matrix_agrees_with_scikit_learn(self, case):
        true, guess, probabilities = case

        actual = metrics.classification_metrics(named(true), named(guess), probabilities, named(range(4)))

        assert oracle.confusion_matrix(true, guess).tolist() == actual["confusion_matrix"]["counts"]


class TestCalibrationError:
    def test_it_is_the_gap_between_confidence_and_accuracy_weighted_by_rows(self):
        actual = metrics.expected_calibration_error([0.95, 0.95, 0.95, 0.55], [True, True, False, False])

        assert pytest.approx(0.75 * (0.95 - 2 / 3) + 0.25 * 0.55) == actual

    def test_certain_and_right_is_perfectly_calibrated(self):
        assert metrics.expected_calibration_error([1.0, 1.0], [True, True]) == 0.0

    def test_it_agrees_with_the_bins_of_scikit_learn(self, case):
        true, guess, probabilities = case
        confidence, correct = probabilities.max(axis=1), true == guess
        edges = np.arange(16) / 15
        counts = np.histogram(confidence, bins=edges)[0]

        accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=15)

        expected = np.average(np.abs(accuracy - mean_confidence), weights=counts[counts > 0])
        assert pytest.approx(expected) == metrics.expected_calibration_error(confidence, correct)

    @settings(deadline=None, max_examples=50)
    @given(rows=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1), num_bins=st.integers(1, 30))
    def test_it_is_a_share_whatever_the_rows(self, rows, num_bins):
        confidence, correct = zip(*rows, strict=True)

        assert 0 <= metrics.expected_calibration_error(confidence, correct, num_bins=num_bins) <= 1


class TestSlices:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [("", True), ("one two three four five six seven", True), ("one two three four five six seven eight", False)],
    )
    def test_a_short_text_has_fewer_than_8_words(self, text, expected):
        assert expected == metrics.is_short_text(text)

    @pytest.mark.parametrize(
        "text",
        [
            "Attention: the Transformer explained",
            "vision transformers",
            "fine-tune BERT",
            "bert_base_uncased in 20 lines",
            "load my_bert",
            "RoBERTa, then DistilBERT.",
            "DeBERTaV3 (large)",
            "topics with BERTopic",
            "GPT-4o",
            "a tiny nanoGPT",
            "ChatGPT prompts",
            "serving LLMs",
            "A Large  Language Model from scratch",
            "large-language models",
        ],
    )
    def test_texts_that_name_a_language_model_are_found(self, text):
        assert metrics.mentions_llm(text)

    @pytest.mark.parametrize(
        "text",
        ["", "data transformation", "Robert and Hubert at liberty", "the Egyptian way", "hllms", "a large model"],
    )
    def test_texts_that_only_look_like_it_are_not(self, text):
        assert not metrics.mentions_llm(text)

    def test_user_rules_come_after_the_built_in_slices(self):
        masks = metrics.slice_masks(["Is this MLOps?", "no"], {"asks": r"\?$", "loud": "NO"})

        none, first, both = [False, False], [True, False], [True, True]
        expected = [("short_text", both), ("mentions_llm", none), ("asks", first), ("loud", none)]
        assert expected == [(name, mask.tolist()) for name, mask in masks.items()]

    def test_no_texts_give_empty_masks_of_booleans(self):
        masks = metrics.slice_masks([], {"asks": r"\?$"})

        expected = [("bool", (0,))] * 3
        assert expected == [(mask.dtype.name, mask.shape) for mask in masks.values()]

    def test_a_slice_is_scored_on_its_own_rows(self):
        masks = {"all": np.ones(4, dtype=bool), "last two": np.array([False, False, True, True])}

        actual = metrics.slice_metrics(LABELS, PREDICTED, CLASSES, masks)

        overall = metrics.classification_metrics(LABELS, PREDICTED, PROBABILITIES, CLASSES)["overall"]
        assert {key: overall[key] for key in ("precision", "recall", "f1", "num_samples")} == actual["all"]
        assert actual["last two"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "num_samples": 2}

    def test_a_slice_without_rows_has_no_figures(self):
        actual = metrics.slice_metrics(LABELS, PREDICTED, CLASSES, {"none": np.zeros(4, dtype=bool)})

        assert actual == {"none": {"precision": None, "recall": None, "f1": None, "num_samples": 0}}


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"labels": [], "predicted": []}, "there are no rows to evaluate; expected at least 1 labelled row"),
            ({"predicted": PREDICTED[:2]}, "4 labels do not pair with 2 predicted classes"),
            ({"labels": [*LABELS[:3], "ml-ops"]}, "row 3: the label 'ml-ops' is not one of the model's classes: comp"),
            ({"predicted": [float("nan"), *PREDICTED[1:]]}, "row 0: the predicted class nan is not one of the model's"),
            ({"classes": []}, r"classes are \[\]; expected at least one class name, each of them once"),
            ({"classes": ["a", "a"]}, r"classes are \['a', 'a'\]; expected at least one class name, each of them once"),
            ({"probabilities": PROBABILITIES[:3]}, r"probabilities have shape \(3, 3\); expected \(4, 3\), a row per"),
            ({"probabilities": PROBABILITIES * np.nan}, r"row 0: \[nan, nan, nan\] are not probabilities; expected"),
            ({"probabilities": PROBABILITIES * 2}, r"row 0: \[1.6, 0.2, 0.2\] are not probabilities; expected numb"),
            ({"probabilities": [[1, 0, 0]] * 3 + [[2, -1, 0]]}, r"row 3: \[2.0, -1.0, 0.0\] are not probabilities"),
        ],
    )
    def test_the_message_says_what_is_wrong_and_where(self, change, message):
        fine = {"labels": LABELS, "predicted": PREDICTED, "probabilities": PROBABILITIES, "classes": CLASSES}

        with pytest.raises(errors.InputError, match=f"^{message}"):
            metrics.classification_metrics(**{**fine, **change})

    def test_a_broken_regular_expression_is_named(self):
        with pytest.raises(errors.InputError, match=r"^slice 'asks': '\(' is not a regular expression: missing \)"):
            metrics.slice_masks(["text"], {"asks": "("})

    def test_a_regular_expression_that_is_not_text_is_named(self):
        with pytest.raises(errors.InputError, match=r"^slice 'three': 3 is not a regular expression: "):
            metrics.slice_masks(["text"], {"three": 3})

    def test_a_built_in_slice_cannot_be_redefined(self):
        with pytest.raises(errors.InputError, match=r"^slice 'short_text' is built in; choose another name for your"):
            metrics.slice_masks(["text"], {"short_text": "^.$"})

    @pytest.mark.parametrize("mask", [np.array([0, 1, 2, 3]), np.ones(3, dtype=bool)])
    def test_a_mask_must_be_boolean_and_as_long_as_the_rows(self, mask):
        with pytest.raises(errors.InputError, match=r"^slice 'mine': the mask has type \w+ and shape .* expected bool"):
            metrics.slice_metrics(LABELS, PREDICTED, CLASSES, {"mine": mask})
