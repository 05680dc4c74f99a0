"""Ray: join the cluster that `RAY_ADDRESS` names, or start one on this machine and end it afterwards."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from madewithml import errors

# Ray reads these when it is imported or started. Set here, and only where the person has not chosen.
QUIET = {
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray lowers the priority of its workers; here they are the service itself.
    "RAY_worker_niceness": "0",
    # By itself it would start a worker for every core at once, most of which nobody needs.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
}

# Where the dashboard would be. Nothing listens there.
NO_DASHBOARD = b"127.0.0.1:1"


def set_environment(variables: Mapping[str, str]) -> None:
    """Set the variables that the person has not set."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def start(*, num_cpus: int | None = None) -> None:
    """Join or start Ray, quietly and without its dashboard.

    Raises:
        StartError: Ray does not come up, or there is none at `RAY_ADDRESS`.
    """
    set_environment(QUIET)
    import ray  # late: the variables above must be there first

    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, object] = (
        {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": num_cpus, "include_dashboard": False}
    )
    try:
        with _only_what_is_used():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as err:
        # Ray has no class for it: a node that takes more than half a minute is a bare Exception, as is one that ends.
        raise errors.StartError(f"Ray did not start: {errors.in_one_line(err)}") from err


@contextmanager
def _only_what_is_used() -> Iterator[None]:
    """A Ray that starts in the block starts without the processes that nobody here uses; Ray has no option for it.

    They are for the dashboard, the autoscaler, and workers' logs on the driver's terminal, and take two seconds of a
    start and some of the cores from then on.
    """
    from ray._private import node, ray_constants

    def no_process(_node: Any) -> None:
        """Start nothing."""

    def no_dashboard(starting: Any, **_options: Any) -> None:
        # An agent of the node's asks for its address, and logs an error every second until there is one.
        address = ray_constants.DASHBOARD_ADDRESS.encode()
        space = ray_constants.KV_NAMESPACE_DASHBOARD
        starting.get_gcs_client().internal_kv_put(address, NO_DASHBOARD, overwrite=True, namespace=space)

    replaced = {"start_monitor": no_process, "start_log_monitor": no_process, "start_api_server": no_dashboard}
    kept = {name: getattr(node.Node, name) for name in replaced}
    try:
        for name, start_none in replaced.items():
            setattr(node.Node, name, start_none)
        yield
    finally:
        for name, start_it in kept.items():
            setattr(node.Node, name, start_it)


@contextmanager
def session(*, num_cpus: int | None = None) -> Iterator[None]:
    """Ray for as long as the block lasts; a Ray that was there before is left running."""
    import ray

    was_running = ray.is_initialized()
    start(num_cpus=num_cpus)
    try:
        yield
    finally:
        if not was_running:
            ray.shutdown()
