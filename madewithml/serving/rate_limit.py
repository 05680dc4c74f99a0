"""Token buckets: how much a caller may send, in the long run and at once."""

from __future__ import annotations

import time

# What may come at once: so many seconds' worth.
BURST_S = 2.0


class Bucket:
    """A token bucket that may run into debt: what a call costs is known only once it has been read.

    Args:
        per_second: Tokens that flow in.
        burst: Tokens it holds at most, at least one; None for two seconds' worth.
    """

    def __init__(self, per_second: float, *, burst: float | None = None) -> None:
        self._per_second = per_second
        self._burst = max(1.0, per_second * BURST_S if burst is None else burst)
        self._tokens = self._burst
        self._when = time.monotonic()

    def take(self) -> float:
        """Take a token if there is one.

        Returns:
            0, or the seconds until there will be one.
        """
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._when) * self._per_second)
        self._when = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self._per_second
        self._tokens -= 1.0
        return 0.0

    def charge(self, tokens: float) -> None:
        """Take tokens whether or not there are any; the next call waits for them."""
        self._tokens -= tokens
