"""This checkout's service beside another commit's, on the same checkpoint, interleaved.

    python benchmarks/versions.py --before COMMIT --checkpoint DIR --dataset-loc projects.csv [--local] [--empty]

It answers what a change costs `POST /predict/`: requests a second, and CPU milliseconds a request of all processes but
the load generator. `--empty` serves a model that computes next to nothing in the checkpoint's place (`overhead.py`), so
that what is left is serving. Both services run all the time, in two processes each; the one that is not asked is idle.
Rounds go back and forth (ABBA), and ratios are taken within each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dataset
import environment
import load
import measurement
import overhead
import service
import summary

ROWS = 256
WARM_UP_S = 3


def main() -> None:
    """Measure and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="commit to compare with")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--dataset-loc", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--local", action="store_true", help="without Ray")
    parser.add_argument("--empty", action="store_true", help="a model that computes next to nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, _checkout(arguments.before) as before:
        folder = Path(scratch)
        bodies = dataset.write_bodies(dataset.rows(arguments.dataset_loc)[:ROWS], folder / "bodies")
        served = _served(arguments, folder)
        with (
            service.running(folder / "before", *served, checkout=before) as old,
            service.running(folder / "after", *served) as new,
        ):
            old.server.settle()
            new.server.settle()
            rounds = _rounds({"before": old, "after": new}, bodies, arguments)
    mode = ("local" if arguments.local else "ray") + "-empty" * arguments.empty
    result: dict[str, Any] = {
        "before": arguments.before,
        "mode": mode,
        "connections": arguments.connections,
        "generator": load.generator(),
        **{figure: _compared(rounds, figure) for figure in ("rate", "cpu_ms", "p50_ms", "p99_ms")},
    }
    options = " --local" * arguments.local + " --empty" * arguments.empty
    options += f" --connections {arguments.connections} --rounds {arguments.rounds} --seconds {arguments.seconds}"
    command = f"python benchmarks/versions.py --before {arguments.before} --checkpoint DIR{options}"
    path = environment.write(f"versions-{mode}-{arguments.connections}", command, result)
    print(json.dumps(result, indent=2))
    print(f"written to {path}")


def _served(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Arguments of `madewithml serve`."""
    checkpoint = arguments.checkpoint.resolve()
    if arguments.empty:
        checkpoint = overhead.empty_checkpoint(checkpoint, arguments.dataset_loc, folder=folder)
    return [
        "--checkpoint",
        str(checkpoint),
        *(["--local", "--workers", "2"] if arguments.local else ["--replicas", "2"]),
    ]


def _rounds(
    services: dict[str, service.Service], bodies: Path, arguments: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in services}
    for each in services.values():
        load.run(f"{each.url}/predict/", bodies=bodies, connections=arguments.connections, seconds=WARM_UP_S)
    for number in range(arguments.rounds):
        for name in list(services)[:: 1 if number % 2 == 0 else -1]:
            found = measurement.under_load(
                services[name].server,
                f"{services[name].url}/predict/",
                bodies=bodies,
                connections=arguments.connections,
                seconds=arguments.seconds,
            )
            if found["errors"]:
                raise RuntimeError(f"{name}: {found['errors']} errors")
            rounds[name].append(found)
            print(f"round {number + 1}/{arguments.rounds} {name}: {found['rate']:.0f} a second", flush=True)
    return rounds


def _compared(rounds: dict[str, list[dict[str, float]]], figure: str) -> dict[str, Any]:
    """A figure of both in each round, and the spread of its ratio, after to before."""
    values = {name: [found[figure] for found in each] for name, each in rounds.items()}
    ratios = [after / before for before, after in zip(values["before"], values["after"], strict=True)]
    return {"ratio": summary.spread([round(ratio, 3) for ratio in ratios]), **values}


@contextlib.contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkout"
        git = ["git", "-C", str(service.CHECKOUT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


if __name__ == "__main__":
    main()
