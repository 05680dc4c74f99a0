"""Bulk scoring: rows a second and memory by the number of rows, beside what the engine does by itself.

    python benchmarks/bulk.py --run-id ID --dataset-loc projects.csv [--rows 1000,10000,100000]

`madewithml predict` is run on a CSV of so many rows, the dataset's over and over, with one scorer on each core. Seconds
are those of the whole command, Ray's start included; `marginal` is what the rows beyond those of the run before took.
The engine's limit is measured before and after each run. Memory is that of all processes together, sampled every five
seconds: adding it up takes a twentieth of a second of the cores that they compute on.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dataset
import environment
import limit
from peers import classifier
from processes import Server

from madewithml import predict

SAMPLE_EVERY_S = 5.0
LIMIT_S = 4.0
PROCESSES = 2


def main() -> None:
    arguments = _arguments()
    engine = limit.Engine.chosen(predict.get_best_checkpoint(arguments.run_id).resolve())
    rows = dataset.rows(arguments.dataset_loc, fields=None)
    texts = [classifier.text_of(row) for row in rows]
    limits, runs = [_limit(engine, texts)], []
    for count in arguments.rows:
        runs.append(_run(arguments.run_id, rows, count))
        limits.append(_limit(engine, texts))
        runs[-1]["of_limit"] = round(runs[-1]["rows_per_second"] / statistics.mean(limits[-2:]), 3)
        print(runs[-1], "limit", [round(value) for value in limits], flush=True)
    for before, run in itertools.pairwise(runs):
        run["marginal_rows_per_second"] = round(
            (run["rows"] - before["rows"]) / (run["seconds"] - before["seconds"]), 1
        )
    command = f"python benchmarks/bulk.py --run-id ID --dataset-loc {arguments.dataset_loc.name} --rows "
    result = {"engine": str(engine), "limit_rows_per_second": [round(value, 1) for value in limits], "runs": runs}
    environment.write("bulk", command + ",".join(map(str, arguments.rows)), result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-id", required=True, help="an optimised run")
    parser.add_argument("--dataset-loc", type=Path, required=True, help="CSV with title and description")
    parser.add_argument(
        "--rows", type=lambda text: [int(part) for part in text.split(",")], default=[1000, 10_000, 100_000]
    )
    return parser.parse_args()


def _limit(engine: limit.Engine, texts: Sequence[str]) -> float:
    best: dict[int, float] = limit.measure(engine, texts, seconds=LIMIT_S)["best"]
    return best[PROCESSES]


def prepare(run_id: str, rows: Sequence[dict[str, str]], count: int, *, folder: Path) -> tuple[list[str], Path]:
    """Write the rows, over and over, to a CSV of so many; the command that scores it, and the file it will write."""
    source, target = folder / "rows.csv", folder / "scored.csv"
    with source.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(itertools.islice(itertools.cycle(rows), count))
    command = [str(Path(sys.executable).with_name("madewithml")), "predict", "--run-id", run_id]
    return [*command, "--dataset-loc", str(source), "--output-loc", str(target)], target


def _run(run_id: str, rows: Sequence[dict[str, str]], count: int) -> dict[str, Any]:
    """One command on so many rows."""
    with tempfile.TemporaryDirectory() as scratch:
        command, target = prepare(run_id, rows, count, folder=Path(scratch))
        started = time.monotonic()
        server = Server(command, environment=dict(os.environ), folder=Path(scratch))
        memory = []
        while not server.ended():
            server.status(SAMPLE_EVERY_S)
            memory.append(server.memory().total_mb)
        seconds = time.monotonic() - started
        server.stop()
        with target.open(encoding="utf-8", newline="") as file:
            scored = sum(1 for _ in csv.DictReader(file))
        if scored != count:
            raise SystemExit(f"{scored} rows of {count} were scored: {server.log_tail()}")
    quarters = [memory[int(share * (len(memory) - 1))] for share in (0.25, 0.5, 0.75)]
    return {
        "rows": count,
        "seconds": round(seconds, 1),
        "rows_per_second": round(count / seconds, 1),
        "memory_mb_at_quarters": quarters,
        "memory_mb_most": max(memory),
    }


if __name__ == "__main__":
    main()
