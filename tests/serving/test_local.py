"""Serving without Ray, in processes of its own: it answers, and a signal ends it and everything it started."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from types import SimpleNamespace

import httpx
import psutil
import pytest
import uvicorn
from uvicorn.supervisors import multiprocess

from madewithml import errors
from madewithml.serving import local

from . import running
from .conftest import ROW, until

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the processes share a socket")


@pytest.fixture
def handlers():
    """What handles SIGINT and SIGTERM in this process is put back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def start(trained, home, tmp_path_factory):
    """Starts a local service on the training run; whatever is left at the end is ended."""
    services = []

    def run(*arguments):
        folder = tmp_path_factory.mktemp("local")
        service = running.Service(folder, "--run-id", trained.run_id, "--home", home, "--local", *arguments)
        services.append(service)
        return service

    yield run
    for service in services:
        service.close()


@pytest.fixture(scope="module")
def one(start):
    """A local service of one process."""
    return start("--threshold", "0.5").wait_until_ready()


@pytest.fixture(scope="module")
def two(start):
    """A local service of two processes."""
    return start("--workers", "2").wait_until_ready()


def listeners(service):
    """The processes that take connections."""
    return [
        process
        for process in service.record_family()
        if any(connection.status == psutil.CONN_LISTEN for connection in process.net_connections("tcp"))
    ]


