"""Serving on Ray: the deployment's replicas behind HAProxy, on this machine or a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import logging
import math
import os
import queue
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madewithml import cluster, errors, host
from madewithml.serving import draining, following, haproxy, plan, ray_environment, spares

if TYPE_CHECKING:
    from types import FrameType

logger = logging.getLogger(__name__)

# In a redeploy half of the replicas start at a time, while the old ones still answer: all at once they would take the
# cores from those, and what piled up meanwhile would hold up the end of the old ones.
SURGE_PERCENT = 50
LOOK_EVERY_S = 0.25  # whether a replica that ends has answered everything
# Whether new replicas have come up: a look takes driver and controller 50 ms, of the cores that they start on.
STARTED_EVERY_S = 0.5
MORE_SPARES = 3  # of a hundred megabytes each
# Ray Serve's own: controller, HAProxy's manager, and the proxy that stands in while there is no replica.
SERVE_ACTORS = 3
APPLICATION = "madewithml"
SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none


def run(wanted: plan.Wanted) -> None:
    """Serve on Ray until SIGINT or SIGTERM, then finish what was accepted and leave no process behind.

    SIGHUP replaces the replicas, one after the other.

    Raises:
        UsageError: It is not clear what is wanted, or there are no keys for the network.
        NotFoundError: There is no such run or model.
        CheckpointError: The checkpoint is damaged.
        StartError: The port is taken, or Ray Serve could not start the replicas.
    """
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        signals.put(number)

    wanted.check()
    ray_environment.prepare(wanted.settings)
    with _finding(wanted) as finding, _on_ray():
        for number in (signal.SIGINT, signal.SIGTERM, SIGHUP):  # after Ray's start, which sets handlers of its own
            if number is not None:
                signal.signal(number, on_signal)
        found = finding.result()
        with (
            _spares(found.replicas) as kept,
            following.following(found.settings, found.model, found.target) as folder,
            _deployed(found, folder),
        ):
            kept.start()
            print(found.announcement, flush=True)  # noqa: T201 - the command's own output
            while signals.get() == SIGHUP:
                with kept.paused():
                    _redeploy(found, folder)
            logger.info("stopping: answering what was accepted")


@contextlib.contextmanager
def _finding(wanted: plan.Wanted) -> Iterator[futures.Future[plan.Found]]:
    """What is wanted is looked for in a thread: MLflow's import takes as long as Ray's start, which mostly waits."""

    def find() -> plan.Found:
        found = wanted.find()
        importlib.import_module("madewithml.serving.deployment")  # with Ray Serve: most of a second
        return found

    with futures.ThreadPoolExecutor(1) as pool:
        yield pool.submit(find)


@contextlib.contextmanager
def _on_ray() -> Iterator[None]:
    """Ray for as long as the block lasts; of HAProxy's files nothing is left afterwards."""
    ray = contextlib.ExitStack()
    try:
        ray.enter_context(cluster.session())
        yield
    finally:
        with _silence():
            ray.close()
        if folder := ray_environment.scratch():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _spares(replicas: int) -> Iterator[spares.Spares]:
    """Workers for what is about to start, and spare ones afterwards.

    As many as start at once in a redeploy, and some for what comes next: to replace a spare takes as long as a
    replica's start, and on the same cores. Two replicas are replaced twice in a row before any is missed.
    """
    wanted = min(2 * replicas, math.ceil(replicas * SURGE_PERCENT / 100) + MORE_SPARES)
    # A cluster that was joined looks after its own workers.
    kept = spares.Spares(0 if os.environ.get("RAY_ADDRESS") else wanted)
    kept.prepare(SERVE_ACTORS + replicas)
    try:
        yield kept
    finally:
        kept.stop()


@contextlib.contextmanager
def _deployed(found: plan.Found, folder: Path | None) -> Iterator[None]:
    """The replicas answer for as long as the block lasts, and then until what was accepted is answered."""
    from ray import serve

    try:
        start_deployment(found, folder)
        yield
        if scratch := ray_environment.scratch():
            draining.drain(scratch, timeout_s=found.settings.drain_timeout_s)
    finally:
        with _silence():
            serve.shutdown()


