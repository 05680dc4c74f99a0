"""Whose turn it is: the rows that wait, in their order, and which of them make the next batch.

    add(call, rows) -> by rank and by length -> take() -> the rows of one batch

A batch is the row whose turn it is, with those whose turn is next, up to the tokens beyond which more would not make it
cheaper. On an engine that pads, it is taken with its neighbours in length instead, for as long as they make it cheaper
a token: each row more shares the fixed cost of a batch, and may add padding. How much each weighs on this engine was
measured by `optimize`. Turns go by rank: the time a row came, plus a little for each row of the same call before it, so
that a call of a thousand rows does not hold up one of a single row; `admission` has another rank where a flood may be
coming. Every batch holds the row of the lowest rank, so none starves.
"""

from __future__ import annotations

import bisect
import heapq
import threading
import time
from collections.abc import Sequence

from madewithml import engine_report
from madewithml.serving import calls

# `optimize` measures batch after batch. In a service the work between two of them has emptied the processor's caches of
# the weights, so that what a batch costs by itself is more: measured under load, about three times as much.
COLD_CACHES = 3.0


class Turns:
    """Rows that wait; filled by event loops, emptied by the engine's thread.

    Args:
        curve: What batching is worth on the engine.
        max_batch_size: Rows in a batch.

    Attributes:
        tokens: Of all rows that wait.
        busy: Whether rows wait, or the engine has not come back for more; False once `take` found nothing.
        busy_since: When that last became True, on the monotonic clock.
    """

    def __init__(self, curve: engine_report.CostCurve, *, max_batch_size: int) -> None:
        self._curve = curve
        self._max_batch_size = max_batch_size
        self._lock = threading.Lock()
        self._by_rank: list[tuple[float, int, calls.Waiting]] = []  # a heap; what left it otherwise stays behind
        self._by_length: list[tuple[tuple[int, int], calls.Waiting]] = []  # sorted
        self._number = 0
        self.tokens = 0
        self.busy = False
        self.busy_since = 0.0

    def __len__(self) -> int:
        """Rows that wait."""
        return len(self._by_length)

    @property
    def budget_tokens(self) -> int:
        """Tokens of a batch at most, unless it is one text that is longer."""
        return self._curve.budget_tokens

    @property
    def full(self) -> bool:
        """Whether as much waits as a batch may hold."""
        return self.tokens >= self._curve.budget_tokens or len(self) >= self._max_batch_size

    def add(self, call: calls.Call, rows: Sequence[calls.Row], *, rank: float) -> bool:
        """Have the rows of a call wait.

        Args:
            call: The call.
            rows: Its rows.
            rank: When it is its turn, as if it had come at that time.

        Returns:
            Whether the engine was idle, and is to be told.
        """
        with self._lock:
            for index, row in enumerate(rows):
                self._number += 1
                waiting = calls.Waiting(row, call, index, (len(row.ids), self._number))
                call.rows.append(waiting)
                heapq.heappush(self._by_rank, (rank + index * call.step_s, self._number, waiting))
                bisect.insort(self._by_length, (waiting.place, waiting))
            self.tokens += call.tokens
            if self.busy:
                return False
            self.busy_since = time.monotonic()  # first: nobody may see it busy for as long as it was idle
            self.busy = True
            return True

    def withdraw(self, call: calls.Call) -> None:
        """Have a call's rows wait no more."""
        with self._lock:
            for waiting in call.rows:
                if waiting.queued:
                    self._remove(waiting)

    def take(self) -> list[calls.Waiting]:
        """The next batch, whose rows wait no more; empty when nothing waits, and the engine then counts as idle."""
        with self._lock:
            while self._by_rank:
                _, _, first = heapq.heappop(self._by_rank)
                if first.queued:
                    batch = self._with_neighbours(first) if self._curve.pads else self._with_followers(first)
                    for waiting in batch:
                        self._remove(waiting)
                    return batch
            self.busy = False
            return []

    def _remove(self, waiting: calls.Waiting) -> None:
        waiting.queued = False
        self.tokens -= len(waiting.row.ids)
        del self._by_length[self._position(waiting)]

    def _position(self, waiting: calls.Waiting) -> int:
        """Where a waiting row is among the rows by length."""
        return bisect.bisect_left(self._by_length, waiting.place, key=lambda entry: entry[0])

    def _with_followers(self, first: calls.Waiting) -> list[calls.Waiting]:
        """The row whose turn it is, with those whose turn is next."""
        batch, tokens = [first], len(first.row.ids)
        while self._by_rank and len(batch) < self._max_batch_size:
            _, _, following = self._by_rank[0]
            if following.queued:
                tokens += len(following.row.ids)
                if tokens > self._curve.budget_tokens:
                    break
                batch.append(following)
            heapq.heappop(self._by_rank)
        return batch

    def _with_neighbours(self, first: calls.Waiting) -> list[calls.Waiting]:
        """The row whose turn it is, with the neighbours in length that make its batch cheap."""
        _, low, high = max(self._windows(self._position(first)))
        return [waiting for _, waiting in self._by_length[low:high]]

    def _windows(self, start: int) -> list[tuple[float, int, int]]:
        """Batches around the row at `start`, growing by the nearest in length.

        Returns:
            For each: the share of its cost that is spent on real tokens, and its range in the rows by length.
        """
        ordered, overhead = self._by_length, self._curve.overhead_tokens * COLD_CACHES
        low, high, own = start, start + 1, ordered[start][0][0]
        tokens, windows = own, [(own / (own + overhead), low, high)]
        while high - low < self._max_batch_size:
            shorter = own - ordered[low - 1][0][0] if low > 0 else None
            longer = ordered[high][0][0] - own if high < len(ordered) else None
            if shorter is None and longer is None:
                break
            goes_up = shorter is None or (longer is not None and longer <= shorter)
            low, high = (low, high + 1) if goes_up else (low - 1, high)
            tokens += ordered[high - 1 if goes_up else low][0][0]
            padded = ordered[high - 1][0][0] * (high - low)
            if padded > self._curve.budget_tokens:
                break
            windows.append((tokens / (padded + overhead), low, high))
        return windows
