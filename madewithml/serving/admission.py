"""Whom the queue takes in, and whom it refuses at once because waiting would not help.

    check(rows, ...) -> nothing, or an `OverloadedError` that says when to try again

Two kinds of load look the same for a moment. When a replica is lost or replaced, the others get up to twice what they
can do, for seconds: then calls wait, up to `max_queue_s`, and none is lost. A flood, several times what the engine can
do, does not pass by waiting, nor does a queue that stands for a minute: whoever is let in then waits a tenth of a
second at most, and the rest is refused in microseconds. A flood shows in what came within the last second, refused
calls included; by then it has filled the queue, and what it brought since the queue was last short is refused too, if
it would wait longer (`Batcher`).
"""

from __future__ import annotations

import time

from madewithml import errors

WINDOW_S = 1.0
# Work coming this many times as fast as it can be done is a flood. While a replica is replaced, twice as much as usual
# comes for seconds, the replica that starts on the same cores makes everything take two or three times as long, and
# what the lost one had on its way comes all at once: three times was the most that was seen then. Of a flood of ten
# times only eight or nine show in its first second, as the cores were free when a token's time was measured.
FLOOD = 6.0
# A flood is seen a second or two after it began, as what was measured of the engine before it lags behind.
SEEN_AFTER_S = 3.0
# A queue that was never short for so long does not pass either: the same holds for it.
STANDING_S = 60.0
FLOOD_WAIT_S = 0.1
# Nor is it a flood what comes in the first moments of a replica: it is what waited for one to come.
START_S = 10.0
# So few rows are no flood, however long one takes.
FLOOD_ROWS = 16
# Nor does a minute make one of so few: some callers who wait for each answer cannot make more.
STANDING_ROWS = 32
# Of one call's rows these count, at most: a long list takes its turns little by little, and is one caller's.
CALL_ROWS = 16


class Admission:
    """Bounds on a queue: rows, and the time they stand for.

    Args:
        max_queue_rows: Rows that may wait.
        max_queue_s: Seconds that a call may have to wait for its turn.

    Attributes:
        flooded: Whether the last call came in a flood.
    """

    def __init__(self, *, max_queue_rows: int, max_queue_s: float) -> None:
        self._max_queue_rows = max_queue_rows
        self._max_queue_s = max_queue_s
        self._window = 0  # number of the present half window
        self._arrived = [0.0, 0.0]  # seconds of work in the half window before, and in the present one
        self._first: float | None = None  # when the first call came
        self._usual = 0.0  # seconds of work of a call
        self._short = time.monotonic()  # when a call had next to nothing to wait for
        self.flooded = False

    @property
    def flood_since(self) -> float:
        """From when on calls may have been brought by a flood that is seen now, by the monotonic clock."""
        now = time.monotonic()
        return min(now - WINDOW_S, max(now - SEEN_AFTER_S, self._short))

    def check(self, rows: int, *, seconds: float, waiting: int, wait_s: float, offered: float | None = None) -> None:
        """Let a call in, or not.

        Args:
            rows: The call's.
            seconds: What it will take the engine; of `CALL_ROWS` rows at most.
            waiting: Rows in the queue.
            wait_s: Seconds of work in the queue that the call would wait for.
            offered: Calls a second that came for this replica, those included that were refused on the way.

        Raises:
            OverloadedError: The queue has no room, or the call would wait too long.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = now
        if wait_s <= FLOOD_WAIT_S:
            self._short = now
        self._usual += 0.05 * (seconds - self._usual)
        comes = max(self._note(seconds), (offered or 0.0) * self._usual)
        much = comes > FLOOD and now - self._first > START_S
        stands = now - self._short > STANDING_S
        self.flooded = (much and waiting > FLOOD_ROWS) or (stands and waiting > STANDING_ROWS)
        if not waiting:
            return
        if waiting + rows > self._max_queue_rows:
            msg = f"{waiting} rows are waiting, at most {self._max_queue_rows} may: try again later"
            raise errors.OverloadedError(msg, retry_after_s=wait_s)
        limit_s = min(self._max_queue_s, FLOOD_WAIT_S) if self.flooded else self._max_queue_s
        if wait_s > limit_s:
            msg = (
                f"a call would wait {wait_s:.1f} s for its turn, at most {limit_s:g} s are allowed now: try again later"
            )
            raise errors.OverloadedError(msg, retry_after_s=max(wait_s, 1.0))

    def _note(self, seconds: float) -> float:
        """Count a call's work; gives the work that comes in a second, over the last half to whole window."""
        half = WINDOW_S / 2
        now = time.monotonic() / half
        window = int(now)
        if window != self._window:
            self._arrived = [self._arrived[1] if window == self._window + 1 else 0.0, 0.0]
            self._window = window
        self._arrived[1] += seconds
        return sum(self._arrived) / ((now - window + 1) * half)
