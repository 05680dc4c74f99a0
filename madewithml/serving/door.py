"""A replica's own door: calls come from HAProxy straight to the app, past what Ray does with each of them.

Ray's replica takes a third of a millisecond for a call, for metadata, metrics and tasks that nothing here reads. So the
app listens on a Unix socket beside Ray's HTTP server, which still says whether the replica is well and answers the
HAProxies of other machines. HAProxy's launcher (`haproxy.py`) sends calls to the socket where it finds one.

    client -> HAProxy --calls--> door -> app
                    `--health--> Ray's HTTP server of the same replica

A replica that leaves goes on answering until HAProxy sends it nothing more. Were it to refuse, it would be the one with
the fewest calls on its way, and HAProxy, which sends a call where there are fewest, would send it every call and every
further try until its new configuration is in force: on a busy machine for seconds. A door that is closed is different,
one failed connection is enough for HAProxy to leave it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import uvicorn

from madewithml.serving import haproxy

if TYPE_CHECKING:
    from types import TracebackType

    from starlette.types import ASGIApp

# Longer than HAProxy keeps a connection that it does not use, so that none is closed as it is used again.
KEEP_ALIVE_S = 3600
POLL_S = 0.01
QUIET_S = 0.3  # without a call, until HAProxy is taken to send none any more
# HAProxy has noticed by then that Ray's HTTP server of this replica is closed, if its configuration has not told it.
LEAVING_S = 10.0


class Door:
    """Listens from the entry of an `async with` block until, after its exit, no calls come; all of them are answered.

    Args:
        app: Answers.
        replica: Name of the replica, as HAProxy's configuration has it.
        timeout_s: Seconds at the end after which what is left is given up.
    """

    def __init__(self, app: ASGIApp, replica: str, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._address = haproxy.kernel_address(haproxy.door_name(replica))
        self._server = _Server(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, int(timeout_s)),
            )
        )
        self._served: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Door:
        """Listen."""
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(self._address)
        except OSError:
            listener.close()
            raise
        self._served = asyncio.create_task(self._server.serve([listener]))
        while not self._server.started and not self._served.done():
            await asyncio.sleep(POLL_S)
        if self._served.done():
            await self._served
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until no calls come, listen no more, and answer what was asked."""
        await self._quiet()
        self._server.should_exit = True
        if self._served is not None:
            await self._served

    async def _quiet(self) -> None:
        now = asyncio.get_running_loop().time
        last, asked, since = now() + min(LEAVING_S, self._timeout_s / 2), self._asked(), now()
        while now() < min(last, since + QUIET_S):
            await asyncio.sleep(POLL_S)
            if (count := self._asked()) != asked:
                asked, since = count, now()

    def _asked(self) -> int:
        """Calls so far, those that are not answered yet among them."""
        state = self._server.server_state
        return state.total_requests + len(state.tasks)


class _Server(uvicorn.Server):
    """Leaves signals to Ray."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
