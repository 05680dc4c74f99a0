"""What came of late, part by part."""

import pytest

from madewithml.serving import arrivals

from .conftest import stop_clock


@pytest.fixture
def clock(monkeypatch):
    return stop_clock(monkeypatch, arrivals)


def come(made, clock, *, rate, seconds, calm=True):
    """So many calls a second, each of 10 ms, for so many seconds."""
    for _ in range(int(rate * seconds)):
        clock.now += 1 / rate
        made.note(0.01, calm=calm)


def test_work_is_that_of_the_last_second(clock):
    made = arrivals.Arrivals()
    come(made, clock, rate=300, seconds=3)
    assert made.work == pytest.approx(3.0, rel=0.02)
    assert made.steady_work == pytest.approx(3.0, rel=0.05)
    assert made.steady_calls == pytest.approx(300, rel=0.05)
    come(made, clock, rate=100, seconds=1.3)
    assert made.work == pytest.approx(1.0, rel=0.05)


def test_a_burst_is_no_steady_work(clock):
    made = arrivals.Arrivals()
    come(made, clock, rate=20, seconds=3)
    come(made, clock, rate=2000, seconds=arrivals.PART_S)
    assert made.most_work > 9
    assert made.work > 4
    assert made.steady_work < 1


def test_usual_is_what_came_while_nobody_had_to_wait(clock):
    made = arrivals.Arrivals()
    come(made, clock, rate=100, seconds=3)
    assert made.usual_calls == pytest.approx(100, rel=0.05)
    come(made, clock, rate=1000, seconds=20, calm=False)
    assert made.usual_calls == pytest.approx(100, rel=0.15)
    come(made, clock, rate=1000, seconds=3)
    assert made.usual_calls == pytest.approx(1000, rel=0.05)


def test_what_was_usual_is_forgotten_in_minutes_and_not_in_seconds(clock):
    made = arrivals.Arrivals()
    come(made, clock, rate=100, seconds=3)
    clock.now += 20
    made.note(0.01, calm=True)
    assert made.usual_calls > 90
    clock.now += 20 * arrivals.FORGOTTEN_S
    made.note(0.01, calm=True)
    assert made.usual_calls == pytest.approx(0, abs=3)
