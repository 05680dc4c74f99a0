"""Routes of other servers' protocols, in process: the Open Inference Protocol and MLflow's scoring protocol."""

import gzip
import json
import re
import struct

import numpy as np
import pandas as pd
import pytest

from madewithml import pyfunc

from .conftest import ROW

INFER = "/v2/models/madewithml/infer"
TEXTS = ["Intro to CNNs", "Serving a model behind an API", "Über Sprache"]


def tensor(name, texts, **more):
    return {"name": name, "datatype": "BYTES", "shape": [len(texts)], "data": texts, **more}


def packed(texts):
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


def unpacked(content):
    texts = []
    while content:
        (length,) = struct.unpack_from("<I", content)
        texts.append(content[4 : 4 + length].decode())
        content = content[4 + length :]
    return texts


@pytest.fixture
def expected(predictor):
    return predictor.predict([{"title": text} for text in TEXTS])


class TestInference:
    def test_server_model_and_readiness_are_described(self, window, predictor):
        assert window.get("/v2").json()["extensions"] == ["binary_tensor_data"]
        assert window.get("/v2/health/live").json() == {"live": True}
        assert window.get("/v2/health/ready").json() == {"ready": True}
        assert window.get("/v2/models/madewithml/ready").json() == {"name": "madewithml", "ready": True}
        model = window.get("/v2/models/madewithml/versions/a-run").json()
        assert [each["name"] for each in model["inputs"]] == ["title", "description"]
        assert model["outputs"][-1]["shape"] == [-1, len(predictor.classes)]

    def test_a_service_that_is_not_ready_says_so(self, make_window):
        waiting = make_window(ready=False)

        assert waiting.get("/v2/health/ready").status_code == 503
        assert waiting.post(INFER, json={"inputs": [tensor("title", TEXTS)]}).status_code == 503

    @pytest.mark.parametrize("shape", [[3], [3, 1]])
    @pytest.mark.parametrize("name", ["title", "text"])
    def test_json_in_json_out(self, window, expected, predictor, shape, name):
        given = {"id": "mine", "inputs": [tensor(name, TEXTS) | {"shape": shape}]}
        answer = window.post(INFER, json=given).json()
        outputs = {each["name"]: each for each in answer["outputs"]}

        assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "madewithml", "a-run")
        for output in ("prediction", "label", "decision"):
            assert outputs[output]["data"] == [each[output] for each in expected]
        probabilities = np.reshape(outputs["probabilities"]["data"], outputs["probabilities"]["shape"])
        wanted = [[each["probabilities"][label] for label in predictor.classes] for each in expected]
        assert probabilities == pytest.approx(np.array(wanted), abs=1e-4)

    def test_binary_in_binary_out(self, window, expected):
        titles, descriptions = packed(TEXTS), packed(["a", "", "c"])
        inputs = [
            {"name": name, "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(content)}}
            for name, content in (("title", titles), ("description", descriptions))
        ]
        wanted = [
            {"name": "label", "parameters": {"binary_data": True}},
            {"name": "confidence", "parameters": {"binary_data": True}},
            {"name": "decision"},
        ]
        head = json.dumps({"inputs": inputs, "outputs": wanted}).encode()
        answer = window.post(
            INFER,
            content=head + titles + descriptions,
            headers={"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"},
        )
        length = int(answer.headers["inference-header-content-length"])
        label, confidence, decision = json.loads(answer.content[:length])["outputs"]
        rest = answer.content[length:]
        size = label["parameters"]["binary_data_size"]

        assert len(unpacked(rest[:size])) == 3
        assert confidence["datatype"] == "FP32"
        assert len(np.frombuffer(rest[size:], dtype="<f4")) == 3
        assert len(decision["data"]) == len(expected)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({}, "at least one tensor"),
            ({"inputs": [tensor("title", TEXTS) | {"datatype": "FP32"}]}, "expected BYTES"),
            ({"inputs": [tensor("title", TEXTS) | {"shape": [2]}]}, "3 elements, its shape says 2"),
            ({"inputs": [tensor("title", TEXTS) | {"shape": [3, 2]}]}, r"expected \[n\] or \[n, 1\]"),
            ({"inputs": [tensor("title", TEXTS) | {"shape": [True]}]}, r"expected \[n\] or \[n, 1\]"),
            ({"inputs": [tensor("body", TEXTS)]}, "unknown input 'body': expected title, description, or text alone"),
            ({"inputs": [tensor("title", TEXTS), tensor("title", TEXTS)]}, "given twice"),
            ({"inputs": [tensor("title", TEXTS), tensor("description", ["a"])]}, "different numbers"),
            ({"inputs": [tensor("title", [1])]}, "a text for each element"),
            ({"inputs": [tensor("title", [""])]}, "no text"),
            ({"inputs": [tensor("title", TEXTS)], "outputs": [{"name": "logits"}]}, "unknown output 'logits'"),
            ({"inputs": [tensor("title", TEXTS)], "parameters": {"max_risk": 2}}, "a number from 0 to 1"),
            ({"inputs": [tensor("title", TEXTS)], "id": 5}, "expected a text"),
            ({"inputs": [tensor("title", TEXTS, parameters={"binary_data_size": 9})]}, "0 bytes are left"),
        ],
    )
    def test_a_bad_body_is_an_error_in_the_protocols_own_form(self, window, given, said):
        answer = window.post(INFER, json=given)

        assert answer.status_code == 422
        assert list(answer.json()) == ["error"]
        assert re.search(said, answer.json()["error"])

    @pytest.mark.parametrize(
        "content", [b"\x05\x00\x00\x00abc", b"\x01\x00", b"\xff\xff\xff\xff", b"\x01\x00\x00\x00\xff"]
    )
    def test_binary_data_that_does_not_fit_is_an_error(self, window, content):
        one = {"name": "title", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(content)}}
        head = json.dumps({"inputs": [one]}).encode()
        answer = window.post(INFER, content=head + content, headers={"Inference-Header-Content-Length": str(len(head))})

        assert answer.status_code == 422

    @pytest.mark.parametrize("length", ["x", "-1", "99999"])
    def test_a_header_length_that_cannot_be_is_an_error(self, window, length):
        answer = window.post(INFER, content=b"{}", headers={"Inference-Header-Content-Length": length})

        assert answer.status_code == 422

    def test_no_json_is_an_error(self, window):
        assert window.post(INFER, content=b"no").status_code == 400

    @pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/madewithml/versions/9/ready"])
    def test_another_model_or_version_is_not_found(self, window, path):
        assert window.get(path).status_code == 404
        assert "only" in window.get(path).json()["error"]


