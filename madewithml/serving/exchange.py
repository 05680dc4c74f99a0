"""What routes do with a request, whatever protocol it speaks: read its body and headers, have it answered, reply."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from madewithml import errors
from madewithml.serving import access, haproxy, identity

if TYPE_CHECKING:
    from madewithml import config
    from madewithml.serving import model, schemas, service

POLICY_PARAMETERS = ("max_risk", "threshold")
PAGE_PARAMETERS = ("after", "limit")


async def answer(
    request: Request,
    kitchen: service.Service,
    rows: Sequence[schemas.Row],
    *,
    max_risk: float | None = None,
    threshold: float | None = None,
) -> tuple[model.LoadedModel, list[dict[str, Any]]]:
    """Have rows answered, by the model that answers at the moment.

    Args:
        request: They came in it.
        kitchen: The service.
        rows: The rows.
        max_risk: Certified level to decide at; None for the model's own threshold.
        threshold: Threshold of the caller's own; None for the model's.

    Returns:
        The model, and one answer for each row.

    Raises:
        RequestError: See `Service.answer` and `Service.policy`.
    """

    async def departure() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    access.charge(request.scope, len(rows))
    with kitchen.take() as taken:
        policy = None
        if max_risk is not None or threshold is not None:
            policy = kitchen.policy(taken.predictor.policy, max_risk=max_risk, threshold=threshold)
        results = await kitchen.answer(
            rows,
            taken=taken,
            policy=policy,
            timeout_s=_timeout_s(request, kitchen),
            departure=departure,
            offered=_offered(request),
        )
    if kitchen.shadow is not None:
        kitchen.shadow.offer(identity.request_id(request), rows, results)
    return taken, results


def media_type(request: Request) -> str:
    """The media type of the body, without parameters; JSON where none is given."""
    return request.headers.get("content-type", "application/json").split(";", 1)[0].strip().lower()


async def read_json(request: Request, settings: config.Settings) -> bytes:
    """The body, of a route that takes JSON alone; see `read_body`.

    Raises:
        UnsupportedMediaError: Its content type is not JSON.
    """
    found = media_type(request)
    if not found.endswith(("/json", "+json")):
        msg = f"content type {found[:100]!r} is not supported: send JSON with 'Content-Type: application/json'"
        raise errors.UnsupportedMediaError(msg)
    return await read_body(request, settings)


async def read_body(request: Request, settings: config.Settings) -> bytes:
    """The body, read and inflated no further than the limit, for no longer than the limit.

    Raises:
        UnsupportedMediaError: Its content encoding is neither gzip nor none.
        BodyTooLargeError: It is longer than it may be, as sent or once inflated.
        MalformedBodyError: It ends early, or is no gzip.
        TooSlowError: It took too long to come.
    """
    body = _Body(request, max_bytes=settings.max_body_bytes)
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated[:18]) > settings.max_body_bytes:
        raise body.too_large()
    # Nearly all bodies are there as a whole when their call begins: these need no clock.
    if body.take(await request.receive()):
        return body.whole()
    try:
        await asyncio.wait_for(_rest(request, body), settings.body_timeout_s)
    except (TimeoutError, asyncio.TimeoutError) as err:
        raise errors.TooSlowError(f"the body did not come within {settings.body_timeout_s:g} s") from err
    return body.whole()


async def _rest(request: Request, body: _Body) -> None:
    while not body.take(await request.receive()):
        pass


class _Body:
    """A body that comes in pieces."""

    def __init__(self, request: Request, *, max_bytes: int) -> None:
        self._inflation = _inflation(request, max_bytes)
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._size = 0

    def too_large(self) -> errors.BodyTooLargeError:
        """What is said of one that is longer than it may be."""
        return errors.BodyTooLargeError(f"the body is larger than {self._max_bytes} bytes: send fewer rows in one call")

    def take(self, message: Mapping[str, Any]) -> bool:
        """Take a message of ASGI's; gives whether it was the last one of the body."""
        if message["type"] == "http.disconnect":
            raise errors.MalformedBodyError("the connection closed before the body was complete")
        piece = message.get("body", b"")
        if self._inflation is not None and piece:
            try:
                piece = self._inflation.inflate(piece)
            except zlib.error as err:
                raise errors.MalformedBodyError(f"the body is no gzip, as its Content-Encoding says: {err}") from err
        self._size += len(piece)
        if self._size > self._max_bytes:
            raise self.too_large()
        self._pieces.append(piece)
        return not message.get("more_body", False)

    def whole(self) -> bytes:
        """All of it."""
        if self._inflation is not None and not self._inflation.complete:
            raise errors.MalformedBodyError("the gzip of the body ends early")
        return b"".join(self._pieces)


