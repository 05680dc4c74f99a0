from __future__ import annotations

import time

import numpy as np

from madewithml import speed, tokenization

ROWS = [[1] * length for length in (9, 3, 5, 30, 4, 8, 12, 6)]


class Engine:
    """Takes a millisecond a batch, and remembers the shapes it saw."""

    name = precision = "fake"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def logits(self, ids: tokenization.Ints, mask: tokenization.Ints) -> np.ndarray:
        self.shapes.append(ids.shape)
        time.sleep(0.001)
        return np.zeros((len(ids), 2), dtype=np.float32)


def workload() -> speed.Workload:
    return speed.Workload.of(ROWS, pad_id=0)


def test_batches_are_of_like_length_and_spread_over_the_lengths() -> None:
    shapes = [ids.shape for ids, _ in workload().batches(2, count=3)]
    assert shapes == [(2, 4), (2, 8), (2, 30)]


def test_where_there_are_fewer_rows_than_a_batch_takes_it_holds_them_all() -> None:
    assert [ids.shape for ids, _ in workload().batches(32, count=2)] == [(8, 30), (8, 30)]


def test_rows_a_second_count_rows_and_not_batches() -> None:
    one, four = (speed.rows_per_second(Engine(), workload(), size=size, batches=4) for size in (1, 4))
    assert 2 < four / one < 6


def test_a_cost_is_measured_for_each_number_of_rows_at_each_length() -> None:
    engine = Engine()
    costs = speed.batch_costs(engine, workload(), rounds=1)
    lengths = workload().lengths()
    assert [(cost.rows, cost.length) for cost in costs] == [
        (n, length) for length in lengths for n in speed.CURVE_SIZES
    ]
    assert all(cost.seconds >= 0.001 for cost in costs)
    assert set(engine.shapes) == {(cost.rows, cost.length) for cost in costs}
