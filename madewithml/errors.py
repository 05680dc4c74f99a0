"""Every exception this package raises on purpose, in one tree.

    MadeWithMLError
     ├─ UsageError          a flag, variable or setting has a bad value             exit 2
     ├─ InputError          data that cannot be used: file, column, row, array      exit 1
     ├─ NotFoundError       an unknown run, experiment, model, encoder or dataset   exit 1
     ├─ CheckpointError     a checkpoint that is damaged, foreign or from the future
     ├─ StartError          the service cannot start: port in use, left-over process
     ├─ RefusedError        a gate said no (no certificate, fidelity not reached)   exit 3
     └─ RequestError        something a caller sent over HTTP
         ├─ MalformedBodyError      400
         ├─ UnauthorizedError       401, WWW-Authenticate
         ├─ ForbiddenError          403
         ├─ UnknownResourceError    404
         ├─ TooSlowError            408
         ├─ BodyTooLargeError       413
         ├─ UnsupportedMediaError   415
         ├─ InvalidRequestError     422, with one entry in `errors` for each fault
         ├─ OverloadedError         429, Retry-After
         ├─ RateLimitedError        429, Retry-After
         ├─ HeadTooLargeError       431
         ├─ NotReadyError           503, Retry-After
         ├─ ClientGoneError         499, seen in logs only
         └─ DeadlineExceededError   504

`status` and `code` are stable: the status is the HTTP status a caller sees, the code names the problem in logs,
metrics and problem documents. `exit_status` is what the command line ends with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def in_one_line(err: BaseException) -> str:
    """What another library's exception says, folded to one line; its kind if it says nothing."""
    return " ".join(str(err).split()) or type(err).__name__


def first_line(err: BaseException) -> str:
    """The first line of what another library's exception says; its kind if it says nothing."""
    return next(iter(str(err).strip().splitlines()), type(err).__name__)


class MadeWithMLError(Exception):
    """Root of the tree.

    Args:
        message: What is wrong, where, and what to try; shown to the person as it stands.
    """

    status = 500
    code = "internal"
    title = "Internal error"
    exit_status = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UsageError(MadeWithMLError):
    """A flag, variable or setting has a value that cannot be used."""

    code = "usage"
    exit_status = 2


class InputError(MadeWithMLError):
    """Data that cannot be used: a file, a column, a row, an array."""

    status = 422
    code = "bad_input"
    title = "Unusable data"


class NotFoundError(MadeWithMLError):
    """A run, experiment, registered model, encoder or dataset that does not exist."""

    status = 404
    code = "not_found"
    title = "Not found"


class CheckpointError(MadeWithMLError):
    """A checkpoint folder that is damaged, incomplete, foreign, or written by a newer version."""

    status = 503
    code = "checkpoint"
    title = "Checkpoint unusable"


class StartError(MadeWithMLError):
    """The service cannot start on this machine as asked."""

    status = 503
    code = "start"
    title = "Service not started"


class RefusedError(MadeWithMLError):
    """A gate said no: the work was done, and its result is not good enough to act on."""

    status = 409
    code = "refused"
    title = "Refused"
    exit_status = 3


class RequestError(MadeWithMLError):
    """Something a caller sent over HTTP that cannot be answered with a prediction.

    Args:
        message: What is wrong, for the `detail` of the problem document.
        errors: One entry per fault: `location` (a path into the body) and `message`.
        retry_after_s: Seconds after which the caller may try again, if that helps.
    """

    status = 400
    code = "bad_request"
    title = "Bad request"

    def __init__(
        self, message: str, *, errors: Sequence[dict[str, Any]] = (), retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.errors = list(errors)
        self.retry_after_s = retry_after_s


class MalformedBodyError(RequestError):
    """The body is not JSON."""

    code = "malformed_body"
    title = "Body is not JSON"


class UnauthorizedError(RequestError):
    """A key is needed and none was sent, or one that is not known."""

    status = 401
    code = "unauthorized"
    title = "Key needed"


class ForbiddenError(RequestError):
    """The key does not open this route."""

    status = 403
    code = "forbidden"
    title = "Not allowed"


class TooSlowError(RequestError):
    """The body took too long to come."""

    status = 408
    code = "too_slow"
    title = "Request took too long to come"


class RateLimitedError(RequestError):
    """The key has sent more than it may."""

    status = 429
    code = "rate_limited"
    title = "Too many requests of this key"


class HeadTooLargeError(RequestError):
    """The head of the request has too many fields, or too long ones."""

    status = 431
    code = "head_too_large"
    title = "Request head too large"


class UnknownResourceError(RequestError):
    """No such route, dataset or item."""

    status = 404
    code = "unknown_resource"
    title = "Not found"


class BodyTooLargeError(RequestError):
    """The body is larger than the configured limit."""

    status = 413
    code = "body_too_large"
    title = "Body too large"


class UnsupportedMediaError(RequestError):
    """The body's content type is not one this route reads."""

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


class InvalidRequestError(RequestError):
    """The body is JSON, but not what this route expects."""

    status = 422
    code = "invalid_request"
    title = "Invalid request"


class OverloadedError(RequestError):
    """The queue is full; nothing was computed."""

    status = 429
    code = "overloaded"
    title = "Too many requests"


class NotReadyError(RequestError):
    """The service is starting or draining."""

    status = 503
    code = "not_ready"
    title = "Not ready"


class ClientGoneError(RequestError):
    """The client closed the connection; nobody is there to read the answer."""

    status = 499
    code = "client_gone"
    title = "Client gone"


class DeadlineExceededError(RequestError):
    """The request was not answered by its deadline."""

    status = 504
    code = "deadline_exceeded"
    title = "Deadline exceeded"
