"""Spare workers: idle processes of Ray's that have imported what a replica runs, so that a new replica starts at once.

Most of a replica's start is imports, and a replica that is replaced starts on cores that are busy with calls. Ray gives
an actor an idle worker where there is one and starts a process where there is none; `Spares` keeps some idle.

    raylet -> worker: imports all of it -> idle, a spare -> replica's constructor -> ...
                 ^                                     |
                 '---- another one, once it is taken --'
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import psutil

logger = logging.getLogger(__name__)

# Read by the raylet when it starts.
RAYLET = {
    # What each worker imports before it accepts work.
    "RAY_preload_python_modules": "madewithml.serving.preloaded",
}
LOOK_EVERY_S = 1.0
# A spare that was taken is a replica that starts because another was lost: the cores have better to do for a while.
REPLACED_AFTER_S = 15.0
# Where the cores of this machine are as busy as that, a spare's imports would take time that calls wait for. It waits
# for a better moment, but not for ever: a lost replica would come back late.
BUSY_PERCENT = 90.0
PATIENCE_S = 120.0
CALL_TIMEOUT_S = 5.0
KEPT_S = 10 * 365 * 86_400  # a spare waits for as long as the service runs
IDLE_TITLE = "ray::IDLE"
STARTING = "default_worker.py"


class Spares:
    """Keeps workers idle on the node of Ray's that this process started.

    Ray has no public call for it: where the one it uses itself is not there, the service goes on without spares.

    Args:
        count: Workers to keep idle.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._ended = threading.Event()
        self._may_start = threading.Lock()
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="spares", daemon=True)

    def prepare(self, count: int) -> None:
        """Start workers for the actors that are about to be made, so that they import at the same time."""
        if self._count:
            self._guarded(lambda: prestart(count))

    def start(self) -> None:
        """Begin to look after them, in a thread."""
        if self._count:
            self._thread.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Start none in the block, in which the cores have better to do."""
        with self._may_start:
            yield

    def stop(self) -> None:
        """Start no more; those that wait end with Ray."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        self._guarded(self._keep)

    def _keep(self) -> None:
        raylet, before, due = _raylet(), 0, time.monotonic()
        while True:
            busy = _busy()
            lines = _command_lines(raylet)
            starting = sum(map(is_starting, lines))
            present = starting + sum(map(is_idle, lines))
            if present < before:
                due = time.monotonic() + REPLACED_AFTER_S
            before = present
            wanted = present < self._count and not starting
            if wanted and time.monotonic() >= due + (PATIENCE_S if busy else 0.0):
                with self._may_start:
                    self._guarded(lambda: prestart(1))  # one at a time: calls keep the other core
            if self._ended.wait(LOOK_EVERY_S):
                return

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as err:  # noqa: BLE001 - whatever Ray's own call raises, the service needs none of it
            level = logging.DEBUG if self._warned else logging.WARNING
            logger.log(level, "there are no spare workers (%s): a replica takes longer to start", err)
            self._warned = True


def prestart(count: int) -> None:
    """Have the raylet of this node start workers that wait for an actor."""
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

    own = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == own)
    request = node_manager_pb2.PrestartWorkersRequest(
        language=common_pb2.Language.PYTHON, keep_alive_duration_secs=KEPT_S, num_workers=count
    )
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=CALL_TIMEOUT_S)


def is_idle(command_line: Sequence[str]) -> bool:
    """Whether a child of the raylet is a worker that waits for an actor."""
    return bool(command_line) and command_line[0].strip() == IDLE_TITLE


def is_starting(command_line: Sequence[str]) -> bool:
    """Whether a child of the raylet is about to be one: it still imports."""
    return any(part.endswith(STARTING) for part in command_line)


def _busy() -> bool:
    """Whether the cores had next to no time to spare since the last look."""
    return psutil.cpu_percent() > BUSY_PERCENT


def _raylet() -> psutil.Process:
    """The raylet that this process started."""
    return next(child for child in psutil.Process().children() if child.name() == "raylet")


def _command_lines(raylet: psutil.Process) -> list[list[str]]:
    found = []
    for child in raylet.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(child.cmdline())
    return found
