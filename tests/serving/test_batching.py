"""The queue between the event loop and the engine, with engines that a test holds and releases."""

import asyncio
import threading
import time

import pytest

from madewithml import engine_report, errors
from madewithml.serving import admission, arrivals, batching
from madewithml.tokenization import Tokens

from .conftest import stop_clock


class Engine:
    """Answers each row with its ids. While it is held it waits before each batch for one permit."""

    def __init__(self, *, held=False):
        self.batches = []
        self._permits = threading.Semaphore(0)
        self._held = held

    def __call__(self, rows):
        self.batches.append([row.ids for row in rows])
        if self._held:
            assert self._permits.acquire(timeout=20)
        return [{"ids": row.ids} for row in rows]

    def step(self):
        """Let one batch through."""
        self._permits.release()

    def release(self):
        """Hold no batch any more."""
        self._held = False
        self._permits.release()

    @property
    def computed(self):
        """Ids of every row that was computed, in order."""
        return [ids for batch in self.batches for ids in batch]


class Spoiled(Engine):
    """Fails on a batch that holds the row [13]."""

    def __call__(self, rows):
        answers = super().__call__(rows)
        if [13] in self.batches[-1]:
            raise ValueError("thirteen")
        return answers


class Miscounting(Engine):
    """Loses the first answer of every batch of two."""

    def __call__(self, rows):
        answers = super().__call__(rows)
        return answers[1:] if len(answers) == 2 else answers


def row(*ids):
    return Tokens(list(ids), truncated=False)


def of_length(length, mark=0):
    """A row that can be told from others of its length by its first id."""
    return row(mark, *[0] * (length - 1))


def make(engine, *, max_batch_size=4, max_queue_rows=100):
    """A queue for an engine on which a batch costs so much by itself that it is always worth filling."""
    curve = engine_report.CostCurve(budget_tokens=10_000, overhead_tokens=10_000.0)
    return batching.Batcher(
        engine, max_batch_size=max_batch_size, curve=curve, max_queue_rows=max_queue_rows, max_queue_s=60
    )


async def until(condition):
    """Poll until the condition holds."""
    last = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < last, "waited 20 s in vain"
        await asyncio.sleep(0.001)


async def submit(batcher, *rows, timeout_s=20, departure=None):
    """Start a call and return its task once its rows are in the queue."""
    task = asyncio.create_task(batcher.submit(rows, timeout_s=timeout_s, departure=departure))
    await asyncio.sleep(0)
    return task


async def occupy(batcher, engine):
    """Give a held engine a row to be busy with."""
    task = await submit(batcher, row(99))
    await until(lambda: engine.batches)
    return task


class TestBatches:
    def test_an_idle_engine_starts_at_once(self):
        """No timer: a lone row is computed although a batch of four was never full."""

        async def scenario():
            engine = Engine()
            answers = await asyncio.wait_for(make(engine).submit([row(1)], timeout_s=20), 20)
            return answers, engine.batches

        assert asyncio.run(scenario()) == ([{"ids": [1]}], [[[1]]])

    def test_rows_that_wait_together_are_computed_together(self):
        async def scenario():
            engine = Engine(held=True)
            batcher = make(engine)
            calls = [await occupy(batcher, engine)]
            calls += [await submit(batcher, row(mark)) for mark in (1, 2, 3)]
            waiting = batcher.waiting
            engine.release()
            await asyncio.gather(*calls)
            return waiting, engine.batches

        assert asyncio.run(scenario()) == (3, [[[99]], [[1], [2], [3]]])

    def test_a_batch_holds_at_most_max_batch_size_rows(self):
        async def scenario():
            engine = Engine()
            await make(engine, max_batch_size=4).submit([row(i) for i in range(10)], timeout_s=20)
            return [len(batch) for batch in engine.batches]

        assert asyncio.run(scenario()) == [4, 4, 2]

    def test_one_call_larger_than_a_batch_is_answered_whole_and_in_order(self):
        async def scenario():
            engine = Engine()
            lengths = [5, 60, 7, 1, 33, 2, 60, 5, 8, 13, 21]
            rows = [of_length(length, mark=i) for i, length in enumerate(lengths)]
            answers = await make(engine, max_batch_size=3).submit(rows, timeout_s=20)
            return [(answer["ids"][0], len(answer["ids"])) for answer in answers] == list(enumerate(lengths))

        assert True is asyncio.run(scenario())

    def test_every_call_gets_the_answers_to_its_own_rows(self):
        async def scenario():
            batcher = make(Engine(), max_batch_size=3)
            calls = [[of_length(1 + (i * 7 + j) % 12, mark=10 * i + j) for j in range(i % 4 + 1)] for i in range(20)]
            answers = await asyncio.gather(*(batcher.submit(rows, timeout_s=20) for rows in calls))
            expected = [[{"ids": tokens.ids} for tokens in rows] for rows in calls]
            return expected, answers

        expected, actual = asyncio.run(scenario())
        assert expected == actual


