"""A client for the service: typed answers, retries that let the service breathe, one deadline for the whole call.

    rows -> calls of at most `rows_per_call` rows -> send, wait, send again -> answers in the order of the rows

`Client` and `AsyncClient` only send and wait. What to send, what an answer says and how long to wait are decided by
plain functions and by `_Call`, which know no network. Nothing here needs the rest of the package, nor any library but
httpx, so that a caller's process stays small. Its exceptions are a tree of their own:

    ClientError
     ├─ UsageError            an argument cannot be used; nothing was sent
     ├─ RequestRefusedError   4xx: this request is wrong, and would be wrong again
     ├─ ServiceFailedError    5xx that no retry helps: the service's log has the reason
     ├─ UnavailableError      no connection, 429 or 503, and no retry or no time is left
     ├─ DeadlineError         not answered in time, or 504
     └─ AnswerError           what answered does not speak as this service does
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import http
import json
import math
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import httpx

import madewithml

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

Row = Mapping[str, str | None]

TIMEOUT_S = 30.0
RETRIES = 5
ROWS_PER_CALL = 256
CALLS_AT_ONCE = 4
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 8.0
# The service says that another moment is better.
RETRIED_STATUSES = (429, 503)
# The connection failed, perhaps after the service had computed the answer: a prediction has no side effect.
RETRIED_FAULTS = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
TOO_LATE = (httpx.TimeoutException, asyncio.TimeoutError)
TIMEOUT_HEADER = "X-Request-Timeout-Ms"
QUOTED = 200  # characters of a body that is not ours, in messages
EXAMPLE = "{'title': 'Intro to CNNs'}"
WHOSE = "Is the url that of a Made With ML service?"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What the service said was wrong: an RFC 9457 problem document.

    Attributes:
        status: The HTTP status.
        title: The kind of problem, in a few words.
        detail: What is wrong this time, and what to try.
        errors: One entry per fault: `location` (a path into the body of that call) and `message`.
        request_id: Names the request in the service's log; empty where the service gave none.
    """

    status: int
    title: str
    detail: str
    errors: tuple[Mapping[str, Any], ...] = ()
    request_id: str = ""

    def __str__(self) -> str:
        return f"{self.status} {self.title}: {self.detail}" if self.detail else f"{self.status} {self.title}"


