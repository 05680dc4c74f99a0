"""A server started for a measurement: its processes, their CPU time and memory, and the end of all of them.

A server's processes are found by a variable in their environment, which children inherit, as well as by descent: so
those whose parent has gone are counted and ended too. Linux only.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

MARKER = "BENCHMARK_SERVER"
GRACE_S = 30.0
ORPHAN_GRACE_S = 3.0
POLL_S = 0.1
RESTING_S = 2.0  # longer than a service pauses between two things that it does after its start
RESTING_CORES = 0.3  # some servers poll their queues
SETTLE_TIMEOUT_S = 60.0

Clock = dict[tuple[int, float], float]
Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Memory:
    """Proportional set sizes in MB: shared pages count once over all processes."""

    total_mb: float
    largest_mb: float
    processes: int


class Server:
    """A started command and all that came of it.

    Args:
        command: What to run.
        environment: All of its variables.
        folder: Working folder; the output goes to `server.log` in it.
    """

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], folder: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._log = folder / "server.log"
        with self._log.open("wb") as output:
            self._root = subprocess.Popen(
                command,
                cwd=folder,
                env={**environment, MARKER: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for the benchmark, which then ends the server in good order
            )

    def ended(self) -> bool:
        """Whether the command itself has ended."""
        return self._root.poll() is not None

    def signal(self, number: int) -> None:
        """Send the command a signal."""
        self._root.send_signal(number)

    def status(self, seconds: float) -> int | None:
        """The command's exit status; None if it does not end within so many seconds."""
        try:
            return self._root.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def log(self) -> str:
        """What it printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def log_tail(self, lines: int = 5) -> str:
        """The last of what it printed."""
        return "\n".join(self.log().splitlines()[-lines:])

    def processes(self) -> list[psutil.Process]:
        """All processes of the server that are alive."""
        found = {}
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._root.pid)
            found = {process.pid: process for process in [root, *root.children(recursive=True)]}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARKER) == self._mark:
                    found[process.pid] = process
        return [process for process in found.values() if _alive(process)]

    def each(self, look: Callable[[psutil.Process], Seen]) -> list[Seen]:
        """What a look at each process gives; those that end meanwhile are left out."""
        seen = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                seen.append(look(process))
        return seen

    def clock(self) -> Clock:
        """CPU seconds of each process so far, user and system."""
        return dict(self.each(lambda process: ((process.pid, process.create_time()), cpu_s(process))))

    def at_rest(self) -> bool:
        """Whether nothing computes: after the first answer, other processes may still be loading the model."""
        before = self.clock()
        time.sleep(RESTING_S)
        return spent(before, self.clock()) < RESTING_CORES * RESTING_S

    def settle(self) -> None:
        """Wait until nothing computes, or for a minute."""
        _until(self.at_rest, SETTLE_TIMEOUT_S)

    def memory(self) -> Memory:
        """Memory of all processes together and of the largest."""
        sizes = self.each(lambda process: process.memory_full_info().pss / 2**20)
        return Memory(round(sum(sizes), 1), round(max(sizes, default=0.0), 1), len(sizes))

    def stop(self) -> int:
        """End everything: SIGTERM to the command, then to what is left, then SIGKILL.

        Returns:
            Processes that had to be killed.
        """
        if not self.ended():
            self._root.terminate()
        _until(self.ended, GRACE_S)
        # A command that has ended has no more to say to its children; some forget them.
        _until(self._gone, ORPHAN_GRACE_S)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _until(self._gone, GRACE_S / 2)
        left = self.processes()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        _until(self._gone, GRACE_S / 2)
        return len(left)

    def _gone(self) -> bool:
        # Asking the command whether it has ended also takes it out of the process table.
        return self.ended() and not self.processes()


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process so far, user and system."""
    used = process.cpu_times()
    return float(used.user + used.system)


def spent(before: Clock, after: Clock) -> float:
    """CPU seconds between two clocks; processes that ended in between are not in it."""
    return sum(seconds - before.get(key, 0.0) for key, seconds in after.items())


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_S)
