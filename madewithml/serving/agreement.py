"""How two models agree on the same inputs: a tally that grows, and the test of whether one is better."""

from __future__ import annotations

import collections
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MAX_FLIPS = 100
MAX_RECENT = 10_000  # pairs that wait for their true label


class Pair(NamedTuple):
    """What two models said of one row.

    Attributes:
        request_id: Of the request it came in.
        row: Its position there.
        own: Label of the model that answered.
        other: Label of the other model.
        own_accepted: Whether the answer was let through.
        other_accepted: Whether the other model would have let it through.
    """

    request_id: str
    row: int
    own: str
    other: str
    own_accepted: bool
    other_accepted: bool


class Tally:
    """Counts of agreement; bounded, whatever the traffic. It may be read while another thread adds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: collections.Counter[str] = collections.Counter()
        self._agreed: collections.Counter[str] = collections.Counter()
        self._accepted = [0, 0]
        self._recent: collections.deque[Pair] = collections.deque(maxlen=MAX_RECENT)
        self._flips: collections.deque[dict[str, Any]] = collections.deque(maxlen=MAX_FLIPS)

    def add(self, pairs: Sequence[Pair]) -> None:
        """Count rows."""
        with self._lock:
            self._recent.extend(pairs)
            for pair in pairs:
                self._rows[pair.own] += 1
                self._accepted[0] += pair.own_accepted
                self._accepted[1] += pair.other_accepted
                if pair.own == pair.other:
                    self._agreed[pair.own] += 1
                else:
                    flip = {"request_id": pair.request_id, "row": pair.row, "label": pair.own, "shadow": pair.other}
                    self._flips.append(flip)

    def recent(self) -> list[Pair]:
        """The last pairs."""
        with self._lock:
            return list(self._recent)

    def report(self) -> dict[str, Any]:
        """Agreement in all and by the answering model's label, coverage of both, and the last flips, by id only."""
        with self._lock:
            rows, agreed = sum(self._rows.values()), sum(self._agreed.values())
            return {
                "num_rows": rows,
                "agreement": _share(agreed, rows),
                "by_class": {
                    name: {"num_rows": count, "agreement": _share(self._agreed[name], count)}
                    for name, count in sorted(self._rows.items())
                },
                "coverage": _share(self._accepted[0], rows),
                "shadow_coverage": _share(self._accepted[1], rows),
                "flips": list(self._flips),
            }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


class McNemar(NamedTuple):
    """Whether two models differ in accuracy on the same rows.

    Attributes:
        only_first: Rows that the first alone has right.
        only_second: Rows that the second alone has right.
        p_value: Chance of a split at least as uneven if both were equally good; exact, two-sided.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(truth: Sequence[str], first: Sequence[str], second: Sequence[str]) -> McNemar:
    """McNemar's exact test (McNemar 1947): of the rows that one model alone has right, how many are the first's.

    Args:
        truth: True labels, n.
        first: Labels of one model, n.
        second: Labels of another, n.

    Raises:
        ValueError: The three have different lengths.
    """
    rows = list(zip(truth, first, second, strict=True))
    only_first = sum(a == true != b for true, a, b in rows)
    only_second = sum(b == true != a for true, a, b in rows)
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**discordant))


def judge(pairs: Sequence[Pair], truth: Mapping[tuple[str, int], str]) -> dict[str, Any] | None:
    """Which of two models is better, on the rows whose true label is known; None where there are none.

    Args:
        pairs: What the two said.
        truth: True labels by request and row.
    """
    known = [pair for pair in pairs if (pair.request_id, pair.row) in truth]
    if not known:
        return None
    labels = [truth[pair.request_id, pair.row] for pair in known]
    test = mcnemar(labels, [pair.own for pair in known], [pair.other for pair in known])
    right = sum(pair.own == label for pair, label in zip(known, labels, strict=True))
    return {
        "num_rows": len(known),
        "accuracy": right / len(known),
        "shadow_accuracy": (right - test.only_first + test.only_second) / len(known),
        "only_own_right": test.only_first,
        "only_shadow_right": test.only_second,
        "p_value": test.p_value,
    }


def pairs_of(request_id: str, answers: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """The answers of two models to the rows of one request, side by side."""
    return [
        Pair(
            request_id=request_id,
            row=row,
            own=own["label"],
            other=other["label"],
            own_accepted=own["decision"] == "accepted",
            other_accepted=other["decision"] == "accepted",
        )
        for row, (own, other) in enumerate(zip(answers, others, strict=True))
    ]
