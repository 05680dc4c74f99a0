"""What the engine does without any server: the limit that servers are measured against.

`measure`: rows a second of one process and of two at the same time, one thread each, by batch size and order, over
texts that were tokenised and padded beforehand; and milliseconds of one text at a time, tokenising included, in one
process. Batches are taken in random order, so that the short run of a slow engine sees the same lengths as the long run
of a fast one.
"""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.synchronize
import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers import classifier

from madewithml import checkpoint

CELLS = [(1, "arrival"), *itertools.product((8, 16), ("like lengths", "arrival"))]
PROCESSES = (1, 2)
START_TIMEOUT_S = 120

Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Engine:
    """The engine that all peers use.

    Attributes:
        checkpoint: Folder.
        name: `torch`, `onnxruntime` or `openvino`.
        precision: `fp32`, `bf16` or what a quantised graph is.
        file: Graph under `engines/`; None with `torch`.
    """

    checkpoint: Path
    name: str
    precision: str
    file: str | None

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"

    @classmethod
    def chosen(cls, folder: Path) -> Engine:
        """The one that the engine report of a checkpoint folder names; ends the command if there is no report."""
        report = checkpoint.read(folder).read_engines()
        if report is None:
            raise SystemExit(f"{str(folder)!r} has no engine report: madewithml optimize makes one")
        return cls(folder, report.engine, report.precision, report.file)

    def load(self) -> classifier.Classifier:
        """The engine in this process."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        return classifier.Classifier(self.checkpoint, engine=self.name, precision=self.precision, file=self.file)


def measure(engine: Engine, texts: Sequence[str], *, seconds: float) -> dict[str, Any]:
    """The limit now.

    Args:
        engine: The engine.
        texts: The dataset's texts.
        seconds: For each figure.

    Returns:
        `rows_per_second` by processes, batch and order; `best` for each number of processes; `bare` p50 and p99.
    """
    rates = [row for count in PROCESSES for row in _together(engine, texts, count, seconds)]
    best = {count: max(row["rows_per_second"] for row in rates if row["processes"] == count) for count in PROCESSES}
    return {"rows_per_second": rates, "best": best, "bare": _in_process(_bare, engine, texts, seconds)}


def answers(engine: Engine, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The engine's own answers, by which those of the servers are judged; computed in another process."""
    return _in_process(_answers, engine, texts)


def _in_process(function: Any, *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _together(engine: Engine, texts: Sequence[str], count: int, seconds: float) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    workers = [
        context.Process(target=_work, args=(engine, texts, seconds, barrier, results), daemon=True)
        for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    rates = [results.get(timeout=START_TIMEOUT_S + 5 * seconds * len(CELLS)) for _ in workers]
    for worker in workers:
        worker.join()
    return [
        {"processes": count, "batch": size, "order": order, "rows_per_second": round(sum(row[i] for row in rates), 1)}
        for i, (size, order) in enumerate(CELLS)
    ]


def _work(
    engine: Engine,
    texts: Sequence[str],
    seconds: float,
    barrier: multiprocessing.synchronize.Barrier,
    results: Any,
) -> None:
    model = engine.load()
    rows = model.tokenize(texts)
    rates = []
    for size, order in CELLS:
        batches = _batches(model, sorted(rows, key=len) if order == "like lengths" else rows, size)
        for batch in batches[:5]:
            model.logits(*batch)
        barrier.wait(START_TIMEOUT_S)
        rates.append(_rate(model, batches, seconds))
    results.put(rates)


def _batches(model: classifier.Classifier, rows: Sequence[Sequence[int]], size: int) -> list[Batch]:
    batches = [model.pad(rows[start : start + size]) for start in range(0, len(rows), size)]
    random.Random(0).shuffle(batches)
    return batches


def _rate(model: classifier.Classifier, batches: Sequence[Batch], seconds: float) -> float:
    started, rows = time.perf_counter(), 0
    for ids, mask in itertools.cycle(batches):
        model.logits(ids, mask)
        rows += len(ids)
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            break
    return rows / elapsed


def _bare(engine: Engine, texts: Sequence[str], seconds: float) -> dict[str, float]:
    model = engine.load()
    times: list[float] = []
    end = time.perf_counter() + seconds
    for text in itertools.cycle(texts):
        started = time.perf_counter()
        if started >= end and len(times) >= 20:
            break
        model.predict([text])
        times.append((time.perf_counter() - started) * 1e3)
    quantiles = statistics.quantiles(times[5:], n=100)
    return {"p50_ms": round(quantiles[49], 3), "p99_ms": round(quantiles[98], 3)}


def _answers(engine: Engine, texts: Sequence[str]) -> list[dict[str, Any]]:
    model = engine.load()
    return [model.predict([text])[0] for text in texts]
