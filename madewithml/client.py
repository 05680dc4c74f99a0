"""A client for the service: typed answers, retries that let the service breathe, one deadline for the whole call.

    rows -> calls of at most `rows_per_call` rows -> send, wait, send again -> answers in the order of the rows

`Client` and `AsyncClient` only send and wait. What to send, what an answer says and how long to wait are decided by
plain functions and by `exchange.Call`, which know no network. Nothing here needs the rest of the package, nor any
library but httpx, so that a caller's process stays small. Its exceptions are a tree of their own:

    ClientError
     ├─ UsageError            an argument cannot be used; nothing was sent
     ├─ RequestRefusedError   4xx: this request is wrong, and would be wrong again
     ├─ ServiceFailedError    5xx that no retry helps: the service's log has the reason
     ├─ UnavailableError      no connection, 429 or 503, and no retry or no time is left
     ├─ DeadlineError         not answered in time, or 504
     └─ AnswerError           what answered does not speak as this service does
"""

from madewithml.asking.arguments import Row
from madewithml.asking.clients import AsyncClient, Client
from madewithml.asking.prediction import Prediction
from madewithml.asking.problems import (
    AnswerError,
    ClientError,
    DeadlineError,
    Problem,
    RequestRefusedError,
    ServiceFailedError,
    UnavailableError,
    UsageError,
)

__all__ = [
    "AnswerError",
    "AsyncClient",
    "Client",
    "ClientError",
    "DeadlineError",
    "Prediction",
    "Problem",
    "RequestRefusedError",
    "Row",
    "ServiceFailedError",
    "UnavailableError",
    "UsageError",
]
