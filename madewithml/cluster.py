"""Ray: join the cluster that `RAY_ADDRESS` names, or start one on this machine and end it afterwards."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from madewithml import errors

# Ray reads these when it is imported or started. Set here, and only where the person has not chosen.
QUIET = {
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray lowers the priority of its workers; here they are the service itself.
    "RAY_worker_niceness": "0",
}


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
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as err:
        # Ray has no class for it: a node that takes more than half a minute is a bare Exception, as is one that ends.
        raise errors.StartError(f"Ray did not start: {' '.join(str(err).split())}") from err


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
