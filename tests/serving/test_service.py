"""One replica's service: warming up, what it refuses before and after, and how it stops."""

import asyncio
import logging

import pytest

from madewithml import errors

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
            await until(lambda: kitchen._batcher.waiting)
            await kitchen.stop()
            held.release()
            for call in calls:
                call.cancel()

        with caplog.at_level(logging.WARNING):
            asyncio.run(scenario())
        assert "stopped with 2 rows unanswered" in caplog.text
