"""What `optimize` found out about the engines on one host: the file `engines/report.json` of a checkpoint.

`Candidate` is one engine at one precision with its speed and fidelity, `EngineReport` all of them, the one that was
chosen, the cost of a batch on it, and what the report is bound to: weights, graph files and host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from madewithml import errors

# A batch may cost this much more a row than the best one if it is smaller: a short wait is worth it.
SLACK = 1.05


@dataclass(frozen=True)
class Candidate:
    """One engine at one precision.

    Attributes:
        engine: `torch`, `onnxruntime` or `openvino`.
        precision: `fp32`, `bf16`, `int8` (static), `int8-dynamic`; `int8-groups-N`, `int8-mixed-N` (see `int8_groups`).
        file: Its graph under `engines/`; None for torch, which reads the weights themselves.
        rows_per_second: On one thread, at its best batch size.
        rows_per_second_by_batch: The same for each batch size measured, like lengths together.
        agreement: Share of held-out rows with the label that fp32 torch gives; None if it could not be run.
        max_probability_change: Largest change of a probability against fp32 torch.
        max_batch_change: Largest change of a probability by what else is in the batch.
        megabytes: Size of the graph, or of the weights.
        passed: Whether it may serve.
        reason: Why not; None if it may.
    """

    engine: str
    precision: str
    file: str | None
    rows_per_second: float = 0.0
    rows_per_second_by_batch: Mapping[str, float] = dataclasses.field(default_factory=dict)
    agreement: float | None = None
    max_probability_change: float | None = None
    max_batch_change: float | None = None
    megabytes: float = 0.0
    passed: bool = False
    reason: str | None = None

    @property
    def name(self) -> str:
        """For people: `openvino bf16`."""
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True)
class BatchCost:
    """Seconds that one batch takes on one thread: `rows` rows of `length` tokens."""

    rows: int
    length: int
    seconds: float


@dataclass(frozen=True)
class CostCurve:
    """What batching is worth on an engine.

    Attributes:
        budget_tokens: Padded tokens of the smallest batch that is as cheap a row as the best one, or nearly.
        overhead_tokens: What a batch costs beside its padded tokens, in tokens: the weights are read once for each.
        pads: Whether each row of a batch costs what the longest of them costs; False where only real tokens count.
    """

    budget_tokens: int
    overhead_tokens: float
    pads: bool = True

    @classmethod
    def of(cls, costs: Sequence[BatchCost], *, pads: bool = True) -> CostCurve:
        """The curve of measured costs: seconds = slope x (padded tokens + overhead), by least squares."""
        tokens = np.array([cost.rows * cost.length for cost in costs], dtype=np.float64)
        # Relative errors count: a batch of one row matters as much as one of 32.
        weights = 1.0 / np.array([cost.seconds for cost in costs])
        design = np.stack([tokens * weights, weights], axis=1)
        slope, start = np.linalg.lstsq(design, np.ones(len(costs)), rcond=None)[0]
        overhead = max(0.0, float(start / slope)) if slope > 0 else 0.0
        return cls(batch_tokens(costs), round(overhead, 1), pads)


@dataclass(frozen=True)
class EngineReport:
    """All that one call of `optimize` found.

    Attributes:
        engine: The engine that was chosen.
        precision: Its precision.
        file: Its graph under `engines/`; None for torch.
        candidates: Everything that was tried, the fastest first.
        costs: Cost of batches on the chosen engine.
        num_rows: Held-out rows on which fidelity was judged.
        weights_sha256: Weights it belongs to.
        files: SHA-256 of each graph file.
        host: Traits of the machine it was measured on.
        libraries: Versions of the engines.
        date: When.
        pads: Whether each row of a batch costs what the longest of them costs on the chosen engine.
    """

    engine: str
    precision: str
    file: str | None
    candidates: tuple[Candidate, ...]
    costs: tuple[BatchCost, ...]
    num_rows: int
    weights_sha256: str
    files: Mapping[str, str]
    host: Mapping[str, str]
    libraries: Mapping[str, str]
    date: str
    pads: bool = True

    @property
    def chosen(self) -> Candidate:
        """The candidate that serves on this host."""
        return next(c for c in self.candidates if (c.engine, c.precision) == (self.engine, self.precision))

    def best(self, engine: str, *, precision: str | None = None) -> Candidate | None:
        """The fastest candidate of an engine that passed, of one precision if given."""
        return next(
            (c for c in self.candidates if c.engine == engine and c.passed and precision in (None, c.precision)), None
        )

    @property
    def curve(self) -> CostCurve:
        """What batching is worth on the chosen engine."""
        return CostCurve.of(self.costs, pads=self.pads)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineReport:
        """The inverse of `to_dict`.

        Raises:
            InputError: A key is missing or unknown, or the chosen engine is not among those that passed.
        """
        try:
            report = cls(
                **{
                    **values,
                    "candidates": tuple(Candidate(**candidate) for candidate in values["candidates"]),
                    "costs": tuple(BatchCost(**cost) for cost in values["costs"]),
                }
            )
            chosen = report.chosen
        except (TypeError, KeyError, AttributeError, StopIteration) as err:
            raise errors.InputError(f"the engine report is damaged ({err}): run `madewithml optimize` again") from err
        if not chosen.passed or chosen.file != report.file or (report.file and report.file not in report.files):
            msg = f"the engine report chose {chosen.name}, which did not pass: run `madewithml optimize` again"
            raise errors.InputError(msg)
        return report


def batch_tokens(costs: Sequence[BatchCost]) -> int:
    """Padded tokens of the smallest batch within `SLACK` of the least cost a row, over the lengths measured.

    For each length the cheapest number of rows is found by itself, because longer rows cost more at any size; the
    answer is the median over the lengths.
    """
    budgets = []
    for length in {cost.length for cost in costs}:
        of_length = sorted((cost for cost in costs if cost.length == length), key=lambda cost: cost.rows)
        least = min(cost.seconds / cost.rows for cost in of_length)
        chosen = next(cost for cost in of_length if cost.seconds / cost.rows <= least * SLACK)
        budgets.append(chosen.rows * length)
    return sorted(budgets)[len(budgets) // 2]


def weights_file(graph: str) -> str:
    """Name of the file in which a graph of OpenVINO's own form keeps its weights."""
    return f"{graph.removesuffix('.xml')}.bin"
