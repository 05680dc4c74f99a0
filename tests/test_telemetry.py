"""Nothing is reported to anybody."""

import os
import subprocess
import sys

import pytest

LISTENING = """
import sys

def refuse(event, arguments):
    if event in ("os.fork", "subprocess.Popen", "socket.connect", "socket.getaddrinfo"):
        print(event, *arguments, flush=True)

sys.addaudithook(refuse)
from madewithml import engines
import mlflow, openvino
mlflow.set_tracking_uri("sqlite:///runs.db")
mlflow.create_experiment("silent")
openvino.Core()
"""


def test_libraries_neither_call_out_nor_leave_an_id_behind(tmp_path):
    # What tells the libraries that they run under a test would silence them anyway.
    own = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_CURRENT_TEST")}
    said = subprocess.run(
        [sys.executable, "-c", LISTENING],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**own, "HOME": str(tmp_path)},
    ).stdout
    assert [line for line in said.splitlines() if "uname" not in line] == []
    assert not (tmp_path / "intel").exists()


@pytest.mark.parametrize("value", ["false", "true"])
def test_what_a_person_chose_stays(value):
    code = "import os, madewithml; print(os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    own = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": value}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=own).stdout
    assert said.strip() == value
