"""What the event loop gets done between two batches."""

import asyncio
import threading

import pytest

from madewithml import engine_report
from madewithml.serving import batching, interlude
from madewithml.tokenization import Tokens


class Waiting:
    """Rows that wait, as far as it matters here."""

    def __init__(self, *, room):
        self.tokens = 0
        self._room = room

    @property
    def full(self):
        return self.tokens >= self._room


def arrive(waiting, *, rows, every):
    """Have rows come one by one, so many turns of the loop apart."""
    loop = asyncio.get_running_loop()

    def turn(left, quiet):
        if quiet:
            loop.call_soon(turn, left, quiet - 1)
        elif left:
            waiting.tokens += 1
            loop.call_soon(turn, left - 1, every - 1)

    loop.call_soon(turn, rows, every - 1)


@pytest.fixture
def patient(monkeypatch):
    """A loop may take as long as it likes: the machine under a test may be slow."""
    monkeypatch.setattr(interlude, "LONGEST_S", 20.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("rows", "every", "room", "expected"),
    [
        (0, 1, 100, 0),
        (20, 1, 100, 20),
        (5, interlude.QUIET_TURNS - 1, 100, 5),
        (20, 1, 6, 6),
    ],
    ids=["none come", "they come in turn", "they come with pauses", "enough for a batch"],
)
def test_what_comes_meanwhile_is_there_afterwards(rows, every, room, expected):
    async def scenario():
        waiting = Waiting(room=room)
        arrive(waiting, rows=rows, every=every)
        seen = []
        loop = asyncio.get_running_loop()
        engine = threading.Thread(target=lambda: (interlude.hold(loop, waiting), seen.append(waiting.tokens)))
        engine.start()
        while engine.is_alive():
            await asyncio.sleep(0)
        return seen[0]

    assert expected <= asyncio.run(scenario()) <= rows


def test_a_loop_that_is_busy_is_not_waited_for():
    async def scenario():
        over = threading.Event()
        loop = asyncio.get_running_loop()
        engine = threading.Thread(target=lambda: (interlude.hold(loop, Waiting(room=100)), over.set()))
        engine.start()
        return over.wait(20)  # blocks the loop

    assert asyncio.run(scenario())


def test_a_closed_loop_is_told():
    loop = asyncio.new_event_loop()
    loop.close()

    with pytest.raises(RuntimeError, match="closed"):
        interlude.hold(loop, Waiting(room=100))


@pytest.mark.usefixtures("patient")
def test_calls_that_follow_answers_are_computed_together():
    """Eight callers, each of whom asks again when it is answered: a batch is all of them, not the first of them."""
    batches = []

    def compute(rows):
        batches.append(len(rows))
        return [{} for _ in rows]

    async def scenario():
        curve = engine_report.CostCurve(budget_tokens=1000, overhead_tokens=0.0)
        batcher = batching.Batcher(compute, max_batch_size=100, curve=curve, max_queue_rows=100, max_queue_s=60)

        async def caller():
            for _ in range(10):
                await batcher.submit([Tokens([1], truncated=False)], timeout_s=20)

        await caller()  # its thread runs
        batches.clear()
        await asyncio.gather(*[caller() for _ in range(8)])

    asyncio.run(scenario())
    assert batches == [8] * 10
