"""Serving without Ray: the same app from one or more uvicorn processes."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.supervisors import multiprocess

from madewithml import config, errors
from madewithml.serving import app, following, listener, neighbours, plan, replica

if TYPE_CHECKING:
    from types import FrameType

    from fastapi import FastAPI

    from madewithml.serving import service

PLAN_VARIABLE = "MADEWITHML_SERVE_PLAN"
# Classes to import, as uvicorn takes the app too.
CONNECTION: Any = "madewithml.serving.connection:Connection"
LOOP = "madewithml.serving.listener:Loop"
KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that none is closed as it is used again
STARTUP_FAILURE = 3  # uvicorn's word for "do not start this process again"


def app_from_environment() -> FastAPI:
    """Build the app from the plan in the environment; called by uvicorn in each worker process."""
    try:
        return _app()
    except errors.MadeWithMLError as err:
        if multiprocessing.parent_process() is None:
            raise
        # One of several processes: the status tells the first one that starting it again would not help. At once,
        # because a process that takes its time to end is killed and started again.
        print(f"error: {err.message}", file=sys.stderr, flush=True)  # noqa: T201 - the command's own output
        os._exit(STARTUP_FAILURE)


def _app() -> FastAPI:
    told = replica.Plan(**json.loads(os.environ[PLAN_VARIABLE]))
    kitchen = replica.open_service(told)
    kitchen.exit_when_hung()
    _drain_on_signal(kitchen)
    return app.create_app(kitchen, sharers=told.sharers)


def _drain_on_signal(kitchen: service.Service) -> None:
    """On the first signal finish what was accepted while new calls are answered 503; only then let uvicorn close.

    By itself it stops listening first, and a client that connects meanwhile is not told to come back. A second signal
    is uvicorn's at once.
    """
    loop = asyncio.get_running_loop()  # uvicorn builds the app in the loop that it serves in

    def drain_first(number: signal.Signals) -> None:
        ends = signal.getsignal(number)

        async def drain(frame: FrameType | None) -> None:
            if (others := listener.neighbours_in(loop)) is not None:
                others.leave()
            await kitchen.stop()
            if callable(ends):
                ends(number, frame)

        def on_signal(_: int, frame: FrameType | None) -> None:
            signal.signal(number, ends)
            loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(drain(frame))))

        signal.signal(number, on_signal)

    tasks: list[asyncio.Task[None]] = []  # the loop itself holds on to none
    for each in (signal.SIGINT, signal.SIGTERM):
        drain_first(each)


def run(wanted: plan.Wanted) -> None:
    """Serve until a signal comes; returns when everything accepted is answered.

    Raises:
        UsageError: It is not clear what is wanted, or there are no keys for the network.
        NotFoundError: There is no such run or model.
        CheckpointError: The checkpoint is damaged, or the one process cannot use it.
        StartError: The port is taken, or one of several processes could not start; it has said why.
    """
    wanted.check()
    found = wanted.find()
    with following.following(found.settings, found.model, found.target) as folder:
        _serve(found, folder)


def _serve(found: plan.Found, folder: Path | None) -> None:
    settings, workers = found.settings, found.replicas
    os.environ[PLAN_VARIABLE] = json.dumps(dataclasses.asdict(found.for_replicas(folder)))
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn raises the signal that ended it once more when it is done; a clean stop ends with status 0 instead.
        signal.signal(number, lambda *_: None)
    announcer = threading.Thread(target=_announce_when_ready, args=(settings, found.announcement), daemon=True)
    announcer.start()
    configuration = uvicorn.Config(
        "madewithml.serving.local:app_from_environment",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=workers,
        http=CONNECTION,
        loop=LOOP,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # nothing here asks where a call came from
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(settings.drain_timeout_s)),
        timeout_worker_healthcheck=30,  # importing torch on a busy machine holds a process up for longer than 5 s
    )
    if workers == 1:
        uvicorn.Server(configuration).run()
        return
    processes = Processes(configuration, sockets=[_socket_of(configuration)])
    processes.run()
    if any(process.exitcode == STARTUP_FAILURE for process in processes.processes):
        raise errors.StartError(f"the {workers} processes could not start")


class Processes(multiprocess.Multiprocess):
    """Uvicorn's processes, whose end is seen at once.

    The first process holds on to both ends of the pipe by which it asks another whether it is well. So a process that
    ended just then, because it could not start, would be waited for as long as one that hangs.
    """

    def init_processes(self) -> None:
        """Start them."""
        super().init_processes()
        self._let_go()

    def keep_subprocess_alive(self) -> None:
        """Start those anew that have ended."""
        super().keep_subprocess_alive()
        self._let_go()

    def _let_go(self) -> None:
        for process in self.processes:
            process.child_conn.close()


def _socket_of(configuration: uvicorn.Config) -> socket.socket:
    """What the processes listen on: a socket each where they can give connections to each other, else one for all."""
    if not sys.platform.startswith("linux"):
        return configuration.bind_socket()
    family = socket.AF_INET6 if ":" in configuration.host else socket.AF_INET
    # Twice as many places as processes: one that is started anew may come before the one whose place it takes is gone.
    table = neighbours.Table.create(2 * configuration.workers)
    return listener.SocketForEach.open(family, configuration.host, configuration.port, table)


def _announce_when_ready(settings: config.Settings, announce: str) -> None:
    """Print the announcement when the first process answers."""
    while True:
        connection = http.client.HTTPConnection(settings.host, settings.port, timeout=5)
        try:
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == http.HTTPStatus.OK:
                print(announce, flush=True)  # noqa: T201 - the command's own output
                return
        except OSError:
            pass  # not listening yet
        finally:
            connection.close()
        time.sleep(0.05)
