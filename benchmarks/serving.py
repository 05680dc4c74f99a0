"""Made With ML beside other servers: same model, same engine, same requests, same cores, one run.

    python benchmarks/serving.py --checkpoint DIR --dataset-loc projects.csv

In each round every contender is started, timed until its first correct answer, warmed up, put under each load, and
ended with all its processes; the order rotates, and the engine's limit without any server is measured among them. The
peers are in `peers/` (`peers/install.py` installs those that are not libraries of ours) and compute with the engine
that `engines/report.json` of the checkpoint names, or `--engine`, `--precision` and `--file`. JSON, Markdown and SVG go
to `results/`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import contenders
import dataset
import environment
import limit
import load
import measurement
import padded
import picture
import summary
import tables
from peers import classifier, install

SERVERS = ("fastapi", "uvicorn", "ray", "mlflow")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers are ended then too
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        result = _result(arguments, Path(scratch))
    _write(result, _command(arguments))


def _result(arguments: argparse.Namespace, padded_folder: Path) -> dict[str, Any]:
    engine = _engine(arguments)
    chosen, skipped = _chosen(contenders.contenders(engine, padded=padded_folder), arguments.only)
    rows = dataset.rows(arguments.dataset_loc)
    texts = [classifier.text_of(row) for row in rows]
    if any(contender.engine and contender.engine.checkpoint == padded_folder for contender in chosen):
        padded.write(engine, texts, padded_folder)
    answers = limit.answers(engine, texts[: measurement.NUM_CHECKED])
    setup = measurement.Setup(rows, answers, arguments.connections, arguments.seconds)
    rounds = [
        _round(_rotated(chosen, number, arguments.rounds), engine, texts, setup, title=f"round {number + 1}")
        for number in range(arguments.rounds)
    ]
    return {
        "engine": str(engine),
        "load_generator": load.generator(),
        "rows": len(rows),
        "rounds_asked": arguments.rounds,
        "seconds": arguments.seconds,
        "warm_up_s": measurement.WARM_UP_S,
        "processes": contenders.PROCESSES,
        "versions": _versions(),
        "skipped": skipped,
        "limit": summary.limit(rounds),
        "contenders": summary.contenders(chosen, rounds),
        "rounds": rounds,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder with engines/")
    parser.add_argument("--dataset-loc", type=Path, required=True, help="CSV with title and description: the bodies")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8, help="of each load")
    parser.add_argument("--connections", type=_numbers, default=[1, 8, 32, 64])
    parser.add_argument("--only", type=lambda text: text.split(","), help="contenders, comma-separated")
    parser.add_argument("--engine", choices=("torch", "onnxruntime", "openvino"), help="instead of report.json's")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--file", default="model.xml", help="graph under engines/")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _engine(arguments: argparse.Namespace) -> limit.Engine:
    """The engine of all peers: the flags', or else the one that the checkpoint's report names."""
    folder = arguments.checkpoint.resolve()
    if arguments.engine:
        return limit.Engine(folder, arguments.engine, arguments.precision, arguments.file)
    return limit.Engine.chosen(folder)


def _chosen(
    known: Sequence[contenders.Contender], only: Sequence[str] | None
) -> tuple[list[contenders.Contender], dict[str, str]]:
    """The contenders to measure, and why others are not."""
    names = [contender.name for contender in known]
    unknown = sorted(set(only or []) - set(names))
    if unknown:
        raise SystemExit(f"no contender {unknown[0]!r}: choose from {', '.join(names)}")
    wanted = [contender for contender in known if not only or contender.name in only]
    skipped = {contender.title: contender.missing for contender in wanted if contender.missing}
    for title, why in skipped.items():
        print(f"left out: {title} ({why})", flush=True)
    return [contender for contender in wanted if not contender.missing], skipped


def _rotated(chosen: Sequence[contenders.Contender], number: int, rounds: int) -> list[contenders.Contender | None]:
    """The order of a round; None is the limit."""
    order = [None, *chosen]
    shift = number * len(order) // rounds
    return order[shift:] + order[:shift]


def _round(
    order: Sequence[contenders.Contender | None],
    engine: limit.Engine,
    texts: Sequence[str],
    setup: measurement.Setup,
    *,
    title: str,
) -> dict[str, Any]:
    found: dict[str, Any] = {"order": [contender.name if contender else "limit" for contender in order]}
    for contender in order:
        started = time.perf_counter()
        if contender is None:
            found["limit"] = limit.measure(engine, texts, seconds=setup.seconds / 4)
            said = f"{found['limit']['best'][2]:.0f} rows/s in two processes"
        else:
            found[contender.name] = measurement.measure(contender, setup)
            said = _said(found[contender.name])
        name = contender.title if contender else "the engine alone"
        print(f"{title}: {name}: {said} ({time.perf_counter() - started:.0f} s)", flush=True)
    return found


def _said(measured: Mapping[str, Any]) -> str:
    if "failed" in measured:
        return f"failed: {measured['failed']}"
    return ", ".join(f"{row['rate']:.0f} req/s at {row['connections']}" for row in measured["loads"])


def _versions() -> dict[str, str]:
    """Versions of the servers."""
    found = {name: importlib.metadata.version(name) for name in SERVERS}
    for name in install.NAMES:
        lines = (install.REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        found[name] = next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))
    return found


def _command(arguments: argparse.Namespace) -> str:
    """The command without the names of anybody's folders."""
    words = ["python", "benchmarks/serving.py", "--checkpoint", "DIR", "--dataset-loc", arguments.dataset_loc.name]
    words += ["--rounds", str(arguments.rounds), "--seconds", str(arguments.seconds)]
    words += ["--connections", ",".join(map(str, arguments.connections))]
    if arguments.only:
        words += ["--only", ",".join(arguments.only)]
    if arguments.engine:
        words += ["--engine", arguments.engine, "--precision", arguments.precision, "--file", arguments.file]
    return shlex.join(words)


def _write(result: Mapping[str, Any], command: str) -> None:
    path = environment.write("serving", command, dict(result))
    document = json.loads(path.read_text(encoding="utf-8"))
    drawn = picture.rates(result["contenders"], result["limit"]["best"][2])
    path.with_suffix(".svg").write_text(drawn, encoding="utf-8")
    path.with_suffix(".md").write_text(tables.page(document, picture=path.with_suffix(".svg").name), encoding="utf-8")
    tables.terminal(tables.main_table(result["contenders"]))
    print("written:", ", ".join(path.with_suffix(suffix).name for suffix in (".json", ".md", ".svg")))


if __name__ == "__main__":
    main()
