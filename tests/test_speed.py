from __future__ import annotations

import numpy as np
import pytest

from madewithml import speed, tokenization

ROWS = [[1] * length for length in (9, 3, 5, 30, 4, 8, 12, 6)]


class Engine:
    """Takes a millisecond a batch, by a clock of its own, and remembers the shapes it saw."""

    name = precision = "fake"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.now = 0.0
        monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)

    def logits(self, ids: tokenization.Ints, mask: tokenization.Ints) -> np.ndarray:
        self.shapes.append(ids.shape)
        self.now += 0.001
        return np.zeros((len(ids), 2), dtype=np.float32)


def workload() -> speed.Workload:
    return speed.Workload.of(ROWS, pad_id=0)


def test_batches_are_of_like_length_and_spread_over_the_lengths() -> None:
    shapes = [ids.shape for ids, _ in workload().batches(2, count=3)]
    assert shapes == [(2, 5), (2, 8), (2, 12)]


def test_where_there_are_fewer_rows_than_a_batch_takes_it_holds_them_all() -> None:
    assert [ids.shape for ids, _ in workload().batches(32, count=2)] == [(8, 30), (8, 30)]


@pytest.mark.parametrize("size", [1, 4])
def test_rows_a_second_count_rows_and_not_batches(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = speed.rows_per_second(Engine(monkeypatch), workload(), size=size, batches=4)
    assert rate == pytest.approx(1000 * size)


def test_a_cost_is_measured_for_each_number_of_rows_at_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(monkeypatch)
    costs = speed.batch_costs(engine, workload(), rounds=1)
    lengths = workload().lengths()
    assert [(cost.rows, cost.length) for cost in costs] == [
        (n, length) for length in lengths for n in speed.CURVE_SIZES
    ]
    assert [cost.seconds for cost in costs] == pytest.approx([0.001] * len(costs))
    assert set(engine.shapes) == {(cost.rows, cost.length) for cost in costs}
