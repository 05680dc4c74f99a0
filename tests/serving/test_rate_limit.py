"""Token buckets, on a clock of the test's own."""

import pytest

from madewithml.serving import rate_limit

from .conftest import stop_clock


@pytest.fixture
def clock(monkeypatch):
    return stop_clock(monkeypatch, rate_limit)


def test_two_seconds_worth_may_come_at_once_and_then_the_rate(clock):
    bucket = rate_limit.Bucket(10)
    assert [bucket.take() for _ in range(20)] == [0.0] * 20
    assert bucket.take() == pytest.approx(0.1)
    clock.now += 0.1001
    assert bucket.take() == 0.0
    assert bucket.take() > 0


def test_over_a_minute_no_more_than_the_rate_and_a_burst_come_through(clock):
    bucket = rate_limit.Bucket(5)
    let_in = 0
    for _ in range(6000):
        clock.now += 0.01
        let_in += bucket.take() == 0.0
    assert 60 * 5 <= let_in <= 60 * 5 + 5 * rate_limit.BURST_S + 1


def test_a_long_call_is_paid_for_afterwards(clock):
    bucket = rate_limit.Bucket(10)
    assert bucket.take() == 0.0
    bucket.charge(99)
    assert bucket.take() == pytest.approx((1 + 80) / 10)
    clock.now += 8.2
    assert bucket.take() == 0.0


def test_a_share_of_less_than_one_lets_one_through_at_a_time(clock):
    bucket = rate_limit.Bucket(0.25)
    assert bucket.take() == 0.0
    assert bucket.take() == pytest.approx(4.0)


def test_what_was_not_used_is_not_saved_up(clock):
    bucket = rate_limit.Bucket(10)
    clock.now += 3600
    assert [bucket.take() for _ in range(20)] == [0.0] * 20
    assert bucket.take() > 0
