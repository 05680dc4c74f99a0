"""What HAProxy answers by itself, as problem documents. For its launcher too: it needs the standard library alone."""

from __future__ import annotations

import json
from pathlib import Path

# What HAProxy itself says, by the status that it would say it with: code and title of a problem, and its detail.
UNAVAILABLE = 503
OVERLOADED = (429, "Too Many Requests", "overloaded", "more calls come than can be answered: try again later")
REFUSAL = "429.json"
PROBLEMS = {
    400: (400, "Bad Request", "malformed_request", "the request is not HTTP, or its head is too large"),
    408: (408, "Request Timeout", "too_slow", "the request took too long to come: send all of it at once"),
    **dict.fromkeys(
        (502, 503, 504),
        (UNAVAILABLE, "Service Unavailable", "not_ready", "no replica can answer at the moment: try again shortly"),
    ),
}


def write(folder: Path) -> None:
    """Write what HAProxy answers by itself: raw HTTP responses with problem documents."""
    for status in PROBLEMS:
        (folder / f"{status}.http").write_text(page(status), encoding="utf-8", newline="")
    (folder / REFUSAL).write_text(_document(*OVERLOADED), encoding="utf-8")


def page(status: int) -> str:
    """The raw HTTP response in place of HAProxy's own for a status."""
    said, reason, *_ = PROBLEMS[status]
    body = _document(*PROBLEMS[status])
    again = "Retry-After: 1\r\n" if said == UNAVAILABLE else ""
    return (
        f"HTTP/1.1 {said} {reason}\r\nContent-Type: application/problem+json\r\n{again}Cache-Control: no-cache\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )


def _document(status: int, title: str, code: str, detail: str) -> str:
    document = {"type": f"urn:madewithml:problem:{code}", "title": title, "status": status, "detail": detail}
    return json.dumps({**document, "request_id": "", "errors": []})
