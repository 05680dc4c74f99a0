"""A bounded sample of recent traffic, in memory only: what a candidate model is tried on before it may answer."""

from __future__ import annotations

import collections
from collections.abc import Sequence

CAPACITY = 256
# Once it is full one request in so many is recorded: a sample of minutes, not of the last instant.
EVERY = 8
# Far above what fits a model of 512 tokens; it bounds the memory to about a megabyte.
MAX_CHARACTERS = 4000


class RecentTexts:
    """The last texts that were asked about, in their order. Cheap enough for every request: about a microsecond.

    Args:
        capacity: Texts that are kept; the oldest leaves.
        every: One request in so many is recorded once it is full.
    """

    def __init__(self, *, capacity: int = CAPACITY, every: int = EVERY) -> None:
        self._ring: collections.deque[str] = collections.deque(maxlen=capacity)
        self._capacity = capacity
        self._every = every
        self._count = 0

    def offer(self, inputs: Sequence[str]) -> None:
        """Record one text of a request, if it is its turn."""
        self._count += 1
        if len(self._ring) == self._capacity and self._count % self._every:
            return
        self._ring.append(inputs[self._count % len(inputs)][:MAX_CHARACTERS])

    def texts(self) -> list[str]:
        """What is recorded at the moment; may be called from another thread."""
        return list(self._ring.copy())  # the copy is one step of the interpreter: no append comes between
