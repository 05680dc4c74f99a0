"""Answers on the wire: JSON, and the headers that every answer has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from madewithml.serving import identity

if TYPE_CHECKING:
    from starlette.requests import Request

# An answer is about what was asked just now, and is what its content type says.
SAFE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def headers(request: Request) -> dict[str, str]:
    """The headers of an answer; its request's id among them, unless the server in front adds that (Ray Serve does)."""
    if request.app.state.adds_request_id:
        return {"X-Request-Id": identity.request_id(request), **SAFE}
    return dict(SAFE)


def json(request: Request, document: dict[str, Any]) -> Response:
    """A JSON response that names its request."""
    return Response(orjson.dumps(document), headers=headers(request), media_type="application/json")
