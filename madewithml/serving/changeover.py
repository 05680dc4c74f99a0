"""The change from one model to the next, in one replica, while it answers.

    pointer.wanted -> claim -> trial, in another process -> verdict for all -> load beside the old -> swap -> release it

It runs in a thread of its own: the event loop is never held up. Only what passed its trial (`trial.py`), or has
answered here before, is loaded beside the present model; hashes are verified and golden rows computed once more, and
the swap itself is one reference that the next request reads. Whatever goes wrong with a candidate, the present model
goes on answering, and `GET /model` says why.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from madewithml import errors, predict
from madewithml.serving import model, pointer, sample, service, trial

logger = logging.getLogger(__name__)

# Replicas look this often: a few small files on a local disk.
LOOK_INTERVAL_S = 1.0
# A verdict of another replica that has not come by then does not come any more.
VERDICT_PATIENCE_S = trial.PATIENCE_S + 60.0
# Enough to see a share of labels change by a fifth.
REPLAYED = 64

Load = Callable[[str], predict.Predictor]
Attempt = Callable[[pointer.Target, pointer.Target, Sequence[str], threading.Event], trial.Verdict]


class Changeover:
    """Watches what the service shall run and changes to it.

    Args:
        kitchen: The service.
        where: What it shall run.
        serving: What it runs now.
        load: Makes a predictor of a checkpoint folder; verifies the files.
        attempt: Judges a candidate, the second target, beside what is served, the first, on texts; `trial.Stopped`
            once the event is set.
        interval_s: Seconds between two looks.
    """

    def __init__(
        self,
        kitchen: service.Service,
        where: pointer.Pointer,
        *,
        serving: pointer.Target,
        load: Load,
        attempt: Attempt,
        interval_s: float = LOOK_INTERVAL_S,
    ) -> None:
        self._kitchen = kitchen
        self._recent = kitchen.recent = sample.RecentTexts()
        self._pointer = where
        self._serving = serving
        self._load = load
        self._attempt = attempt
        self._interval_s = interval_s
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
        with contextlib.suppress(trial.Stopped):
            while not self._stop.wait(self._interval_s):
                self._look_safely()

    def _look_safely(self) -> None:
        try:
            self.look()
        except trial.Stopped:
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
            self._show(target, "failed", reasons=[trial.in_words(err)])
            logger.error("run %s was accepted but cannot be loaded here: %s", target.run_id, trial.in_words(err))

    def _judge(self, target: pointer.Target) -> None:
        self._claimed = target.seq
        self._show(target, "checking")
        logger.info("trying run %s beside run %s", target.run_id, self._serving.run_id)
        verdict, candidate = trial.Verdict([]), None
        try:
            verdict = self._verdict(target)
            candidate = None if verdict.reasons else self._prepared(target)
        except trial.Stopped:
            self._pointer.give_up(target)
            raise
        except Exception as err:  # noqa: BLE001 - what passed its trial may still find no room beside the present model
            verdict = trial.Verdict([trial.in_words(err)], verdict.report)
        if candidate is None:
            self._pointer.refuse(target, verdict.reasons, verdict.report)
        elif self._pointer.accept(target):
            self._swap(target, candidate)

    def _verdict(self, target: pointer.Target) -> trial.Verdict:
        # What has answered here before may answer again: the way back must not depend on a comparison with a model that
        # is being left because it does not behave.
        if self._pointer.was_accepted(target):
            return trial.Verdict([])
        texts = self._recent.texts()[-REPLAYED:] or [self._kitchen.example]
        return self._attempt(self._serving, target, texts, self._stop)

    def _prepared(self, target: pointer.Target) -> model.LoadedModel:
        """A model that is loaded, verified and warmed up, beside the one that answers."""
        prepared = self._kitchen.prepare(self._load(target.checkpoint), run_id=target.run_id, version=target.version)
        if self._stop.is_set():
            raise trial.Stopped
        return prepared

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
