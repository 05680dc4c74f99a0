"""A service that cannot be started as asked: one clear line, a status that is not zero, and no stack trace."""

import socket

import pytest

from . import running


def told(done, status):
    """The one line that a failed start leaves on stderr."""
    assert (status, "") == (done.returncode, done.stdout)
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("how", [(), ("--local",)], ids=["on Ray", "local"])
class TestWrongStarts:
    def test_a_port_in_use(self, how):
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            held.listen()
            port = held.getsockname()[1]
            done = running.run("--run_id", "any", "--port", port, *how)

        assert told(done, 1) == (
            f"error: port {port} is in use by another program. Choose another with --port, or end that program."
        )

    def test_an_unknown_run(self, how, trained, home):
        done = running.run("--run_id", "nothing", "--home", home, "--port", running.free_port(), *how)

        assert told(done, 1).startswith("error: no run 'nothing' in sqlite:///")

    def test_damaged_weights(self, how, spoiled):
        path = spoiled / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        done = running.run("--checkpoint", spoiled, "--port", running.free_port(), *how)

        assert told(done, 1).startswith(f"error: checkpoint {str(spoiled)!r} is damaged: model.safetensors has SHA-256")

    def test_neither_run_nor_model_nor_folder(self, how):
        done = running.run("--port", running.free_port(), *how)

        assert told(done, 2) == "error: give one of --run-id ID, --model models:/NAME@ALIAS, --checkpoint DIR"


def test_a_replica_that_cannot_use_its_model_is_told_with_its_reason(other_golden, home):
    done = running.run("--checkpoint", other_golden, "--home", home, "--port", running.free_port())

    line = told(done, 1)
    assert line.startswith("error: Ray Serve could not start the replicas: CheckpointError: engine 'torch' (fp32) does")
    assert f"not reproduce the golden rows of {str(other_golden)!r}" in line


def test_two_local_processes_that_cannot_load_their_model_give_up(other_golden, home):
    done = running.run(
        "--checkpoint", other_golden, "--home", home, "--port", running.free_port(), "--local", "--workers", "2"
    )

    assert done.returncode == 1
    assert "error: engine 'torch' (fp32) does not reproduce the golden rows" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: the 2 processes could not start"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["0", "many"])
def test_a_bad_number_of_replicas(value):
    done = running.run("--run_id", "any", "--replicas", value)

    assert told(done, 2) == f"error: --replicas is {value!r}: expected a number from 1 or 'auto'"
