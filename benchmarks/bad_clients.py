"""Clients that behave badly, from a process of their own until SIGTERM.

python benchmarks/bad_clients.py URL
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
import urllib.parse
from collections.abc import Awaitable, Callable

CLIENTS = 20  # of each kind
COMING_S = 10.0  # they come one by one: what is tried is how they behave, not a burst of work
BODY = json.dumps([{"title": "Intro to CNNs", "description": "Processing images with layers."}] * 20).encode()
SMALL_BUFFER = 1024
PAGES = 20  # asked for at once, so that what is not read fills every buffer on the way


class Badly:
    """Ways to misuse a server.

    Args:
        url: Of `POST /predict/`.
    """

    def __init__(self, url: str) -> None:
        address = urllib.parse.urlsplit(url)
        self._host, self._port = str(address.hostname), int(address.port or 80)
        head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
        self._page = f"GET /openapi.json HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()

    async def hang_up(self) -> None:
        """Ask and leave before the answer."""
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(self._host, self._port)
                writer.write(self._request)
                await writer.drain()
                writer.close()
            await asyncio.sleep(CLIENTS / 2)  # all of them together: two calls a second

    async def dawdle(self) -> None:
        """Send a byte a second."""
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(self._host, self._port)
                for byte in self._request:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(1)

    async def never_read(self) -> None:
        """Ask and never take the answer."""
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            connection.settimeout(0)
            await asyncio.get_running_loop().sock_connect(connection, (self._host, self._port))
            await asyncio.get_running_loop().sock_sendall(connection, self._request + PAGES * self._page)
            await asyncio.Event().wait()


async def _main(url: str) -> None:
    badly = Badly(url)
    kinds = (badly.hang_up, badly.dawdle, badly.never_read)

    async def come(kind: Callable[[], Awaitable[None]], number: int) -> None:
        await asyncio.sleep(number * COMING_S / CLIENTS)
        await kind()

    tasks = [asyncio.ensure_future(come(kind, number)) for kind in kinds for number in range(CLIENTS)]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
