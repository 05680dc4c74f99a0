"""Nothing dropped: a running service goes through every fault that an operator meets, under load that checks answers.

    python benchmarks/chaos.py --checkpoint DIR --dataset-loc projects.csv [--only replica_killed,overloaded]
    python benchmarks/chaos.py --run-id ID --dataset-loc projects.csv

The load comes from another process at 70 % of what two replicas can answer, and every answer's probabilities are
compared with those of the run that it names. `faults.py` has the faults, `candidates.py` the models, `scene.py` what
both happen in. Linux only; as root the state folder gets a small file system of its own, to be filled.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import callers
import candidates
import dataset
import environment
import faults
import load
import psutil
import tables
from scene import Scene, Service, until

from madewithml import predict

ROWS = 64
LONG_BODIES = 3
LONG_TEXT = "deep layers " * 5000  # beyond HAProxy's ordinary buffers
CONNECTIONS = 32
DISK_MB = 4096
CAPACITY_S = 6
# Where the machine itself slows down so much during a fault, the load was not 70 % of what it can do, and latencies say
# nothing. Such a fault is done again, so often at most; what came of it before is written down too.
SLOWED = 0.8
ATTEMPTS = 3


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch, _disk(Path(scratch)) as home:
        print("making models", flush=True)
        checkpoint = arguments.checkpoint or predict.get_best_checkpoint(arguments.run_id)
        models = candidates.make(checkpoint, str(arguments.dataset_loc), home=home, optimised=True)
        models.promote(models.good[0])
        scene = make_scene(models, arguments.dataset_loc, folder=Path(scratch), short=arguments.short)
        found = dict(_run(scene, arguments.only))
    command = f"python benchmarks/chaos.py --checkpoint DIR --dataset-loc {arguments.dataset_loc.name}"
    if set(arguments.only) != set(_names()):
        command += f" --only {','.join(arguments.only)}"
    result = {"short": scene.short, "faults": found}
    path = environment.write("chaos", command, result)
    table = _table(found)
    tables.terminal(table)
    path.with_suffix(".md").write_text(_page(json.loads(path.read_text(encoding="utf-8")), table), encoding="utf-8")
    sys.exit(any(finding["broken"] for finding in found.values()))


def _arguments() -> argparse.Namespace:
    names = _names()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", type=Path)
    which.add_argument("--run-id")
    parser.add_argument("--dataset-loc", type=Path, required=True, help="CSV with title, description and tag")
    parser.add_argument("--only", type=lambda text: text.split(","), default=names, help=", ".join(names))
    parser.add_argument("--short", action="store_true", help="seconds of each, without the bars on time")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(names):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return arguments


def _names() -> list[str]:
    return [fault.__name__ for fault in (*faults.TWO_REPLICAS, *faults.ONE_REPLICA)]


def make_scene(models: candidates.Models, dataset_loc: Path, *, folder: Path, short: bool) -> Scene:
    """What is sent and what is expected; how much a service can answer is measured on it."""
    predictors = {run_id: models.predictor(run_id) for run_id in models.good}
    exact = {predictor.engine.precision for predictor in predictors.values()} == {"fp32"}
    calls = make_calls(predictors, dataset_loc)
    return Scene(models, calls, 1e-4 if exact else 0.02, folder, capacity=0.0, short=short)


def make_calls(predictors: dict[str, Any], dataset_loc: Path) -> list[callers.Call]:
    """Rows one by one, a list now and then, and some long texts."""
    fields = next(iter(predictors.values())).checkpoint.metadata.text_fields
    rows = dataset.rows(dataset_loc, fields)[:ROWS]
    bodies: list[Any] = [*rows, rows[:8], *[{fields[0]: f"{i} ", fields[1]: LONG_TEXT} for i in range(LONG_BODIES)]]
    return [
        callers.Call(
            body=json.dumps(body),
            expected={
                run_id: [
                    answer["probabilities"]
                    for row in (body if isinstance(body, list) else [body])
                    for answer in predictor.predict([row])
                ]
                for run_id, predictor in predictors.items()
            },
        )
        for body in bodies
    ]


def at_capacity(scene: Scene, service: Service, *, seconds: int = CAPACITY_S) -> Scene:
    """The scene, with the calls a second that this service can answer when it does nothing else."""
    until(service.at_rest, what="a service at rest")
    bodies = scene.folder / "bodies"
    bodies.write_text("".join(f"{call.body}\n" for call in scene.calls), encoding="utf-8")
    measured = load.run(service.predict_url, bodies=bodies, connections=CONNECTIONS, seconds=seconds)
    return dataclasses.replace(scene, capacity=measured.rate)


def _run(scene: Scene, only: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for replicas, group in ((2, faults.TWO_REPLICAS), (1, faults.ONE_REPLICA)):
        chosen = [fault for fault in group if fault.__name__ in only]
        if chosen:
            with scene.service(replicas=replicas) as service:
                for fault in chosen:
                    yield fault.__name__, _settled(fault, scene, service)


def _settled(fault: faults.Fault, scene: Scene, service: Service) -> dict[str, Any]:
    """What came of a fault, on a machine that was the same before and after it where one was to be had."""
    set_aside: list[dict[str, Any]] = []
    loaded = at_capacity(scene, service)  # anew each time: a shared machine is another one a quarter of an hour later
    while True:
        outcome = _done(fault, loaded, service)
        late_alone = outcome["broken"] and not outcome["lost"]
        if not late_alone or len(set_aside) == ATTEMPTS - 1 or not service.answers():
            break
        before, loaded = loaded.capacity, at_capacity(scene, service)
        if loaded.capacity >= SLOWED * before:
            break
        print(f"the machine went from {before:.0f} to {loaded.capacity:.0f} calls a second: once more", flush=True)
        aside = {name: outcome[name] for name in ("broken", "measured")}
        set_aside.append(aside | {"capacity_before": round(before, 1), "capacity_after": round(loaded.capacity, 1)})
    return outcome | {"set_aside": set_aside}


def _done(fault: faults.Fault, scene: Scene, service: Service) -> dict[str, Any]:
    print(f"== {fault.__name__}, at {scene.rate:.0f} calls a second: {fault.__doc__}", flush=True)
    try:
        finding = fault(scene, service)
    except (TimeoutError, RuntimeError, psutil.Error) as err:
        finding = faults.Finding("-", broken=[f"{type(err).__name__}: {err}"])
    # Messages name files; the folder they lie in is this machine's own.
    finding.measured = json.loads(json.dumps(finding.measured).replace(str(scene.folder), "DIR"))
    print(json.dumps(finding.measured), flush=True)
    print("\n".join(finding.broken) or "held", flush=True)
    return {"fault": fault.__doc__, "calls_per_second": round(scene.rate, 1), **vars(finding)}


@contextlib.contextmanager
def _disk(scratch: Path) -> Iterator[Path]:
    """A state folder, on a small file system of its own if this user may make one."""
    home = scratch / "home"
    home.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(home)], capture_output=True, check=False
    )
    try:
        yield home
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "--lazy", str(home)], check=False)


def _table(found: Mapping[str, Mapping[str, Any]]) -> tables.Table:
    rows = [
        [
            each["fault"],
            each["bar"],
            ("; ".join(each["broken"]) or "held") + "*" * len(each["set_aside"]),
            str(each["measured"].get("calls", "-")),
            str(each["measured"].get("outcomes", each["measured"].get("statuses", "-"))),
        ]
        for each in found.values()
    ]
    return ["fault", "must hold", "result", "calls", "outcomes"], rows


def _page(document: Mapping[str, Any], table: tables.Table) -> str:
    where, result = document["environment"], document["result"]
    machine = f"{where['processor']}, {where['cores']} cores, {where['memory_gib']} GiB, Python {where['python']}"
    details = [
        f"- {name}: {json.dumps(each['measured'])}"
        + (f"; left out: {each['left_out']}" if each["left_out"] else "")
        + "".join(f"; * set aside: {json.dumps(aside)}" for aside in each["set_aside"])
        for name, each in result["faults"].items()
    ]
    parts = [
        f"# Faults under load, {where['date']}\n",
        f"`{document['command']}`\n",
        f"{machine}. Load from another process, at a fixed rate, every answer's probabilities compared with those of "
        "the run that it names; 70 % of what the service answered at its most just before, unless the fault says "
        "otherwise. A star is a try that was set aside, since afterwards the machine did less than "
        f"{SLOWED:.0%} of what it had done before.\n",
        tables.markdown(table),
        "## What was seen\n",
        "\n".join(details) + "\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
