"""A service in a process of its own: started, polled until it answers, ended by process id with all it started."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = "madewithml/serve.py"
PATIENCE_S = 240


def until(condition, *, timeout_s=PATIENCE_S, what="the condition"):
    """Poll until the condition gives something; that is the result."""
    last = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < last, f"{what} did not come within {timeout_s} s"
        time.sleep(0.02)
    return result


def free_port():
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**variables):
    """Ours without what an earlier import of Ray Serve has set in this process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
    return {**kept, **{name: str(value) for name, value in variables.items()}}


def run(*arguments, **variables):
    """Run `python madewithml/serve.py` with wrong arguments until it gives up."""
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def family(process):
    """A process and everything it started, by process id and start."""
    try:
        return {process, *process.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def alive(processes):
    """Those that still run; a zombie does not."""
    return {process for process in processes if _runs(process)}


def _runs(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def named(processes, part):
    """Those with this in their name or command line."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if part in process.name() or part in " ".join(process.cmdline()):
                found.add(process)
    return found


def end(processes):
    """Kill what is left of our own processes."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=20)


def listening(processes):
    """(address, port) of everything the processes listen on with TCP."""
    found = set()
    for process in processes:
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        found |= {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}
    return found


class Service:
    """`python madewithml/serve.py` on a free port.

    Args:
        folder: Where its output goes.
        arguments: Of the command line; the port is added.
        variables: Of the environment.
    """

    def __init__(self, folder, *arguments, **variables):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._outputs = {name: folder / name for name in ("stdout", "stderr")}
        self.seen = set()
        command = [sys.executable, SCRIPT, *map(str, arguments), "--port", str(self.port)]
        with self._outputs["stdout"].open("w") as out, self._outputs["stderr"].open("w") as err:
            self.popen = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment(**variables), stdout=out, stderr=err, start_new_session=True
            )
        self.process = psutil.Process(self.popen.pid)
        self.client = httpx.Client(base_url=self.url, timeout=60)

    @property
    def stdout(self):
        return self._outputs["stdout"].read_text(encoding="utf-8")

    @property
    def stderr(self):
        return self._outputs["stderr"].read_text(encoding="utf-8")

    def wait_until_ready(self):
        """Wait for the line that says it serves."""
        until(self._announced, what="the announcement")
        return self

    def _announced(self):
        assert self.popen.poll() is None, f"it ended with status {self.popen.returncode}: {self.stderr}"
        return "stop: Ctrl-C" in self.stdout

    def ready(self):
        """Whether it says that it is ready."""
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def record_family(self):
        """Remember every process of its tree, also for when their parents are gone."""
        self.seen.add(self.process)
        self.seen |= {child for process in alive(self.seen) for child in family(process)}
        return alive(self.seen)

    def signal(self, number):
        """Send it a signal, as Ctrl-C and an operator do: to the one process."""
        self.record_family()
        self.popen.send_signal(number)

    def wait(self):
        """Its exit status."""
        return self.popen.wait(PATIENCE_S)

    def close(self):
        """End what is left of it."""
        self.client.close()
        if self.popen.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.popen.wait(30)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(30)
        end(self.record_family())
