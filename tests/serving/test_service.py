"""One replica's service: warming up, what it refuses before and after, and how it stops."""

import asyncio
import logging
import threading

import pytest

from madewithml import errors
from madewithml.serving import service

from .conftest import ROW, ConstantEngine, until


class TestWarmUp:
    def test_it_is_ready_afterwards(self, make_service):
        kitchen = make_service(ready=False)
        kitchen.warm_up()

        assert kitchen.ready is True

    def test_an_engine_that_does_not_reproduce_the_golden_rows_is_refused(self, make_service, predictor):
        kitchen = make_service(engine=ConstantEngine(predictor.engine, 3.0), ready=False)
        with pytest.raises(errors.CheckpointError, match=r"'constant' \(fp32\) does not reproduce the golden rows"):
            kitchen.warm_up()

        assert kitchen.ready is False


class TestAHungEngine:
    def test_its_process_ends_with_a_line_that_says_why(self, make_service, held, monkeypatch, capfd):
        ended = threading.Event()
        statuses = []

        def end(status):
            statuses.append(status)
            ended.set()

        monkeypatch.setattr(service.os, "_exit", end)
        kitchen = make_service(engine=held, hang_timeout_s=0.05)
        kitchen.current.batcher._longest_s = 0.0
        kitchen.exit_when_hung()

        async def scenario():
            call = asyncio.create_task(kitchen.answer([ROW]))
            await until(ended.is_set)
            held.release()
            await call

        asyncio.run(scenario())
        assert statuses == [service.HUNG]
        assert "a batch has been with the engine for more than 0.05 s: this process ends" in capfd.readouterr().err


class TestAnswer:
    def test_it_refuses_before_it_is_ready(self, make_service):
        with pytest.raises(errors.NotReadyError, match="the service is starting or stopping") as caught:
            asyncio.run(make_service(ready=False).answer([ROW]))

        assert caught.value.retry_after_s == 1

    def test_a_caller_may_wait_less_than_configured(self, make_service, held):
        kitchen = make_service(engine=held)

        async def scenario():
            first = asyncio.create_task(kitchen.answer([ROW]))
            await until(held.entered.is_set)
            late = asyncio.create_task(kitchen.answer([ROW], timeout_s=0.001))
            clock = asyncio.get_running_loop().time
            deadline = clock() + 0.01
            await until(lambda: clock() > deadline)
            held.release()
            return await asyncio.gather(first, late, return_exceptions=True)

        first, late = asyncio.run(scenario())
        assert len(first) == 1
        assert isinstance(late, errors.DeadlineExceededError)


class TestStop:
    def test_it_refuses_new_work(self, make_service):
        kitchen = make_service()

        async def scenario():
            await kitchen.answer([ROW])
            await kitchen.stop()
            await kitchen.answer([ROW])

        with pytest.raises(errors.NotReadyError, match="the service is starting or stopping"):
            asyncio.run(scenario())

    def test_what_takes_longer_than_the_grace_is_left_and_counted(self, make_service, held, caplog):
        kitchen = make_service(engine=held, drain_timeout_s=0.05)

        async def scenario():
            calls = [asyncio.create_task(kitchen.answer([ROW]))]
            await until(held.entered.is_set)
            calls.append(asyncio.create_task(kitchen.answer([ROW, ROW])))
            await until(lambda: kitchen.current.batcher.waiting)
            await kitchen.stop()
            held.release()
            for call in calls:
                call.cancel()

        with caplog.at_level(logging.WARNING):
            asyncio.run(scenario())
        assert "a-run ended with 2 requests unanswered" in caplog.text
