"""The processes that listen on one port, and how many connections each of them has.

    client -> kernel, by hash -> a process --that has more than another--> the other, over a Unix socket

The kernel knows nothing of load: of 32 connections it may give 20 to one process and 12 to the other, of 8 all to one.
So a process that is given a connection looks how many each has, and passes it on, before a byte is read, to the one
with the fewest. A client that keeps its connection is answered by one process for as long, so where it ends up counts.

All of it is in one table in memory, which every process maps. Each cell has one writer, so there are no locks:

    row i:  connections of i  |  handed to i and received  |  handed by i to 0  |  ... to 1  |  ...

What was handed to a process and not received yet counts as its own: of many that come at once, all would go there else.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import secrets
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

OPEN, RECEIVED, HANDED = 0, 1, 2
# Connections, and more, of a process that takes none: it has not started, or it leaves.
AWAY = 2**40
MESSAGE = b"connection"
CREDENTIALS = struct.Struct("3i")  # process, user, group, as the kernel says who sent


@dataclass(frozen=True)
class Table:
    """The table of one service, as each of its processes is given it.

    Attributes:
        size: Processes.
        descriptor: Of the memory.
        name: What the names of their Unix sockets begin with.
    """

    size: int
    descriptor: int
    name: str

    @classmethod
    def create(cls, size: int) -> Table:
        """A table of processes that have not started; Linux only."""
        table = cls(size, os.memfd_create("connections"), f"\0madewithml-{secrets.token_hex(8)}")
        cells = np.zeros((size, HANDED + size), dtype=np.int64)
        cells[:, OPEN] = AWAY
        os.write(table.descriptor, cells.tobytes())
        return table

    @classmethod
    def _open(cls, size: int, descriptor: Any, name: str) -> Table:
        return cls(size, descriptor.detach(), name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it is the same memory there."""
        return self._open, (self.size, DupFd(self.descriptor), self.name)


class Neighbours:
    """This process's place in the table: the first whose Unix socket nobody has bound.

    Args:
        table: Of the service.

    Raises:
        OSError: As many processes as the table has places are there already.
    """

    def __init__(self, table: Table) -> None:
        shape = (table.size, HANDED + table.size)
        memory = mmap.mmap(table.descriptor, 8 * shape[0] * shape[1])
        self._cells = np.frombuffer(memory, dtype=np.int64).reshape(shape)
        self._name = table.name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._place = self._bind()
        # What was handed to the one that had this place before was lost with it.
        self._cells[self._place, RECEIVED] = self._cells[:, HANDED + self._place].sum()
        self._cells[self._place, OPEN] = 0

    def _bind(self) -> int:
        for place in range(len(self._cells)):
            with contextlib.suppress(OSError):
                self._socket.bind(f"{self._name}-{place}")
                return place
        self._socket.close()
        raise OSError(f"no place is left among {len(self._cells)} processes")

    def fileno(self) -> int:
        """Of the socket that connections of others come in by."""
        return self._socket.fileno()

    def loads(self) -> list[int]:
        """Connections of each process, those on their way to it among them."""
        loads: list[int] = (
            self._cells[:, OPEN] + self._cells[:, HANDED:].sum(axis=0) - self._cells[:, RECEIVED]
        ).tolist()
        return loads

    def hand_over(self, descriptor: int) -> bool:
        """Give a connection that is not this process's yet to the one with the fewest, if it has fewer than this one.

        Args:
            descriptor: The connection's; the other process has its own of it afterwards.

        Returns:
            Whether it is another's now.
        """
        loads = self.loads()
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        for other in sorted(range(len(loads)), key=loads.__getitem__):
            if loads[other] >= min(loads[self._place], AWAY):
                return False
            try:
                # Not `socket.send_fds`, which forgets the address: https://github.com/python/cpython/issues/107898
                self._socket.sendmsg([MESSAGE], passed, 0, f"{self._name}-{other}")
            except OSError:  # it is gone, or does not take what waits for it: the next
                continue
            self._cells[self._place, HANDED + other] += 1
            return True
        return False

    def received(self) -> Iterator[socket.socket]:
        """Connections that others gave to this process; they count from here on."""
        space = socket.CMSG_SPACE(array.array("i").itemsize) + socket.CMSG_SPACE(CREDENTIALS.size)
        while True:
            try:
                _, ancillary, _, _ = self._socket.recvmsg(len(MESSAGE), space, socket.MSG_CMSG_CLOEXEC)
            except OSError:  # no more
                return
            told = {kind: data for _, kind, data in ancillary}
            descriptors = array.array("i", told.get(socket.SCM_RIGHTS, b""))
            if CREDENTIALS.unpack(told[socket.SCM_CREDENTIALS])[1] != os.getuid():  # no process of this service
                for descriptor in descriptors:
                    os.close(descriptor)
                continue
            if descriptors:  # there are none where this process may not have more
                self.opened()  # first: in between it counts twice, rather than not at all
                yield socket.socket(fileno=descriptors[0])
            self._cells[self._place, RECEIVED] += 1

    def opened(self) -> None:
        """Count a connection that the kernel gave and that stays here."""
        self._cells[self._place, OPEN] += 1

    def closed(self) -> None:
        """Count one that stayed here no more."""
        self._cells[self._place, OPEN] -= 1

    def leave(self) -> None:
        """Be given no more, and give away what still comes."""
        self._cells[self._place, OPEN] += AWAY

    def close(self) -> None:
        """Be gone; what was given to this process and not received is closed."""
        self._socket.close()
