"""The queue between the event loop and the engine.

    submit(rows) -> waiting rows (`turns`) -> the engine's thread, a batch at a time -> each call's answers

It is work-conserving: an idle engine starts at once on whatever waits, and while it computes the next batch gathers.
The engine's thread takes its batches itself, and between two it lets the event loop catch up (`interlude`).

A call past its deadline is answered 504 at that moment, and its rows are never computed; the same goes for one whose
client has gone. A call that would wait too long is refused at once (`admission`).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from madewithml import engine_report, errors
from madewithml.serving import admission, calls, interlude, turns

Compute = Callable[[Sequence[Any]], list[calls.Answer]]

# A client is only watched once its call has waited this long: watching costs more than most calls wait. One that sent
# a list is watched sooner by as many times as it has rows, since it costs that much more to compute them for nobody.
WATCH_AFTER_S = 1.0
# Rows of one call take turns as if they came this many times slower than the engine computes.
PACE = 2.0
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
        self._turns = turns.Turns(curve, max_batch_size=max_batch_size)
        self._admission = admission.Admission(max_queue_rows=max_queue_rows, max_queue_s=max_queue_s)
        self._wake: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._engine: threading.Thread | None = None
        self._calls: set[calls.Call] = set()
        self._lists: set[calls.Call] = set()  # those of several rows, whose turns come one by one
        self._token_seconds = 0.0001  # a guess until the first batch was timed
        self._moved = 0.0  # when the engine's thread last finished a batch
        self._longest_s = 0.0

    @property
    def budget_tokens(self) -> int:
        """Tokens of a batch at most, unless it is one text that is longer."""
        return self._turns.budget_tokens

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return len(self._turns)

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
        return max(0.0, self._turns.tokens - not_yet) * self._token_seconds

    def expect(self, seconds: float) -> None:
        """Say how long a batch may take: one that takes no more is not stuck, however slow model and machine are."""
        self._longest_s = max(self._longest_s, seconds)

    def stuck(self, limit_s: float) -> bool:
        """Whether the engine's thread has not moved for longer than the limit, and far longer than is to be expected.

        With a batch in the engine, or with rows that it does not come to take.
        """
        if not self._turns.busy:
            return False
        standing_s = time.monotonic() - max(self._moved, self._turns.busy_since)
        return standing_s > max(limit_s, STUCK_FACTOR * self._longest_s)

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
        now = time.monotonic()
        call = calls.Call(now, now + timeout_s, departure, [None] * len(rows), len(rows), tokens, step_s)
        call.timer = loop.call_later(min(timeout_s, WATCH_AFTER_S / len(rows)), self._attend, call)
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
                self._turns.withdraw(call)

    def _seconds(self, lengths: Sequence[int]) -> float:
        """What the first rows of a call will take the engine; the rest of a long list takes its turn later."""
        return self._token_seconds * sum(lengths[: admission.CALL_ROWS])

    def _shed(self) -> None:
        """Refuse what the flood brought, but for what a call may wait for in a flood.

        Those that came last stay: they will be answered soon after they came, and the first cannot be any more. So do
        those that the engine has: they cost nothing more.
        """
        since = self._admission.flood_since
        late_s = 0.0
        brought = (call for call in self._calls if call.since > since and call.waits)
        for call in sorted(brought, key=lambda call: call.since, reverse=True):
            late_s += self._seconds([len(waiting.row.ids) for waiting in call.rows])
            if late_s > admission.FLOOD_WAIT_S:
                msg = "many times more calls came than can be answered: try again later"
                call.fail(errors.OverloadedError(msg, retry_after_s=1.0))

    def _queue(self, call: calls.Call, rows: Sequence[calls.Row]) -> None:
        wake = self._turns.add(call, rows, rank=self._admission.turn(call.since))
        if self._engine is None:
            self._engine = threading.Thread(target=self._run, name="engine", daemon=True)
            self._engine.start()
        elif wake:  # in the loop's next turn: calls that came with this one are in the queue by then
            asyncio.get_running_loop().call_soon(self._wake.put, WORK)

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

    def _run(self) -> None:
        """The engine's thread: batch after batch until it is told to stop."""
        while True:
            batch = self._turns.take()
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
                    if len(batch) > 1 or self.waiting:  # a lone caller has nobody to be computed with
                        interlude.hold(loop, self._turns)

    def _computed(self, batch: Sequence[calls.Waiting]) -> tuple[Sequence[calls.Answer | None], Exception | None]:
        """The answers of a batch, or what went wrong."""
        try:
            answers = self._compute([waiting.row for waiting in batch])
            if len(answers) != len(batch):  # then nobody may get another's
                raise RuntimeError(f"the engine gave {len(answers)} answers for {len(batch)} rows")
        except Exception as err:  # noqa: BLE001 - whatever the engine raised belongs to the callers of this batch
            for call in {waiting.call for waiting in batch}:
                self._turns.withdraw(call)  # now: told by the event loop it would compute the rest of them first
            return [None] * len(batch), err
        return answers, None

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
