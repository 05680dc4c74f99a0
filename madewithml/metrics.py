r"""How good are the labels and their probabilities: overall, per class and per slice of the texts.

True and predicted class names plus probabilities go in, plain numbers come out, shaped like the result file of
``madewithml evaluate``. Everything here is a pure function: reading data, running the model and writing files
happen in the callers. What a confidence *threshold* would do to the errors is the subject of `madewithml.selective`.

    scores = metrics.classification_metrics(labels, predicted, probabilities, classes)
    scores["overall"]["f1"], scores["per_class"]["mlops"]["recall"]
    metrics.slice_metrics(labels, predicted, classes, metrics.slice_masks(texts, {"asks": r"\?$"}))
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_fscore_support

from madewithml import errors, selective

SHORT_TEXT_WORDS = 8
# A softmax in half precision is off by a few 1e-4; logits mistaken for probabilities are off by whole numbers.
SUM_TOLERANCE = 1e-3

# "[a-z]*bert" would also catch Robert, liberty and Hubert, so the family is spelled out. ALBERT cannot be told from
# the first name without looking at case; it stays in.
_BERT_FAMILY = (
    r"(?:al|bio|camem|clinical|code|col|distil|fin|key|legal|m|mobile|modern|pubmed|s|sci|sentence-?|tiny)?"
    r"bert(?:s|opic|score)?|(?:distil|xlm-?)?roberta|m?deberta(?:v[23])?|electra|xlm-?r"
)
# Not \b: for a regular expression "_" is part of a word, and "bert_base_uncased" must match.
_MENTIONS_LLM = re.compile(
    rf"(?<![^\W_])(?:transformers?|{_BERT_FAMILY}|[a-z]*gpt[a-z0-9]*|llms?|large[\s-]+language[\s-]+models?)(?![^\W_])",
    re.IGNORECASE,
)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Overall(TypedDict):
    """Figures over all rows; precision, recall and F1 are averages over the classes, weighted by their rows."""

    precision: float
    recall: float
    f1: float
    accuracy: float
    log_loss: float
    brier: float
    ece: float
    num_samples: int


class ClassScores(TypedDict):
    """Figures of one class. A ratio with nothing under it (class never predicted, or absent) counts as 0."""

    precision: float
    recall: float
    f1: float
    num_samples: int


class SliceScores(TypedDict):
    """Figures of one slice, weighted like `Overall`; None where the slice has no rows."""

    precision: float | None
    recall: float | None
    f1: float | None
    num_samples: int


class ConfusionMatrix(TypedDict):
    """`counts[i][j]` rows have the true class `labels[i]` and the predicted class `labels[j]`."""

    labels: list[str]
    counts: list[list[int]]


class ClassificationMetrics(TypedDict):
    """What `classification_metrics` returns; ready for `json.dump`."""

    overall: Overall
    per_class: dict[str, ClassScores]
    confusion_matrix: ConfusionMatrix


def classification_metrics(
    labels: Iterable[str], predicted: Iterable[str], probabilities: npt.ArrayLike, classes: Sequence[str]
) -> ClassificationMetrics:
    """Score predicted classes and their probabilities against the true classes.

    Args:
        labels: True class names, [n].
        predicted: Predicted class names, [n]: the argmax labels, not predictions that may be the abstain label.
        probabilities: Probability of each class, [n, k], columns in the order of `classes`, each row summing to 1.
        classes: The k class names that the model knows. Classes without rows are scored too (0 rows, figures 0).

    Returns:
        Overall figures, figures per class in the order of `classes`, and the confusion matrix.

    Raises:
        InputError: No rows, lengths or shapes that do not fit, a name that is not in `classes`, or numbers that are
            not probabilities.
    """
    true, guess = _paired_indices(labels, predicted, classes)
    probs = _checked_probabilities(probabilities, shape=(len(true), len(classes)))
    precision, recall, f1 = _weighted_scores(true, guess)
    overall: Overall = {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "accuracy": float(np.mean(true == guess)),
        "log_loss": log_loss(true, probs),
        "brier": brier_score(true, probs),
        "ece": expected_calibration_error(probs.max(axis=1), true == guess),
        "num_samples": len(true),
    }
    return {
        "overall": overall,
        "per_class": _per_class(true, guess, classes),
        "confusion_matrix": _confusion_matrix(true, guess, classes),
    }


def log_loss(true: IntArray, probabilities: FloatArray) -> float:
    """Mean negative log-likelihood of the true class, in nats; 0 is perfect.

    Probabilities are floored at the smallest step of a float64 (2.2e-16), so one row that was certain and wrong costs
    36 nats instead of making the figure infinite, which JSON cannot hold.

    Args:
        true: True class indices, [n].
        probabilities: [n, k].
    """
    of_true_class = probabilities[np.arange(len(true)), true]
    return float(-np.mean(np.log(np.maximum(of_true_class, np.finfo(np.float64).eps))))


def brier_score(true: IntArray, probabilities: FloatArray) -> float:
    """Multi-class Brier score: squared distance to the one-hot truth, summed over classes, averaged over rows.

    This is the original definition (Brier 1950), from 0 (perfect) to 2 (certain and wrong). Other software halves it
    or, for two classes, looks at one of them only; both give half of this figure.

    Args:
        true: True class indices, [n].
        probabilities: [n, k].
    """
    one_hot = np.eye(probabilities.shape[1])[true]
    return float(np.mean(np.sum((probabilities - one_hot) ** 2, axis=1)))


def expected_calibration_error(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, *, num_bins: int = selective.NUM_BINS
) -> float:
    """Mean gap between confidence and accuracy, over equal-width bins weighted by their rows; from 0 to 1.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3, on the confidence of the top label.

    Args:
        confidence: Confidence of the predicted class, [n], in [0, 1].
        correct: Whether the predicted class is the true one, [n].
        num_bins: Number of bins; the paper's 15 by default.

    Raises:
        InputError: No rows, lengths that differ, or a confidence outside [0, 1].
    """
    bins = selective.reliability_curve(confidence, correct, num_bins=num_bins)
    gaps = ((row["count"], row["accuracy"], row["confidence"]) for row in bins)
    weighted = [count * abs(acc - conf) for count, acc, conf in gaps if acc is not None and conf is not None]
    return float(sum(weighted) / sum(row["count"] for row in bins))


def is_short_text(text: str) -> bool:
    """Whether a text has fewer than 8 words, that is runs of characters between white space."""
    return len(text.split()) < SHORT_TEXT_WORDS


def mentions_llm(text: str) -> bool:
    """Whether a text names transformers, BERT or one of its family, GPT, an LLM or a "large language model"."""
    return _MENTIONS_LLM.search(text) is not None


def slice_masks(texts: Iterable[str], user_rules: Mapping[str, str] | None = None) -> dict[str, BoolArray]:
    """Which rows belong to which slice: `short_text`, `mentions_llm` and the user's own. Slices may overlap.

    Args:
        texts: The n input texts.
        user_rules: Slice name -> regular expression, searched anywhere in the text. Case counts, as usual in Python;
            start the expression with ``(?i)`` where it should not.

    Returns:
        Slice name -> mask [n], the built-in slices first.

    Raises:
        InputError: A regular expression that does not compile, or the name of a built-in slice; the message names it.
    """
    rules = {"short_text": is_short_text, "mentions_llm": mentions_llm}
    compiled = {name: _compiled(name, pattern, taken=rules) for name, pattern in (user_rules or {}).items()}
    rows = list(texts)
    masks = {name: np.array([rule(text) for text in rows], dtype=bool) for name, rule in rules.items()}
    for name, regex in compiled.items():
        masks[name] = np.array([regex.search(text) is not None for text in rows], dtype=bool)
    return masks


def slice_metrics(
    labels: Iterable[str], predicted: Iterable[str], classes: Sequence[str], masks: Mapping[str, BoolArray]
) -> dict[str, SliceScores]:
    """Weighted precision, recall and F1 of each slice.

    Args:
        labels: True class names, [n].
        predicted: Predicted class names, [n].
        classes: The class names that the model knows.
        masks: Slice name -> boolean mask [n], as `slice_masks` gives them.

    Returns:
        Slice name -> figures; a slice without rows has `num_samples` 0 and None for the rest.

    Raises:
        InputError: No rows, lengths that do not fit, a name that is not in `classes`, or a mask that is not boolean.
    """
    true, guess = _paired_indices(labels, predicted, classes)
    return {name: _slice_scores(true, guess, _checked_mask(name, mask, len(true))) for name, mask in masks.items()}


def _slice_scores(true: IntArray, guess: IntArray, mask: BoolArray) -> SliceScores:
    if not mask.any():
        return {"precision": None, "recall": None, "f1": None, "num_samples": 0}
    precision, recall, f1 = _weighted_scores(true[mask], guess[mask])
    return {"precision": precision, "recall": recall, "f1": f1, "num_samples": int(mask.sum())}


def _weighted_scores(true: IntArray, guess: IntArray) -> tuple[float, float, float]:
    precision, recall, f1, _ = precision_recall_fscore_support(true, guess, average="weighted", zero_division=0)
    return float(precision), float(recall), float(f1)


def _per_class(true: IntArray, guess: IntArray, classes: Sequence[str]) -> dict[str, ClassScores]:
    indices = np.arange(len(classes))
    columns = precision_recall_fscore_support(true, guess, labels=indices, average=None, zero_division=0)
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "num_samples": int(n)}
        for name, p, r, f, n in zip(classes, *columns, strict=True)
    }


def _confusion_matrix(true: IntArray, guess: IntArray, classes: Sequence[str]) -> ConfusionMatrix:
    size = len(classes)
    counts = np.bincount(true * size + guess, minlength=size * size).reshape(size, size)
    return {"labels": list(classes), "counts": counts.tolist()}


def _paired_indices(
    labels: Iterable[str], predicted: Iterable[str], classes: Sequence[str]
) -> tuple[IntArray, IntArray]:
    if not classes or len(set(classes)) != len(classes):
        msg = f"classes are {list(classes)}; expected at least one class name, each of them once"
        raise errors.InputError(msg)
    true = _indices(labels, classes, what="label")
    guess = _indices(predicted, classes, what="predicted class")
    if len(true) != len(guess):
        msg = f"{len(true)} labels do not pair with {len(guess)} predicted classes; expected one for each row"
        raise errors.InputError(msg)
    if len(true) == 0:
        msg = "there are no rows to evaluate; expected at least 1 labelled row"
        raise errors.InputError(msg)
    return true, guess


def _indices(names: Iterable[str], classes: Sequence[str], *, what: str) -> IntArray:
    index_of = {name: index for index, name in enumerate(classes)}
    indices = []
    for row, name in enumerate(names):
        if name not in index_of:
            msg = f"row {row}: the {what} {name!r} is not one of the model's classes: {', '.join(classes)}"
            raise errors.InputError(msg)
        indices.append(index_of[name])
    return np.array(indices, dtype=np.int64)


def _checked_probabilities(probabilities: npt.ArrayLike, *, shape: tuple[int, int]) -> FloatArray:
    probs = np.asarray(probabilities, dtype=np.float64)
    if probs.shape != shape:
        msg = f"probabilities have shape {probs.shape}; expected {shape}, a row per label and a column per class"
        raise errors.InputError(msg)
    # Written so that NaN fails, too.
    fine = (probs >= 0).all(axis=1) & (np.abs(probs.sum(axis=1) - 1) <= SUM_TOLERANCE)
    if not fine.all():
        row = int(np.argmin(fine))
        msg = f"row {row}: {probs[row].tolist()} are not probabilities; expected numbers in [0, 1] that sum to 1"
        raise errors.InputError(msg)
    return np.minimum(probs, 1.0)


def _checked_mask(name: str, mask: BoolArray, num_rows: int) -> BoolArray:
    # Integers would be taken for row numbers and silently score other rows.
    if mask.dtype != np.bool_ or mask.shape != (num_rows,):
        msg = f"slice {name!r}: the mask has type {mask.dtype} and shape {mask.shape}; expected bool and ({num_rows},)"
        raise errors.InputError(msg)
    return mask


def _compiled(name: str, pattern: str, *, taken: Iterable[str]) -> re.Pattern[str]:
    if name in taken:
        msg = f"slice {name!r} is built in; choose another name for your rule"
        raise errors.InputError(msg)
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError, TypeError) as err:
        msg = f"slice {name!r}: {pattern!r} is not a regular expression: {err}"
        raise errors.InputError(msg) from err