def _silence() -> contextlib.AbstractContextManager[Any]:
    """Ray reports the end of its own actors as errors."""
    return contextlib.redirect_stdout(io.StringIO())


def _redeploy(found: plan.Found, folder: Path | None) -> None:
    """Replace the replicas one after the other; if that fails the service goes on with those it has."""
    started = time.monotonic()
    try:
        start_deployment(found, folder)
    except errors.StartError as err:
        logger.error("the replicas were not replaced: %s", err.message)
        return
    print(f"replicas replaced within {time.monotonic() - started:.1f} s", flush=True)  # noqa: T201


def start_deployment(found: plan.Found, folder: Path | None = None) -> None:
    """Start the replicas on a running Ray and return when they answer.

    Args:
        found: What they serve.
        folder: Says what to run from now on; None where nothing is followed.

    Raises:
        StartError: They did not come up.
    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from madewithml.serving import deployment

    settings = found.settings
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # Where HAProxy listens for the service, the rest has no business beyond loopback; other machines of a cluster do.
    inside = "127.0.0.1" if haproxy.LISTEN_VARIABLE in os.environ else settings.host
    # Half of what a replica uses, so that in a redeploy there is room for new ones while the old ones still answer.
    share = host.available_cores() / found.replicas / 2
    replica: Any = deployment.ModelDeployment
    application = replica.options(
        num_replicas=found.replicas,
        ray_actor_options={"num_cpus": int(share) if share >= 1 else share},
        max_surge_percent=SURGE_PERCENT,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        graceful_shutdown_wait_loop_s=LOOK_EVERY_S,
        max_constructor_retry_count=1,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    ).bind(
        found.run_id,
        settings.threshold,
        plan=dataclasses.asdict(found.for_replicas(folder)),
    )
    with _way_in(host=inside, port=settings.port):
        serve.run_many(
            [serve.RunTarget(application, name=APPLICATION, route_prefix="/")], wait_for_applications_running=False
        )
        _wait_until_running()


def _wait_until_running() -> None:
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    while (state := serve.status().applications[APPLICATION]).status != ApplicationStatus.RUNNING:
        if state.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            told = [deployment.message for deployment in state.deployments.values()]
            raise errors.StartError(f"Ray Serve could not start the replicas: {_reason(told) or state.message}")
        time.sleep(STARTED_EVERY_S)


@contextlib.contextmanager
def _way_in(**http_options: Any) -> Iterator[None]:
    """Start Ray Serve; in the block its controller can be told what to run, while the proxies are still starting.

    Ray Serve's own start returns when its proxies are up. Beside them the replicas can start as well.

    Raises:
        StartError: The proxies did not come up.
    """
    import ray
    from ray import serve
    from ray.serve._private import constants

    with futures.ThreadPoolExecutor(1) as pool:
        started = pool.submit(serve.start, http_options=http_options)
        while not started.done():
            with contextlib.suppress(ValueError):  # no actor of that name yet
                ray.get_actor(constants.SERVE_CONTROLLER_NAME, namespace=constants.SERVE_NAMESPACE)
                break
            time.sleep(LOOK_EVERY_S / 10)
        if started.done():
            _wait_for_proxies(started)
        yield
        _wait_for_proxies(started)


def _wait_for_proxies(started: futures.Future[Any]) -> None:
    import ray

    try:
        started.result()
    except (TimeoutError, ray.exceptions.RayError) as err:
        raise errors.StartError(f"Ray Serve's proxies did not come up: {errors.in_one_line(err)}") from err


def _reason(told: Sequence[str]) -> str:
    """What a replica raised: the last line of the stack trace in what Ray Serve says of its deployment."""
    lines = [line.strip() for message in told for line in message.splitlines() if line.strip()]
    return lines[-1].removeprefix("madewithml.errors.") if lines else ""
