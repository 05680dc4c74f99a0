"""Errors on the wire: RFC 9457 problem documents."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from madewithml import errors
from madewithml.serving import identity, replies

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

logger = logging.getLogger(__name__)

METHOD_NOT_ALLOWED = 405
MEDIA_TYPE = "application/problem+json"
INFERENCE_PROTOCOL = "/v2"
BY_STATUS = {
    404: ("unknown_resource", "Not found", "no such route; GET /docs lists them"),
    405: ("method_not_allowed", "Method not allowed", "this route does not take this method"),
}


def install(app: FastAPI) -> None:
    """Make every error of the app a problem document."""
    app.add_exception_handler(errors.MadeWithMLError, _on_own)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_unexpected)


async def _on_own(request: Request, err: Exception) -> Response:
    assert isinstance(err, errors.MadeWithMLError)  # registered for this class
    return of_error(request, err)


def of_error(request: Request, err: errors.MadeWithMLError) -> Response:
    """The problem document of an error of ours."""
    if err.status >= 500 and not isinstance(err, errors.RequestError):
        logger.error("%s: %s", err.code, err.message)
    extra: dict[str, Any] = {}
    headers: dict[str, str] = {}
    if isinstance(err, errors.RequestError):
        extra = {"errors": err.errors}
        if isinstance(err, errors.UnauthorizedError):
            headers["WWW-Authenticate"] = "Bearer"
        if err.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(err.retry_after_s)))
        if isinstance(err, errors.NotReadyError):
            headers["Connection"] = "close"  # the next call of this client shall find another replica
    return problem(request, err.status, err.code, err.title, err.message, headers=headers, extra=extra)


async def _on_http(request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)  # registered for this class
    code, title, detail = BY_STATUS.get(err.status_code, ("bad_request", "Bad request", str(err.detail)))
    headers = dict(err.headers or {})
    if err.status_code == METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return problem(request, err.status_code, code, title, detail, headers=headers)


def _methods(request: Request) -> set[str]:
    """What may be done at a path; the router names the methods of its first route alone."""
    return {
        method
        for route in request.app.routes
        if isinstance(route, Route) and route.path_regex.match(request.scope["path"])
        for method in route.methods or ()
    }


async def _on_unexpected(request: Request, err: Exception) -> Response:
    return of_unexpected(request, err)


def of_unexpected(request: Request, err: Exception) -> Response:
    """The problem document of a fault of the server; the log has the reason."""
    logger.error("unexpected error", exc_info=err)
    return problem(request, 500, "internal", "Internal error", "the server failed; the log has the reason")


def problem(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    headers: dict[str, str] | None = None,
    extra: dict[str, Any] | None = None,
) -> Response:
    """A problem document as a response; under `/v2` what that protocol has instead."""
    headers = {**replies.headers(request), **(headers or {})}
    if request.scope["path"].startswith(INFERENCE_PROTOCOL):
        return Response(orjson.dumps({"error": detail}), status, headers, media_type="application/json")
    document = {
        "type": f"urn:madewithml:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "request_id": identity.request_id(request),
        "errors": [],
        **(extra or {}),
    }
    return Response(orjson.dumps(document), status, headers, media_type=MEDIA_TYPE)