class TestScoring:
    @pytest.fixture
    def answers(self, predictor):
        """What MLflow's flavour gives for two rows."""
        table = pd.DataFrame([ROW, {"title": "Serving", "description": ""}])
        return json.loads(pyfunc.TextClassifier(predictor).predict(table).to_json(orient="records"))

    @pytest.mark.parametrize(
        "given",
        [
            {"dataframe_split": {"columns": ["title", "description"], "data": [list(ROW.values()), ["Serving", None]]}},
            {"dataframe_records": [ROW, {"title": "Serving", "extra": 5}]},
            {"instances": [ROW, {"title": "Serving"}]},
            {"inputs": {"title": [ROW["title"], "Serving"], "description": [ROW["description"], ""]}, "params": {}},
        ],
    )
    def test_each_form_gives_what_the_flavour_gives(self, window, answers, given):
        predictions = window.post("/invocations", json=given).json()["predictions"]

        self.check(predictions, answers)

    def test_csv_gives_the_same(self, window, answers):
        text = pd.DataFrame([ROW, {"title": "Serving", "description": ""}]).to_csv(index=False)
        answer = window.post("/invocations", content=text, headers={"Content-Type": "text/csv; charset=utf-8"})

        self.check(answer.json()["predictions"], answers)

    @staticmethod
    def check(predictions, answers):
        assert [list(each) for each in predictions] == [list(each) for each in answers]
        for own, other in zip(predictions, answers, strict=True):
            assert own["label"] == other["label"]
            assert own["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({}, "one of dataframe_split"),
            ({"inputs": [], "instances": []}, "one of dataframe_split"),
            ({"inputs": []}, "no rows"),
            ({"inputs": [{"body": "a"}]}, "no row has a text field: expected title, description, found 'body'"),
            ({"dataframe_split": {"columns": ["title"], "data": [["a", "b"]]}}, "in each row a value for each column"),
            ({"dataframe_records": {"title": ["a"]}}, "expected a list of objects"),
            ({"inputs": {"title": ["a"], "description": ["a", "b"]}}, "different lengths"),
            ({"inputs": [{"title": ["a"]}]}, "row 0: title is no text"),
            ({"inputs": [ROW], "params": {"top_k": 1}}, "'top_k' is unknown"),
            ({"inputs": [ROW], "params": {"max_risk": "a"}}, "a number from 0 to 1"),
        ],
    )
    def test_a_bad_body_is_a_problem(self, window, given, said):
        answer = window.post("/invocations", json=given)

        assert answer.status_code == 422
        assert said in answer.json()["detail"]

    def test_another_media_type_is_refused(self, window):
        answer = window.post("/invocations", content=b"a", headers={"Content-Type": "application/x-parquet"})

        assert answer.status_code == 415

    def test_ping_health_and_version_answer(self, window, make_window):
        assert [window.get(path).status_code for path in ("/ping", "/health", "/version")] == [200] * 3
        assert make_window(ready=False).get("/ping").status_code == 503


class TestGzip:
    def test_a_body_may_be_gzip(self, window):
        body = gzip.compress(json.dumps(ROW).encode())
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}

        assert window.post("/predict/", content=body, headers=headers).status_code == 200

    @pytest.mark.parametrize(
        ("body", "encoding", "status"),
        [
            (gzip.compress(bytes(50_000_000)), "gzip", 413),
            (b"no gzip", "gzip", 400),
            (gzip.compress(json.dumps(ROW).encode())[:-6], "gzip", 400),
            (b"{}", "br", 415),
        ],
        ids=["far too long", "no gzip", "cut off", "another encoding"],
    )
    def test_what_does_not_inflate_or_inflates_too_far_is_refused(self, window, body, encoding, status):
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}

        assert window.post("/predict/", content=body, headers=headers).status_code == status
