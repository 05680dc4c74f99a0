"""Predictions: the best run, its best checkpoint, and predictors built from it.

checkpoint folder -> Predictor: rows -> texts -> tokens -> engine -> decision -> one answer per row

run_id = predict.get_best_run_id("projects", "val_loss", "ASC")
predictor = predict.TorchPredictor.from_checkpoint(predict.get_best_checkpoint(run_id))
predictor.predict([{"title": "Intro to CNNs", "description": "Processing images with layers."}])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from madewithml import checkpoint, config, decision, engine_report, engines, errors, fidelity, texts, tokenization

if TYPE_CHECKING:
    import ray.data
    from typing_extensions import Self

BATCH_SIZE = 32  # sorted by length: the more rows, the less a batch costs by itself
# How far logits may be from the golden ones: what another machine or library version does to fp32, with room.
GOLDEN_TOLERANCE = 1e-3


def get_best_run_id(experiment_name: str = "", metric: str = "val_loss", mode: Literal["ASC", "DESC"] = "ASC") -> str:
    """Id of the experiment's run with the best metric."""
    from madewithml import runs

    return runs.connect(config.load()).best_run(experiment_name, metric=metric, mode=mode)


def get_best_checkpoint(run_id: str) -> Path:
    """Folder of the run's best checkpoint, by validation loss."""
    from madewithml import runs

    return runs.connect(config.load()).best_checkpoint(run_id)


def policy_of(found: checkpoint.Checkpoint, *, threshold: float | None = None) -> decision.DecisionPolicy:
    """The decision policy a checkpoint records, under an operator's threshold if one is given.

    Raises:
        CheckpointError: The recorded policy belongs to other weights or was edited.
        UsageError: The threshold is not between 0 and 1.
    """
    policy = decision.DecisionPolicy.from_dict(found.read_decision() or {})
    if threshold is None:
        return policy
    if not 0.0 <= threshold <= 1.0:
        raise errors.UsageError(f"threshold is {threshold!r}: expected a number from 0 to 1")
    return policy.with_threshold(threshold, source="operator")


