"""What every request passes before its route: is its head of a sane size, and may it come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.middleware import cors

from madewithml import config, errors
from madewithml.serving import access, haproxy

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope

SENT_BY_BROWSERS = ("Authorization", "Content-Type", "X-API-Key", "X-Request-Id", haproxy.TIMEOUT_HEADER)
READ_BY_BROWSERS = ("Retry-After", "X-Request-Id")


class Entrance:
    """The checks that need no body.

    Args:
        settings: Limits and keys.
        sharers: Processes that share the calls.
    """

    def __init__(self, settings: config.Settings, *, sharers: int) -> None:
        self._max_headers = settings.max_headers
        self._max_header_bytes = settings.max_header_bytes
        self._access = access.Access(settings, sharers=sharers)

    @property
    def asks_for_keys(self) -> bool:
        """Whether a key is needed for most routes."""
        return self._access.required

    def admit(self, scope: Scope) -> None:
        """Let a request in.

        Raises:
            HeadTooLargeError: Its head has too many fields, or too long ones.
            UnauthorizedError: See `Access.admit`, also for the other two.
            ForbiddenError: Its key does not open the route.
            RateLimitedError: Its key has sent too much.
        """
        headers = scope["headers"]
        if len(headers) > self._max_headers:
            msg = f"the request has {len(headers)} header fields, at most {self._max_headers} are allowed"
            raise errors.HeadTooLargeError(msg)
        if sum(len(name) + len(value) for name, value in headers) > self._max_header_bytes:
            raise errors.HeadTooLargeError(f"the header fields are longer than {self._max_header_bytes} bytes together")
        self._access.admit(scope)


def for_browsers(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The app, for pages of these origins too."""
    return cors.CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=SENT_BY_BROWSERS,
        expose_headers=READ_BY_BROWSERS,
    )
