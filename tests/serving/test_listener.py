"""The event loop of a process that shares its port: it serves what a neighbour gives it."""

import asyncio
import contextlib
import importlib.util
import pickle
import socket
import sys

import pytest

from madewithml.serving import listener, neighbours

from .conftest import until


class Echo(asyncio.Protocol):
    """Sends back what comes, and whether it may go on to a neighbour."""

    settled = False

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data + (b", settled" if self.settled else b", new"))
        self.transport.close()


@pytest.fixture(params=["uvloop", "asyncio"])
def module(request, monkeypatch):
    """The module as it is with uvloop, and where there is none."""
    if request.param == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)
    spec = importlib.util.spec_from_file_location(f"listener_{request.param}", listener.__file__)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def table(make_table):
    return make_table(2)


@pytest.fixture
def first(table):
    """Another process of the service, with a connection of its own."""
    place = neighbours.Neighbours(table)
    place.opened()
    yield place
    place.close()


@pytest.fixture
def run(module, first, table):
    """Runs a scenario in such a loop, beside a server of `Echo`."""

    def run(scenario):
        loop = module.Loop()

        async def serve():
            listening = module.SocketForEach.open(socket.AF_INET, "127.0.0.1", 0, table)
            server = await loop.create_server(Echo, sock=listening)
            try:
                return await scenario(loop.neighbours, listening.getsockname()[1])
            finally:
                server.close()

        try:
            return loop.run_until_complete(serve())
        finally:
            loop.close()

    return run


@contextlib.contextmanager
def connection():
    """This end of a connection over TCP, and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        here, _ = server.accept()
        with here:
            yield here, client


async def asked(client):
    loop = asyncio.get_running_loop()
    client.setblocking(False)
    await loop.sock_sendall(client, b"hello")
    return await loop.sock_recv(client, 64)


def test_what_a_neighbour_gives_is_served_and_stays(run, first):
    async def scenario(_own, _port):
        with connection() as (here, client):
            assert first.hand_over(here.fileno())
            here.close()
            return await asked(client)

    assert run(scenario) == b"hello, settled"


def test_what_the_kernel_gives_is_served(run):
    async def scenario(_own, port):
        with socket.create_connection(("127.0.0.1", port)) as client:
            return await asked(client)

    assert run(scenario) == b"hello, new"


def test_what_cannot_be_served_does_not_count(run, first):
    async def scenario(own, _port):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as no_stream:
            assert first.hand_over(no_stream.fileno())
        await until(lambda: own.loads() == [1, 0])

    run(scenario)


def test_a_loop_that_is_closed_is_given_nothing(run, first):
    async def scenario(own, _port):
        return own

    run(scenario)
    with connection() as (here, _):
        assert not first.hand_over(here.fileno())


def test_a_socket_is_opened_anew_where_it_is_sent():
    opened = listener.SocketForEach.open(socket.AF_INET, "127.0.0.1", 0)
    with opened, pickle.loads(pickle.dumps(opened)) as again:
        assert again.getsockname() == opened.getsockname()
        assert again.fileno() != opened.fileno()
