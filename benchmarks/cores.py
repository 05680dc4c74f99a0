"""Where the cores' time goes: CPU by process and thread, at the start, while serving under load, and in bulk scoring.

    python benchmarks/cores.py --checkpoint DIR --dataset-loc projects.csv [--run-id ID --rows 20000]

It says why a service stays behind the engine alone: what is spent beside the engine, what the engine itself takes more
than alone (the caches are emptied between two batches, and its thread shares its core), and what nobody used. With a
run id `madewithml predict` is looked at too, from its start to its end. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import bulk
import contenders
import dataset
import environment
import limit
import load
import psutil
import service
from peers import classifier
from processes import Server, cpu_s

CONNECTIONS = 32
WARM_UP_S = 5
LIMIT_S = 4.0
SAMPLE_EVERY_S = 0.5

Threads = dict[tuple[int, int], float]  # CPU seconds by process and thread


def main() -> None:
    arguments = _arguments()
    folder = arguments.checkpoint.resolve()
    engine = limit.Engine.chosen(folder)
    rows = dataset.rows(arguments.dataset_loc, fields=None)
    best = limit.measure(engine, [classifier.text_of(row) for row in rows], seconds=LIMIT_S)["best"]
    alone_ms = 1e3 * limit.PROCESSES[-1] / best[limit.PROCESSES[-1]]
    result: dict[str, Any] = {
        "engine": str(engine),
        "engine_alone_ms": round(alone_ms, 3),
        "connections": CONNECTIONS,
        "load_generator": load.generator(),
        "serving": {name: _serving(name, folder, rows, arguments.seconds) for name in ("local", "ray")},
    }
    if arguments.run_id:
        result["bulk"] = _bulk(arguments.run_id, rows, arguments.rows)
    print(json.dumps(result, indent=2))
    command = f"python benchmarks/cores.py --checkpoint DIR --dataset-loc {arguments.dataset_loc.name}"
    command += f" --seconds {arguments.seconds}" + f" --run-id ID --rows {arguments.rows}" * bool(arguments.run_id)
    print("written:", environment.write("cores", command, result).name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="of an optimised run")
    parser.add_argument("--dataset-loc", type=Path, required=True, help="CSV with title and description")
    parser.add_argument("--seconds", type=int, default=20, help="of load")
    parser.add_argument("--run-id", help="the checkpoint's run, for bulk scoring")
    parser.add_argument("--rows", type=int, default=20_000, help="of bulk scoring")
    return parser.parse_args()


def _serving(name: str, folder: Path, rows: Sequence[Mapping[str, str]], seconds: int) -> dict[str, Any]:
    """CPU seconds of the start, by process, and milliseconds a request, by part."""
    served = next(each for each in contenders.ours(folder) if each.name == name).command[2:-2]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, service.running(Path(scratch) / "home", *served) as running:
        start = {"seconds": round(time.monotonic() - started, 1), "cpu_s": _by_title(running.server)}
        running.server.settle()
        bodies = dataset.write_bodies(map(_body, rows), Path(scratch) / "bodies")
        url = f"{running.url}/predict/"
        load.run(url, bodies=bodies, connections=CONNECTIONS, seconds=WARM_UP_S)
        with _counted(lambda: _threads(running.server)) as count:
            seen = load.run(url, bodies=bodies, connections=CONNECTIONS, seconds=seconds)
        parts = _parts(count["threads"], _names(running.server))
    parts |= {"load generator": count["children_s"], "idle": count["idle_s"]}
    return {
        "start": start,
        "rate": round(seen.rate, 1),
        "errors": seen.errors,
        "cpu_ms_a_request": {part: round(1e3 * spent / seen.requests, 3) for part, spent in parts.items()},
    }


def _body(row: Mapping[str, str]) -> dict[str, str]:
    return {field: row[field] or "" for field in ("title", "description")}


def _bulk(run_id: str, rows: Sequence[dict[str, str]], number: int) -> dict[str, Any]:
    """CPU milliseconds a row, by part, of one command."""
    with tempfile.TemporaryDirectory() as scratch:
        command, _ = bulk.prepare(run_id, rows, number, folder=Path(scratch))
        started, last, names = time.monotonic(), Threads(), dict[int, str]()
        with _counted(dict) as count:
            server = Server(command, environment=dict(os.environ), folder=Path(scratch))
            while not server.ended():
                server.status(SAMPLE_EVERY_S)
                last |= _threads(server)  # of each thread the last that was seen of it
                names |= _names(server)
        seconds = time.monotonic() - started
        if server.status(0):
            raise SystemExit(f"it failed: {server.log_tail()}")
    parts = _parts(last, names) | {"idle": count["idle_s"]}
    return {
        "rows": number,
        "seconds": round(seconds, 1),
        "cpu_ms_a_row": {part: round(1e3 * spent / number, 3) for part, spent in parts.items()},
    }


@contextlib.contextmanager
def _counted(threads: Callable[[], Threads]) -> Iterator[dict[str, Any]]:
    """What the block used: CPU seconds of threads, of children that ended, and of nobody on the whole machine."""
    count: dict[str, Any] = {}
    before, idle, children = threads(), psutil.cpu_times().idle, _children_s()
    yield count
    count["threads"] = {key: spent - before.get(key, 0.0) for key, spent in threads().items()}
    count["children_s"], count["idle_s"] = _children_s() - children, psutil.cpu_times().idle - idle


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _threads(server: Server) -> Threads:
    by_process = server.each(lambda process: (process.pid, process.threads()))
    return {(pid, each.id): each.user_time + each.system_time for pid, threads in by_process for each in threads}


def _by_title(server: Server) -> dict[str, list[float]]:
    """CPU seconds so far of processes, the busiest first, by Ray's name for them or that of their script."""
    found: dict[str, list[float]] = {}
    for title, used in server.each(lambda process: (_title(process), cpu_s(process))):
        found.setdefault(title, []).append(round(used, 2))
    return dict(sorted(found.items(), key=lambda item: -sum(item[1])))


def _title(process: psutil.Process) -> str:
    words = process.cmdline()
    if words and words[0].startswith("ray::"):
        return words[0].split()[0]
    scripts = [Path(word).name for word in words if word.endswith((".py", "bin/madewithml"))]
    return scripts[0] if scripts else str(process.name())


def _names(server: Server) -> dict[int, str]:
    return dict(server.each(lambda process: (process.pid, process.name())))


def _parts(threads: Threads, names: Mapping[int, str]) -> dict[str, float]:
    """CPU seconds by part. The two busiest processes compute: their busiest thread is the engine, the next the loop."""
    by_process: dict[int, list[float]] = {}
    for (process, _), spent in threads.items():
        by_process.setdefault(process, []).append(spent)
    computing = sorted(by_process, key=lambda process: sum(by_process[process]))[-contenders.PROCESSES :]
    parts = dict.fromkeys(("engine threads", "event loops", "their other threads", "HAProxy", "other processes"), 0.0)
    for process, used in by_process.items():
        if process in computing:
            engine, loop, *rest = [*sorted(used, reverse=True), 0.0]
            parts["engine threads"] += engine
            parts["event loops"] += loop
            parts["their other threads"] += sum(rest)
        else:
            parts["HAProxy" if "haproxy" in names.get(process, "") else "other processes"] += sum(used)
    return parts


if __name__ == "__main__":
    main()
