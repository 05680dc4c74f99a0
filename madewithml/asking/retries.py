"""How long to wait before a call is sent again."""

from __future__ import annotations

import datetime
import email.utils
import random
import time

FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 8.0


def read_retry_after(text: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for (RFC 9110, 10.2.3): a number of them, or an HTTP date.

    None if there is no header or it says neither: a header that cannot be read is as good as none.
    """
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.timezone.utc)
    return max(0.0, moment.timestamp() - time.time())


def wait_s(retries: int, *, asked_s: float | None) -> float:
    """Seconds to wait before a retry: exponential back-off with full jitter (Brooker, AWS Architecture Blog, 2015).

    What the service asks for comes on top: all whom it asks for the same would otherwise come back at once.

    Args:
        retries: How many there were before this one.
        asked_s: What the service asks for, in seconds.
    """
    ceiling = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(retries, 16))
    return (asked_s or 0.0) + random.uniform(0.0, ceiling)