class ClientError(Exception):
    """Root of the tree.

    Args:
        message: What is wrong and what to try.
        problem: What the service said; None where it said nothing.
        first_row: Which row of the list the call began with, as a long list goes in several calls.

    Attributes:
        status: The HTTP status; None where the service said nothing.
        title: Of the problem document, as are `detail`, `errors` and `request_id`; empty where there is none. It counts
            rows from `first_row`.
    """

    def __init__(self, message: str, *, problem: Problem | None = None, first_row: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.first_row = first_row
        self.status = problem.status if problem else None
        self.title = problem.title if problem else ""
        self.detail = problem.detail if problem else ""
        self.errors = problem.errors if problem else ()
        self.request_id = problem.request_id if problem else ""


class UsageError(ClientError, ValueError):
    """An argument cannot be used; nothing was sent."""


class RequestRefusedError(ClientError):
    """The service refuses this request (4xx other than 429), and would refuse it again."""


class ServiceFailedError(ClientError):
    """The service failed (5xx other than 503 and 504); its log has the reason."""


class UnavailableError(ClientError):
    """The service cannot be reached or takes no requests at the moment, and no retry or no time is left."""


class DeadlineError(ClientError):
    """The answer did not come in time."""


class AnswerError(ClientError):
    """What answered does not speak as this service does."""


NOT_READY = (UnavailableError, DeadlineError, ServiceFailedError)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer to one row.

    Attributes:
        prediction: The label if the answer is accepted, else the abstain label.
        label: The most probable class.
        confidence: Its calibrated probability, 0 to 1.
        decision: Whether the answer is let through. "I am sure it is other" and "I abstain" differ here alone.
        reason: Why it abstains; None for an accepted answer.
        threshold: The confidence that was asked for; None where no answer of this label is let through.
        probabilities: Calibrated probability by class; they add up to 1.
        truncated: Whether the text was cut to fit the model.
        source: Where the threshold comes from: `certificate`, `operator`, `default` or `caller`.
        candidates: The classes that remain possible, most probable first; None unless a certified model abstains.
        run_id: The run that the answer came from.
        request_id: Names the call that the row went in.
        row: Where the row stood in that call, from 0. A long list goes in several calls, so that `feedback` needs both.
    """

    prediction: str
    label: str
    confidence: float
    decision: Literal["accepted", "abstained"]
    reason: str | None
    threshold: float | None
    probabilities: Mapping[str, float]
    truncated: bool
    source: str
    candidates: tuple[str, ...] | None = None
    run_id: str
    request_id: str
    row: int


def read_predictions(document: Any, *, rows: int) -> list[Prediction]:
    """The answers in the body of one call; keys that are not known are passed over.

    Args:
        document: The body of the service's answer.
        rows: How many rows were sent.

    Raises:
        AnswerError: A key is missing, or there is not one answer per row.
    """
    try:
        results, whole = document["results"], {name: document[name] for name in ("run_id", "request_id")}
        predictions = [_read_prediction(result, row=row, **whole) for row, result in enumerate(results)]
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        told = f"it has no {err}" if isinstance(err, KeyError) else str(err)
        msg = f"the answer is not one of this service: {told}. {WHOSE}"
        raise AnswerError(msg) from err
    if len(predictions) != rows:
        raise AnswerError(f"{rows} rows were sent and {len(predictions)} answers came back")
    return predictions


def _read_prediction(result: Mapping[str, Any], *, row: int, run_id: str, request_id: str) -> Prediction:
    candidates = result.get("candidates")
    return Prediction(
        prediction=result["prediction"],
        label=result["label"],
        confidence=result["confidence"],
        decision=result["decision"],
        reason=result["reason"],
        threshold=result["threshold"],
        probabilities=dict(result["probabilities"]),
        truncated=result["truncated"],
        source=result["source"],
        candidates=None if candidates is None else tuple(candidates),
        run_id=run_id,
        request_id=request_id,
        row=row,
    )


def read_problem(status: int, headers: Mapping[str, str], content: bytes) -> Problem:
    """What the service, or something in front of it, says is wrong.

    Args:
        status: The HTTP status.
        headers: Of the answer; names in any case if the mapping allows it.
        content: The body: a problem document, or whatever a proxy says, which is then quoted.
    """
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": _quoted(content)}
    faults = document.get("errors")
    return Problem(
        status=status,
        title=str(document.get("title") or _phrase(status)),
        detail=str(document.get("detail") or ""),
        errors=tuple(fault for fault in faults if isinstance(fault, dict)) if isinstance(faults, list) else (),
        request_id=str(document.get("request_id") or headers.get("x-request-id", "")),
    )


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown status"


def read_retry_after(text: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for (RFC 9110, 10.2.3): a number of them, or an HTTP date.

    None if there is no header or it says neither: a header that cannot be read is as good as none.
    """
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.timezone.utc)
    return max(0.0, moment.timestamp() - time.time())


def wait_s(retries: int, *, asked_s: float | None) -> float:
    """Seconds to wait before a retry: exponential back-off with full jitter (Brooker, AWS Architecture Blog, 2015).

    What the service asks for comes on top: all whom it asks for the same would otherwise come back at once.

    Args:
        retries: How many there were before this one.
        asked_s: What the service asks for, in seconds.
    """
    ceiling = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(retries, 16))
    return (asked_s or 0.0) + random.uniform(0.0, ceiling)


@dataclass(frozen=True)
class _Reply:
    """An answer that was read to its end."""

    status: int
    headers: httpx.Headers
    content: bytes


