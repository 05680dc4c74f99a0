"""Ray is started and ended by whoever needs it, and one that was there before is left as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import ray

from madewithml import cluster, errors


def run(script: str, **variables: str) -> list[str]:
    """Run a script in a process of its own; returns the lines it printed."""
    ours = {*cluster.QUIET, "RAY_ADDRESS"}
    environment = {**{name: value for name, value in os.environ.items() if name not in ours}, **variables}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_variables_that_the_person_has_set_are_kept(monkeypatch):
    monkeypatch.setenv("MWML_CHOSEN", "by the person")
    monkeypatch.setenv("MWML_EMPTY", "")
    monkeypatch.setenv("MWML_MISSING", "restored after the test")
    monkeypatch.delenv("MWML_MISSING")

    cluster.set_environment({"MWML_CHOSEN": "by us", "MWML_EMPTY": "by us", "MWML_MISSING": "by us"})

    found = [os.environ[name] for name in ("MWML_CHOSEN", "MWML_EMPTY", "MWML_MISSING")]
    assert found == ["by the person", "", "by us"]


def test_a_ray_that_is_running_is_used_and_left_running(ray_session):
    before = ray.get_runtime_context().get_node_id()

    with cluster.session(num_cpus=1):
        within = ray.get_runtime_context().get_node_id()

    assert ray.is_initialized()
    assert (within, ray.get_runtime_context().get_node_id()) == (before, before)
    assert ray.cluster_resources()["CPU"] == 2


def test_a_ray_that_is_running_survives_an_error(ray_session):
    session = cluster.session()
    session.__enter__()

    assert session.__exit__(ValueError, ValueError("in the body"), None) is False

    assert ray.is_initialized()


def test_a_ray_of_our_own_has_the_cores_asked_for_and_ends_with_the_block_even_after_an_error():
    script = """
        import os
        from madewithml import cluster

        try:
            with cluster.session(num_cpus=1):
                import ray
                print(ray.is_initialized(), ray.cluster_resources()["CPU"])
                raise ValueError
        except ValueError:
            print(ray.is_initialized())
        print(os.environ["RAY_USAGE_STATS_ENABLED"], os.environ["RAY_DEDUP_LOGS"])
    """

    assert run(script, RAY_DEDUP_LOGS="0") == ["True 1.0", "False", "0 0"]


def test_a_ray_of_our_own_has_no_process_that_nobody_uses_and_its_log_does_not_grow():
    script = """
        import pathlib
        import psutil
        from madewithml import cluster

        with cluster.session(num_cpus=1):
            import ray
            commands = [" ".join(one.cmdline()) for one in psutil.Process().children(recursive=True)]
            print([name for name in ("monitor.py", "log_monitor.py", "dashboard.py") if name in " ".join(commands)])
            print(any("raylet" in command for command in commands))
            ray.get(ray.remote(lambda: 1).remote())
            logs = pathlib.Path(ray._private.worker._global_node.get_logs_dir_path())
        print("Get dashboard http address failed" in (logs / "dashboard_agent.log").read_text())
    """

    assert run(script) == ["[]", "True", "False"]


def test_the_cluster_that_ray_address_names_is_joined_and_outlives_the_session(ray_session):
    script = """
        from madewithml import cluster

        with cluster.session(num_cpus=64):
            import ray
            print(ray.get_runtime_context().get_node_id(), ray.cluster_resources()["CPU"])
    """
    context = ray.get_runtime_context()

    assert run(script, RAY_ADDRESS=context.gcs_address) == [f"{context.get_node_id()} 2.0"]
    assert ray.cluster_resources()["CPU"] == 2


def test_a_ray_that_does_not_come_up_is_told_in_a_line(monkeypatch):
    def slow(**_):
        raise Exception("The current node timed out during startup.\nOr the GCS has become overloaded.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", slow)

    with pytest.raises(errors.StartError) as caught:
        cluster.start()
    told = "Ray did not start: The current node timed out during startup. Or the GCS has become overloaded."
    assert caught.value.message == told