class TestDeadlines:
    def test_a_call_past_its_deadline_fails_and_is_never_computed(self):
        async def scenario():
            engine = Engine(held=True)
            batcher = make(engine)
            first = await occupy(batcher, engine)
            late = await submit(batcher, row(1), row(2), timeout_s=0.01)
            patient = await submit(batcher, row(3))
            expired = time.monotonic() + 0.01
            await until(lambda: time.monotonic() > expired)
            engine.release()
            with pytest.raises(errors.DeadlineExceededError, match="took longer than it may and was given up"):
                await late
            await asyncio.gather(first, patient)
            return engine.computed

        assert asyncio.run(scenario()) == [[99], [3]]

    def test_a_call_behind_an_engine_that_hangs_fails_at_its_deadline(self):
        async def scenario():
            engine = Engine(held=True)
            batcher = make(engine)
            hangs = await occupy(batcher, engine)
            with pytest.raises(errors.DeadlineExceededError):
                await batcher.submit([row(1)], timeout_s=0.02)
            busy = not hangs.done()
            engine.release()
            await hangs
            return busy, batcher.waiting

        assert asyncio.run(scenario()) == (True, 0)

    def test_a_deadline_is_a_gateway_timeout_to_the_caller(self):
        assert errors.DeadlineExceededError.status == 504


class TestClientsThatLeave:
    def test_rows_of_a_cancelled_call_are_dropped_and_never_computed(self):
        async def scenario():
            engine = Engine(held=True)
            batcher = make(engine)
            first = await occupy(batcher, engine)
            gone = await submit(batcher, row(1), row(2))
            stays = await submit(batcher, row(3))
            gone.cancel()
            await asyncio.wait([gone])
            engine.release()
            await asyncio.gather(first, stays)
            return gone.cancelled(), engine.computed

        assert asyncio.run(scenario()) == (True, [[99], [3]])

    def test_a_call_whose_client_has_gone_is_dropped_and_never_computed(self):
        async def scenario():
            engine = Engine(held=True)
            batcher = make(engine)
            first = await occupy(batcher, engine)
            left = asyncio.Event()
            gone = await submit(batcher, row(1), departure=left.wait)
            stays = await submit(batcher, row(2), departure=asyncio.Event().wait)
            left.set()
            await asyncio.wait([gone])
            engine.release()
            await asyncio.gather(first, stays)
            with pytest.raises(errors.ClientGoneError, match="the client closed the connection"):
                gone.result()
            return engine.computed

        assert asyncio.run(scenario()) == [[99], [2]]

    def test_the_more_rows_a_client_sent_the_sooner_it_is_watched(self, monkeypatch):
        monkeypatch.setattr(batching, "WATCH_AFTER_S", 30.0)
        watched = []

        def departure_of(name):
            async def departure():
                watched.append(name)
                await asyncio.Event().wait()

            return departure

        async def scenario():
            engine = Engine(held=True)
            batcher = make(engine, max_queue_rows=2000)
            lone = await submit(batcher, row(1), departure=departure_of("lone"))
            many = await submit(batcher, *[row(2)] * 1000, departure=departure_of("many"))
            await until(lambda: watched)
            engine.release()
            await asyncio.gather(lone, many)

        asyncio.run(scenario())
        assert watched == ["many"]

    def test_a_client_is_not_watched_any_more_once_it_has_its_answer(self):
        watchers = []

        async def departure():
            watchers.append(asyncio.current_task())
            await asyncio.Event().wait()

        async def scenario():
            engine = Engine(held=True)
            batcher = make(engine)
            call = await submit(batcher, row(1), departure=departure)
            await until(lambda: watchers)
            engine.release()
            await call
            await asyncio.wait(watchers)
            return [watcher.cancelled() for watcher in watchers]

        assert asyncio.run(scenario()) == [True]

    def test_a_call_cancelled_while_it_is_computed_leaves_the_others_of_its_batch_alone(self):
        async def scenario():
            engine = Engine(held=True)
            batcher = make(engine)
            first = await occupy(batcher, engine)
            gone, stays = await submit(batcher, row(1)), await submit(batcher, row(2))
            engine.step()
            await until(lambda: len(engine.batches) == 2)
            gone.cancel()
            await asyncio.wait([gone])
            engine.release()
            await first
            return gone.cancelled(), await stays, engine.batches

        assert asyncio.run(scenario()) == (True, [{"ids": [2]}], [[[99]], [[1], [2]]])


