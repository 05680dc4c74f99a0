"""Requests a second of this checkout's service beside another commit's, on the same checkpoint, interleaved.

    python benchmarks/versions.py --before COMMIT --checkpoint DIR --dataset-loc projects.csv [--local]

It answers what a change costs `POST /predict/`. Both services run all the time; the one that is not asked is idle.
Rounds go back and forth (ABBA), and the ratio is taken within each.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import environment
import load
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
    arguments = parser.parse_args()
    served = ["--checkpoint", str(arguments.checkpoint.resolve()), *(["--local"] if arguments.local else [])]
    with tempfile.TemporaryDirectory() as scratch, _checkout(arguments.before) as before:
        folder = Path(scratch)
        bodies = _bodies(arguments.dataset_loc, folder / "bodies")
        with (
            service.running(folder / "before", *served, checkout=before) as old,
            service.running(folder / "after", *served) as new,
        ):
            rates = _rates({"before": old.url, "after": new.url}, bodies, arguments)
    ratios = [after / earlier for earlier, after in zip(rates["before"], rates["after"], strict=True)]
    result: dict[str, Any] = {
        "before": arguments.before,
        "mode": "local" if arguments.local else "ray",
        "connections": arguments.connections,
        "generator": load.generator(),
        "requests_per_second": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
        "ratio": summary.spread(ratios),
    }
    command = (
        f"python benchmarks/versions.py --before {arguments.before} --checkpoint DIR" + " --local" * arguments.local
    )
    path = environment.write(f"versions-{result['mode']}", command, result)
    print(json.dumps(result, indent=2))
    print(f"written to {path}")


def _rates(urls: dict[str, str], bodies: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in urls}
    for url in urls.values():
        load.run(f"{url}/predict/", bodies=bodies, connections=arguments.connections, seconds=WARM_UP_S)
    for number in range(arguments.rounds):
        for name in list(urls)[:: 1 if number % 2 == 0 else -1]:
            found = load.run(
                f"{urls[name]}/predict/", bodies=bodies, connections=arguments.connections, seconds=arguments.seconds
            )
            if found.errors:
                raise RuntimeError(f"{name}: {found.errors} errors")
            rates[name].append(found.rate)
            print(f"round {number + 1}/{arguments.rounds} {name}: {found.rate:.0f} a second", flush=True)
    return rates


def _bodies(dataset_loc: Path, path: Path) -> Path:
    with dataset_loc.open(encoding="utf-8", newline="") as file:
        rows = [{name: row[name] or "" for name in ("title", "description")} for row in csv.DictReader(file)][:ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


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
