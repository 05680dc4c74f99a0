"""A second model that sees a share of the traffic and answers nobody.

    an answer is on its way -> offer: a bounded queue -> a thread, when nobody waits -> tally -> GET /shadow

It cannot fail a request: `offer` puts a reference into a queue, or drops it when the queue is full. Nor does it hold
one up: a row is computed only while no request is unanswered, one at a time, and never more than a tenth of the time.
"""

from __future__ import annotations

import collections
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from madewithml import predict
from madewithml.serving import agreement

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, str | None]]
Answers = Sequence[Mapping[str, Any]]
TrueLabels = Callable[[Iterable[str]], Mapping[tuple[str, int], str]]
Item = tuple[str, Rows, Answers]

MAX_WAITING = 64
MAX_ROWS = 8  # of one request; the rest of a long list tells nothing that these do not
DUTY = 0.1
PATIENCE_S = 5.0
GLANCE_S = 0.005


class Shadow:
    """Compares a second model with the one that answers.

    Args:
        predictor: The second model.
        run_id: Where it came from.
        share: Share of the requests that it sees.
        is_idle: Whether nobody waits for an answer at the moment.
    """

    def __init__(self, predictor: predict.Predictor, *, run_id: str, share: float, is_idle: Callable[[], bool]) -> None:
        self._predictor = predictor
        self._run_id = run_id
        self._share = share
        self._is_idle = is_idle
        self._queue: queue.Queue[Item] = queue.Queue(MAX_WAITING)
        self._tally = agreement.Tally()
        self._seconds: collections.deque[float] = collections.deque(maxlen=1000)
        self._dropped = 0
        self._failed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        """Compute in a thread what is offered."""
        self._thread.start()

    def stop(self) -> None:
        """Compute no more."""
        self._stop.set()

    def offer(self, request_id: str, rows: Rows, answers: Answers) -> None:
        """Show it a request that was answered, if it is among the share; dropped when the queue is full."""
        if random.random() >= self._share:
            return
        try:
            self._queue.put_nowait((request_id, rows[:MAX_ROWS], answers[:MAX_ROWS]))
        except queue.Full:
            self._dropped += 1

    def report(self, labels: TrueLabels | None = None) -> dict[str, Any]:
        """What `GET /shadow` says, of this replica since it started.

        Args:
            labels: Gives the true labels of requests, as far as somebody told them; None where nobody can.
        """
        seconds = sorted(self._seconds.copy())
        pairs = self._tally.recent()
        return {
            "run_id": self._run_id,
            "share": self._share,
            **self._tally.report(),
            "truth": agreement.judge(pairs, labels(pair.request_id for pair in pairs) if labels else {}),
            "dropped": self._dropped,
            "failed": self._failed,
            "shadow_seconds_per_row": {"p50": _quantile(seconds, 0.5), "p99": _quantile(seconds, 0.99)},
        }

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=1.0)
            except queue.Empty:
                continue
            self.compare(item)

    def compare(self, item: Item) -> None:
        """Answer a request once more and count how the two answers agree."""
        request_id, rows, answers = item
        others = []
        try:
            for row in rows:
                if not self._await_idle():
                    self._dropped += 1
                    return
                others += self._timed(row)
            self._tally.add(agreement.pairs_of(request_id, answers, others))
        except Exception:  # whatever the second model does wrong stays here
            self._failed += 1
            if self._failed == 1:
                logger.warning(
                    "the shadow model, run %s, failed; further failures are counted", self._run_id, exc_info=True
                )

    def _await_idle(self) -> bool:
        """Wait until nobody waits for an answer; False if that does not come, or the service ends."""
        last = time.monotonic() + PATIENCE_S
        while not self._is_idle():
            if self._stop.wait(GLANCE_S) or time.monotonic() > last:
                return False
        return not self._stop.is_set()

    def _timed(self, row: Mapping[str, str | None]) -> list[dict[str, Any]]:
        started = time.perf_counter()
        answers = self._predictor.predict([row])
        seconds = time.perf_counter() - started
        self._seconds.append(seconds)
        self._stop.wait(min(1.0, seconds * (1 / DUTY - 1)))
        return answers


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
