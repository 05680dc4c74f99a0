"""What waits in the queue: a call, and each of its rows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Answer = dict[str, Any]
Departure = Callable[[], Awaitable[None]]


class Row(Protocol):
    """What the queue needs to know of a row; it is handed to the engine as it came."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids; their number is what the row costs."""
        ...


@dataclass(eq=False)
class Call:
    """One call's rows on their way: the answers that are there, and who waits for them."""

    since: float  # this and the deadline by the monotonic clock
    deadline: float
    departure: Departure | None
    answers: list[Answer | None]
    missing: int
    tokens: int
    step_s: float  # its rows take their turns this far apart
    rows: list[Waiting] = field(default_factory=list)
    done: asyncio.Future[list[Answer]] = field(default_factory=asyncio.Future)
    timer: asyncio.TimerHandle | None = None
    watcher: asyncio.Future[None] | None = None

    @property
    def waits(self) -> bool:
        """Whether any of its rows is still in the queue, and not with the engine."""
        return any(waiting.queued for waiting in self.rows)

    def fail(self, err: BaseException) -> None:
        """Answer it with an error, unless it is answered."""
        if not self.done.done():
            self.done.set_exception(err)

    def close(self) -> None:
        """Look after it no more."""
        if self.timer is not None:
            self.timer.cancel()
        if self.watcher is not None:
            self.watcher.cancel()


@dataclass(eq=False)
class Waiting:
    """One row in the queue."""

    row: Row
    call: Call
    index: int
    place: tuple[int, int]  # length and number: its place among the rows by length
    queued: bool = True
