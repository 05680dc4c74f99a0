"""Who is let into the queue: by rows, by time, and by whether a flood is coming."""

import re

import pytest

from madewithml import errors
from madewithml.serving import admission, arrivals

from .conftest import stop_clock


@pytest.fixture
def clock(monkeypatch):
    return stop_clock(monkeypatch, admission, arrivals)


def make(*, max_queue_rows=100, max_queue_s=2.5):
    return admission.Admission(max_queue_rows=max_queue_rows, max_queue_s=max_queue_s)


def after_its_start(made, clock):
    made.check(1, seconds=0.01, waiting=0, wait_s=0)
    clock.now += admission.START_S + 1
    return made


def test_an_empty_queue_takes_a_call_of_any_size(clock):
    make().check(1000, seconds=16, waiting=0, wait_s=0)


def test_a_queue_without_room_refuses_and_says_when_to_try_again(clock):
    with pytest.raises(errors.OverloadedError, match=r"^99 rows are waiting, at most 100 may") as caught:
        make().check(2, seconds=0.02, waiting=99, wait_s=0.99)
    assert caught.value.retry_after_s == pytest.approx(0.99)


def test_a_call_that_would_wait_too_long_is_refused(clock):
    make().check(1, seconds=0.05, waiting=50, wait_s=2)
    with pytest.raises(errors.OverloadedError, match=re.escape("would wait 3.0 s for its turn, at most 2.5 s")):
        make().check(1, seconds=0.05, waiting=60, wait_s=3)


def test_rows_of_a_long_list_whose_turn_comes_later_do_not_count(clock):
    make().check(1, seconds=0.05, waiting=90, wait_s=0.05)


def test_in_a_flood_a_call_may_wait_a_moment_only(clock):
    """1000 rows a second against 100 that can be computed: those let in keep their latency."""
    flooded = after_its_start(make(), clock)
    for _ in range(1500):
        clock.now += 0.001
        flooded.check(1, seconds=0.01, waiting=12, wait_s=0.12)
    with pytest.raises(errors.OverloadedError, match=re.escape(f"at most {admission.FLOOD_WAIT_S:g} s")):
        flooded.check(1, seconds=0.01, waiting=33, wait_s=0.33)
    assert flooded.flooded


def test_a_few_callers_who_wait_for_each_answer_are_no_flood_however_long_a_row_takes(clock):
    few = make()
    for _ in range(400):
        clock.now += 0.0025
        few.check(1, seconds=0.2, waiting=8, wait_s=1.6)


def test_twice_the_load_for_some_seconds_is_no_flood(clock):
    """What the others get while a replica is replaced, and another starts on the same cores."""
    steady = make()
    for _ in range(400):
        clock.now += 0.005
        steady.check(1, seconds=0.02, waiting=90, wait_s=1.8)
    assert not steady.flooded


def test_a_flood_that_has_passed_is_forgotten(clock):
    past = after_its_start(make(), clock)
    for _ in range(1500):
        clock.now += 0.001
        past.check(1, seconds=0.01, waiting=0, wait_s=0)
    clock.now += 2 * arrivals.WINDOW_S
    past.check(1, seconds=0.01, waiting=30, wait_s=0.3)


@pytest.mark.parametrize(
    ("short_before_s", "since_s"), [(0.3, arrivals.WINDOW_S), (2.0, 2.0), (40.0, admission.SEEN_AFTER_S)]
)
def test_a_flood_brought_what_came_since_the_queue_was_short(clock, short_before_s, since_s):
    """At least what showed it, and no more than it may have brought: what came long before has waited long enough."""
    brought = make()
    brought.check(1, seconds=0.01, waiting=1, wait_s=0.01)
    clock.now += short_before_s
    brought.check(1, seconds=0.01, waiting=90, wait_s=0.9)
    assert clock.now - brought.flood_since == pytest.approx(since_s)


def test_a_queue_that_stands_for_a_minute_is_treated_like_a_flood_until_it_was_short(clock):
    """Half again as much as can be computed, and no end of it."""
    standing = make(max_queue_rows=10_000, max_queue_s=30)
    for _ in range(int(admission.STANDING_S / 0.05)):
        standing.check(1, seconds=0.075, waiting=200, wait_s=20)
        clock.now += 0.05
    clock.now += 1
    with pytest.raises(errors.OverloadedError, match=re.escape(f"at most {admission.FLOOD_WAIT_S:g} s")):
        standing.check(1, seconds=0.075, waiting=200, wait_s=20)
    standing.check(1, seconds=0.075, waiting=33, wait_s=0.1)
    standing.check(1, seconds=0.075, waiting=200, wait_s=20)


def test_what_a_lost_replica_had_on_its_way_is_no_flood_however_much_it_is(clock):
    """Twelve seconds' work within a quarter of a second, on top of what comes always."""
    lost = after_its_start(make(max_queue_rows=5000, max_queue_s=20), clock)
    for number in range(1600):
        clock.now += 0.0002 if 200 <= number < 1400 else 0.005
        lost.check(1, seconds=0.01, waiting=100, wait_s=10)
        assert not lost.flooded


