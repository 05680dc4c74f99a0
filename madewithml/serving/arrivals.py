"""What came of late: how much work, how many calls, and how many usually do.

A burst and a flood bring the same within a moment. So the last second is counted in parts: what a replica had on its
way when it was lost comes to another within one part or two, and a flood goes on in nearly all of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

WINDOW_S = 1.0
PARTS = 4
NEARLY_ALL = 3  # parts
PART_S = WINDOW_S / PARTS
# What came while nobody had to wait is usual soon, and for minutes.
LEARNED = 0.5  # of what is new, in a part
FORGOTTEN_S = 300.0


class Arrivals:
    """Counts calls and the seconds of work that they bring."""

    def __init__(self) -> None:
        self._part = 0  # number of the present part
        self._calm = True  # whether nobody had to wait in it
        self._work = [0.0] * PARTS  # seconds of work in each of the last parts, the present one among them
        self._calls = [0] * PARTS
        self._usual = 0.0  # calls a part

    def note(self, seconds: float, *, calm: bool) -> None:
        """Count a call.

        Args:
            seconds: The work that it brings.
            calm: Whether next to nothing waits.
        """
        part = int(time.monotonic() / PART_S)
        if passed := part - self._part:
            self._usual *= max(0.0, 1.0 - PART_S / FORGOTTEN_S) ** passed
            if self._calm:
                self._usual += LEARNED * max(0.0, self._calls[-1] - self._usual)
            kept = min(passed, PARTS)
            self._work = [*self._work[kept:], *[0.0] * kept]
            self._calls = [*self._calls[kept:], *[0] * kept]
            self._part, self._calm = part, True
        self._calm = self._calm and calm
        self._work[-1] += seconds
        self._calls[-1] += 1

    @property
    def work(self) -> float:
        """Seconds of work a second, over the last second but for a part of it."""
        now = time.monotonic() / PART_S
        return sum(self._work) / ((PARTS - 1 + now - self._part) * PART_S)

    @property
    def most_work(self) -> float:
        """Seconds of work a second, in that part of the last second that had most."""
        return max(self._work) / PART_S

    @property
    def steady_work(self) -> float:
        """Seconds of work a second that nearly all parts of the last second had at least."""
        return _in_nearly_all(self._work) / PART_S

    @property
    def steady_calls(self) -> float:
        """Calls a second that nearly all parts of the last second had at least."""
        return _in_nearly_all(self._calls) / PART_S

    @property
    def usual_calls(self) -> float:
        """Calls a second that came in the last minutes while nobody had to wait, at their most."""
        return self._usual / PART_S


def _in_nearly_all(parts: Sequence[float]) -> float:
    return sorted(parts, reverse=True)[NEARLY_ALL - 1]
