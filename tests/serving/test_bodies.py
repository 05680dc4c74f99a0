"""Bodies of every kind, to every route that takes one: whatever comes is answered, and never with a 5xx."""

import asyncio
import itertools
import json
import random

import fuzz
import hypothesis
import pytest
from hypothesis import strategies as st

from .conftest import ROW

ROUTES = ["/predict/", "/invocations", "/v2/models/madewithml/infer", "/feedback/", "/evaluate/"]
MUTANTS = 1000

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(
    [
        *("title", "description", "text", "inputs", "instances", "dataframe_split", "dataframe_records", "columns"),
        *("data", "params", "parameters", "outputs", "name", "datatype", "shape", "id", "request_id", "row", "label"),
    ]
)
near_misses = st.recursive(
    values | st.just("BYTES") | st.just([1]) | st.just(ROW),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def window(make_service, tmp_path_factory):
    from .conftest import Window

    records = tmp_path_factory.mktemp("records") / "records.db"
    return Window(make_service(records_uri=f"sqlite:///{records}"))


def check(path, response):
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        told = response.json()
        assert told["error" if path.startswith("/v2") else "detail"]


@pytest.mark.parametrize("path", ROUTES)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(document=near_misses)
def test_any_json_is_answered(window, path, document):
    check(path, window.post(path, content=json.dumps(document), headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize("path", ROUTES)
@hypothesis.given(body=st.binary(max_size=200))
def test_any_bytes_are_answered(window, path, body):
    check(path, window.post(path, content=body, headers={"Content-Type": "application/json"}))


def test_valid_bodies_with_something_done_to_them_are_answered(window):
    """What `benchmarks/fuzz.py` sends by the hundred thousand."""
    requests = list(itertools.islice(fuzz.mutants(random.Random(0)), MUTANTS))

    async def send_all():
        async with window.client() as client:
            for request in requests:
                yield request, await client.post(request.path, content=request.body, headers=request.headers)

    async def scenario():
        statuses = set()
        async for request, response in send_all():
            check(request.path, response)
            statuses.add(response.status_code)
        return statuses

    assert asyncio.run(scenario()) >= {200, 400, 415, 422}


@pytest.mark.parametrize("seed", fuzz.seeds(), ids=lambda seed: seed.path)
def test_what_is_mutated_was_valid_before(make_window, seed, tmp_path):
    """Otherwise the mutants would try the first check alone."""
    window = make_window(allow_caller_threshold=True, records_uri=f"sqlite:///{tmp_path / 'records.db'}")
    response = window.post(seed.path, content=seed.body, headers=seed.headers)
    uncertified = b"max_risk" in seed.body or "max_risk" in seed.path
    assert response.status_code == (422 if uncertified else 200), response.text
