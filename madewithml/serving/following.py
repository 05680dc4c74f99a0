"""Following an alias: one look at MLflow for all replicas.

    models:/NAME@ALIAS --(every few seconds, in the process that starts the service)--> pointer --> every replica

MLflow takes three seconds and 150 MB to import, so that only the process that starts the service asks it; replicas read
what it found from a folder (`pointer.py`). When MLflow cannot be reached, serving goes on: a warning, and the next look
after twice the time, up to a minute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from madewithml import config, errors
from madewithml.serving import last_good, pointer

logger = logging.getLogger(__name__)

LONGEST_WAIT_S = 60.0
# MLflow's own patience with a server that is away is minutes.
IMPATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}

Resolve = Callable[[], pointer.Target]


def is_alias(uri: str | None) -> bool:
    """Whether an address can point at another model tomorrow: `models:/NAME@ALIAS`."""
    return uri is not None and "@" in uri


def resolver(settings: config.Settings, uri: str) -> Resolve:
    """A function that looks up what an address points at; it fetches the checkpoint only when that has changed.

    Args:
        settings: Say where MLflow is.
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
    """
    from madewithml import runs  # late: MLflow

    for name, value in IMPATIENCE.items():
        os.environ.setdefault(name, value)
    store: runs.Store | None = None
    last: pointer.Target | None = None

    def resolve() -> pointer.Target:
        nonlocal store, last
        store = store or runs.connect(settings)
        found = store.model_version(uri)
        if last is None or (last.run_id, last.version, last.promoted) != found:
            folder = store.best_checkpoint(found.run_id).resolve()
            last = pointer.Target(found.run_id, str(folder), found.version, found.promoted)
        return last

    return resolve


def first_target(settings: config.Settings, uri: str) -> pointer.Target:
    """What to start with.

    Raises:
        NotFoundError: MLflow is away and nothing may or can be taken from the cache, or there is no such model.
    """
    try:
        return resolver(settings, uri)()
    except errors.NotFoundError as err:
        cached = last_good.recall(settings.home, uri)
        if cached is None:
            raise
        if not settings.allow_cached:
            msg = f"{err.message} Run {cached.run_id} was served last: --allow-cached serves it meanwhile."
            raise errors.NotFoundError(msg) from err
        logger.warning("%s Serving run %s, which was served last.", err.message, cached.run_id)
        return cached


class Follower:
    """Looks where an alias points and announces it to the replicas.

    Args:
        resolve: Looks it up; whatever it raises is a warning.
        where: What the replicas read.
        interval_s: Seconds between two looks.
        on_accepted: Called with each model that the replicas have accepted.
    """

    def __init__(
        self,
        resolve: Resolve,
        where: pointer.Pointer,
        *,
        interval_s: float,
        on_accepted: Callable[[pointer.Target], None] = lambda _: None,
    ) -> None:
        self._resolve = resolve
        self._pointer = where
        self._interval_s = interval_s
        self._on_accepted = on_accepted
        self._announced = self._accepted = where.accepted()
        self._refused = -1
        self._failures = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Look every few seconds, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self.wait_s):
            self.look()

    @property
    def wait_s(self) -> float:
        """Seconds until the next look: more after each that failed."""
        longest = max(LONGEST_WAIT_S, self._interval_s)
        return min(longest, self._interval_s * 2.0 ** min(self._failures, 16))

    def look(self) -> None:
        """Look once; announce what is new."""
        try:
            self._announce(self._resolve())
            self._tell_verdict()
        except Exception as err:  # noqa: BLE001 - MLflow and the disk fail in many ways; serving goes on in all of them
            told = err.message if isinstance(err, errors.MadeWithMLError) else f"{type(err).__name__}: {err}"
            self._failures += 1
            logger.warning(
                "cannot look where the alias points; run %s goes on answering, next look in %g s: %s",
                self._accepted.run_id,
                self.wait_s,
                told.splitlines()[0] if told else "",
            )
            return
        if self._failures:
            logger.warning("the alias can be looked up again")
        self._failures = 0

    def _announce(self, found: pointer.Target) -> None:
        if found.same_as(self._announced):
            return
        target = dataclasses.replace(found, seq=self._announced.seq + 1)
        if target.same_as(self._pointer.accepted()):
            self._pointer.accept(target)  # moved back to what is answering: nothing to try
        self._pointer.want(target)
        self._announced = target
        logger.warning("the alias points at run %s (version %s) now", target.run_id, target.version)

    def _tell_verdict(self) -> None:
        accepted, refusal = self._pointer.accepted(), self._pointer.refusal()
        if accepted != self._accepted:
            if not accepted.same_as(self._accepted):
                logger.warning("run %s was found good and answers now", accepted.run_id)
            self._accepted = accepted
            self._on_accepted(accepted)
        if refusal is not None and refusal.target.seq > self._refused:
            self._refused = refusal.target.seq
            logger.warning(
                "run %s is refused, run %s goes on answering: %s",
                refusal.target.run_id,
                accepted.run_id,
                "; ".join(refusal.reasons),
            )


@contextlib.contextmanager
def following(settings: config.Settings, uri: str | None, target: pointer.Target) -> Iterator[Path | None]:
    """Follow an alias for as long as the block lasts.

    Args:
        settings: Of the service.
        uri: What is served; None, or anything but an alias, is not followed.
        target: What it pointed at when the service was planned.

    Yields:
        The folder that tells the replicas what to run; None if nothing is followed.
    """
    if uri is None or not is_alias(uri):
        yield None
        return
    try:
        where = pointer.Pointer.create(settings.home, target)
    except OSError as err:
        logger.warning("cannot write under %s: %s. %s is not followed.", settings.home, err.strerror, uri)
        yield None
        return
    last_good.record(settings.home, uri, target)
    follower = Follower(
        resolver(settings, uri),
        where,
        interval_s=settings.follow_interval_s,
        on_accepted=lambda accepted: last_good.record(settings.home, uri, accepted),
    )
    follower.start()
    try:
        yield where.folder
    finally:
        follower.stop()
        where.remove()