class TestASuddenRise:
    """Calls of 10 ms: a hundred a second are what can be done."""

    def flooded(self, clock, *, before, calls_per_s, seconds, offered=None):
        """Whether it counts as a flood after so many seconds of this rate, and ten of the rate before."""
        rising = after_its_start(make(max_queue_rows=5000), clock)
        for rate, lasts, waiting in ((before, 10, 0), (calls_per_s, seconds, 60)):
            for _ in range(int(rate * lasts)):
                clock.now += 1 / rate
                try:
                    rising.check(1, seconds=0.01, waiting=waiting, wait_s=waiting * 0.01, offered=offered)
                except errors.OverloadedError:
                    assert rising.flooded
        return rising.flooded

    def test_three_times_what_can_be_done_is_a_flood_where_a_sixth_of_it_came_before(self, clock):
        assert self.flooded(clock, before=50, calls_per_s=300, seconds=1.2)

    def test_it_stays_one_for_as_long_as_it_lasts(self, clock):
        assert self.flooded(clock, before=50, calls_per_s=300, seconds=50)

    def test_before_most_of_a_second_has_passed_it_is_none(self, clock):
        assert not self.flooded(clock, before=50, calls_per_s=300, seconds=0.4)

    def test_twice_as_many_calls_as_before_are_none_however_slow_the_machine_has_become(self, clock):
        """A replica was lost, and all that runs beside it makes the engine slow: more than three times too much."""
        assert not self.flooded(clock, before=170, calls_per_s=340, seconds=20)

    def test_where_hardly_anything_came_before_it_is_none(self, clock):
        assert not self.flooded(clock, before=5, calls_per_s=300, seconds=20)

    def test_what_was_refused_on_the_way_counts(self, clock):
        assert self.flooded(clock, before=50, calls_per_s=110, seconds=1.2, offered=300)


class TestTurns:
    def turns(self, made, clock, *, calls, every_s=0.0025, waiting=40):
        """Turns of so many calls, each of 10 ms, less the time at which the first of them came."""
        began, found = clock.now, []
        for _ in range(calls):
            made.check(1, seconds=0.01, waiting=waiting, wait_s=waiting * 0.01)
            found.append(made.turn(clock.now) - began)
            clock.now += every_s
        return found

    def test_calls_go_in_the_order_of_their_coming(self, clock):
        usual = after_its_start(make(), clock)
        turns = self.turns(usual, clock, calls=500, every_s=0.007)
        assert turns == sorted(turns)

    def test_where_a_flood_may_be_coming_the_last_go_first_but_not_before_those_who_waited_long(self, clock):
        """Four times as much as can be done, where nothing came before: newest first, for two seconds."""
        sudden = after_its_start(make(), clock)
        turns = self.turns(sudden, clock, calls=1600)
        top = turns.index(max(turns[:400]))
        assert top < 0.5 / 0.0025, "soon"
        mirrored = turns[top : top + int(admission.SUDDEN_S / 0.0025)]
        assert mirrored == sorted(mirrored, reverse=True)
        assert min(turns) >= turns[top] - admission.SUDDEN_S - 0.01
        assert turns[-1] == pytest.approx(1599 * 0.0025), (
            "not for longer: then it is no flood, and the first have waited"
        )
        assert not sudden.flooded

    def test_once_the_queue_was_short_it_may_happen_again(self, clock):
        again = after_its_start(make(), clock)
        self.turns(again, clock, calls=1600)
        self.turns(again, clock, calls=1, waiting=1)
        turns = self.turns(again, clock, calls=600)
        assert turns[-1] < turns[0]

    def test_a_few_who_wait_keep_their_order(self, clock):
        few = after_its_start(make(), clock)
        turns = self.turns(few, clock, calls=800, waiting=admission.FLOOD_ROWS)
        assert turns == sorted(turns)


def test_what_waited_for_a_replica_is_no_flood_when_it_comes(clock):
    started = make(max_queue_rows=1000, max_queue_s=10)
    for waiting in range(400):
        started.check(1, seconds=0.01, waiting=waiting, wait_s=waiting * 0.01)
    assert not started.flooded


def test_a_flood_that_was_refused_on_the_way_is_one_all_the_same(clock):
    """Of 1000 calls a second 30 are let through: by these alone it would be no flood."""
    behind = after_its_start(make(), clock)
    for _ in range(60):
        clock.now += 1 / 30
        behind.check(1, seconds=0.01, waiting=12, wait_s=0.12, offered=1000)
    with pytest.raises(errors.OverloadedError):
        behind.check(1, seconds=0.01, waiting=60, wait_s=0.6, offered=1000)
    behind.check(1, seconds=0.01, waiting=60, wait_s=0.6, offered=100)
