"""Connections over real sockets, to uvicorn in a thread: heads that are too long, too slow, or no HTTP."""

import json
import socket
import threading
import time

import pytest
import uvicorn

from madewithml.serving import connection

from . import running


async def app(scope, receive, send):
    """Reads the body and says how long it was."""
    assert scope["type"] == "http"
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
    await send({"type": "http.response.body", "body": b"%08d" % size})


@pytest.fixture
def port(monkeypatch):
    """uvicorn with these connections, which lose patience soon."""
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.3)
    number = running.free_port()
    config = uvicorn.Config(app, port=number, http=connection.Connection, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    running.until(lambda: server.started, what="uvicorn")
    yield number
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def client(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as opened:
        yield opened


def answer(client):
    """All that comes until the other side closes: status and problem."""
    received = b""
    while piece := client.recv(65536):
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["type"].rpartition(":")[2]


def request(size=0):
    return b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size


def test_requests_on_one_connection_are_answered_one_after_the_other(client):
    for size in (0, 5, 70_000, 200_000, 1_000_000, 70_000, 0):
        client.sendall(request(size))
        received = b""
        while not received.endswith(b"%08d" % size):
            received += client.recv(65536)
        assert received.startswith(b"HTTP/1.1 200 ")


def test_between_two_requests_there_is_no_clock(client):
    client.sendall(request(3))
    assert b"00000003" in client.recv(65536)
    client.settimeout(3 * connection.HEAD_TIMEOUT_S)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(20)
    client.sendall(request(4))
    assert b"00000004" in client.recv(65536)


def test_a_head_that_does_not_end_is_given_up(client):
    client.sendall(b"POST / HTTP/1.1\r\nHost: he")
    assert answer(client) == (408, "too_slow")


def test_so_is_a_connection_on_which_nothing_comes(client):
    assert answer(client) == (408, "too_slow")


def test_a_byte_now_and_then_wins_no_time(client):
    started = time.monotonic()
    client.sendall(b"GET / HTTP/1.1\r\n")
    client.settimeout(0.05)
    while time.monotonic() - started < 10:
        try:
            client.sendall(b"X-A: 1\r\n")
            if client.recv(1):
                break
        except TimeoutError:
            pass
    assert time.monotonic() - started < 5


def test_a_head_of_any_length_is_not_taken(client):
    """It is told so, if it still listens by then."""
    try:
        client.sendall(b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 5_000_000)
        outcome = answer(client)
    except ConnectionError:
        outcome = "closed"
    assert outcome in ("closed", (400, "malformed_request"))


def test_a_second_head_is_watched_like_the_first(client):
    client.sendall(request(3))
    assert b"00000003" in client.recv(65536)
    client.sendall(b"GET / HT")
    assert answer(client) == (408, "too_slow")


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_no_http_is_answered_with_a_problem(client, sent):
    client.sendall(sent)
    assert answer(client) == (400, "malformed_request")


def test_while_a_body_comes_the_head_has_no_clock(client):
    client.sendall(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\n12345")
    client.settimeout(0.6)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.sendall(b"67890")
    client.settimeout(20)
    assert b"00000010" in client.recv(65536)
