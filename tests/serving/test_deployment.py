"""The Ray Serve deployment's own class, without a Ray: what a replica does when it starts."""

import asyncio
import os
import shutil
import warnings

import httpx
import pytest

from madewithml import errors, serve

from .conftest import ROW


@pytest.fixture(scope="module")
def deployment_class():
    """The class that Ray Serve makes replicas of. Importing it sets variables for Ray, which are taken back."""
    before = dict(os.environ)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray Serve's own, when it is imported
            deployment = serve.ModelDeployment
        os.environ.pop("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", None)  # there is none in front
        yield deployment.func_or_class.__bases__[0]  # as written, without what `serve.ingress` puts around it
    finally:
        scratch = os.environ.get("RAY_SERVE_HAPROXY_SERVER_STATE_BASE")
        if scratch and scratch != before.get("RAY_SERVE_HAPROXY_SERVER_STATE_BASE"):
            shutil.rmtree(scratch)
        os.environ.clear()
        os.environ.update(before)


def post(app, body):
    async def send():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/predict/", json=body)

    return asyncio.run(send())


class TestModelDeployment:
    def test_a_replica_on_a_folder_answers_as_the_predictor_does(
        self, deployment_class, checkpoint_folder, settings, predictor
    ):
        replica = deployment_class(
            "a-run", 0.5, checkpoint=str(checkpoint_folder), settings=settings.model_dump(), threads=1
        )
        answer = post(replica.__serve_build_asgi_app__(), ROW)

        expected = predictor.predict([ROW])[0]["probabilities"]
        assert pytest.approx(expected, abs=1e-4) == answer.json()["results"][0]["probabilities"]
        assert answer.json()["results"][0]["threshold"] == 0.5
        assert answer.json()["run_id"] == "a-run"
        assert "x-request-id" not in answer.headers  # Ray Serve adds it

    def test_a_run_id_alone_is_enough(self, deployment_class, trained, home, monkeypatch):
        """`ModelDeployment(run_id, threshold=0.9)`: scripts that deploy it themselves rely on that."""
        monkeypatch.setenv("MADEWITHML_HOME", str(home))
        replica = deployment_class(trained.run_id, threshold=0.9)
        answer = post(replica.__serve_build_asgi_app__(), ROW)

        assert trained.run_id == answer.json()["run_id"]
        assert answer.json()["results"][0]["threshold"] == 0.9

    def test_an_unknown_run_is_an_error_that_names_it(self, deployment_class, trained, home, monkeypatch):
        monkeypatch.setenv("MADEWITHML_HOME", str(home))
        with pytest.raises(errors.NotFoundError, match="no run 'nothing'"):
            deployment_class("nothing")

    def test_it_is_healthy_until_it_stops(self, deployment_class, checkpoint_folder, settings):
        replica = deployment_class("a-run", checkpoint=str(checkpoint_folder), settings=settings.model_dump())
        replica.check_health()
        asyncio.run(replica.service.stop())

        with pytest.raises(errors.NotReadyError, match="the replica is starting or stopping"):
            replica.check_health()
