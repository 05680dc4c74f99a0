"""`madewithml serve` started for a measurement, from this checkout or another one."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import processes

from madewithml import ports

CHECKOUT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 90.0
POLL_S = 0.1


@dataclass(frozen=True)
class Service:
    """A running service.

    Attributes:
        server: Its processes.
        url: Where it answers.
    """

    server: processes.Server
    url: str


@contextlib.contextmanager
def running(folder: Path, *arguments: str, checkout: Path = CHECKOUT) -> Iterator[Service]:
    """A service for as long as the block lasts.

    Args:
        folder: Working folder, and state folder.
        arguments: Of `madewithml serve`; the port is added.
        checkout: Whose code runs.
    """
    port = ports.free()
    folder.mkdir(parents=True, exist_ok=True)
    script = str(checkout / "madewithml" / "serve.py")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MADEWITHML_")}
    server = processes.Server(
        [sys.executable, script, *arguments, "--port", str(port), "--home", str(folder)],
        environment={**variables, "PYTHONPATH": str(checkout)},
        folder=folder,
    )
    started = Service(server, f"http://127.0.0.1:{port}")
    try:
        _wait_until_ready(started)
        yield started
    finally:
        server.stop()


def _wait_until_ready(started: Service) -> None:
    last = time.monotonic() + START_TIMEOUT_S
    while not _ready(started.url):
        if started.server.ended() or time.monotonic() > last:
            raise RuntimeError(f"the service did not start: {started.server.log_tail()}")
        time.sleep(POLL_S)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready").is_success
    except httpx.TransportError:
        return False
