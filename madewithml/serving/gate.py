"""The gate a candidate must pass before it takes over: does it behave like the model that is answering now?

    texts of recent traffic -> replay on both -> compare -> faults

Four questions: does it keep the contract (labels, text fields, a certificate where there was one); how often is its
label another; how much more or less does it let through; how much slower is it. How far it may go is the operator's to
say.
Functions of what they are given; nothing here changes what is served.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from madewithml import checkpoint, config, errors, predict, tokenization

# Each engine's latency is its best of so many.
TRIALS = 9
PROBE_ROWS = 8


@dataclass(frozen=True)
class Limits:
    """How far a candidate may be from the model that is answering.

    Attributes:
        max_flip_rate: Share of texts that get another label.
        max_coverage_change: Change in the share of answers that are let through, up or down.
        max_latency_ratio: Seconds for a batch, as a multiple of the present model's.
        min_samples: Texts without which the first two are not judged.
        allow_uncertified: Whether a model without a certificate may replace one that has one.
    """

    max_flip_rate: float
    max_coverage_change: float
    max_latency_ratio: float
    min_samples: int
    allow_uncertified: bool

    @classmethod
    def of(cls, settings: config.Settings) -> Limits:
        """The limits that the settings name."""
        return cls(
            max_flip_rate=settings.gate_max_flip_rate,
            max_coverage_change=settings.gate_max_coverage_change,
            max_latency_ratio=settings.gate_max_latency_ratio,
            min_samples=settings.gate_min_samples,
            allow_uncertified=settings.allow_uncertified,
        )


@dataclass(frozen=True)
class Report:
    """How a candidate behaves beside the model that is answering.

    Attributes:
        num_rows: Texts that both answered.
        flip_rate: Share of them with another label; None without any.
        coverage: Share that the present model lets through; None without any.
        candidate_coverage: Share that the candidate lets through; None without any.
        latency_s: Seconds of processor time for one batch on the present model.
        candidate_latency_s: The same for the same texts on the candidate.
    """

    num_rows: int
    flip_rate: float | None
    coverage: float | None
    candidate_coverage: float | None
    latency_s: float
    candidate_latency_s: float


@dataclass(frozen=True)
class Behaviour:
    """What a model says of n texts: its labels, and which answers it lets through, bool [n]."""

    labels: list[str]
    accepted: npt.NDArray[np.bool_]


NOTHING = Behaviour([], np.empty(0, dtype=np.bool_))


def contract_faults(present: checkpoint.Checkpoint, candidate: checkpoint.Checkpoint, limits: Limits) -> list[str]:
    """What callers rely on and a candidate would break, in words.

    Raises:
        CheckpointError: The candidate's recorded policy belongs to other weights or was edited.
    """
    faults = []
    own, other = present.metadata, candidate.metadata
    if set(other.labels) != set(own.labels):
        missing, new = (sorted(set(a.labels) - set(b.labels)) for a, b in ((own, other), (other, own)))
        faults.append(f"other labels: {_names(missing)} missing, {_names(new)} new. Start a service of its own for it.")
    if own.text_fields != other.text_fields:
        faults.append(f"other text fields: {_names(other.text_fields)} instead of {_names(own.text_fields)}")
    if not limits.allow_uncertified and _is_certified(present) and not _is_certified(candidate):
        faults.append(
            "no certificate, and the present model has one: run `madewithml certify` on it and promote it again, or "
            "set allow_uncertified"
        )
    return faults


def _is_certified(found: checkpoint.Checkpoint) -> bool:
    """Whether the checkpoint's own threshold is certified, whatever an operator puts over it."""
    return predict.policy_of(found).source == "certificate"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def replay(predictor: predict.Predictor, texts: Sequence[str]) -> Behaviour:
    """What a model says of texts.

    Raises:
        CheckpointError: A logit is NaN or infinite.
    """
    try:
        decisions = predictor.policy.decide(predictor.text_logits(texts), predictor.classes)
    except errors.InputError as err:
        raise errors.CheckpointError(err.message) from err
    return Behaviour([predictor.classes[index] for index in decisions.label], decisions.accepted)


def latencies(present: predict.Predictor, candidate: predict.Predictor, texts: Sequence[str]) -> tuple[float, float]:
    """Seconds of processor time that each model's engine takes for one batch of the same texts, measured in turns.

    Processor time is what an engine takes from callers, and it stays the same when the machine is busy. Only for a
    process that does nothing else meanwhile.

    Args:
        present: The model that is answering.
        candidate: The candidate.
        texts: The texts; those of middling length are taken.
    """
    ordered = sorted(texts, key=len)
    middle = max(0, (len(ordered) - PROBE_ROWS) // 2)
    chosen = ordered[middle : middle + PROBE_ROWS]
    batches = [
        (one.engine, tokenization.pad([t.ids for t in one.tokenizer.encode(chosen)], pad_id=one.tokenizer.pad_id))
        for one in (present, candidate)
    ]
    best = [float("inf"), float("inf")]
    for _ in range(TRIALS):
        for index, (engine, batch) in enumerate(batches):
            started = time.process_time()
            engine.logits(*batch)
            best[index] = min(best[index], time.process_time() - started)
    return best[0], best[1]


def compare(own: Behaviour, other: Behaviour, seconds: tuple[float, float]) -> Report:
    """Put two behaviours on the same texts side by side.

    Args:
        own: Of the present model.
        other: Of the candidate.
        seconds: What `latencies` found.
    """
    rows = len(own.labels)
    flips = sum(a != b for a, b in zip(own.labels, other.labels, strict=True))
    return Report(
        num_rows=rows,
        flip_rate=flips / rows if rows else None,
        coverage=float(own.accepted.mean()) if rows else None,
        candidate_coverage=float(other.accepted.mean()) if rows else None,
        latency_s=seconds[0],
        candidate_latency_s=seconds[1],
    )


def faults(report: Report, limits: Limits) -> list[str]:
    """Which limits a report goes past, in words; empty if none."""
    found = []
    enough = report.num_rows >= limits.min_samples
    if enough and report.flip_rate is not None and report.flip_rate > limits.max_flip_rate:
        found.append(
            f"another label on {report.flip_rate:.1%} of {report.num_rows} texts (gate_max_flip_rate is "
            f"{limits.max_flip_rate:g})"
        )
    if enough and report.coverage is not None and report.candidate_coverage is not None:
        change = abs(report.candidate_coverage - report.coverage)
        if change > limits.max_coverage_change:
            found.append(
                f"coverage goes from {report.coverage:.1%} to {report.candidate_coverage:.1%} "
                f"(gate_max_coverage_change is {limits.max_coverage_change:g})"
            )
    if report.candidate_latency_s > limits.max_latency_ratio * report.latency_s:
        found.append(
            f"a batch takes {report.candidate_latency_s * 1000:.3g} ms instead of {report.latency_s * 1000:.3g} ms "
            f"(gate_max_latency_ratio is {limits.max_latency_ratio:g}); `madewithml optimize` may help"
        )
    return found
