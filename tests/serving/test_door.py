"""A replica's own door, on a real socket of the kernel's; behind HAProxy it is in `test_on_ray.py`."""

import asyncio
import os
import signal
import sys
import uuid

import httpx
import pytest

from madewithml.serving import door, haproxy

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's own name space is Linux's")


class App:
    """Answers a call once it is told to."""

    def __init__(self):
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def __call__(self, scope, receive, send):
        assert scope["type"] == "http"
        self.asked.set()
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def replica():
    return f"SERVE_REPLICA::app#Model#{uuid.uuid4().hex[:8]}"


def client(replica):
    # httpx gives a path to `connect`; one that begins with a NUL is a name of the kernel's.
    address = haproxy.kernel_address(haproxy.door_name(replica)).decode()
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=address), base_url="http://door")


def is_open(replica):
    return haproxy._listens(haproxy.door_name(replica))


def test_it_answers_in_the_block_and_is_gone_afterwards(replica):
    async def run():
        app = App()
        app.may_answer.set()
        async with door.Door(app, replica, timeout_s=5), client(replica) as calling:
            answers = [await calling.get("/") for _ in range(3)]
            assert is_open(replica)

        assert [(answer.status_code, answer.text) for answer in answers] == [(200, "ok")] * 3
        assert "server" not in answers[0].headers
        assert not is_open(replica)

    asyncio.run(run())


def test_what_was_asked_is_answered_before_it_is_gone(replica):
    async def run():
        app = App()
        async with client(replica) as calling:
            async with door.Door(app, replica, timeout_s=30):
                call = asyncio.create_task(calling.get("/"))
                await app.asked.wait()
                asyncio.get_running_loop().call_later(0.2, app.may_answer.set)

            assert (await call).text == "ok"

    asyncio.run(run())


async def leave(replica):
    """A door that answers at once, and is being left."""
    app = App()
    app.may_answer.set()
    left = door.Door(app, replica, timeout_s=30)
    await left.__aenter__()
    return asyncio.create_task(left.__aexit__(None, None, None))


def test_a_leaving_replica_answers_until_no_calls_come(replica):
    async def run():
        statuses = []
        async with client(replica) as calling:
            leaving = await leave(replica)
            for _ in range(20):  # twice as long as it takes to be taken for quiet
                statuses.append((await calling.get("/")).status_code)
                await asyncio.sleep(door.QUIET_S / 10)
            assert not leaving.done()
            await asyncio.wait_for(leaving, 5)

        assert statuses == [200] * 20
        assert not is_open(replica)

    asyncio.run(run())


def test_calls_that_never_cease_do_not_keep_it_open(replica, monkeypatch):
    monkeypatch.setattr(door, "LEAVING_S", 1.0)

    async def call_for_ever(calling):
        while True:
            await calling.get("/")

    async def run():
        async with client(replica) as calling:
            leaving = await leave(replica)
            with pytest.raises(httpx.TransportError):
                await call_for_ever(calling)
            await asyncio.wait_for(leaving, 5)

    asyncio.run(run())


def test_signals_are_left_to_whoever_had_them(replica):
    async def run():
        came = []
        before = signal.signal(signal.SIGTERM, lambda *_: came.append("SIGTERM"))
        try:
            async with door.Door(App(), replica, timeout_s=5):
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0)
        finally:
            signal.signal(signal.SIGTERM, before)

        assert came == ["SIGTERM"]

    asyncio.run(run())


def test_a_name_that_is_taken_is_an_error_and_not_a_second_door(replica):
    async def run():
        async with door.Door(App(), replica, timeout_s=5):
            with pytest.raises(OSError, match="in use"):
                await door.Door(App(), replica, timeout_s=5).__aenter__()

    asyncio.run(run())
