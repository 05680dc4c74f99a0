"""Callers: steady load from a process of its own that checks every answer.

Calls leave at a fixed rate whether or not earlier ones are answered, as from many people at once; each is timed from
the moment it was due. Connections are kept and used again, as clients do. Every second call sends head and body apart,
as most HTTP libraries do. Nothing is sent twice: what is lost is recorded as lost. By hand:

    python benchmarks/callers.py URL CALLS RATE TOLERANCE RECORD    # until SIGTERM; CALLS: a `Call` on each line
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 60.0
MAX_CONNECTIONS = 2000
DROPPED, REFUSED, SILENT, WRONG = "dropped", "refused", "silent", "wrong"


@dataclass(frozen=True)
class Call:
    """What is sent, and what should come back.

    Attributes:
        body: JSON.
        expected: For each run that may answer, the probabilities by label of each row.
        headers: Beside those every call has.
    """

    body: str
    expected: dict[str, list[dict[str, float]]]
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came back of one call.

    Attributes:
        sent_s: When it was due, in seconds since 1970.
        latency_ms: From then until the answer was complete.
        outcome: The status; or `dropped` (the connection was closed without an answer), `refused` (it could not be
            opened), `silent` (no answer within a minute), `wrong` (a 200 with other probabilities than those of the
            run that it names).
        retry_after: Whether the answer said when to try again.
        run_id: The run that a right answer names; otherwise empty.
    """

    sent_s: float
    latency_ms: float
    outcome: str
    retry_after: bool
    run_id: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is a right answer."""
        return self.outcome == "200"


class Callers:
    """Load from another process, from now until it is stopped.

    Args:
        url: Where to.
        calls: Sent in turn.
        rate: Calls a second.
        tolerance: Between an answer's probabilities and those expected.
        folder: For its files.
    """

    def __init__(self, url: str, calls: Sequence[Call], *, rate: float, tolerance: float, folder: Path) -> None:
        self._record = folder / f"record-{time.monotonic_ns()}.jsonl"
        path = folder / f"calls-{time.monotonic_ns()}.jsonl"
        path.write_text("".join(json.dumps(dataclasses.asdict(call)) + "\n" for call in calls), encoding="utf-8")
        command = [sys.executable, __file__, url, str(path), str(rate), str(tolerance), str(self._record)]
        self._process = subprocess.Popen(command, start_new_session=True)

    def stop(self) -> list[Answer]:
        """Send no more, wait for what was sent; every answer, in the order of sending."""
        self._process.terminate()
        try:
            self._process.wait(2 * TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        lines = self._record.read_text(encoding="utf-8").splitlines()
        return sorted((Answer(*json.loads(line)) for line in lines), key=lambda answer: answer.sent_s)


class _Connection(asyncio.Protocol):
    """One connection: a request, its response, the next request."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[str, Mapping[str, str], bytes]] | None = None

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or self._answer is None or self._answer.done():
            return
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        if len(body) < int(headers.get("content-length", "0")):
            return
        self._received = b""
        if headers.get("connection", "").lower() == "close":
            self.close()
        self._answer.set_result((status.split()[1], headers, body))

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, _: Exception | None) -> None:
        self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("closed without an answer"))

    def send(self, *pieces: bytes) -> asyncio.Future[tuple[str, Mapping[str, str], bytes]]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        for piece in pieces:
            self._transport.write(piece)
        return self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class _Sender:
    def __init__(self, url: str, calls: Sequence[Call], *, tolerance: float) -> None:
        self._tolerance = tolerance
        self._address = urllib.parse.urlsplit(url)
        self._calls = [(call, *self._request(call)) for call in calls]
        self._idle: list[_Connection] = []
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)
        self.answers: list[Answer] = []

    def _request(self, call: Call) -> tuple[bytes, bytes]:
        body = call.body.encode()
        headers = {"Host": self._address.netloc, "Content-Type": "application/json", **call.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {self._address.path} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        return head.encode(), body

    async def send(self, *, rate: float, stop: asyncio.Event) -> None:
        """Send at a rate until told to stop, and wait for what is on its way."""
        started, on_the_way = time.time(), set()
        for number in itertools.count():
            due = started + number / rate
            if (delay := due - time.time()) > 0:
                await asyncio.sleep(delay)
            if stop.is_set():
                break
            task = asyncio.ensure_future(self._call(number, due))
            on_the_way.add(task)
            task.add_done_callback(on_the_way.discard)
            if delay <= 0 and number % 20 == 0:
                await asyncio.sleep(0)  # behind: answers must be read all the same
        await asyncio.gather(*on_the_way)

    async def _call(self, number: int, due: float) -> None:
        call, head, body = self._calls[number % len(self._calls)]
        async with self._room:
            outcome, retry_after, run_id = await self._outcome(call, [head, body] if number % 2 else [head + body])
        self.answers.append(Answer(due, (time.time() - due) * 1e3, outcome, retry_after, run_id))

    async def _outcome(self, call: Call, pieces: Sequence[bytes]) -> tuple[str, bool, str]:
        try:
            connection = await self._connection()
        except OSError:
            return REFUSED, False, ""
        try:
            status, headers, body = await asyncio.wait_for(connection.send(*pieces), TIMEOUT_S)
        except (TimeoutError, asyncio.TimeoutError):
            connection.close()
            return SILENT, False, ""
        except OSError:
            return DROPPED, False, ""
        if connection.usable:
            self._idle.append(connection)
        if status != "200":
            return status, "retry-after" in headers, ""
        document = json.loads(body)
        agrees = self._agree(document["results"], call.expected.get(document["run_id"]))
        return (status if agrees else WRONG), False, document["run_id"]

    def _agree(self, results: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, float]] | None) -> bool:
        """Whether the probabilities are those of the run that the answer names."""
        return (
            expected is not None
            and len(results) == len(expected)
            and all(
                abs(result["probabilities"][label] - value) <= self._tolerance
                for result, row in zip(results, expected, strict=True)
                for label, value in row.items()
            )
        )

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        loop = asyncio.get_running_loop()
        host, port = str(self._address.hostname), int(self._address.port or 80)
        return (await loop.create_connection(_Connection, host, port))[1]


async def _main(url: str, calls: Path, rate: float, tolerance: float, record: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    loaded: list[Any] = [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines()]
    sender = _Sender(url, [Call(**call) for call in loaded], tolerance=tolerance)
    await sender.send(rate=rate, stop=stop)
    lines = (json.dumps(dataclasses.astuple(answer)) + "\n" for answer in sender.answers)
    record.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    url, calls, rate, tolerance, record = sys.argv[1:]
    asyncio.run(_main(url, Path(calls), float(rate), float(tolerance), Path(record)))
