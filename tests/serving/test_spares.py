"""Spare workers: what counts as one, and that the service goes on without them. Real ones are in `test_on_ray.py`."""

import logging

import pytest

from madewithml.serving import spares

from . import running


@pytest.mark.parametrize(
    ("command_line", "idle", "starting"),
    [
        (["ray::IDLE", "", ""], True, False),
        (["ray::IDLE   "], True, False),
        (["/venv/bin/python", "-u", "/site-packages/ray/_private/workers/default_worker.py", "--port=1"], False, True),
        (["ray::IDLE_SpillWorker"], False, False),
        (["ray::ServeReplica:madewithml:ModelDeployment"], False, False),
        (["/venv/bin/python", "-u", "/site-packages/ray/dashboard/agent.py"], False, False),
        ([], False, False),
    ],
)
def test_a_spare_is_an_idle_worker_or_one_that_starts(command_line, idle, starting):
    assert spares.is_idle(command_line) is idle
    assert spares.is_starting(command_line) is starting


def test_where_ray_has_no_such_call_the_service_goes_on_and_says_so(monkeypatch, caplog):
    def fail(count):
        raise ImportError("no module named 'ray.core.generated'")

    monkeypatch.setattr(spares, "prestart", fail)
    kept = spares.Spares(1)
    with caplog.at_level(logging.WARNING):
        kept.prepare(3)
        kept.start()
        kept.stop()

    assert "there are no spare workers (no module named 'ray.core.generated')" in caplog.text


def test_none_are_asked_for_where_none_are_wanted(monkeypatch):
    asked = []
    monkeypatch.setattr(spares, "prestart", asked.append)
    kept = spares.Spares(0)
    kept.prepare(3)
    kept.start()
    kept.stop()

    assert asked == []


@pytest.mark.parametrize(("patience_s", "in_the_end"), [(60.0, 0), (0.05, 1)])
def test_none_starts_while_the_cores_are_busy_unless_that_does_not_end(monkeypatch, patience_s, in_the_end):
    looks, started = [], []
    monkeypatch.setattr(spares, "prestart", started.append)
    monkeypatch.setattr(spares, "_raylet", lambda: None)
    monkeypatch.setattr(spares, "_command_lines", lambda _raylet: looks.append(1) or [["ray::IDLE"]] * len(started))
    monkeypatch.setattr(spares, "_busy", lambda: True)
    monkeypatch.setattr(spares, "LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(spares, "PATIENCE_S", patience_s)
    kept = spares.Spares(1)
    kept.start()
    running.until(lambda: len(looks) > 50 and len(started) == in_the_end, what="looks")
    monkeypatch.setattr(spares, "_busy", lambda: False)
    running.until(lambda: started == [1], what="a spare, once the cores have time")
    kept.stop()


def test_they_start_one_at_a_time(monkeypatch):
    """Each import takes a core, and calls need the other."""
    started, together, importing = [], [], ["python", "default_worker.py"]

    def start(count):
        started.extend([importing] * count)
        together.append(started.count(importing))

    def look(_raylet):
        lines = list(started)
        started[:] = [["ray::IDLE"]] * len(started)  # by the next look they have imported
        return lines

    monkeypatch.setattr(spares, "prestart", start)
    monkeypatch.setattr(spares, "_raylet", lambda: None)
    monkeypatch.setattr(spares, "_command_lines", look)
    monkeypatch.setattr(spares, "_busy", lambda: False)
    monkeypatch.setattr(spares, "LOOK_EVERY_S", 0.001)
    kept = spares.Spares(3)
    kept.start()
    running.until(lambda: started == [["ray::IDLE"]] * 3, what="three spares")
    kept.stop()

    assert together == [1, 1, 1]
