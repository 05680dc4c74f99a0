"""What goes wrong between client and service: problem documents, and the exceptions that carry them."""

from __future__ import annotations

import http
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

QUOTED = 200  # characters of a body that is not ours, in messages
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
        document = {"detail": quoted(content)}
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


def quoted(content: bytes) -> str:
    """The beginning of a body, for a message."""
    return content.decode(errors="replace").strip()[:QUOTED]