def shares(service, count):
    """How many each process has of as many connections, each of which was asked something."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(httpx.Client(base_url=service.url, timeout=60))
            assert client.post("/predict/", json=ROW).status_code == 200
        return sorted(
            sum(connection.status == psutil.CONN_ESTABLISHED for connection in process.net_connections("tcp"))
            for process in listeners(service)
        )


@pytest.mark.usefixtures("handlers")
class TestTheApp:
    """What each process builds from the plan that it is handed."""

    @pytest.fixture
    def hand_over(self, monkeypatch, settings):
        def set_plan(folder):
            plan = {
                "run_id": "a-run",
                "checkpoint": str(folder),
                "threads": 1,
                "settings": {**settings.model_dump(mode="json"), "threshold": 0.25},
            }
            monkeypatch.setenv(local.PLAN_VARIABLE, json.dumps(plan))

        return set_plan

    def test_it_is_warmed_up_and_under_the_planned_threshold(self, hand_over, checkpoint_folder):
        hand_over(checkpoint_folder)

        async def ask():
            app = local.app_from_environment()
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                return await client.get("/health/ready"), (await client.post("/predict/", json=ROW)).json()

        ready, answer = asyncio.run(ask())
        assert ready.status_code == 200
        assert (answer["run_id"], answer["results"][0]["threshold"]) == ("a-run", 0.25)

    def test_a_model_that_does_not_compute_what_it_did_is_refused(self, hand_over, other_golden):
        hand_over(other_golden)
        with pytest.raises(errors.CheckpointError, match=r"'torch' \(fp32\) does not reproduce the golden rows"):
            local.app_from_environment()


@pytest.mark.usefixtures("handlers")
class TestASignal:
    def test_what_was_accepted_is_finished_and_what_is_new_refused_before_uvicorn_closes(self, make_service, held):
        kitchen, seen = make_service(engine=held), []
        signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))

        async def scenario():
            local._drain_on_signal(kitchen)
            accepted = asyncio.create_task(kitchen.answer([ROW]))
            await until(held.entered.is_set)
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: not kitchen.ready)
            with pytest.raises(errors.NotReadyError):
                await kitchen.answer([ROW])
            before = list(seen)
            held.release()
            await until(lambda: seen)
            return await accepted, before

        answers, before = asyncio.run(scenario())
        assert len(answers) == 1
        assert (before, seen) == ([], [signal.SIGTERM])

    def test_a_second_signal_is_uvicorns_at_once(self, make_service, held):
        kitchen, seen = make_service(engine=held, drain_timeout_s=20), []
        signal.signal(signal.SIGINT, lambda number, _: seen.append(number))

        async def scenario():
            local._drain_on_signal(kitchen)
            accepted = asyncio.create_task(kitchen.answer([ROW]))
            await until(held.entered.is_set)
            os.kill(os.getpid(), signal.SIGINT)
            await until(lambda: not kitchen.ready)
            os.kill(os.getpid(), signal.SIGINT)
            await until(lambda: seen)
            held.release()
            await accepted

        asyncio.run(scenario())
        assert seen[0] == signal.SIGINT


def test_an_end_is_seen_while_the_process_is_asked_whether_it_is_well(monkeypatch):
    ended = SimpleNamespace(start=lambda: None, is_alive=lambda: True)  # it ends after this look
    monkeypatch.setattr(multiprocess, "get_subprocess", lambda *_: ended)
    monkeypatch.setattr(multiprocess, "SIGNALS", {})
    processes = local.Processes(uvicorn.Config("any", workers=2), sockets=[])
    processes.init_processes()

    started = time.monotonic()
    assert [one.is_alive(timeout=60) for one in processes.processes] == [False, False]
    assert time.monotonic() - started < 30


class TestOneProcess:
    def test_the_announcement_comes_when_it_is_ready(self, one, trained):
        assert one.ready()
        first, *_ = one.stdout.splitlines()
        assert (
            first == f"serving run {trained.run_id} on {one.url} (threshold 0.5, source: operator; engine: torch fp32)"
        )

    def test_it_answers_as_the_predictor_does(self, one, predictor):
        (answer,) = one.client.post("/predict/", json=ROW).json()["results"]

        expected = predictor.predict([ROW])[0]["probabilities"]
        assert pytest.approx(expected, abs=1e-4) == answer["probabilities"]
        assert answer["threshold"] == 0.5

    def test_an_answer_names_its_request(self, one):
        answer = one.client.post("/predict/", json=ROW, headers={"X-Request-Id": "abc"})

        assert (answer.headers["x-request-id"], answer.json()["request_id"]) == ("abc", "abc")

    def test_it_does_not_name_its_server(self, one):
        assert "server" not in one.client.get("/").headers

    def test_it_listens_on_loopback_only(self, one):
        assert running.listening(one.record_family()) == {("127.0.0.1", one.port)}

    def test_ctrl_c_ends_it_with_status_zero_and_leaves_nothing(self, one):
        one.signal(signal.SIGINT)

        assert one.wait() == 0
        running.until(lambda: not running.alive(one.seen), what="the end of its processes")
        assert "Traceback" not in one.stderr


class TestTwoProcesses:
    def test_both_answer_the_same(self, two, predictor):
        """Each on connections of its own: the kernel shares them out."""
        expected = predictor.predict([ROW])[0]["probabilities"]

        answers = [httpx.post(f"{two.url}/predict/", json=ROW).json()["results"][0] for _ in range(30)]
        assert all(pytest.approx(expected, abs=1e-4) == answer["probabilities"] for answer in answers)

    @linux_only
    def test_each_has_half_of_the_connections(self, two):
        assert shares(two, 12) == [6, 6]

    @linux_only
    def test_one_that_is_started_anew_has_its_half_too(self, two):
        one, other = listeners(two)
        one.kill()
        running.until(
            lambda: len(listeners(two)) == 2 and one not in listeners(two) and other in listeners(two),
            what="a process in its place",
        )
        # It holds the listening socket before it has loaded its model; until then the other is given everything.
        running.until(lambda: shares(two, 2) == [1, 1], what="its first connection")
        assert shares(two, 12) == [6, 6]

    def test_sigterm_ends_both_with_status_zero_and_leaves_nothing(self, two):
        two.signal(signal.SIGTERM)

        assert two.wait() == 0
        assert len(two.seen) >= 3
        running.until(lambda: not running.alive(two.seen), what="the end of its processes")
        assert "Traceback" not in two.stderr