class _Inflation:
    """Inflates a body piece by piece, never much beyond the limit, whatever a piece would become."""

    def __init__(self, max_bytes: int) -> None:
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 16)  # 16: with gzip's head and tail
        self._limit = max_bytes + 1

    def inflate(self, piece: bytes) -> bytes:
        return self._stream.decompress(piece, self._limit)

    @property
    def complete(self) -> bool:
        return self._stream.eof


def _inflation(request: Request, max_bytes: int) -> _Inflation | None:
    encoding = request.headers.get("content-encoding")
    if encoding is None or encoding == "identity":
        return None
    if encoding.strip().lower() not in ("gzip", "x-gzip"):
        msg = f"content encoding {encoding[:100]!r} is not supported: send the body as it is, or with gzip"
        raise errors.UnsupportedMediaError(msg)
    return _Inflation(max_bytes)


def _timeout_s(request: Request, kitchen: service.Service) -> float | None:
    """The seconds that a caller grants, at most what the operator allows; None where it says nothing."""
    text = request.headers.get(haproxy.TIMEOUT_HEADER)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or int(text[:18]) == 0:
        msg = f"{haproxy.TIMEOUT_HEADER} is {text[:100]!r}: expected milliseconds, a whole number from 1"
        raise errors.InvalidRequestError(msg)
    return min(int(text[:18]) / 1000, kitchen.settings.max_request_timeout_s)


def _offered(request: Request) -> float | None:
    """Calls a second that came for this replica, as HAProxy counts them; None where it is no rush, or not in front."""
    if not request.app.state.behind_haproxy:  # whoever said it is a client
        return None
    text = request.headers.get(haproxy.OFFERED_HEADER, "")
    return float(text) if text.isascii() and text.isdecimal() else None


def policy_parameters(request: Request) -> dict[str, float]:
    """What `?max_risk=` and `?threshold=` say; empty where neither is given.

    Raises:
        InvalidRequestError: Another parameter, one twice, or no number from 0 to 1.
    """
    if not request.scope["query_string"]:
        return {}
    return {name: _share(name, text) for name, text in _query(request, POLICY_PARAMETERS).items()}


def page_parameters(request: Request, *, max_limit: int) -> tuple[int, int]:
    """What `?after=` and `?limit=` say: 0 and the most that there may be where they are not given.

    Raises:
        InvalidRequestError: Another parameter, one twice, or no such number.
    """
    given = _query(request, PAGE_PARAMETERS)
    after = _whole("after", given.get("after", "0"), low=0, high=2**63 - 1)
    return after, _whole("limit", given.get("limit", str(max_limit)), low=1, high=max_limit)


def _query(request: Request, known: Sequence[str]) -> dict[str, str]:
    """The query's parameters, each of them known and given once."""
    given: dict[str, str] = {}
    for name, text in request.query_params.multi_items():
        if name not in known or name in given:
            msg = f"query parameter {name[:100]!r} is unknown or repeated; known: {', '.join(known)}"
            raise errors.InvalidRequestError(msg)
        given[name] = text
    return given


def _whole(name: str, text: str, *, low: int, high: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and low <= int(text) <= high):
        raise errors.InvalidRequestError(f"{name} is {text[:100]!r}: expected a whole number from {low} to {high}")
    return int(text)


def _share(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:  # NaN fails too
        raise errors.InvalidRequestError(f"{name} is {text[:100]!r}: expected a number from 0 to 1")
    return value
