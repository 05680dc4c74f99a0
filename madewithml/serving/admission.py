"""Whom the queue takes in, and whom it refuses at once because waiting would not help.

    check(rows, ...) -> nothing, or an `OverloadedError` that says when to try again

Two kinds of load look the same for a moment. When a replica is lost or replaced, the others get up to twice what they
can do, for seconds: then calls wait, up to `max_queue_s`, and none is lost. A flood, several times what the engine can
do, does not pass by waiting, nor does a queue that stands for a minute: whoever is let in then waits a tenth of a
second at most, and the rest is refused in microseconds. A flood shows in what came within the last second, refused
calls included; by then it has filled the queue, and what it brought since the queue was last short is refused too, if
it would wait longer (`Batcher`). Until then the calls that come go in the reverse order: in time for the last of them.
"""

from __future__ import annotations

import time

from madewithml import errors
from madewithml.serving import arrivals

# Work coming this many times as fast as it can be done is a flood. While a replica is replaced, twice as much as usual
# comes for seconds, the replica that starts on the same cores makes everything take two or three times as long, and
# what the lost one had on its way comes on top: with six, some of that was refused on a machine that was slow.
FLOOD = 8.0
# Far less is one where it came all of a sudden: this many times as fast as it can be done, in so many times as many
# calls as came before. While a replica is replaced it is twice as many, or half again. Where hardly anything came
# before, that says nothing.
OVERLOAD = 2.0
RISE = 4.0
BUSY = 0.2  # seconds of work a second
# Until it is known whether it is one, the calls that came last go first: in a flood they are those that are answered in
# time, and if it is none, nobody has lost more than moments.
SUDDEN_S = 2.0
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
        self._arrivals = arrivals.Arrivals()
        self._first: float | None = None  # when the first call came
        self._call_s = 0.0  # seconds of work of a call
        self._short = time.monotonic()  # when a call had next to nothing to wait for
        self._sudden: float | None = None  # since when, if ever since then, calls come as fast as in a flood
        self._much = False
        self.flooded = False

    @property
    def flood_since(self) -> float:
        """From when on calls may have been brought by a flood that is seen now, by the monotonic clock."""
        now = time.monotonic()
        return min(now - arrivals.WINDOW_S, max(now - SEEN_AFTER_S, self._short))

    def turn(self, came: float) -> float:
        """When it is the turn of the call that was let in last: as if it had come at that time.

        Where a flood may have begun, time runs backwards from then on: who came last goes first, but nobody is
        overtaken who came much before.

        Args:
            came: When it came, by the monotonic clock.
        """
        if self._sudden is None or came - self._sudden > SUDDEN_S:
            return came
        return 2 * self._sudden - came

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
        short = wait_s <= FLOOD_WAIT_S
        if short:
            self._short, self._sudden = now, None
        self._call_s += 0.05 * (seconds - self._call_s)
        self._arrivals.note(seconds, calm=short and not self._much)
        begun = now - self._first > START_S
        if self._sudden is None and self._arrivals.most_work > OVERLOAD and begun and waiting > FLOOD_ROWS:
            self._sudden = now
        self._much = begun and self._is_much(offered)
        stands = now - self._short > STANDING_S
        self.flooded = (self._much and waiting > FLOOD_ROWS) or (stands and waiting > STANDING_ROWS)
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

    def _is_much(self, offered: float | None) -> bool:
        """Whether far more comes than can be done, and goes on."""
        came = self._arrivals
        if came.work > FLOOD and came.steady_work > FLOOD / 2:
            return True
        calls = max(came.steady_calls, offered or 0.0)
        comes = max(came.steady_work, calls * self._call_s if offered else 0.0)
        rises = calls > RISE * came.usual_calls and came.usual_calls * self._call_s > BUSY
        return comes > (OVERLOAD if rises else FLOOD)
