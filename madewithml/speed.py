"""How fast an engine is: rows a second by batch size, and the cost of a batch by its shape.

All on one thread and with the run's own lengths, because a replica has one core and padding is most of what batching
costs. Every figure is the best of several short rounds: what disturbs a measurement only ever slows it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from madewithml import engine_report, engines, tokenization

BATCH_SIZES = (1, 8, 32)
CURVE_SIZES = (1, 2, 4, 8, 16, 32)
CURVE_QUANTILES = (0.25, 0.75)
Batch = tuple[tokenization.Ints, tokenization.Ints]


@dataclass(frozen=True)
class Workload:
    """Batches that stand for a run's traffic.

    Attributes:
        rows: Token ids, sorted by length.
        pad_id: Id that fills short rows.
    """

    rows: list[list[int]]
    pad_id: int

    @classmethod
    def of(cls, rows: Sequence[list[int]], *, pad_id: int) -> Workload:
        """A workload from tokenised rows in any order."""
        return cls(sorted(rows, key=len), pad_id)

    def batches(self, size: int, *, count: int) -> list[Batch]:
        """`count` batches of like length, spread evenly over the lengths."""
        starts = ((np.arange(count) + 0.5) / count * max(0, len(self.rows) - size)).astype(int)
        return [tokenization.pad(self.rows[start : start + size], pad_id=self.pad_id) for start in starts]

    def lengths(self) -> list[int]:
        """Lengths at which the cost of a batch is measured."""
        return sorted({len(self.rows[int(q * (len(self.rows) - 1))]) for q in CURVE_QUANTILES})


def rows_per_second(engine: engines.Engine, workload: Workload, *, size: int, batches: int) -> float:
    """Rows a second in batches of `size` (of fewer where there are not as many rows)."""
    chosen = workload.batches(size, count=batches)
    engine.logits(*chosen[-1])  # the first call of a shape prepares it
    started = time.perf_counter()
    for ids, mask in chosen:
        engine.logits(ids, mask)
    return sum(len(ids) for ids, _ in chosen) / (time.perf_counter() - started)


def batch_costs(engine: engines.Engine, workload: Workload, *, rounds: int = 4) -> list[engine_report.BatchCost]:
    """Seconds of a batch for each number of rows and each of the workload's lengths, round after round over all."""
    shapes = [(rows, length) for length in workload.lengths() for rows in CURVE_SIZES]
    batches = [_batch(workload, rows, length) for rows, length in shapes]
    times = [[_seconds(engine, batch) for batch in batches] for _ in range(rounds + 1)][1:]  # the first prepares shapes
    return [
        engine_report.BatchCost(rows, length, min(each))
        for (rows, length), each in zip(shapes, zip(*times, strict=True), strict=True)
    ]


def _batch(workload: Workload, rows: int, length: int) -> Batch:
    source = workload.rows[-1]
    row = (source * (length // len(source) + 1))[:length]
    return tokenization.pad([row] * rows, pad_id=workload.pad_id)


def _seconds(engine: engines.Engine, batch: Batch) -> float:
    started = time.perf_counter()
    engine.logits(*batch)
    return time.perf_counter() - started
