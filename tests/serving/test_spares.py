"""Spare workers: what counts as one, and that the service goes on without them. Real ones are in `test_on_ray.py`."""

import logging

import pytest

from madewithml.serving import spares


@pytest.mark.parametrize(
    ("command_line", "waits"),
    [
        (["ray::IDLE", "", ""], True),
        (["ray::IDLE   "], True),
        (["/venv/bin/python", "-u", "/site-packages/ray/_private/workers/default_worker.py", "--port=1"], True),
        (["ray::IDLE_SpillWorker"], False),
        (["ray::ServeReplica:madewithml:ModelDeployment"], False),
        (["/venv/bin/python", "-u", "/site-packages/ray/dashboard/agent.py"], False),
        ([], False),
    ],
)
def test_a_spare_is_an_idle_worker_or_one_that_starts(command_line, waits):
    assert spares.is_waiting(command_line) is waits


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