@dataclass(kw_only=True)
class _Call:
    """One call: what to send now, and what to do about what came of it.

    Attributes:
        where: What the call is about, in messages.
        deadline: By `time.monotonic`, in seconds.
        timeout_s: What the caller gave for all of it, in messages.
        retries: How many are left.
        first_row: Where its rows begin in the list that was given.
        rows: How many rows it holds.
        sent: How often it was sent.
        document: The body of the answer, once there is one.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes | None
    where: str
    deadline: float
    timeout_s: float
    retries: int
    first_row: int = 0
    rows: int = 0
    sent: int = 0
    document: Any = None

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def request(self) -> httpx.Request:
        """What to send now.

        Raises:
            DeadlineError: It is too late to send anything.
        """
        left_s = self.left_s
        if left_s <= 0:
            raise self._late()
        self.sent += 1
        headers = {**self.headers, TIMEOUT_HEADER: str(max(1, math.floor(left_s * 1000)))}
        extensions = {"timeout": httpx.Timeout(left_s).as_dict()}
        return httpx.Request(self.method, self.url, headers=headers, content=self.content, extensions=extensions)

    def settle(self, outcome: _Reply | Exception) -> float | None:
        """Judge what came of it.

        Returns:
            Seconds to wait before it is sent again; None if `document` holds the answer.

        Raises:
            ClientError: It is not to be sent again; the class says why.
        """
        if isinstance(outcome, _Reply):
            return self._settle_reply(outcome)
        if isinstance(outcome, TOO_LATE):
            raise self._late() from outcome
        told = str(outcome) or type(outcome).__name__
        if isinstance(outcome, RETRIED_FAULTS):
            return self._again(f"no answer from {self.url}: {told}. Is the service running there?", cause=outcome)
        raise AnswerError(f"{self.where}: {told}", first_row=self.first_row) from outcome

    def _settle_reply(self, reply: _Reply) -> float | None:
        if reply.status < 400:
            self.document = self._read(reply)
            return None
        problem = read_problem(reply.status, reply.headers, reply.content)
        told = f"{self.where}: {problem}"
        if reply.status in RETRIED_STATUSES:
            return self._again(told, problem=problem, asked_s=read_retry_after(reply.headers.get("retry-after")))
        kind = (
            DeadlineError if reply.status == 504 else ServiceFailedError if reply.status > 499 else RequestRefusedError
        )
        raise kind(told, problem=problem, first_row=self.first_row)

    def _read(self, reply: _Reply) -> Any:
        if reply.status >= 300:
            msg = f"{self.url} answered {reply.status} and points at {reply.headers.get('location', 'nothing')!r}"
            raise AnswerError(f"{msg}: give the address behind it as url")
        try:
            return json.loads(reply.content) if reply.content else None
        except ValueError as err:
            raise AnswerError(f"{self.url} answered {_quoted(reply.content)!r}, which is not JSON. {WHOSE}") from err

    def _again(
        self,
        told: str,
        *,
        problem: Problem | None = None,
        asked_s: float | None = None,
        cause: Exception | None = None,
    ) -> float:
        """Seconds until it is sent again, or an error; a wait that would end past the deadline is not begun."""
        seconds, left_s = wait_s(self.sent - 1, asked_s=asked_s), max(0.0, self.left_s)
        if self.retries and seconds < left_s:
            self.retries -= 1
            return seconds
        late = f"the next in {seconds:.1f} s, but only {left_s:.1f} s of {self.timeout_s:g} s are left"
        msg = f"{told} (tries: {self.sent}; {late if self.retries else 'no retry is left'})"
        raise UnavailableError(msg, problem=problem, first_row=self.first_row) from cause

    def _late(self) -> DeadlineError:
        msg = f"{self.where}: not answered within {self.timeout_s:g} s: give a longer timeout_s, or fewer rows"
        return DeadlineError(msg, first_row=self.first_row)


class _Shared:
    """What both clients are: settings, checked, and the calls that each method makes; it sends nothing."""

    def __init__(self, url: str, api_key: str | None, *, timeout_s: float, retries: int, rows_per_call: int) -> None:
        if not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < math.inf:
            raise UsageError(f"timeout_s is {timeout_s!r}: expected a finite number of seconds above 0")
        self._url = _base_url(url)
        self._headers = {"User-Agent": f"madewithml/{madewithml.__version__}", **_authorization(api_key)}
        self._timeout_s = timeout_s
        self._retries = _at_least(0, retries, name="retries")
        self._rows_per_call = _at_least(1, rows_per_call, name="rows_per_call")

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        rows: int = 0,
        first_row: int = 0,
        deadline: float | None = None,
        retries: int | None = None,
    ) -> _Call:
        content_type = {} if body is None else {"Content-Type": "application/json"}
        return _Call(
            method=method,
            url=f"{self._url}{path}",
            headers={**self._headers, **content_type},
            content=None if body is None else _encoded(body),
            where=f"{method} {path}",
            deadline=time.monotonic() + self._timeout_s if deadline is None else deadline,
            timeout_s=self._timeout_s,
            retries=self._retries if retries is None else retries,
            rows=rows,
            first_row=first_row,
        )

    def _feedback(self, request_id: str, label: str, row: int) -> _Call:
        return self._call("POST", "/feedback/", body={"request_id": request_id, "row": row, "label": label})

    def _predictions(self, rows: Row | Iterable[Row], max_risk: float | None) -> list[_Call]:
        """The calls that ask about rows, in order, with one deadline for all of them."""
        path = "/predict/" if max_risk is None else f"/predict/?{httpx.QueryParams({'max_risk': max_risk})}"
        if isinstance(rows, Mapping):
            return [self._call("POST", path, body=_checked(rows, name="the row"), rows=1)]
        deadline = time.monotonic() + self._timeout_s
        checked = _checked_list(rows)
        calls = []
        for first in range(0, len(checked), self._rows_per_call):
            chunk = checked[first : first + self._rows_per_call]
            call = self._call("POST", path, body=chunk, rows=len(chunk), first_row=first, deadline=deadline)
            if first:  # the service counts within a call; whoever reads its message counts in the list
                call.where += f" (from row {first} of the list on, which is row 0 here)"
            calls.append(call)
        return calls


class Client(_Shared):
    """Asks a service, and waits for the answers. Threads may share one.

    Args:
        url: Of the service: `http://127.0.0.1:8000`, or with a path where a proxy has it under one.
        api_key: Sent as `Authorization: Bearer`; None sends none.
        timeout_s: Seconds for a whole method call, all its retries and all calls of a long list included.
        retries: How often a call is sent again when there is no connection, or after 429 and 503.
        rows_per_call: Rows of a long list that go in one call, at most.
        transport: Sends in place of httpx's own, for instance `httpx.HTTPTransport(uds=...)`.

    Raises:
        UsageError: An argument cannot be used.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        rows_per_call: int = ROWS_PER_CALL,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, timeout_s=timeout_s, retries=retries, rows_per_call=rows_per_call)
        self._http = httpx.Client(transport=transport)

    @overload
    def predict(self, rows: Row, *, max_risk: float | None = None) -> Prediction: ...

    @overload
    def predict(self, rows: Iterable[Row], *, max_risk: float | None = None) -> list[Prediction]: ...

    def predict(self, rows: Row | Iterable[Row], *, max_risk: float | None = None) -> Prediction | list[Prediction]:
        """Classify one row, or a list of rows.

        Args:
            rows: A mapping of text fields to texts, or n of them.
            max_risk: Decide at the certified threshold of this level, 0 to 1; None leaves it to the service.

        Returns:
            The answer to one row, or n answers in the order of the rows. A list is answered whole or not at all.

        Raises:
            UsageError: There is no row, or one cannot be used; nothing was sent.
            RequestRefusedError: The service refuses the rows or the level.
            UnavailableError: The service cannot be reached or is full, and no retry or no time is left.
            DeadlineError: The answers did not come in time.
            ServiceFailedError: The service failed.
            AnswerError: What answered is not this service.
        """
        calls = self._predictions(rows, max_risk)
        for call in calls:
            self._ask(call)
        return _answers(calls, one=isinstance(rows, Mapping))

    def feedback(self, request_id: str, label: str, row: int = 0) -> None:
        """Tell the true label of a row that was asked about.

        Sent again like any call, so that the service may hear the same twice where its answer was lost.

        Args:
            request_id: Of its prediction.
            label: The true one.
            row: Of its prediction: where the row stood in its call.

        Raises:
            RequestRefusedError: The service does not know the request, the row or the label.
            ClientError: As for `predict`.
        """
        self._ask(self._feedback(request_id, label, row))

    def policy(self) -> dict[str, Any]:
        """What the service decides by: threshold, temperature, source, certificates.

        Raises:
            ClientError: As for `predict`.
        """
        return _facts(self._ask(self._call("GET", "/policy")))

    def model(self) -> dict[str, Any]:
        """What answers: run id, labels, text fields, engine, limits, hashes.

        Raises:
            ClientError: As for `predict`.
        """
        return _facts(self._ask(self._call("GET", "/model")))

    def ready(self) -> bool:
        """Whether the service takes requests at the moment; asked once, without retries.

        Raises:
            RequestRefusedError: What answers knows no such route, or refuses the key.
            AnswerError: What answers is not this service.
        """
        try:
            self._ask(self._call("GET", "/health/ready", retries=0))
        except NOT_READY:
            return False
        return True

    def _ask(self, call: _Call) -> _Call:
        while (seconds := call.settle(self._outcome(call))) is not None:
            time.sleep(seconds)
        return call

    def _outcome(self, call: _Call) -> _Reply | Exception:
        request = call.request()
        try:
            with contextlib.closing(self._http.send(request, stream=True)) as response:
                # httpx bounds the wait for each piece; an answer that drips would take for ever.
                pieces = []
                for piece in response.iter_bytes():
                    if call.left_s <= 0:
                        return httpx.ReadTimeout("the answer comes too slowly", request=request)
                    pieces.append(piece)
                return _Reply(response.status_code, response.headers, b"".join(pieces))
        except httpx.RequestError as err:
            return err

    def close(self) -> None:
        """Close the connections; the client cannot be used any more."""
        self._http.close()

    def __enter__(self) -> Self:
        """The client, closed when the block ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Shared):
    """`Client` for asyncio: the same methods, to be awaited. Tasks of one event loop may share one.

    Args:
        url: As for `Client`, as are `api_key`, `timeout_s`, `retries` and `rows_per_call`.
        api_key: Sent as `Authorization: Bearer`; None sends none.
        timeout_s: Seconds for a whole method call.
        retries: How often a call is sent again.
        rows_per_call: Rows of a long list that go in one call, at most.
        calls_at_once: Calls of one long list that are on their way at a time, at most.
        transport: Sends in place of httpx's own, for instance `httpx.ASGITransport(app)`.

    Raises:
        UsageError: An argument cannot be used.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        rows_per_call: int = ROWS_PER_CALL,
        calls_at_once: int = CALLS_AT_ONCE,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, timeout_s=timeout_s, retries=retries, rows_per_call=rows_per_call)
        self._calls_at_once = _at_least(1, calls_at_once, name="calls_at_once")
        self._http = httpx.AsyncClient(transport=transport)

    @overload
    async def predict(self, rows: Row, *, max_risk: float | None = None) -> Prediction: ...

    @overload
    async def predict(self, rows: Iterable[Row], *, max_risk: float | None = None) -> list[Prediction]: ...

    async def predict(
        self, rows: Row | Iterable[Row], *, max_risk: float | None = None
    ) -> Prediction | list[Prediction]:
        """As `Client.predict`; several calls of a long list are on their way at a time."""
        calls = self._predictions(rows, max_risk)
        pending = iter(calls)

        async def work() -> None:
            for call in pending:
                await self._ask(call)

        workers = [asyncio.ensure_future(work()) for _ in calls[: self._calls_at_once]]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()  # after the first error nobody waits for the others
            await asyncio.gather(*workers, return_exceptions=True)
        return _answers(calls, one=isinstance(rows, Mapping))

    async def feedback(self, request_id: str, label: str, row: int = 0) -> None:
        """As `Client.feedback`."""
        await self._ask(self._feedback(request_id, label, row))

    async def policy(self) -> dict[str, Any]:
        """As `Client.policy`."""
        return _facts(await self._ask(self._call("GET", "/policy")))

    async def model(self) -> dict[str, Any]:
        """As `Client.model`."""
        return _facts(await self._ask(self._call("GET", "/model")))

    async def ready(self) -> bool:
        """As `Client.ready`."""
        try:
            await self._ask(self._call("GET", "/health/ready", retries=0))
        except NOT_READY:
            return False
        return True

    async def _ask(self, call: _Call) -> _Call:
        while (seconds := call.settle(await self._outcome(call))) is not None:
            await asyncio.sleep(seconds)
        return call

    async def _outcome(self, call: _Call) -> _Reply | Exception:
        request = call.request()
        try:
            response = await asyncio.wait_for(self._http.send(request), call.left_s)
        except (httpx.RequestError, asyncio.TimeoutError) as err:
            return err
        return _Reply(response.status_code, response.headers, response.content)

    async def close(self) -> None:
        """As `Client.close`."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """The client, closed when the block ends."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _answers(calls: Sequence[_Call], *, one: bool) -> Prediction | list[Prediction]:
    predictions = [each for call in calls for each in read_predictions(call.document, rows=call.rows)]
    return predictions[0] if one else predictions


