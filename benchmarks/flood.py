"""Load at a fixed rate, however slow the answers: `h2load`, which costs next to nothing, or else our own callers.

Debian has it in `nghttp2-client`. A process of it sends one body; a mix of bodies is a process for each, at the rate of
its share. Its connections begin one after the other, so that their requests come evenly and not all at once.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PERIOD_S = 0.01
PATIENCE_S = 60.0
INACTIVE_S = 40.0  # longer than a call may take


@dataclass(frozen=True)
class Part:
    """A body, and how large a share of the calls sends it."""

    body: str
    share: float


@dataclass(frozen=True)
class Timed:
    """One call: its status, 0 where there was none, and the seconds that its answer took."""

    status: int
    seconds: float


def available() -> bool:
    """Whether there is an h2load."""
    return shutil.which("h2load") is not None


def run(url: str, parts: Sequence[Part], *, rate: float, connections: int, seconds: float, folder: Path) -> list[Timed]:
    """Send for some seconds.

    Args:
        url: Where to.
        parts: What; the shares add up to one.
        rate: Calls a second.
        connections: Those who call, at most so many at a time.
        seconds: How long.
        folder: For its files.
    """
    running = []
    for number, part in enumerate(parts):
        body, log = folder / f"body-{number}", folder / f"calls-{number}.tsv"
        body.write_text(part.body, encoding="utf-8")
        log.unlink(missing_ok=True)
        share = rate * part.share  # calls a second
        clients = max(1, round(connections * part.share))
        calls = max(clients, round(share * seconds))
        beginning = min(clients, max(1, round(share * PERIOD_S)))  # clients that begin in a period
        period = f"{max(1, round(1000 * beginning / share))}ms"
        command = [
            *("h2load", "--h1", "-t1", "-m1", "-c", str(clients), "-n", str(calls), f"--rps={share / clients:.4f}"),
            *("-N", f"{INACTIVE_S:g}s", "-r", str(beginning), f"--rate-period={period}", f"--log-file={log}"),
            *("-d", str(body), "-H", "content-type: application/json", url),
        ]
        running.append((subprocess.Popen(command, stdout=subprocess.DEVNULL), log))
    found = []
    for process, log in running:
        process.wait(seconds + PATIENCE_S)
        for line in log.read_text(encoding="utf-8").splitlines():
            _, status, microseconds = line.split("\t")[:3]
            found.append(Timed(max(0, int(status)), int(microseconds) / 1e6))
    return found
