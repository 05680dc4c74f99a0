"""Other people's clients, unmodified, against a service in a process of its own.

Those that need an environment of their own (`make clients`) run there, as the scripts in `tests/clients`.
"""

import json
import os
import shlex
import subprocess
from pathlib import Path

import httpx
import mlflow.pyfunc.scoring_server.client as scoring_client
import pandas as pd
import pytest

from madewithml import client

from . import running

ENVIRONMENT = Path(os.environ.get("CLIENTS_VENV", running.REPOSITORY / ".venv-clients")) / "bin"
SCRIPTS = running.REPOSITORY / "tests" / "clients"
ROWS = [
    {"title": "Intro to CNNs", "description": "Processing images with layers."},
    {"title": "Transformers", "description": "Attention for text."},
    {"title": "Feature stores", "description": "Serving features in production."},
]
TEXTS = [f"{row['title']} {row['description']}" for row in ROWS]

needs_environment = pytest.mark.skipif(not ENVIRONMENT.is_dir(), reason="clients are not installed: make clients")


@pytest.fixture(scope="module")
def service(trained, home, tmp_path_factory):
    """A local service on the training run."""
    started = running.Service(tmp_path_factory.mktemp("clients"), "--run-id", trained.run_id, "--home", home, "--local")
    yield started.wait_until_ready()
    started.close()


@pytest.fixture(scope="module")
def expected(predictor):
    return predictor.predict(ROWS)


def run(script, *arguments):
    """What a script of `tests/clients` prints."""
    command = [ENVIRONMENT / "python", SCRIPTS / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(found, expected):
    assert found["prediction"] == [answer["prediction"] for answer in expected]
    assert found["confidence"] == pytest.approx([answer["confidence"] for answer in expected], abs=1e-4)


@needs_environment
class TestInTheirOwnEnvironment:
    def test_tritons_http_client_binary_and_json(self, service, expected, trained):
        found = run("triton.py", service.url, json.dumps(TEXTS))
        assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
        assert found["model"]["versions"] == [trained.run_id]
        for form in ("binary", "json"):
            assert found[form]["id"] == "from-triton"
            check(found[form], expected)
            for row, answer in zip(found[form]["probabilities"], expected, strict=True):
                assert row == pytest.approx(list(answer["probabilities"].values()), abs=1e-4)
        assert found["error"] == ["404", "there is no model 'nothing', only 'madewithml'"]

    def test_kserves_inference_client(self, service, expected):
        found = run("kserve_client.py", service.url, json.dumps(TEXTS))
        assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
        assert found["id"] == "from-kserve"
        check(found, expected)

    def test_a_client_generated_from_the_openapi_document(self, service, expected, tmp_path):
        document = tmp_path / "openapi.json"
        document.write_bytes(service.client.get("/openapi.json").content)
        generator = ENVIRONMENT / "openapi-python-client"
        command = [generator, "generate", "--path", document, "--meta", "none", "--output-path", tmp_path / "generated"]
        path = f"{ENVIRONMENT}{os.pathsep}{os.environ['PATH']}"
        made = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        assert "Endpoint will not be generated" not in made.stdout + made.stderr

        found = run("generated.py", service.url, tmp_path, json.dumps(ROWS))
        assert found["one"] == expected[0]["prediction"]
        check({"prediction": found["many"], "confidence": found["confidence"]}, expected)
        assert found["refused"] == ["Problem", 422, "row 0 has no text: fill at least one of title, description"]
        assert found["kept"] == 1
        assert found["inferred"] == ["prediction", "label", "decision", "confidence", "probabilities"]


@needs_environment
def test_schemathesis_finds_nothing_wrong(service, tmp_path):
    """Every check, on every operation of the document: what is valid is accepted, what is not is refused as told."""
    command = [
        *(ENVIRONMENT / "schemathesis", "run", f"{service.url}/openapi.json", "--checks", "all"),
        *("--max-examples", "20", "--seed", "1", "--request-timeout", "30", "--generation-database", "none"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


class TestMlflow:
    def test_its_own_scoring_client_gives_what_the_flavour_gives(self, service, trained, expected):
        scoring = scoring_client.ScoringServerClient("127.0.0.1", service.port)
        scoring.wait_server_ready()
        found = scoring.invoke(pd.DataFrame(ROWS)).get_predictions()
        check({name: found[name].tolist() for name in ("prediction", "confidence")}, expected)

    @pytest.mark.parametrize(
        "payload",
        [
            {"dataframe_split": pd.DataFrame(ROWS).to_dict(orient="split")},
            {"dataframe_records": ROWS},
            {"instances": ROWS},
            {"inputs": pd.DataFrame(ROWS).to_dict(orient="list")},
        ],
        ids=lambda payload: next(iter(payload)),
    )
    def test_its_documented_payloads(self, service, expected, payload):
        found = httpx.post(f"{service.url}/invocations", json=payload).json()["predictions"]
        assert [row["prediction"] for row in found] == [answer["prediction"] for answer in expected]

    def test_its_documented_csv(self, service, expected):
        content = pd.DataFrame(ROWS).to_csv(index=False)
        answer = httpx.post(f"{service.url}/invocations", content=content, headers={"Content-Type": "text/csv"})
        assert [row["prediction"] for row in answer.json()["predictions"]] == [each["prediction"] for each in expected]


CALLS = {
    "v2": (
        "curl -s -X POST {url}/v2/models/madewithml/infer -H 'Content-Type: application/json' "
        """-d '{{"inputs": [{{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["{text}"]}}]}}'"""
    ),
    "invocations": (
        "curl -s {url}/invocations -H 'Content-Type: application/json' "
        """-d '{{"dataframe_records": [{{"title": "{text}"}}]}}'"""
    ),
    "predict": """curl -s {url}/predict/ -H 'Content-Type: application/json' -d '{{"title": "{text}"}}'""",
}


@pytest.mark.parametrize("name", CALLS)
def test_curl(service, predictor, name):
    command = CALLS[name].format(url=service.url, text="Intro to CNNs")
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    assert predictor.predict([{"title": "Intro to CNNs"}])[0]["prediction"] in done.stdout


def test_our_own_client(service, expected):
    with client.Client(service.url) as ours:
        found = ours.predict(ROWS)
        assert [each.prediction for each in found] == [answer["prediction"] for answer in expected]
        ours.feedback(found[1].request_id, found[1].label, row=found[1].row)
