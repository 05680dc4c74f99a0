"""One contender, measured once: started, warmed up, put under each load, ended."""

from __future__ import annotations

import contextlib
import http
import http.client
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dataset
import load
import processes
from contenders import Contender, first_answer

from madewithml import ports

HOST = "127.0.0.1"
WARM_UP_S = 2
WARM_UP_CONNECTIONS = 8
START_TIMEOUT_S = 180
POLL_S = 0.02
NUM_CHECKED = 20
MIN_AGREEMENT = 0.9
NOT_AN_ANSWER = (OSError, http.client.HTTPException, LookupError, ValueError, TypeError)


class FailedError(Exception):
    """A contender did not start or answered wrongly; the message says what it printed last."""


@dataclass(frozen=True)
class Setup:
    """What all contenders have in common.

    Attributes:
        rows: The dataset's rows, text fields only.
        answers: The engine's own answers to the first of them.
        connections: Loads, one after the other.
        seconds: Of each load.
    """

    rows: Sequence[Mapping[str, str]]
    answers: Sequence[Mapping[str, Any]]
    connections: Sequence[int]
    seconds: int

    @property
    def clearest(self) -> int:
        """The row whose label no engine should get wrong."""
        return max(range(len(self.answers)), key=lambda i: self.answers[i]["confidence"])


def measure(contender: Contender, setup: Setup) -> dict[str, Any]:
    """Measure a contender; `{"failed": why}` if it did not start or answered wrongly."""
    with tempfile.TemporaryDirectory(prefix="serving-") as name:
        try:
            return _measure(contender, setup, Path(name))
        except (FailedError, OSError, subprocess.SubprocessError, StopIteration) as err:
            return {"failed": f"{type(err).__name__}: {err}"}


def _measure(contender: Contender, setup: Setup, folder: Path) -> dict[str, Any]:
    port = ports.free()
    environment = contender.variables_for(port)
    if contender.prepare:
        command = contender.arguments(contender.prepare, port=port, folder=folder / "model")
        subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True, timeout=START_TIMEOUT_S)
    bodies = dataset.write_bodies(map(contender.body_of, setup.rows), folder / "bodies.jsonl")
    command = contender.arguments(contender.command, port=port, folder=folder / "model")
    started = time.perf_counter()
    server = processes.Server(command, environment=environment, folder=folder)
    try:
        _await_answer(server, contender, setup, port)
        start_s = round(time.perf_counter() - started, 2)
        checked = {"start_s": start_s, "agreement": _agreement(contender, setup, port), **_engine(contender, port)}
        server.settle()
        loads = _loads(server, f"http://{HOST}:{port}{contender.path}", bodies, contender.connections, setup)
    finally:
        killed = server.stop()
    return {**checked, "killed": killed, "loads": loads}


def _loads(
    server: processes.Server, url: str, bodies: Path, only: Sequence[int] | None, setup: Setup
) -> list[dict[str, Any]]:
    counts = [count for count in setup.connections if only is None or count in only]
    load.run(url, bodies=bodies, connections=min(WARM_UP_CONNECTIONS, max(counts)), seconds=WARM_UP_S)
    return [under_load(server, url, bodies=bodies, connections=count, seconds=setup.seconds) for count in counts]


def under_load(server: processes.Server, url: str, *, bodies: Path, connections: int, seconds: int) -> dict[str, Any]:
    """What a running server does under load, and what it costs.

    Args:
        server: Its processes.
        url: Where the bodies go.
        bodies: File with one JSON body a line.
        connections: Requests on the way at any time.
        seconds: For how long.

    Returns:
        The fields of `load.Load`; `rate`, answers a second; `cpu_ms` a request of all its processes; its memory after.
    """
    before = server.clock()
    seen = load.run(url, bodies=bodies, connections=connections, seconds=seconds)
    cpu_s = processes.spent(before, server.clock())
    return {
        "connections": connections,
        **asdict(seen),
        "rate": round(seen.rate, 2),
        "errors": seen.errors,
        "cpu_ms": round(1e3 * cpu_s / max(1, seen.requests), 3),
        **asdict(server.memory()),
    }


def _await_answer(server: processes.Server, contender: Contender, setup: Setup, port: int) -> None:
    """Ask until the first correct answer."""
    deadline = time.monotonic() + START_TIMEOUT_S
    last = ""
    while time.monotonic() < deadline:
        if server.ended():
            raise FailedError(f"it ended while starting\n{server.log_tail()}")
        try:
            if _label(contender, setup, port, setup.clearest) == setup.answers[setup.clearest]["label"]:
                return
        except NOT_AN_ANSWER as err:
            last = repr(err)
        time.sleep(POLL_S)
    raise FailedError(f"no correct answer within {START_TIMEOUT_S} s; last: {last}\n{server.log_tail()}")


def _agreement(contender: Contender, setup: Setup, port: int) -> float:
    same = [_label(contender, setup, port, i) == answer["label"] for i, answer in enumerate(setup.answers)]
    share = sum(same) / len(same)
    if share < MIN_AGREEMENT:
        raise FailedError(f"{share:.0%} of its labels are those of the engine: expected {MIN_AGREEMENT:.0%} at least")
    return round(share, 3)


def _label(contender: Contender, setup: Setup, port: int, index: int) -> str:
    body = json.dumps(contender.body_of(setup.rows[index]))
    document = _ask(port, "POST", contender.path, body)
    return first_answer(document)["label"]


def _engine(contender: Contender, port: int) -> dict[str, str]:
    """What it computes with: as it was told, or as ours says itself."""
    if contender.engine is not None:
        return {"engine": str(contender.engine)}
    with contextlib.suppress(*NOT_AN_ANSWER):
        model = _ask(port, "GET", "/model")
        engine = model["engine"]
        if isinstance(engine, dict):
            return {"engine": f"{engine['name']} {engine['precision']}"}
        return {"engine": f"{engine} {model.get('precision', '')}".strip()}
    return {"engine": "its own choice"}


def _ask(port: int, method: str, path: str, body: str | None = None) -> Any:
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != http.HTTPStatus.OK:
            raise ValueError(f"status {response.status}: {content[:200]!r}")
        return json.loads(content)
    finally:
        connection.close()
