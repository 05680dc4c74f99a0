"""Proxies of Ray Serve that do not come up; those that do are in `test_on_ray.py`."""

from concurrent import futures

import pytest
import ray

from madewithml import errors
from madewithml.serving import on_ray


@pytest.mark.parametrize(
    "raised",
    [TimeoutError("HTTP proxies not available\nafter 60s."), ray.exceptions.RayError("the actor\nis dead")],
    ids=["too late", "ended"],
)
def test_a_proxy_that_does_not_come_up_is_one_line(raised):
    started = futures.Future()
    started.set_exception(raised)

    with pytest.raises(errors.StartError, match="Ray Serve's proxies did not come up: ") as caught:
        on_ray._wait_for_proxies(started)
    assert "\n" not in caught.value.message


def test_anything_else_is_no_concern_of_the_proxies():
    started = futures.Future()
    started.set_exception(ValueError("a fault of our own"))

    with pytest.raises(ValueError, match="of our own"):
        on_ray._wait_for_proxies(started)
