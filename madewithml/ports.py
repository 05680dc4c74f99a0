"""TCP ports of this machine: one that is free, and who holds one that is not."""

from __future__ import annotations

import errno
import socket
from typing import Any

from madewithml import errors

WORKER_TITLE = "ray::"  # what Ray calls the processes of its actors


def free() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check(host: str, port: int) -> None:
    """Check that the port is free.

    Raises:
        StartError: Something listens there; names an HAProxy, left over or in use, if that is what it is.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as err:
            if err.errno == errno.EADDRINUSE:
                raise errors.StartError(_who_holds(port)) from err
            raise errors.StartError(
                f"cannot listen on {host}:{port}: {err.strerror}. Check --host and --port."
            ) from err


def _who_holds(port: int) -> str:
    import psutil

    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "haproxy" and _listens_on(process, port):
            if _has_manager(process):
                return (
                    f"port {port} is in use by a Ray Serve that is running (its HAProxy is process {process.pid}). "
                    "Choose another with --port, or end that service."
                )
            return (
                f"port {port} is held by an HAProxy (process {process.pid}) that an earlier Ray Serve left behind. "
                f"End it with: kill {process.pid}"
            )
    return f"port {port} is in use by another program. Choose another with --port, or end that program."


def _has_manager(process: Any) -> bool:
    """Whether the actor of Ray's that looks after an HAProxy is there."""
    import psutil

    try:
        parent = process.parent()
        return parent is not None and " ".join(parent.cmdline()).startswith(WORKER_TITLE)
    except psutil.Error:
        return False


def _listens_on(process: Any, port: int) -> bool:
    import psutil

    try:
        return any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in process.net_connections("tcp"))
    except psutil.Error:
        return False