def _facts(call: _Call) -> dict[str, Any]:
    if not isinstance(call.document, dict):
        raise AnswerError(f"{call.url} answered {str(call.document)[:QUOTED]!r}: expected a JSON object. {WHOSE}")
    return call.document


def _base_url(url: str) -> str:
    expected = "expected one like 'http://127.0.0.1:8000' or 'https://models.example.org/topics'"
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as err:
        raise UsageError(f"url is {url!r}: {expected}") from err
    if parsed.userinfo:  # not quoted: it may hold a password
        raise UsageError("url holds a user name or a password: give the service's key as api_key")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise UsageError(f"url is {url!r}: {expected}")
    return str(parsed).rstrip("/")


def _authorization(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        # not quoted: it is a secret
        raise UsageError("api_key is empty or holds spaces or other than ASCII characters: give the key alone, or None")
    return {"Authorization": f"Bearer {api_key}"}


def _at_least(least: int, value: int, *, name: str) -> int:
    if not isinstance(value, int) or value < least:
        raise UsageError(f"{name} is {value!r}: expected a whole number from {least}")
    return value


def _checked_list(rows: Iterable[Row]) -> list[dict[str, str | None]]:
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise UsageError(f"rows is {_shown(rows)}: expected a mapping {EXAMPLE}, or a list of them")
    checked = [_checked(row, name=f"row {index}") for index, row in enumerate(rows)]
    if not checked:
        raise UsageError("the list is empty: give at least one row")
    return checked


def _checked(row: Row, *, name: str) -> dict[str, str | None]:
    """A row as JSON has it: what `json` cannot write, or writes as no text, is told before anything is sent."""
    if not isinstance(row, Mapping):
        raise UsageError(f"{name} is {_shown(row)}: expected a mapping of text fields to texts, {EXAMPLE}")
    for field, text in row.items():
        if not isinstance(field, str):
            raise UsageError(f"{name} has a field {_shown(field)}: expected the name of a text field, {EXAMPLE}")
        if text is not None and not isinstance(text, str):
            raise UsageError(f"{name}: {field!r} is {_shown(text)}: expected a text, or None for an empty one")
    return dict(row)


def _shown(value: object) -> str:
    return f"{repr(value)[:80]} ({type(value).__name__})"


def _encoded(body: Any) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as err:
        raise UsageError(f"cannot be sent as JSON: {err}") from err


def _quoted(content: bytes) -> str:
    return content.decode(errors="replace").strip()[:QUOTED]
