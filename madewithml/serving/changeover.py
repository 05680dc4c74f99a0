"""The change from one model to the next, in one replica, while it answers.

    pointer.wanted -> claim -> load beside the present model -> gate -> verdict for all -> swap -> release the old

It runs in a thread of its own: the event loop is never held up. Hashes are verified and golden rows computed before a
candidate is compared; the swap itself is one reference that the next request reads. Whatever goes wrong with a
candidate, the present model goes on answering, and `GET /model` says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from madewithml import errors, predict
from madewithml.serving import gate, model, pointer, sample, service

logger = logging.getLogger(__name__)

# Replicas look this often: a few small files on a local disk.
LOOK_INTERVAL_S = 1.0
# A verdict takes a load and a few seconds of replay. One that takes longer than this does not come any more.
VERDICT_PATIENCE_S = 120.0
# The engine's share of the time during a replay; the rest is left to callers.
DUTY = 0.2
# Enough to see a share of labels change by a fifth; more would keep a busy service from its callers for longer.
REPLAYED = 64

Load = Callable[[pointer.Target], predict.Predictor]


class Stopped(Exception):  # noqa: N818 - no fault: the service ends
    """The service ends while a candidate is tried."""


class Changeover:
    """Watches what the service shall run and changes to it.

    Args:
        kitchen: The service.
        where: What it shall run.
        serving: What it runs now.
        load: Makes a predictor of a target; verifies the files.
        interval_s: Seconds between two looks.
    """

    def __init__(
        self,
        kitchen: service.Service,
        where: pointer.Pointer,
        *,
        serving: pointer.Target,
        load: Load,
        interval_s: float = LOOK_INTERVAL_S,
    ) -> None:
        self._kitchen = kitchen
        self._recent = kitchen.recent = sample.RecentTexts()
        self._pointer = where
        self._serving = serving
        self._load = load
        self._interval_s = interval_s
        self._limits = gate.Limits.of(kitchen.settings)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="changeover", daemon=True)
        self._claimed = -1
        self._failed = -1  # an accepted model that could not be loaded here
        self._told = -1  # the refusal that was logged
        self._waiting_since: tuple[int, float] = (-1, 0.0)

    def start(self) -> None:
        """Look every few moments, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a candidate that is being tried is given up at the next opportunity."""
        self._stop.set()

    def _run(self) -> None:
        with contextlib.suppress(Stopped):
            while not self._stop.wait(self._interval_s):
                self._look_safely()

    def _look_safely(self) -> None:
        try:
            self.look()
        except Stopped:
            raise
        except Exception:  # the outer edge of this thread: a full disk, a folder that is away
            logger.exception("could not look after the model that is served; the present one goes on answering")

    def look(self) -> None:
        """Look once, and do what is to be done."""
        accepted = self._pointer.accepted()
        if accepted.seq != self._failed and not accepted.same_as(self._serving):
            self._take_over(accepted)
        wanted, refusal = self._pointer.wanted(), self._pointer.refusal()
        refused = refusal.target.seq if refusal else -1
        if wanted is not None and wanted.seq > max(accepted.seq, refused):
            if self._claimed == wanted.seq or self._pointer.claim(wanted):
                self._judge(wanted)
            else:
                self._await_verdict(wanted)
        elif refusal is not None and refused > accepted.seq:
            self._report_refusal(refusal)
        elif accepted.seq != self._failed:
            self._kitchen.candidate = None

    def _await_verdict(self, wanted: pointer.Target) -> None:
        """Another replica judges; if it never says, it probably did not survive the candidate."""
        self._show(wanted, "checking")
        if self._waiting_since[0] != wanted.seq:
            self._waiting_since = (wanted.seq, time.monotonic())
        if time.monotonic() - self._waiting_since[1] > VERDICT_PATIENCE_S:
            self._pointer.refuse(wanted, ["the replica that tried it never gave a verdict; promote it again"], {})

    def _take_over(self, target: pointer.Target) -> None:
        """Change to what another replica found good."""
        self._show(target, "loading")
        try:
            self._swap(target, self._prepared(target))
        except (errors.MadeWithMLError, OSError, RuntimeError, ValueError, MemoryError) as err:
            self._failed = target.seq
            self._show(target, "failed", reasons=[_in_words(err)])
            logger.error("run %s was accepted but cannot be loaded here: %s", target.run_id, _in_words(err))

    def _judge(self, target: pointer.Target) -> None:
        self._claimed = target.seq
        self._show(target, "checking")
        logger.info("trying run %s beside run %s", target.run_id, self._serving.run_id)
        report: dict[str, Any] = {}
        candidate = None
        try:
            candidate = self._prepared(target)
            # What has answered here before may answer again: the way back must not depend on a comparison with a model
            # that is being left because it does not behave.
            reasons = [] if self._pointer.was_accepted(target) else self._compared(candidate, report)
        except Stopped:
            raise
        except Exception as err:  # noqa: BLE001 - whatever a candidate does wrong is a reason not to take it
            reasons = [_in_words(err)]
        if candidate is None or reasons:
            self._pointer.refuse(target, reasons, report)
        elif self._pointer.accept(target):
            self._swap(target, candidate)

    def _prepared(self, target: pointer.Target) -> model.LoadedModel:
        """A model that is loaded, verified and warmed up, beside the one that answers."""
        prepared = self._kitchen.prepare(self._load(target), run_id=target.run_id, version=target.version)
        if self._stop.is_set():
            raise Stopped
        return prepared

    def _compared(self, candidate: model.LoadedModel, report: dict[str, Any]) -> list[str]:
        """Why the candidate may not take over; fills in what was measured."""
        present, other = self._kitchen.current.predictor, candidate.predictor
        broken = gate.contract_faults(present, other, self._limits)
        if broken:
            return broken
        golden = present.checkpoint.read_golden()
        recorded = self._recent.texts()[-REPLAYED:]
        texts = [*recorded, *(golden.texts if golden else ())] or [self._kitchen.example]
        seconds = gate.latencies(present, other, texts, pause=self._pause)
        measured = gate.compare(gate.NOTHING, gate.NOTHING, seconds)
        if not gate.faults(measured, self._limits):  # one that is too slow would take its time over this too
            own, its = (gate.replay(one, texts, pause=self._pause) for one in (present, other))
            measured = gate.compare(own, its, seconds)
        report.update(dataclasses.asdict(measured))
        return gate.faults(measured, self._limits)

    def _pause(self, computed_s: float) -> None:
        if self._stop.wait(min(0.5, computed_s * (1 / DUTY - 1))):
            raise Stopped

    def _swap(self, target: pointer.Target, prepared: model.LoadedModel) -> None:
        before = self._serving.run_id
        old = self._kitchen.swap(prepared)
        self._serving = target
        self._kitchen.candidate = None
        logger.info("run %s answers now, instead of run %s", target.run_id, before)
        self._kitchen.release(old)

    def _report_refusal(self, refusal: pointer.Refusal) -> None:
        target = refusal.target
        self._show(target, "refused", reasons=refusal.reasons, report=refusal.report)
        if self._told != target.seq:
            self._told = target.seq
            self._kitchen.refused += 1
            logger.info("run %s is refused: %s", target.run_id, "; ".join(refusal.reasons))  # the follower warns

    def _show(self, target: pointer.Target, status: str, **more: Any) -> None:
        """What `GET /model` says of the candidate."""
        shown: dict[str, Any] = {
            "run_id": target.run_id,
            "version": target.version,
            "status": status,
            "reasons": [],
            "report": {},
        }
        self._kitchen.candidate = {**shown, **more}


def _in_words(err: BaseException) -> str:
    return err.message if isinstance(err, errors.MadeWithMLError) else f"{type(err).__name__}: {err}"