@dataclass(frozen=True)
class Predictor:
    """Texts in, answers out: tokenizer, engine and decision policy of one checkpoint.

    Attributes:
        checkpoint: Where it came from.
        tokenizer: Text to ids.
        engine: Ids to logits.
        policy: Logits to decisions.
        curve: What batching is worth on the engine; None if that was not measured.
    """

    checkpoint: checkpoint.Checkpoint
    tokenizer: tokenization.Tokenizer
    engine: engines.Engine
    policy: decision.DecisionPolicy
    curve: engine_report.CostCurve | None = None

    @classmethod
    def from_checkpoint(
        cls,
        source: Path | str,
        *,
        engine: str = "auto",
        threads: int | None = None,
        threshold: float | None = None,
    ) -> Self:
        """Build a predictor from a checkpoint folder, after comparing all hashes.

        Args:
            source: The folder.
            engine: What computes logits.
            threads: Threads of one computation; None means every core.
            threshold: Replaces the recorded threshold (source `operator`).

        Raises:
            CheckpointError: The folder is damaged, foreign or of a newer version.
            UsageError: No such engine, or the threshold is not between 0 and 1.
        """
        found = checkpoint.read(Path(source))
        found.verify()
        policy = policy_of(found, threshold=threshold)
        loaded = engines.load(found, name=engine, threads=threads)
        report = found.read_engines()
        measured = report and (report.engine, report.precision) == (loaded.name, loaded.precision)
        return cls(found, found.tokenizer(), loaded, policy, report.curve if report and measured else None)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the probabilities."""
        return self.checkpoint.metadata.labels

    def texts(self, rows: Sequence[Mapping[str, str | None]]) -> list[str]:
        """The model's input for each row."""
        return [texts.row_text(row, self.checkpoint.metadata.text_fields) for row in rows]

    def logits(self, tokens: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Logits [n, k] of tokenised rows, in batches of like length."""
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        result = np.empty((len(tokens), len(self.classes)), dtype=np.float32)
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            result[chosen] = self.engine.logits(
                *tokenization.pad([tokens[i] for i in chosen], pad_id=self.tokenizer.pad_id)
            )
        return result

    def text_logits(self, inputs: Sequence[str]) -> npt.NDArray[np.float32]:
        """Logits [n, k] of texts."""
        return self.logits([tokens.ids for tokens in self.tokenizer.encode(inputs)])

    def label_indices(self, labels: Sequence[str]) -> npt.NDArray[np.int64]:
        """Index of each label in `classes`, int64 [n]; all must be known."""
        index_of = {name: index for index, name in enumerate(self.classes)}
        return np.array([index_of[label] for label in labels], dtype=np.int64)

    def predict(self, rows: Sequence[Mapping[str, str | None]]) -> list[dict[str, Any]]:
        """One answer per row: prediction, probabilities, label, confidence, decision, reason, threshold, truncated."""
        return self.predict_texts(self.texts(rows))

    def predict_texts(self, inputs: Sequence[str]) -> list[dict[str, Any]]:
        """One answer per text; see `predict`."""
        return self.answer(self.tokenizer.encode(inputs)) if inputs else []

    def answer(self, tokens: Sequence[tokenization.Tokens]) -> list[dict[str, Any]]:
        """One answer per tokenised text; see `predict`."""
        return self.decide(self.logits([t.ids for t in tokens]), [t.truncated for t in tokens], self.policy)

    def decide(
        self,
        logits: npt.NDArray[np.float32],
        truncated: Sequence[bool],
        policy: decision.DecisionPolicy,
    ) -> list[dict[str, Any]]:
        """Answers from logits [n, k] under a policy, which need not be the checkpoint's own."""
        answers = policy.answers(policy.decide(logits, self.classes), self.classes)
        for answer, cut in zip(answers, truncated, strict=True):
            answer["truncated"] = cut
        return answers

    def predict_proba(self, rows: Sequence[Mapping[str, str | None]]) -> npt.NDArray[np.float64]:
        """Calibrated probabilities [n, k], classes in the order of `classes`."""
        return self.policy.decide(self.text_logits(self.texts(rows)), self.classes).probabilities

    def check_golden(self) -> float:
        """Compute the golden rows again.

        Returns:
            The largest difference: of a logit, or of a probability where the engine's precision is reduced.

        Raises:
            CheckpointError: The engine disagrees with what the checkpoint recorded.
        """
        golden = self.checkpoint.read_golden()
        if golden is None:
            return 0.0
        own = self.text_logits(golden.texts)
        exact = self.engine.precision == "fp32"
        tolerance = GOLDEN_TOLERANCE if exact else fidelity.MAX_PROBABILITY_CHANGE
        what = "logit" if exact else "probability"
        largest = float(np.abs(own - golden.logits).max()) if exact else self._probability_change(golden.logits, own)
        if not largest <= tolerance:  # NaN fails too
            msg = (
                f"engine {self.engine.name!r} ({self.engine.precision}) does not reproduce the golden rows of "
                f"{str(self.checkpoint.folder)!r}: a {what} is off by {largest:.3g} (at most {tolerance:g}). Wrong "
                "host, or damaged weights? `madewithml optimize` measures the engines anew."
            )
            raise errors.CheckpointError(msg)
        return largest

    def _probability_change(self, expected: npt.NDArray[np.float32], actual: npt.NDArray[np.float32]) -> float:
        temperature = self.policy.temperature
        return fidelity.compare(expected, actual, alone={}, temperature=temperature).max_probability_change


class TorchPredictor(Predictor):
    """A predictor whose engine is PyTorch in fp32, the reference, unless another is named."""

    @classmethod
    def from_checkpoint(
        cls,
        source: Path | str,
        *,
        engine: str = "torch",
        threads: int | None = None,
        threshold: float | None = None,
    ) -> Self:
        """See `Predictor.from_checkpoint`."""
        return super().from_checkpoint(source, engine=engine, threads=threads, threshold=threshold)


def predict_proba(ds: ray.data.Dataset, predictor: Predictor) -> list[dict[str, Any]]:
    """Answers for a Ray Dataset whose columns include the text fields.

    Args:
        ds: The dataset; read once, batch by batch.
        predictor: The predictor.

    Returns:
        One answer per row in the dataset's order; `prediction` and `probabilities` are among its keys.
    """
    from madewithml import data  # late: pandas, which the serving process does not need

    answers: list[dict[str, Any]] = []
    for batch in ds.iter_batches(batch_size=BATCH_SIZE * 16, batch_format="pandas"):
        answers.extend(predictor.predict(data.as_rows(batch)))
    return answers
