"""The queue between the event loop and the engine.

    submit(rows) -> pending rows -> the engine's thread: one batch at a time -> answers to each call

It is work-conserving: an idle engine starts at once on whatever waits, and while it computes the next batch gathers.
A batch is the row that has waited longest with those most like it in length, so padding stays small and nothing
starves. A call past its deadline is answered 504 and never computed; a cancelled call is dropped; when the queue is
full the call is refused at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from madewithml import errors

Answer = dict[str, Any]
Compute = Callable[[Sequence[Any]], list[Answer]]


class Row(Protocol):
    """What the queue needs to know of a row; it is handed to the engine as it came."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids; their number is what the row costs."""
        ...


@dataclass(eq=False)
class _Call:
    """One call's rows on their way: the answers that are there, and who waits for them."""

    answers: list[Answer | None]
    missing: int
    deadline: float
    done: asyncio.Future[list[Answer]] = field(default_factory=asyncio.Future)

    def fail(self, err: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(err)


@dataclass(eq=False)
class _Waiting:
    """One row in the queue."""

    row: Row
    call: _Call
    index: int

    @property
    def length(self) -> int:
        return len(self.row.ids)


class Batcher:
    """Runs rows that wait together through the model together.

    Args:
        compute: Called in the engine's thread with the rows of one batch; gives one answer per row.
        max_batch_size: Rows in a batch.
        max_queue_rows: Rows that may wait.
    """

    def __init__(self, compute: Compute, *, max_batch_size: int, max_queue_rows: int) -> None:
        self._compute = compute
        self._max_batch_size = max_batch_size
        self._max_queue_rows = max_queue_rows
        self._pending: list[_Waiting] = []
        self._engine = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._runner: asyncio.Task[None] | None = None
        self._batch_seconds = 0.05  # guess until the first batch was timed

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return len(self._pending)

    async def submit(self, rows: Sequence[Row], *, timeout_s: float) -> list[Answer]:
        """Queue a call's rows and wait for their answers.

        Raises:
            OverloadedError: The queue has no room.
            DeadlineExceededError: The rows waited longer than `timeout_s`.
        """
        if self._pending and len(self._pending) + len(rows) > self._max_queue_rows:
            batches = len(self._pending) / self._max_batch_size
            msg = f"{len(self._pending)} rows are waiting, at most {self._max_queue_rows} may: try again later"
            raise errors.OverloadedError(msg, retry_after_s=batches * self._batch_seconds)
        call = _Call([None] * len(rows), len(rows), time.monotonic() + timeout_s)
        self._pending.extend(_Waiting(row, call, index) for index, row in enumerate(rows))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run())
        return await call.done

    async def _run(self) -> None:
        """Feed the engine until nothing waits."""
        loop = asyncio.get_running_loop()
        while batch := self._take():
            started = time.monotonic()
            try:
                answers = await loop.run_in_executor(self._engine, self._compute, [waiting.row for waiting in batch])
                self._deliver(batch, answers)
            except Exception as err:  # noqa: BLE001 - whatever the engine raised belongs to the callers of this batch
                for row in batch:
                    row.call.fail(err)
                continue
            self._batch_seconds += 0.1 * (time.monotonic() - started - self._batch_seconds)

    def _take(self) -> list[_Waiting]:
        """The next batch: the oldest row and those most like it in length. Empty when nothing waits."""
        now = time.monotonic()
        alive = []
        for row in self._pending:
            if row.call.done.done():
                continue
            if row.call.deadline < now:
                row.call.fail(errors.DeadlineExceededError("the request waited past its deadline and was not computed"))
                continue
            alive.append(row)
        if not alive:
            self._pending = []
            return []
        oldest = alive[0].length
        batch = heapq.nsmallest(self._max_batch_size, alive, key=lambda row: abs(row.length - oldest))
        chosen = set(map(id, batch))
        self._pending = [row for row in alive if id(row) not in chosen]
        return batch

    @staticmethod
    def _deliver(batch: Sequence[_Waiting], answers: Sequence[Answer]) -> None:
        # All paired before the first is handed over: with one answer too few, nobody gets another's.
        for row, answer in list(zip(batch, answers, strict=True)):
            call = row.call
            call.answers[row.index] = answer
            call.missing -= 1
            if not call.missing and not call.done.done():
                call.done.set_result(call.answers)  # type: ignore[arg-type]

    async def drain(self) -> None:
        """Wait until everything that was accepted is answered, then let the engine's thread go."""
        while self._runner is not None and not self._runner.done():
            await asyncio.wait([self._runner])
        self._engine.shutdown(wait=False)
