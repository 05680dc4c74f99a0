"""What a fault happens in: a running service, callers that check its answers, and what can be seen from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import callers
import candidates
import httpx
import psutil
from processes import Server

from madewithml import ports

PATIENCE_S = 240.0
POLL_S = 0.25  # looking costs CPU that the service needs
PAUSE_S = 0.1
REPLICA = "ServeReplica:madewithml"
DROPPED = ("RAY_SERVE_", "MADEWITHML_", "MLFLOW_")  # of the environment: what would change how a service runs
FLAWS = (callers.DROPPED, callers.REFUSED, callers.SILENT, callers.WRONG)


def until(condition: Callable[[], Any], *, what: str, seconds: float = PATIENCE_S) -> Any:
    """Poll until the condition gives something; that is the result.

    Raises:
        TimeoutError: It did not come.
    """
    last = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > last:
            raise TimeoutError(f"{what} did not come within {seconds:g} s")
        time.sleep(POLL_S)
    return result


class Service:
    """`madewithml serve` on Ray, on a free port of this machine.

    Args:
        models: What it may serve.
        folder: Working folder.
        replicas: How many.
        source: Arguments that say what is served; None follows the alias.
        settings: More `MADEWITHML_` settings.
    """

    def __init__(
        self,
        models: candidates.Models,
        folder: Path,
        *,
        replicas: int = 2,
        source: Sequence[str] | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        port = ports.free()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        own = {"home": str(models.settings.home), "follow_interval_s": "1", **(settings or {})}
        command = Path(sys.executable).with_name("madewithml")
        self.url = f"http://127.0.0.1:{port}"
        self.predict_url = f"{self.url}/predict/"
        folder.mkdir(parents=True, exist_ok=True)
        self.server = Server(
            [
                *(str(command), "serve", *(source or ("--model", candidates.ADDRESS))),
                *("--port", str(port), "--replicas", str(replicas)),
            ],
            environment={**kept, **{f"MADEWITHML_{name.upper()}": value for name, value in own.items()}},
            folder=folder,
        )
        self.num_replicas = replicas
        self._num_spares = 0
        self._client = httpx.Client(base_url=self.url, timeout=30)

    def wait_until_ready(self) -> Service:
        """Wait for the line that says it serves."""

        def announced() -> bool:
            if self.server.ended():
                raise RuntimeError(f"the service ended: {self.server.log_tail()}")
            return "stop: Ctrl-C" in self.server.log()

        until(announced, what="the service")
        until(self.server.at_rest, what="the end of its start")
        self._num_spares = self._spares()
        return self

    def at_rest(self) -> bool:
        """Whether it is as it was after its start: every replica there, spare workers too, and nothing computes."""
        return self.whole() and self._spares() >= self._num_spares and self.server.at_rest()

    def _spares(self) -> int:
        return sum("ray::IDLE" in " ".join(words) for words in self.server.each(psutil.Process.cmdline))

    def get(self, path: str) -> dict[str, Any]:
        """What a route answers; empty where it does not."""
        try:
            answer = self._client.get(path)
        except httpx.TransportError:
            return {}
        document: dict[str, Any] = answer.json() if answer.status_code == httpx.codes.OK else {}
        return document

    def answers(self) -> bool:
        """Whether it is ready, as a load balancer would ask."""
        return self.get("/health/ready").get("status") == "ready"

    def replicas(self) -> list[psutil.Process]:
        """The replicas' processes."""
        titles = self.server.each(lambda process: (process, " ".join(process.cmdline())))
        return [process for process, title in titles if REPLICA in title]

    def whole(self) -> bool:
        """Whether every replica lives and HAProxy sends calls to it."""
        return len(self.replicas()) == self._routed() == self.num_replicas

    def _routed(self) -> int:
        """Replicas that HAProxy holds for up."""
        (folder,) = {
            Path(word).parent
            for words in self.server.each(psutil.Process.cmdline)
            for word in words
            if word.endswith("haproxy.cfg")
        }
        answer = b""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(folder / "admin.sock"))
            connection.sendall(b"show stat\n")
            while piece := connection.recv(65536):
                answer += piece
        rows = [line.split(",") for line in answer.decode().splitlines()]
        return sum(row[1].startswith("SERVE_REPLICA") and row[17] == "UP" for row in rows if len(row) > 17)

    def runs(self) -> set[str]:
        """The runs that answer: asked so often, and for so long, that each replica was asked."""
        found = set()
        for _ in range(6 * self.num_replicas):
            found.add(self.get("/model").get("run_id", ""))
            time.sleep(PAUSE_S)
        return found

    def stop(self) -> None:
        """End it and all that came of it."""
        self._client.close()
        self.server.stop()


@dataclass(frozen=True)
class Scene:
    """What faults share.

    Attributes:
        models: What there is to serve.
        calls: What is sent, with the answers expected.
        tolerance: Between an answer's probabilities and those expected.
        folder: For scratch files.
        capacity: Calls a second that two replicas answer at most.
        short: Whether each fault takes its short form.
    """

    models: candidates.Models
    calls: Sequence[callers.Call]
    tolerance: float
    folder: Path
    capacity: float
    short: bool

    @property
    def rate(self) -> float:
        """Calls a second at 70 % of capacity."""
        return 0.7 * self.capacity

    @contextlib.contextmanager
    def load(self, url: str, *, rate: float | None = None) -> Iterator[Load]:
        """Steady load for as long as the block lasts; its answers are there afterwards."""
        load = Load()
        running = callers.Callers(url, self.calls, rate=rate or self.rate, tolerance=self.tolerance, folder=self.folder)
        try:
            yield load
        finally:
            load.answers = running.stop()

    @contextlib.contextmanager
    def service(self, **options: Any) -> Iterator[Service]:
        """A service for as long as the block lasts."""
        folder = self.folder / f"service-{time.monotonic_ns()}"
        running = Service(self.models, folder, **options)
        try:
            yield running.wait_until_ready()
        finally:
            running.stop()


class Load:
    """What came back of steady load."""

    def __init__(self) -> None:
        self.answers: list[callers.Answer] = []

    @property
    def outcomes(self) -> dict[str, int]:
        """How many of each."""
        return dict(sorted(Counter(answer.outcome for answer in self.answers).items()))

    @property
    def failed(self) -> int:
        """Those that are no right answer."""
        return sum(not answer.ok for answer in self.answers)

    @property
    def impolite(self) -> int:
        """Those that are neither a right answer nor a 429 or 503 that says when to try again."""
        return sum(
            not (answer.ok or (answer.outcome in ("429", "503") and answer.retry_after)) for answer in self.answers
        )

    @property
    def runs(self) -> set[str]:
        """The runs that answered."""
        return {answer.run_id for answer in self.answers if answer.ok}

    def latency_ms(self, share: float) -> float:
        """A quantile of the right answers' latencies."""
        ordered = [answer.latency_ms for answer in self.answers if answer.ok]
        return statistics.quantiles(ordered, n=1000)[round(share * 1000) - 1] if len(ordered) > 1 else float("nan")

    def report(self) -> dict[str, Any]:
        """For a result file."""
        return {
            "calls": len(self.answers),
            "outcomes": self.outcomes,
            "p50_ms": round(self.latency_ms(0.5), 1),
            "p99_ms": round(self.latency_ms(0.99), 1),
            "max_ms": round(max((answer.latency_ms for answer in self.answers), default=0.0), 1),
        }


def kill(process: psutil.Process) -> None:
    """End a process as the memory limit would: at once, without a word."""
    process.send_signal(signal.SIGKILL)
