"""The queue between the event loop and the engine.

    submit(rows) -> waiting rows, by rank and by length -> the engine's thread, a batch at a time -> each call's answers

It is work-conserving: an idle engine starts at once on whatever waits, and while it computes the next batch gathers.
The engine's thread takes its batches itself, so it never waits for a busy event loop.

A batch is the row whose turn it is, with those whose turn is next, up to the tokens beyond which more would not make it
cheaper. On an engine that pads, it is taken with its neighbours in length instead, for as long as they make it cheaper
a token: each row more shares the fixed cost of a batch, and may add padding. How much each weighs on this engine was
measured by `optimize`. Turns go by rank: the time a row came, plus a little for each row of the same call
before it, so that a call of a thousand rows does not hold up one of a single row. Every batch holds the row of the
lowest rank, so none starves.

A call past its deadline is answered 504 at that moment, and its rows are never computed; the same goes for one whose
client has gone. A call that would wait too long is refused at once (`admission`).
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import heapq
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from madewithml import engine_report, errors
from madewithml.serving import admission, calls

Compute = Callable[[Sequence[Any]], list[calls.Answer]]

# A client is only watched once its call has waited this long: watching costs more than most calls wait.
WATCH_AFTER_S = 1.0
# Rows of one call take turns as if they came this many times slower than the engine computes.
PACE = 2.0
# `optimize` measures batch after batch. In a service the work between two of them has emptied the processor's caches of
# the weights, so that what a batch costs by itself is more: measured under load, about three times as much.
COLD_CACHES = 3.0
# A batch counts as stuck only once it takes this many times longer than the longest that is to be expected.
STUCK_FACTOR = 3.0
WORK, STOP = "work", "stop"


class Batcher:
    """Runs rows that wait together through the model together.

    Args:
        compute: Called in the engine's thread with the rows of one batch; gives one answer per row.
        max_batch_size: Rows in a batch.
        curve: What batching is worth on the engine.
        max_queue_rows: Rows that may wait.
        max_queue_s: Seconds that a call may have to wait for its turn.
    """

    def __init__(
        self,
        compute: Compute,
        *,
        max_batch_size: int,
        curve: engine_report.CostCurve,
        max_queue_rows: int,
        max_queue_s: float,
    ) -> None:
        self._compute = compute
        self._max_batch_size = max_batch_size
        self._curve = curve
        self._admission = admission.Admission(max_queue_rows=max_queue_rows, max_queue_s=max_queue_s)
        self._lock = threading.Lock()
        self._by_rank: list[tuple[float, int, calls.Waiting]] = []  # a heap; what left it otherwise stays behind
        self._by_length: list[tuple[tuple[int, int], calls.Waiting]] = []  # sorted
        self._number = 0
        self._idle = True
        self._wake: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._engine: threading.Thread | None = None
        self._calls: set[calls.Call] = set()
        self._lists: set[calls.Call] = set()  # those of several rows, whose turns come one by one
        self._waiting_tokens = 0
        self._token_seconds = 0.0001  # a guess until the first batch was timed
        self._moved = 0.0  # when the engine's thread last had or finished something to do
        self._longest_s = 0.0

    @property
    def budget_tokens(self) -> int:
        """Tokens of a batch at most, unless it is one text that is longer."""
        return self._curve.budget_tokens

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return len(self._by_length)

    @property
    def wait_s(self) -> float:
        """Seconds of work in the queue that a row which comes now would wait for; most of a long list is not due yet.

        By tokens: rows of one queue differ a hundredfold in what they cost.
        """
        now = time.monotonic()
        not_yet = sum(
            max(0.0, len(call.rows) - 1 - (now - call.since) / call.step_s) * call.tokens / len(call.rows)
            for call in self._lists
        )
        return max(0.0, self._waiting_tokens - not_yet) * self._token_seconds

    def expect(self, seconds: float) -> None:
        """Say how long a batch may take: one that takes no more is not stuck, however slow model and machine are."""
        self._longest_s = max(self._longest_s, seconds)

    def stuck(self, limit_s: float) -> bool:
        """Whether the engine's thread has not moved for longer than the limit, and far longer than is to be expected.

        With a batch in the engine, or with rows that it does not come to take.
        """
        return not self._idle and time.monotonic() - self._moved > max(limit_s, STUCK_FACTOR * self._longest_s)

    def admit(self, lengths: Sequence[int], *, offered: float | None = None) -> None:
        """Let a call in or refuse it, before anything costly is done for it.

        Once calls come in a flood, those are refused too that the flood brought before.

        Args:
            lengths: Tokens of each of its rows; an estimate will do.
            offered: See `Admission.check`.

        Raises:
            OverloadedError: The queue has no room, or the call would wait too long.
        """
        before = self._admission.flooded
        try:
            self._admission.check(
                len(lengths),
                seconds=self._seconds(lengths),
                waiting=self.waiting,
                wait_s=self.wait_s,
                offered=offered,
            )
        finally:
            if self._admission.flooded and not before:
                self._shed()

    async def submit(
        self,
        rows: Sequence[calls.Row],
        *,
        timeout_s: float,
        departure: calls.Departure | None = None,
        admitted: bool = False,
    ) -> list[calls.Answer]:
        """Queue a call's rows and wait for their answers.

        Args:
            rows: The rows.
            timeout_s: Seconds they may take.
            departure: Awaited, where the call waits long, to learn that its client has gone.
            admitted: Whether `admit` let the call in already.

        Raises:
            OverloadedError: See `admit`.
            DeadlineExceededError: The rows took longer than `timeout_s`.
            ClientGoneError: The client has gone.
        """
        if not admitted:
            self.admit([len(row.ids) for row in rows])
        loop = asyncio.get_running_loop()
        tokens = sum(len(row.ids) for row in rows)
        step_s = PACE * self._token_seconds * max(1, tokens) / len(rows)
        call = calls.Call(time.monotonic() + timeout_s, departure, [None] * len(rows), len(rows), tokens, step_s)
        call.timer = loop.call_later(min(timeout_s, WATCH_AFTER_S), self._attend, call)
        self._calls.add(call)
        if len(rows) > 1:
            self._lists.add(call)
        self._queue(call, rows)
        try:
            return await call.done
        finally:
            self._calls.discard(call)
            self._lists.discard(call)
            call.close()
            if call.missing:  # failed, cancelled or late
                self._withdraw(call)

    def _seconds(self, lengths: Sequence[int]) -> float:
        """What the first rows of a call will take the engine; the rest of a long list takes its turn later."""
        return self._token_seconds * sum(lengths[: admission.CALL_ROWS])

    def _shed(self) -> None:
        """Refuse what the flood brought, but for what a call may wait for in a flood.

        Those that came last stay: they will be answered soon after they came, and the first cannot be any more.
        """
        since = time.monotonic() - admission.WINDOW_S
        late_s = 0.0
        brought = (call for call in self._calls if call.since > since)
        for call in sorted(brought, key=lambda call: call.since, reverse=True):
            late_s += self._seconds([len(waiting.row.ids) for waiting in call.rows])
            if late_s > admission.FLOOD_WAIT_S:
                msg = "many times more calls came than can be answered: try again later"
                call.fail(errors.OverloadedError(msg, retry_after_s=1.0))

    def _queue(self, call: calls.Call, rows: Sequence[calls.Row]) -> None:
        rank = time.monotonic()
        with self._lock:
            for index, row in enumerate(rows):
                self._number += 1
                waiting = calls.Waiting(row, call, index, (len(row.ids), self._number))
                call.rows.append(waiting)
                heapq.heappush(self._by_rank, (rank + index * call.step_s, self._number, waiting))
                bisect.insort(self._by_length, (waiting.place, waiting))
            self._waiting_tokens += call.tokens
            wake, self._idle = self._idle, False
            if wake:
                self._moved = rank
        if self._engine is None:
            self._engine = threading.Thread(target=self._run, name="engine", daemon=True)
            self._engine.start()
        elif wake:
            self._wake.put(WORK)

    def _attend(self, call: calls.Call) -> None:
        """Look after a call that waits long: past its deadline it fails, and its client's leaving is noticed."""
        if call.done.done():
            return
        left = call.deadline - time.monotonic()
        if left <= 0:
            call.fail(errors.DeadlineExceededError("the request took longer than it may and was given up"))
            return
        call.timer = asyncio.get_running_loop().call_later(left, self._attend, call)
        if call.departure is not None and call.watcher is None:
            call.watcher = asyncio.ensure_future(self._watch(call, call.departure))

    @staticmethod
    async def _watch(call: calls.Call, departure: calls.Departure) -> None:
        await departure()
        call.fail(errors.ClientGoneError("the client closed the connection before its answer was there"))

    def _withdraw(self, call: calls.Call) -> None:
        with self._lock:
            for waiting in call.rows:
                if waiting.queued:
                    self._remove(waiting)

    def _remove(self, waiting: calls.Waiting) -> None:
        waiting.queued = False
        self._waiting_tokens -= len(waiting.row.ids)
        del self._by_length[self._position(waiting)]

    def _position(self, waiting: calls.Waiting) -> int:
        """Where a waiting row is among the rows by length."""
        return bisect.bisect_left(self._by_length, waiting.place, key=lambda entry: entry[0])

    def _run(self) -> None:
        """The engine's thread: batch after batch until it is told to stop."""
        while True:
            batch = self._take()
            if not batch:
                if self._wake.get() == STOP:
                    return
                continue
            started = time.monotonic()
            answers, err = self._computed(batch)
            self._moved = time.monotonic()
            took = self._moved - started
            self.expect(took)
            tokens = sum(len(waiting.row.ids) for waiting in batch) or 1
            self._token_seconds += 0.1 * (took / tokens - self._token_seconds)
            for loop, part in _by_loop(batch, answers).items():
                with contextlib.suppress(RuntimeError):  # a loop that has closed: nobody waits there any more
                    loop.call_soon_threadsafe(self._deliver, part, err)

    def _computed(self, batch: Sequence[calls.Waiting]) -> tuple[Sequence[calls.Answer | None], Exception | None]:
        """The answers of a batch, or what went wrong."""
        try:
            answers = self._compute([waiting.row for waiting in batch])
            if len(answers) != len(batch):  # then nobody may get another's
                raise RuntimeError(f"the engine gave {len(answers)} answers for {len(batch)} rows")
        except Exception as err:  # noqa: BLE001 - whatever the engine raised belongs to the callers of this batch
            for call in {waiting.call for waiting in batch}:
                self._withdraw(call)  # now: told by the event loop it would compute the rest of them first
            return [None] * len(batch), err
        return answers, None

    def _take(self) -> list[calls.Waiting]:
        """The next batch; empty when nothing waits, and the engine then counts as idle."""
        with self._lock:
            while self._by_rank:
                _, _, first = heapq.heappop(self._by_rank)
                if first.queued:
                    return self._with_neighbours(first) if self._curve.pads else self._with_followers(first)
            self._idle = True
            return []

    def _with_followers(self, first: calls.Waiting) -> list[calls.Waiting]:
        """The row whose turn it is, with those whose turn is next; all leave the queue."""
        batch, tokens = [first], len(first.row.ids)
        while self._by_rank and len(batch) < self._max_batch_size:
            _, _, following = self._by_rank[0]
            if following.queued:
                tokens += len(following.row.ids)
                if tokens > self._curve.budget_tokens:
                    break
                batch.append(following)
            heapq.heappop(self._by_rank)
        for waiting in batch:
            self._remove(waiting)
        return batch

    def _with_neighbours(self, first: calls.Waiting) -> list[calls.Waiting]:
        """The row whose turn it is, with the neighbours in length that make its batch cheap; all leave the queue."""
        _, low, high = max(self._windows(self._position(first)))
        batch = [waiting for _, waiting in self._by_length[low:high]]
        del self._by_length[low:high]
        for waiting in batch:
            waiting.queued = False
            self._waiting_tokens -= len(waiting.row.ids)
        return batch

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

    @staticmethod
    def _deliver(part: Sequence[tuple[calls.Waiting, calls.Answer | None]], err: BaseException | None) -> None:
        """Give each row's answer to its call, in the call's own event loop."""
        for waiting, answer in part:
            call = waiting.call
            if err is not None:
                call.fail(err)
                continue
            call.answers[waiting.index] = answer
            call.missing -= 1
            if not call.missing and not call.done.done():
                call.done.set_result(call.answers)  # type: ignore[arg-type]

    async def drain(self) -> None:
        """Wait until everything that was accepted is answered, then let the engine's thread go."""
        while self._calls:
            await asyncio.wait([call.done for call in self._calls])
            await asyncio.sleep(0)  # the calls that waited take their answers and leave
        if self._engine is not None:
            self._wake.put(STOP)


def _by_loop(
    batch: Sequence[calls.Waiting], answers: Sequence[calls.Answer | None]
) -> dict[asyncio.AbstractEventLoop, list[tuple[calls.Waiting, calls.Answer | None]]]:
    """Rows and answers by the event loop in which their calls wait; a server has one."""
    parts: dict[asyncio.AbstractEventLoop, list[tuple[calls.Waiting, calls.Answer | None]]] = {}
    for waiting, answer in zip(batch, answers, strict=True):
        parts.setdefault(waiting.call.done.get_loop(), []).append((waiting, answer))
    return parts
