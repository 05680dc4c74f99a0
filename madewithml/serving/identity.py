"""The identity of a request: the caller's `X-Request-Id` if it is a sane one, else a new one."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request

SANE = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def request_id(request: Request) -> str:
    """The request's id; the same for every call on one request."""
    known: str | None = request.scope.get("madewithml.request_id")
    if known is None:
        given = request.headers.get("x-request-id", "")
        # An id must be new, not secret: a system call for each would cost more than the rest of this function.
        known = given if SANE.fullmatch(given) else f"{random.getrandbits(128):032x}"
        request.scope["madewithml.request_id"] = known
    return known