class TestAFullQueue:
    def test_a_call_without_room_is_refused_at_once_and_told_when_to_come_back(self):
        async def scenario():
            engine = Engine(held=True)
            batcher = make(engine, max_queue_rows=2)
            calls = [await occupy(batcher, engine), await submit(batcher, row(1), row(2))]
            with pytest.raises(
                errors.OverloadedError, match="2 rows are waiting, at most 2 may: try again later"
            ) as caught:
                await batcher.submit([row(3)], timeout_s=20)
            engine.release()
            await asyncio.gather(*calls)
            return caught.value, engine.computed

        refusal, computed = asyncio.run(scenario())
        assert refusal.status == 429
        assert refusal.retry_after_s > 0
        assert computed == [[99], [1], [2]]

    def test_there_is_room_again_when_rows_were_computed(self):
        async def scenario():
            engine = Engine(held=True)
            batcher = make(engine, max_queue_rows=1)
            calls = [await occupy(batcher, engine), await submit(batcher, row(1))]
            engine.release()
            await asyncio.gather(*calls)
            return await batcher.submit([row(2)], timeout_s=20)

        assert asyncio.run(scenario()) == [{"ids": [2]}]

    def test_a_call_larger_than_the_whole_queue_is_taken_when_nothing_waits(self):
        """Else a list within `max_rows` could never be answered by a service with a short queue."""

        async def scenario():
            answers = await make(Engine(), max_queue_rows=2).submit([row(i) for i in range(5)], timeout_s=20)
            return [answer["ids"] for answer in answers]

        assert asyncio.run(scenario()) == [[0], [1], [2], [3], [4]]


class TestAFailingEngine:
    def test_its_exception_reaches_the_callers_of_that_batch_only_and_the_queue_goes_on(self):
        async def scenario():
            engine = Spoiled(held=True)
            batcher = make(engine, max_batch_size=2)
            first = await occupy(batcher, engine)
            calls = [await submit(batcher, row(mark)) for mark in (13, 1, 2, 3)]
            engine.release()
            await first
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            afterwards = await batcher.submit([row(4)], timeout_s=20)
            return outcomes, afterwards, engine.batches

        outcomes, afterwards, batches = asyncio.run(scenario())
        assert [str(outcome) for outcome in outcomes[:2]] == ["thirteen", "thirteen"]
        assert outcomes[2:] == [[{"ids": [2]}], [{"ids": [3]}]]
        assert afterwards == [{"ids": [4]}]
        assert batches == [[[99]], [[13], [1]], [[2], [3]], [[4]]]

    def test_the_rest_of_a_call_that_failed_is_not_computed(self):
        async def scenario():
            engine = Spoiled()
            with pytest.raises(ValueError, match="thirteen"):
                await make(engine, max_batch_size=1).submit([row(13), row(1), row(2)], timeout_s=20)
            return engine.computed

        assert asyncio.run(scenario()) == [[13]]

    def test_an_engine_that_loses_an_answer_fails_its_batch_so_that_nobody_gets_anothers(self):
        async def scenario():
            engine = Miscounting(held=True)
            batcher = make(engine)
            first = await occupy(batcher, engine)
            calls = [await submit(batcher, row(mark)) for mark in (1, 2)]
            engine.release()
            outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
            return await first, outcomes, await batcher.submit([row(3)], timeout_s=20)

        first, outcomes, afterwards = asyncio.run(scenario())
        assert first == [{"ids": [99]}]
        assert [str(outcome) for outcome in outcomes] == ["the engine gave 1 answers for 2 rows"] * 2
        assert afterwards == [{"ids": [3]}]


