"""One call on its way: what to send now, and what to do about what came of it. It knows no network."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from madewithml.asking import problems, retries

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
# The service says that another moment is better.
RETRIED_STATUSES = (429, 503)
# The connection failed, perhaps after the service had computed the answer: to ask twice does no harm.
RETRIED_FAULTS = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
TOO_LATE = (httpx.TimeoutException, asyncio.TimeoutError)


@dataclass(frozen=True)
class Reply:
    """An answer that was read to its end."""

    status: int
    headers: httpx.Headers
    content: bytes


@dataclass(kw_only=True)
class Call:
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

    def settle(self, outcome: Reply | Exception) -> float | None:
        """Judge what came of it.

        Returns:
            Seconds to wait before it is sent again; None if `document` holds the answer.

        Raises:
            ClientError: It is not to be sent again; the class says why.
        """
        if isinstance(outcome, Reply):
            return self._settle_reply(outcome)
        if isinstance(outcome, TOO_LATE):
            raise self._late() from outcome
        told = str(outcome) or type(outcome).__name__
        if isinstance(outcome, RETRIED_FAULTS):
            return self._again(f"no answer from {self.url}: {told}. Is the service running there?", cause=outcome)
        raise problems.AnswerError(f"{self.where}: {told}", first_row=self.first_row) from outcome

    def _settle_reply(self, reply: Reply) -> float | None:
        if reply.status < 400:
            self.document = self._read(reply)
            return None
        problem = problems.read_problem(reply.status, reply.headers, reply.content)
        told = f"{self.where}: {problem}"
        if reply.status in RETRIED_STATUSES:
            return self._again(
                told, problem=problem, asked_s=retries.read_retry_after(reply.headers.get("retry-after"))
            )
        kind = (
            problems.DeadlineError
            if reply.status == 504
            else problems.ServiceFailedError
            if reply.status > 499
            else problems.RequestRefusedError
        )
        raise kind(told, problem=problem, first_row=self.first_row)

    def _read(self, reply: Reply) -> Any:
        if reply.status >= 300:
            msg = f"{self.url} answered {reply.status} and points at {reply.headers.get('location', 'nothing')!r}"
            raise problems.AnswerError(f"{msg}: give the address behind it as url")
        try:
            return json.loads(reply.content) if reply.content else None
        except ValueError as err:
            raise problems.AnswerError(
                f"{self.url} answered {problems.quoted(reply.content)!r}, which is not JSON. {problems.WHOSE}"
            ) from err

    def _again(
        self,
        told: str,
        *,
        problem: problems.Problem | None = None,
        asked_s: float | None = None,
        cause: Exception | None = None,
    ) -> float:
        """Seconds until it is sent again, or an error; a wait that would end past the deadline is not begun."""
        seconds, left_s = retries.wait_s(self.sent - 1, asked_s=asked_s), max(0.0, self.left_s)
        if self.retries and seconds < left_s:
            self.retries -= 1
            return seconds
        late = f"the next in {seconds:.1f} s, but only {left_s:.1f} s of {self.timeout_s:g} s are left"
        msg = f"{told} (tries: {self.sent}; {late if self.retries else 'no retry is left'})"
        raise problems.UnavailableError(msg, problem=problem, first_row=self.first_row) from cause

    def _late(self) -> problems.DeadlineError:
        msg = f"{self.where}: not answered within {self.timeout_s:g} s: give a longer timeout_s, or fewer rows"
        return problems.DeadlineError(msg, first_row=self.first_row)
