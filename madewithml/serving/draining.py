"""The end of a service behind HAProxy: refuse what is new, wait for what was accepted.

From the signal on, every new request is answered 503 with Retry-After on a connection that then closes; when nothing
is on its way any more, the rest may end. Spoken over the admin sockets in the folder of HAProxy's configuration.
"""

from __future__ import annotations

import csv
import logging
import socket
import time
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

SOCKET = "admin.sock"
FRONTEND = "http_frontend"
TIMEOUT_S = 5.0
POLL_S = 0.05
# Kept refusing at least this long, so that clients that are busy learn to close their connections.
GRACE_S = 0.5


def drain(folder: Path, *, timeout_s: float) -> None:
    """Refuse new requests and wait until those accepted are answered.

    Args:
        folder: Of HAProxy's configuration and sockets.
        timeout_s: Seconds after which what is left is given up.
    """
    sockets = sorted(folder.rglob(SOCKET))
    for path in sockets:
        _say(path, "experimental-mode on; set var proc.draining bool(true)")
    started, left = time.monotonic(), 0
    while time.monotonic() - started < timeout_s:
        left = sum(on_their_way(_say(path, "show stat")) for path in sockets)
        if not left and time.monotonic() - started >= GRACE_S:
            _close(sockets)
            return
        time.sleep(POLL_S)
    logger.warning("%d requests were not answered within %g s and are given up", left, timeout_s)


def _close(sockets: Sequence[Path]) -> None:
    """Listen no more, and let the connections that are just being answered 503 have their answer."""
    for path in sockets:
        _say(path, f"disable frontend {FRONTEND}")
    last = time.monotonic() + GRACE_S
    while time.monotonic() < last and any(connections(_say(path, "show stat")) for path in sockets):
        time.sleep(POLL_S)


def connections(statistics: str) -> int:
    """Connections of clients, from what HAProxy says to `show stat`."""
    rows = csv.DictReader(statistics.removeprefix("# ").splitlines())
    return sum(int(row["scur"] or 0) for row in rows if (row["pxname"], row["svname"]) == (FRONTEND, "FRONTEND"))


def on_their_way(statistics: str) -> int:
    """Requests that replicas are answering, from what HAProxy says to `show stat`."""
    rows = csv.DictReader(statistics.removeprefix("# ").splitlines())
    return sum(int(row["scur"] or 0) for row in rows if row["svname"] == "BACKEND" and row["pxname"] != "stats")


def _say(path: Path, command: str) -> str:
    """HAProxy's answer to a command; empty where it has gone."""
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(f"{command}\n".encode())
            while piece := connection.recv(65536):
                answer += piece
    except OSError:
        return ""
    return answer.decode(errors="replace")
