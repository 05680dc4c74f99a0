"""Connections that go from one process to another: two places in one table, and real connections between them."""

import contextlib
import os
import socket

import pytest

from madewithml.serving import neighbours


@pytest.fixture
def table(make_table):
    return make_table(3)


@pytest.fixture
def seated(table):
    """Takes a place in the table, as a process does when it starts."""
    with contextlib.ExitStack() as stack:

        def take():
            place = neighbours.Neighbours(table)
            stack.callback(place.close)
            return place

        yield take


@pytest.fixture
def first(seated):
    return seated()


@pytest.fixture
def second(first, seated):
    return seated()


@pytest.fixture
def connections():
    """Makes connections: this end and the client's."""
    with contextlib.ExitStack() as stack:

        def make():
            return tuple(stack.enter_context(end) for end in socket.socketpair())

        yield make


def come(place, connections, count):
    """As many connections from the kernel; returns how many stay."""
    stayed = 0
    for _ in range(count):
        here, _ = connections()
        if not place.hand_over(here.fileno()):
            place.opened()
            stayed += 1
    return stayed


def arrivals(place):
    """How many connections others gave; they are closed."""
    return sum(1 for connection in place.received() if connection.close() is None)


def test_the_other_goes_on_with_a_connection_where_its_client_notices_nothing(first, second, connections):
    first.opened()
    here, client = connections()
    assert first.hand_over(here.fileno())
    here.close()
    (received,) = second.received()
    with received:
        client.sendall(b"asked")
        assert received.recv(16) == b"asked"
        received.sendall(b"answered")
    assert client.recv(16) == b"answered"


def test_one_that_has_no_more_than_another_keeps_what_it_is_given(first, second, connections):
    first.opened()
    second.opened()
    assert come(first, connections, 1) == 1


def test_what_is_on_its_way_counts_where_it_goes(first, second, connections):
    assert come(first, connections, 8) == 4
    assert first.loads()[:2] == [4, 4]
    assert arrivals(second) == 4
    assert first.loads()[:2] == [4, 4]


def test_one_that_closed_has_fewer(first, second, connections):
    come(first, connections, 4)
    assert arrivals(second) == 2
    second.closed()
    assert come(first, connections, 1) == 0


def test_one_that_leaves_is_given_nothing_and_gives_all(first, second, connections):
    second.leave()
    assert come(first, connections, 3) == 3
    assert come(second, connections, 3) == 0
    assert arrivals(first) == 3


def test_one_that_has_not_started_is_given_nothing(first, connections):
    assert come(first, connections, 3) == 3


def test_one_that_is_gone_is_passed_over(first, second, seated, connections):
    second.close()
    assert come(first, connections, 3) == 3
    third = seated()  # in the place that is free
    assert third.loads()[1] == 0
    assert come(first, connections, 1) == 0
    assert arrivals(third) == 1


def test_those_that_leave_give_each_other_nothing(first, second, connections):
    first.leave()
    second.leave()
    assert come(first, connections, 3) == 3


def test_where_the_first_choice_is_gone_the_next_is_taken(first, second, seated, connections):
    third = seated()
    second.close()
    first.opened()
    assert come(first, connections, 1) == 0
    assert arrivals(third) == 1


def test_one_that_is_started_anew_begins_with_none(first, second, seated, connections):
    come(first, connections, 4)
    second.opened()
    second.close()
    again = seated()
    assert again.loads()[:2] == [2, 0]
    assert come(first, connections, 1) == 0
    assert arrivals(again) == 1


def test_one_that_does_not_read_gets_no_more_than_may_wait(first, second, connections):
    here, _ = connections()
    first.opened()
    given = 0
    while first.hand_over(here.fileno()):
        given += 1
        first.opened()  # so that it always has more
        assert given < 10_000
    assert arrivals(second) == given
    assert first.hand_over(here.fileno())


def test_all_places_may_be_taken(first, second, seated):
    seated()
    with pytest.raises(OSError, match="no place is left among 3 processes"):
        seated()


def test_what_another_user_sends_is_not_taken(first, second, connections, monkeypatch):
    first.opened()
    assert come(first, connections, 1) == 0
    before = second.loads()
    monkeypatch.setattr(os, "getuid", lambda: -1)
    assert arrivals(second) == 0
    assert second.loads() == before
