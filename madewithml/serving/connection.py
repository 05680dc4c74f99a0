"""A connection of a client where no HAProxy is in front: which process has it, and bounds on the head of a request.

uvicorn takes heads of any length, at any pace. Here a head has as many bytes and seconds as HAProxy grants it, and what
is no HTTP is answered with a problem document. Bodies are bounded where they are read (`exchange.read_body`).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from madewithml.serving import error_pages, haproxy, listener

BAD_REQUEST, TOO_SLOW = 400, 408
HEAD_TIMEOUT_S = float(haproxy.SENDING_TIMEOUT_S)


class Connection(HttpToolsProtocol):
    """An HTTP/1.1 connection; made by uvicorn for each client."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = False
        self._head_bytes = 0
        self._patience: asyncio.TimerHandle | None = None
        self._neighbours = listener.neighbours_in(self.loop)
        self._elsewhere = False
        self.settled = False  # whether it came from a neighbour, and may not go on to the next

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop: a client has come. It stays, or goes on to a neighbour."""
        if self._neighbours is not None and not self.settled:
            if self._neighbours.hand_over(transport.get_extra_info("socket").fileno()):
                self._elsewhere = True
                transport.abort()
                return
            self._neighbours.opened()
        super().connection_made(transport)
        self._patience = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up, TOO_SLOW)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop: some bytes have come."""
        goes_on = self._in_head
        super().data_received(data)
        if not self._in_head:  # most heads come whole, and need neither count nor clock
            return
        # Where a head begins within these bytes, those before it are not its own.
        self._head_bytes = self._head_bytes + len(data) if goes_on else 0
        if self._head_bytes > haproxy.HEAD_BYTES:
            self._give_up(BAD_REQUEST)
        elif self._patience is None:
            self._patience = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up, TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop: the client has gone, or is a neighbour's."""
        if self._elsewhere:
            return
        if self._neighbours is not None:
            self._neighbours.closed()
        self._lose_patience()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Called by the parser: a head begins."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Called by the parser: a head has come whole."""
        self._in_head = False
        self._lose_patience()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the library passes it
        """Called where what came is no HTTP."""
        self._give_up(BAD_REQUEST)

    def _lose_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self, status: int) -> None:
        """Say why and close, unless an answer to an earlier request is still on its way."""
        self._lose_patience()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(error_pages.page(status).encode())
        self.transport.close()