class TestDrain:
    def test_it_answers_everything_that_was_accepted(self):
        async def scenario():
            engine = Engine(held=True)
            batcher = make(engine, max_batch_size=2)
            calls = [await occupy(batcher, engine)]
            calls += [await submit(batcher, row(mark)) for mark in range(5)]
            draining = asyncio.create_task(batcher.drain())
            await asyncio.sleep(0)
            early = draining.done()
            engine.release()
            await draining
            return early, batcher.waiting, [call.result()[0]["ids"] for call in calls]

        assert asyncio.run(scenario()) == (False, 0, [[99], [0], [1], [2], [3], [4]])

    def test_an_idle_queue_drains_at_once(self):
        assert None is asyncio.run(asyncio.wait_for(make(Engine()).drain(), 5))

    def test_the_engine_thread_ends_with_it(self):
        async def scenario():
            batcher = make(Engine())
            await batcher.submit([row(1)], timeout_s=20)
            thread = batcher._engine
            alive = thread.is_alive()
            await batcher.drain()
            await until(lambda: not thread.is_alive())
            return alive

        assert asyncio.run(scenario()) is True


class TestAStuckEngine:
    def test_a_batch_is_stuck_past_the_limit_and_only_while_it_lasts(self):
        async def scenario():
            engine = Engine(held=True)
            batcher = make(engine)
            call = await occupy(batcher, engine)
            seen = [batcher.stuck(60)]
            await until(lambda: batcher.stuck(0.05))
            engine.release()
            await call
            return [*seen, batcher.stuck(0.0)]

        assert asyncio.run(scenario()) == [False, False]

    def test_a_batch_that_takes_as_long_as_is_to_be_expected_is_not_stuck(self):
        async def scenario():
            engine = Engine(held=True)
            batcher = make(engine)
            batcher.expect(30)
            call = await occupy(batcher, engine)
            stuck = batcher.stuck(0.0)
            engine.release()
            await call
            return stuck

        assert asyncio.run(scenario()) is False


async def flooded(clock, *, after_s=0.0):
    """A call that the engine is busy with and, so much later, two thousand within a second.

    Returns:
        How many rows wait when some are refused; what came of the first call, and of each of the flood.
    """
    engine = Engine(held=True)
    batcher = make(engine, max_queue_rows=5000)
    first = await occupy(batcher, engine)
    clock.now += after_s
    flood = []
    for mark in range(2000):
        clock.now += 0.0005
        flood.append(await submit(batcher, of_length(50, mark)))
    await until(lambda: any(call.done() for call in flood))
    waiting = batcher.waiting
    engine.release()
    return waiting, await asyncio.gather(first, *flood, return_exceptions=True)


class TestFlood:
    @pytest.fixture
    def clock(self, monkeypatch):
        clock = stop_clock(monkeypatch, admission, arrivals, batching)
        monkeypatch.setattr(admission, "START_S", -1.0)
        return clock

    def test_when_it_is_seen_what_it_brought_is_refused_but_for_a_moments_worth(self, clock):
        """Rows of 50 tokens, 5 ms: 20 are a tenth of a second. The one that came before the flood keeps its place."""

        waiting, (first, *answers) = asyncio.run(flooded(clock, after_s=2 * arrivals.WINDOW_S))
        refused = [answer for answer in answers if isinstance(answer, errors.OverloadedError)]
        assert first == [{"ids": [99]}]
        assert waiting <= 60
        assert 0 < len(answers) - len(refused) <= 60
        kept = [number for number, answer in enumerate(answers) if not isinstance(answer, errors.OverloadedError)]
        shed = [number for number, answer in enumerate(answers) if isinstance(answer, errors.OverloadedError)]
        assert min(kept) > min(shed), "of what waits, those that came last are answered: they will not wait long"

    def test_what_the_engine_has_is_answered_however_long_it_takes(self, clock):
        """Brought by the flood, too, and its first: but it is on its way out, and its work would be lost."""
        _, (first, *answers) = asyncio.run(flooded(clock))
        assert first == [{"ids": [99]}]
        assert any(isinstance(answer, errors.OverloadedError) for answer in answers)
