"""Whose turn it is, and what makes a batch: rows that wait, taken without an engine."""

import time

import pytest

from madewithml import engine_report
from madewithml.serving import calls, turns
from madewithml.tokenization import Tokens


def make(*, max_batch_size=10, budget_tokens=10_000, overhead_tokens=10_000.0, pads=True):
    """By default a batch costs so much by itself that it is always worth filling."""
    return turns.Turns(engine_report.CostCurve(budget_tokens, overhead_tokens, pads), max_batch_size=max_batch_size)


def call_of(rows, *, step_s=0.0):
    return calls.Call(
        since=0.0,
        deadline=0.0,
        departure=None,
        answers=[None] * len(rows),
        missing=len(rows),
        tokens=sum(len(row.ids) for row in rows),
        step_s=step_s,
        done=None,
    )


def add(waiting, *lengths, step_s=0.0):
    """Have one call wait whose rows are so long."""
    rows = [Tokens([0] * length, truncated=False) for length in lengths]
    call = call_of(rows, step_s=step_s)
    return call, waiting.add(call, rows, rank=time.monotonic())


def add_each(waiting, *lengths):
    """Have calls of one row wait; gives the calls."""
    return [add(waiting, length)[0] for length in lengths]


def batch(waiting):
    """Lengths of the next batch."""
    return [len(each.row.ids) for each in waiting.take()]


def batches(waiting):
    """Lengths of all batches to come."""
    return list(iter(lambda: batch(waiting), []))


class TestWhatWaits:
    def test_rows_and_tokens_are_counted_until_they_are_taken(self):
        waiting = make(max_batch_size=2)
        add(waiting, 5, 7, 20)
        before = len(waiting), waiting.tokens
        waiting.take()

        assert before == (3, 32)
        assert (len(waiting), waiting.tokens) == (1, 20)

    def test_the_engine_is_told_of_the_first_call_and_again_once_it_found_nothing(self):
        waiting = make()
        told = [add(waiting, 1)[1], add(waiting, 1)[1]]
        waiting.take()
        told.append(add(waiting, 1)[1])  # it will come back for more by itself
        waiting.take()
        busy = waiting.busy
        waiting.take()
        told.append(add(waiting, 1)[1])

        assert told == [True, False, False, True]
        assert busy

    def test_it_is_busy_from_the_call_that_ended_its_rest(self):
        waiting = make()
        add(waiting, 1)
        since = waiting.busy_since
        add(waiting, 1)
        later = waiting.busy_since
        batches(waiting)
        idle = not waiting.busy
        add(waiting, 1)

        assert since == later
        assert idle
        assert waiting.busy_since > since

    @pytest.mark.parametrize("pads", [True, False])
    def test_a_call_goes_when_it_is_said_to_be_its_turn(self, pads):
        waiting = make(max_batch_size=1, pads=pads)
        for rank, length in ((3.0, 30), (1.0, 10), (2.0, 20)):
            rows = [Tokens([0] * length, truncated=False)]
            waiting.add(call_of(rows), rows, rank=rank)

        assert batches(waiting) == [[10], [20], [30]]

    @pytest.mark.parametrize("pads", [True, False])
    def test_a_call_that_was_withdrawn_is_not_taken(self, pads):
        waiting = make(pads=pads)
        first, second = add_each(waiting, 3, 4)
        waiting.withdraw(first)
        waiting.withdraw(first)

        assert (len(waiting), waiting.tokens) == (1, 4)
        assert [each.call for each in waiting.take()] == [second]
        assert batch(waiting) == []

    def test_what_was_taken_can_no_longer_be_withdrawn(self):
        waiting = make()
        call, _ = add(waiting, 3)
        taken = waiting.take()
        waiting.withdraw(call)

        assert (len(taken), waiting.tokens) == (1, 0)


class TestAnEngineThatPads:
    def test_like_lengths_go_with_the_oldest(self):
        waiting = make(max_batch_size=3)
        add_each(waiting, 10, 50, 11, 52, 9, 51)

        assert batches(waiting) == [[9, 10, 11], [50, 51, 52]]

    def test_a_long_row_does_not_starve_while_short_ones_keep_coming(self):
        """It goes in the batch after the one that was waiting before it, however many short rows come."""
        waiting = make(max_batch_size=2)
        add_each(waiting, 3, 3, 60)
        taken = []
        for _ in range(3):
            add_each(waiting, 3, 3, 3, 3)
            taken.append(60 in batch(waiting))

        assert taken == [False, True, False]

    def test_a_batch_holds_at_most_its_budget_of_tokens_padding_included(self):
        waiting = make(budget_tokens=40)
        add_each(waiting, 10, 11, 10, 12, 10, 100)

        # three rows of 11 make 33 tokens, a fourth would make 44; a row longer than the budget goes alone
        assert batches(waiting) == [[10, 10, 10], [11, 12], [100]]

    @pytest.mark.parametrize(
        ("overhead", "expected"),
        [
            (0.0, [[40], [41], [12], [10], [8]]),  # where a batch costs nothing by itself every row goes alone
            (10.0, [[40, 41], [8, 10, 12]]),  # not worth padding the short ones to 40
            (1000.0, [[8, 10, 12, 40, 41]]),
        ],
    )
    def test_rows_go_together_as_far_as_sharing_is_worth_the_padding(self, overhead, expected):
        waiting = make(overhead_tokens=overhead)
        add_each(waiting, 40, 41, 12, 10, 8)

        assert batches(waiting) == expected


class TestAnEngineThatDoesNot:
    def test_rows_go_in_the_order_they_came(self):
        waiting = make(max_batch_size=3, pads=False)
        add_each(waiting, 10, 50, 11, 52, 9, 51)

        assert batches(waiting) == [[10, 50, 11], [52, 9, 51]]

    def test_the_budget_counts_real_tokens(self):
        waiting = make(budget_tokens=40, pads=False)
        *_, gone = add_each(waiting, 30, 5, 5, 1, 100, 3, 2)
        waiting.withdraw(gone)

        # a row longer than the budget goes alone, and one that nobody waits for is not computed
        assert batches(waiting) == [[30, 5, 5], [1], [100], [3]]


def test_a_long_list_does_not_hold_up_a_call_of_one_row_that_comes_later():
    waiting = make(max_batch_size=2)
    add(waiting, *[1] * 1000, step_s=0.001)
    add(waiting, 50)
    taken = batches(waiting)

    assert next(index for index, each in enumerate(taken) if 50 in each) < 100
    assert sum(map(len, taken)) == 1001
