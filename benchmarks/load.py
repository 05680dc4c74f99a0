"""Load: so many connections, each of which sends its next request when the last is answered.

`wrk` sends it, on one thread, if it is on PATH (Debian: `apt-get install wrk`). Otherwise a process of our own does,
on raw sockets; it costs several times the CPU, on the cores that the server needs, so figures of the two must not be
compared. Each result says which it was. By hand:

    python benchmarks/load.py URL BODIES CONNECTIONS SECONDS    # BODIES: a file, one JSON body a line
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULT = "RESULT "
TIMEOUT_S = 30
SCRIPT = """
local requests, position = {}, 0

function init(arguments)
  for body in io.lines(os.getenv("BODIES")) do
    requests[#requests + 1] = wrk.format("POST", nil, {["Content-Type"] = "application/json"}, body)
  end
end

function request()
  position = position % #requests + 1
  return requests[position]
end

function done(summary, latency, _)
  local errors = summary.errors
  local form = '"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "not_2xx": %d, "socket_errors": %d'
  io.write(string.format("\\nRESULT {" .. form .. "}\\n",
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """What the load generator saw.

    Attributes:
        requests: Answered.
        seconds: Until the last answer.
        p50_ms: Median latency.
        p99_ms: Latency that one in a hundred exceeds.
        not_2xx: Answers with another status.
        socket_errors: Connections that broke, and requests that took longer than half a minute.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    not_2xx: int
    socket_errors: int

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds

    @property
    def errors(self) -> int:
        """All that went wrong."""
        return self.not_2xx + self.socket_errors


def generator() -> str:
    """What will send the load."""
    if shutil.which("wrk") is None:
        return "benchmarks/load.py, raw sockets"
    printed = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    return f"{' '.join(printed.split()[:2])}, one thread"


def run(url: str, *, bodies: Path, connections: int, seconds: int) -> Load:
    """Send load from another process.

    Args:
        url: Where to.
        bodies: File with one JSON body a line; sent in turn, from the first.
        connections: Requests on the way at any time.
        seconds: For how long.
    """
    if shutil.which("wrk"):
        script = bodies.with_name("load.lua")
        script.write_text(SCRIPT, encoding="utf-8")
        limits = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", f"{TIMEOUT_S}s"]
        command = ["wrk", *limits, "-s", str(script), url]
    else:
        command = [sys.executable, __file__, url, str(bodies), str(connections), str(seconds)]
    printed = subprocess.run(
        command,
        env={**os.environ, "BODIES": str(bodies)},
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 3 * TIMEOUT_S,
    ).stdout
    line = next(line for line in printed.splitlines() if line.startswith(RESULT))
    return Load(**json.loads(line.removeprefix(RESULT)))


@dataclass
class _Tally:
    latencies_ms: list[float] = field(default_factory=list)
    not_2xx: int = 0
    socket_errors: int = 0

    def summary(self, seconds: float) -> dict[str, Any]:
        quantiles = statistics.quantiles([*self.latencies_ms, 0.0, 0.0][: max(2, len(self.latencies_ms))], n=100)
        return {
            "requests": len(self.latencies_ms),
            "seconds": seconds,
            "p50_ms": round(quantiles[49], 3),
            "p99_ms": round(quantiles[98], 3),
            "not_2xx": self.not_2xx,
            "socket_errors": self.socket_errors,
        }


async def _connection(address: urllib.parse.SplitResult, requests: Iterator[bytes], end: float, tally: _Tally) -> None:
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        while time.perf_counter() < end:
            started = time.perf_counter()
            writer.write(next(requests))
            status = await asyncio.wait_for(_response(reader), TIMEOUT_S)
            tally.latencies_ms.append((time.perf_counter() - started) * 1e3)
            tally.not_2xx += not 200 <= status < 300
    except (OSError, EOFError, TimeoutError, asyncio.TimeoutError):
        tally.socket_errors += 1
    finally:
        writer.close()


async def _response(reader: asyncio.StreamReader) -> int:
    """Read one response; returns its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    headers = dict(line.split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
    if "content-length" in headers:
        await reader.readexactly(int(headers["content-length"]))
    while headers.get("transfer-encoding") == "chunked":
        size = int(await reader.readuntil(b"\r\n"), 16)
        await reader.readexactly(size + 2)
        if size == 0:
            break
    return int(head.split()[1])


def _requests(address: urllib.parse.SplitResult, bodies: Path) -> Iterator[bytes]:
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\nContent-Length: "
    )
    lines = [line.encode() for line in bodies.read_text(encoding="utf-8").splitlines()]
    return itertools.cycle([head.encode() + b"%d\r\n\r\n" % len(line) + line for line in lines])


async def _send(url: str, bodies: Path, connections: int, seconds: int) -> dict[str, Any]:
    address, tally = urllib.parse.urlsplit(url), _Tally()
    requests = _requests(address, bodies)
    started = time.perf_counter()
    await asyncio.gather(*(_connection(address, requests, started + seconds, tally) for _ in range(connections)))
    return tally.summary(time.perf_counter() - started)


if __name__ == "__main__":
    url, bodies, connections, seconds = sys.argv[1:]
    print(RESULT + json.dumps(asyncio.run(_send(url, Path(bodies), int(connections), int(seconds)))))
