"""What each process of a service without Ray listens on: a socket of its own on one port, beside its neighbours."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable
from typing import Any

from madewithml.serving import neighbours

try:
    from uvloop import Loop as _Loop
except ImportError:  # where there is no wheel of it
    from asyncio import SelectorEventLoop as _Loop  # type: ignore[assignment]

Factory = Callable[[], asyncio.Protocol]


def neighbours_in(loop: asyncio.AbstractEventLoop) -> neighbours.Neighbours | None:
    """The neighbours of the server in a loop; None where it has its port for itself."""
    return loop.neighbours if isinstance(loop, Loop) else None


class SocketForEach(socket.socket):
    """A bound socket that each process it is sent to opens anew.

    The kernel then spreads connections over the processes. Were the socket shared, whichever process wakes first would
    take all that wait: of 32 connections one process may get 30.
    """

    table: neighbours.Table | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it is opened there."""
        host, port = self.getsockname()[:2]
        return SocketForEach.open, (self.family, host, port, self.table)

    @classmethod
    def open(
        cls, family: socket.AddressFamily, host: str, port: int, table: neighbours.Table | None = None
    ) -> SocketForEach:
        """A socket on a port that others of its kind may share; it does not listen yet."""
        opened = cls(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind((host, port))
        opened.set_inheritable(True)
        opened.table = table
        return opened


class Loop(_Loop):
    """An event loop that knows the neighbours of the server in it; uvicorn makes it by its name.

    Attributes:
        neighbours: The processes that share its port; None where it has the port for itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.neighbours: neighbours.Neighbours | None = None
        self._arrivals: set[asyncio.Task[Any]] = set()

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Factory, *arguments: Any, sock: socket.socket | None = None, **options: Any
    ) -> Any:
        """As any event loop does; on a socket of a table, with the neighbours in it."""
        server = await super().create_server(protocol_factory, *arguments, sock=sock, **options)
        if isinstance(sock, SocketForEach) and sock.table is not None:
            self.neighbours = neighbours.Neighbours(sock.table)
            self.add_reader(self.neighbours.fileno(), self._take_over, self.neighbours, protocol_factory)
        return server

    def close(self) -> None:
        """As any event loop does."""
        if self.neighbours is not None and not self.is_closed():
            self.remove_reader(self.neighbours.fileno())
            self.neighbours.close()
        super().close()

    def _take_over(self, others: neighbours.Neighbours, factory: Factory) -> None:
        """Serve the connections that neighbours gave."""

        def settled() -> asyncio.Protocol:
            protocol = factory()
            protocol.settled = True  # type: ignore[attr-defined]
            return protocol

        for connection in others.received():
            task = self.create_task(self.connect_accepted_socket(settled, connection))
            self._arrivals.add(task)
            task.add_done_callback(functools.partial(self._arrived, others, connection))

    def _arrived(self, others: neighbours.Neighbours, connection: socket.socket, task: asyncio.Task[Any]) -> None:
        self._arrivals.discard(task)
        if task.cancelled() or task.exception() is not None:  # nothing that can be served
            connection.close()
            others.closed()
