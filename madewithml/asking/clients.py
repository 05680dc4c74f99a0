"""The two clients: they send, wait, and send again. What and how long is decided in `exchange`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import httpx

import madewithml
from madewithml.asking import arguments, exchange, prediction, problems

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

TIMEOUT_S = 30.0
RETRIES = 5
ROWS_PER_CALL = 256
CALLS_AT_ONCE = 4


class Shared:
    """What both clients are: settings, checked, and the calls that each method makes; it sends nothing."""

    def __init__(self, url: str, api_key: str | None, *, timeout_s: float, retries: int, rows_per_call: int) -> None:
        if not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < math.inf:
            raise problems.UsageError(f"timeout_s is {timeout_s!r}: expected a finite number of seconds above 0")
        self._url = arguments.base_url(url)
        self._headers = {"User-Agent": f"madewithml/{madewithml.__version__}", **arguments.authorization(api_key)}
        self._timeout_s = timeout_s
        self._retries = arguments.at_least(0, retries, name="retries")
        self._rows_per_call = arguments.at_least(1, rows_per_call, name="rows_per_call")

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
    ) -> exchange.Call:
        content_type = {} if body is None else {"Content-Type": "application/json"}
        return exchange.Call(
            method=method,
            url=f"{self._url}{path}",
            headers={**self._headers, **content_type},
            content=None if body is None else arguments.encoded(body),
            where=f"{method} {path}",
            deadline=time.monotonic() + self._timeout_s if deadline is None else deadline,
            timeout_s=self._timeout_s,
            retries=self._retries if retries is None else retries,
            rows=rows,
            first_row=first_row,
        )

    def _feedback(self, request_id: str, label: str, row: int) -> exchange.Call:
        return self._call("POST", "/feedback/", body={"request_id": request_id, "row": row, "label": label})

    def _predictions(
        self, rows: arguments.Row | Iterable[arguments.Row], max_risk: float | None
    ) -> list[exchange.Call]:
        """The calls that ask about rows, in order, with one deadline for all of them."""
        path = "/predict/" if max_risk is None else f"/predict/?{httpx.QueryParams({'max_risk': max_risk})}"
        if isinstance(rows, Mapping):
            return [self._call("POST", path, body=arguments.checked_row(rows, name="the row"), rows=1)]
        deadline = time.monotonic() + self._timeout_s
        checked = arguments.checked_list(rows)
        calls = []
        for first in range(0, len(checked), self._rows_per_call):
            chunk = checked[first : first + self._rows_per_call]
            call = self._call("POST", path, body=chunk, rows=len(chunk), first_row=first, deadline=deadline)
            if first:  # the service counts within a call; whoever reads its message counts in the list
                call.where += f" (from row {first} of the list on, which is row 0 here)"
            calls.append(call)
        return calls


class Client(Shared):
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
    def predict(self, rows: arguments.Row, *, max_risk: float | None = None) -> prediction.Prediction: ...

    @overload
    def predict(
        self, rows: Iterable[arguments.Row], *, max_risk: float | None = None
    ) -> list[prediction.Prediction]: ...

    def predict(
        self, rows: arguments.Row | Iterable[arguments.Row], *, max_risk: float | None = None
    ) -> prediction.Prediction | list[prediction.Prediction]:
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
        except problems.NOT_READY:
            return False
        return True

    def _ask(self, call: exchange.Call) -> exchange.Call:
        while (seconds := call.settle(self._outcome(call))) is not None:
            time.sleep(seconds)
        return call

    def _outcome(self, call: exchange.Call) -> exchange.Reply | Exception:
        request = call.request()
        try:
            with contextlib.closing(self._http.send(request, stream=True)) as response:
                # httpx bounds the wait for each piece; an answer that drips would take for ever.
                pieces = []
                for piece in response.iter_bytes():
                    if call.left_s <= 0:
                        return httpx.ReadTimeout("the answer comes too slowly", request=request)
                    pieces.append(piece)
                return exchange.Reply(response.status_code, response.headers, b"".join(pieces))
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


class AsyncClient(Shared):
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
        self._calls_at_once = arguments.at_least(1, calls_at_once, name="calls_at_once")
        self._http = httpx.AsyncClient(transport=transport)

    @overload
    async def predict(self, rows: arguments.Row, *, max_risk: float | None = None) -> prediction.Prediction: ...

    @overload
    async def predict(
        self, rows: Iterable[arguments.Row], *, max_risk: float | None = None
    ) -> list[prediction.Prediction]: ...

    async def predict(
        self, rows: arguments.Row | Iterable[arguments.Row], *, max_risk: float | None = None
    ) -> prediction.Prediction | list[prediction.Prediction]:
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
        except problems.NOT_READY:
            return False
        return True

    async def _ask(self, call: exchange.Call) -> exchange.Call:
        while (seconds := call.settle(await self._outcome(call))) is not None:
            await asyncio.sleep(seconds)
        return call

    async def _outcome(self, call: exchange.Call) -> exchange.Reply | Exception:
        request = call.request()
        try:
            response = await asyncio.wait_for(self._http.send(request), call.left_s)
        except (httpx.RequestError, asyncio.TimeoutError) as err:
            return err
        return exchange.Reply(response.status_code, response.headers, response.content)

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


def _answers(calls: Sequence[exchange.Call], *, one: bool) -> prediction.Prediction | list[prediction.Prediction]:
    predictions = [each for call in calls for each in prediction.read_predictions(call.document, rows=call.rows)]
    return predictions[0] if one else predictions


def _facts(call: exchange.Call) -> dict[str, Any]:
    if not isinstance(call.document, dict):
        raise problems.AnswerError(
            f"{call.url} answered {str(call.document)[: problems.QUOTED]!r}: expected a JSON object. {problems.WHOSE}"
        )
    return call.document
