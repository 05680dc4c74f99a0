"""The routes in process: what each answers, and what it says to every kind of bad request."""

import asyncio
import dataclasses
import json
import re

import hypothesis
import jsonschema
import numpy as np
import pytest
from hypothesis import strategies as st

import madewithml
from madewithml import keys
from madewithml.serving import batching, components

from .conftest import ROW, ConstantEngine, FailingEngine, Window, until

ANSWER_KEYS = ["prediction", "probabilities", "label", "confidence", "decision", "reason", "threshold", "truncated"]


def assert_problem(answer, status, code, *, detail=None, locations=()):
    """Check that an answer is a whole problem document, and what it says."""
    document = answer.json()
    jsonschema.validate(document, {**components.PROBLEM, "components": {"schemas": {"Fault": components.FAULT}}})
    assert status == answer.status_code
    assert status == document["status"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert f"urn:madewithml:problem:{code}" == document["type"]
    assert document["title"]
    assert document["request_id"]
    assert answer.headers["x-request-id"] == document["request_id"]
    if detail is not None:
        assert detail == document["detail"]
    assert list(locations) == [fault["location"] for fault in document["errors"]]
    return document


class TestRoutes:
    @pytest.mark.parametrize(
        "path",
        [
            *("/run_id", "/run_id/", "/model", "/model/", "/policy", "/policy/"),
            *("/health/live", "/health/live/", "/health/ready", "/health/ready/", "/", "/openapi.json"),
        ],
    )
    def test_a_get_route_answers_json_without_a_redirect(self, window, path):
        answer = window.get(path)

        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"

    @pytest.mark.parametrize("path", ["/predict", "/predict/"])
    def test_predict_answers_without_a_redirect(self, window, path):
        answer = window.post(path, json=ROW)

        assert answer.status_code == 200
        assert list(answer.json()) == ["results", "run_id", "request_id"]

    @pytest.mark.parametrize("path", ["/evaluate", "/evaluate/"])
    def test_evaluate_answers_without_a_redirect(self, window, path):
        answer = window.post(path, json={"dataset": "projects.csv"})

        assert answer.status_code == 200
        assert answer.json()["dataset"] == "projects.csv"

    def test_the_root_says_ok_as_existing_clients_know_it(self, window):
        assert window.get("/").json() == {"message": "OK", "status-code": 200, "data": {}}

    def test_the_run_id_is_told(self, window):
        assert window.get("/run_id/").json() == {"run_id": "a-run"}

    def test_the_documentation_is_a_page(self, window):
        answer = window.get("/docs")

        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")

    def test_the_model_is_described(self, window, predictor):
        document = window.get("/model").json()
        metadata = predictor.checkpoint.metadata

        assert madewithml.__version__ == document["version"]
        assert document["run_id"] == "a-run"
        assert metadata.labels == document["labels"]
        assert metadata.text_fields == document["text_fields"]
        assert metadata.encoder == document["encoder"]
        assert document["engine"] == {"name": "torch", "precision": "fp32"}
        assert {**metadata.files, "data": metadata.data_sha256} == document["hashes"]
        limits = {
            "max_rows": 1000,
            "max_body_bytes": 4 * 1024 * 1024,
            "max_queue_rows": 2000,
            "max_batch_size": 16,
            "request_timeout_s": 30.0,
        }
        assert limits.items() <= document["limits"].items()

    def test_the_policy_in_force_is_told(self, make_window, predictor):
        policy = predictor.policy.with_threshold(0.75, source="operator")
        document = make_window(policy=policy).get("/policy").json()

        assert policy.to_dict() == document
        assert (document["source"], document["threshold"]) == ("operator", 0.75)

    def test_alive_and_ready_are_told(self, window):
        assert window.get("/health/live").json() == {"status": "live"}
        assert window.get("/health/ready").json() == {"status": "ready"}


class TestPredict:
    def test_an_answer_is_what_the_predictor_says(self, window, predictor):
        document = window.post("/predict/", json=ROW).json()

        assert predictor.predict([ROW]) == document["results"]
        assert set(document["results"][0]) >= set(ANSWER_KEYS)
        assert document["run_id"] == "a-run"

    def test_a_list_is_answered_in_its_order(self, window, predictor):
        rows = [{"title": f"Row {i}", "description": "word " * (i * 13 % 40)} for i in range(50)]
        results = window.post("/predict/", json=rows).json()["results"]

        expected = [answer["confidence"] for answer in predictor.predict(rows)]
        assert pytest.approx(expected, abs=1e-4) == [answer["confidence"] for answer in results]
        assert len(set(expected)) > 25

    def test_a_missing_field_counts_as_empty(self, window):
        alone, empty, null = (
            window.post("/predict/", json=row).json()["results"]
            for row in ({"title": "CNNs"}, {"title": "CNNs", "description": ""}, {"title": "CNNs", "description": None})
        )

        assert alone == empty == null

    def test_an_answer_below_the_threshold_abstains_and_still_tells_its_label(self, make_window, predictor):
        policy = predictor.policy.with_threshold(1.0, source="operator")
        (answer,) = make_window(policy=policy).post("/predict/", json=ROW).json()["results"]

        assert (answer["prediction"], answer["decision"], answer["reason"]) == ("other", "abstained", "low_confidence")
        assert max(answer["probabilities"], key=answer["probabilities"].get) == answer["label"]

    def test_an_answer_above_the_threshold_is_its_label(self, make_window, predictor):
        policy = predictor.policy.with_threshold(0.0, source="operator")
        (answer,) = make_window(policy=policy).post("/predict/", json=ROW).json()["results"]

        assert (answer["label"], "accepted", None) == (answer["prediction"], answer["decision"], answer["reason"])

    @pytest.mark.parametrize("length", [5_000, 150_000], ids=["on the event loop", "in a side thread"])
    def test_very_long_text_is_cut_and_the_answer_says_so(self, window, length):
        text = ("layers " * (length // 7 + 1))[:length]
        first, second = window.post("/predict/", json=[{"title": text}, ROW]).json()["results"]

        assert (first["truncated"], second["truncated"]) == (True, False)

    def test_what_fits_the_model_is_not_called_truncated(self, window):
        assert False is window.post("/predict/", json=ROW).json()["results"][0]["truncated"]

    @pytest.mark.parametrize(
        "text",
        [
            "\N{GRINNING FACE}" * 50,
            "\u202eright to left\u202c",
            "\ufeffa byte order mark",
            "\x01\x02\x7f",
            "e\u0301" * 1000,
            "\U0010ffff",
            "a" * 10_000,
            "[CLS] [SEP] [PAD] [MASK]",
            "\ufdd0 not a character",
        ],
        ids=ascii,
    )
    def test_odd_text_is_answered(self, window, text):
        answer = window.post("/predict/", json={"title": text})

        assert answer.status_code == 200
        assert sum(answer.json()["results"][0]["probabilities"].values()) == pytest.approx(1.0)

    def test_calls_that_come_together_get_their_own_answers(self, window, predictor):
        rows = [{"title": f"Row {i}", "description": "word " * (i * 7 % 30)} for i in range(40)]

        async def scenario():
            async with window.client() as client:
                return await asyncio.gather(*(client.post("/predict/", json=row) for row in rows))

        answers = [answer.json()["results"][0] for answer in asyncio.run(scenario())]
        expected = [answer["confidence"] for answer in predictor.predict(rows)]
        assert pytest.approx(expected, abs=1e-4) == [answer["confidence"] for answer in answers]


def answered(window, query):
    """The one answer under a query string."""
    return window.post(f"/predict/?{query}", json=ROW).json()["results"][0]


class TestPolicyOfACaller:
    @pytest.fixture
    def certified(self, predictor):
        """A policy with a ladder of two certified levels and a refused one."""
        levels = [
            {"max_risk": 0.05, "threshold": 0.25, "status": "certified"},
            {"max_risk": 0.02, "threshold": 1.0, "status": "certified"},
            {"max_risk": 0.01, "threshold": None, "status": "refused"},
        ]
        return dataclasses.replace(predictor.policy, certificates={"levels": levels})

    def test_a_certified_level_decides_by_its_threshold(self, make_window, certified):
        window = make_window(policy=certified)

        first, second = answered(window, "max_risk=0.05"), answered(window, "max_risk=0.02")
        assert (first["threshold"], first["decision"], first["source"]) == (0.25, "accepted", "certificate")
        assert (second["threshold"], second["decision"], second["source"]) == (1.0, "abstained", "certificate")
        assert first["probabilities"] == second["probabilities"]

    def test_calls_of_one_batch_are_decided_each_by_its_own_policy(self, make_window, held):
        window = make_window(engine=held, allow_caller_threshold=True)

        async def scenario():
            async with window.client() as client:
                calls = [asyncio.create_task(client.post("/predict/", json=ROW))]
                await until(held.entered.is_set)
                for threshold in ("0", "1", "0.5"):
                    url = f"/predict/?threshold={threshold}"
                    calls.append(asyncio.create_task(client.post(url, json=[ROW, ROW])))
                await until(lambda: window.kitchen.current.batcher.waiting == 6)
                held.release()
                return [(await call).json()["results"] for call in calls]

        answers = asyncio.run(scenario())
        assert [[answer["threshold"] for answer in results] for results in answers] == [
            [0.9],
            [0, 0],
            [1, 1],
            [0.5, 0.5],
        ]
        assert [results[0]["source"] for results in answers] == ["default", "caller", "caller", "caller"]

    @pytest.mark.parametrize(
        ("query", "detail"),
        [
            ("max_risk=0.01", "max_risk 0.01 is not certified for this model; certified levels: 0.05, 0.02"),
            ("max_risk=x", "max_risk is 'x': expected a number from 0 to 1"),
            ("max_risk=nan", "max_risk is 'nan': expected a number from 0 to 1"),
            ("threshold=-0.1", "threshold is '-0.1': expected a number from 0 to 1"),
            ("threshold=1e9", "threshold is '1e9': expected a number from 0 to 1"),
            ("max_risk=0.05&threshold=0.5", "give max_risk or threshold, not both"),
            (
                "max_risk=0.05&max_risk=0.02",
                "query parameter 'max_risk' is unknown or repeated; known: max_risk, threshold",
            ),
            ("risk=0.05", "query parameter 'risk' is unknown or repeated; known: max_risk, threshold"),
            (
                "threshold=0.5",
                "this service does not let callers choose a threshold (allow_caller_threshold); try max_risk",
            ),
        ],
    )
    def test_what_cannot_be_asked_for_is_told(self, make_window, certified, query, detail):
        answer = make_window(policy=certified).post(f"/predict/?{query}", json=ROW)

        assert_problem(answer, 422, "invalid_request", detail=detail)


class TestBadRequests:
    @pytest.mark.parametrize(
        ("body", "status", "code", "locations"),
        [
            (b"not JSON", 400, "malformed_body", []),
            (b"", 400, "malformed_body", []),
            (b'{"title": "\xff"}', 400, "malformed_body", []),
            (rb'{"title": "\ud800"}', 400, "malformed_body", []),
            (b"[" * 10_000, 400, "malformed_body", []),
            (b"null", 422, "invalid_request", []),
            (b"[]", 422, "invalid_request", []),
            (b"{}", 422, "invalid_request", [[]]),
            (b'[{"title": "a"}, {}]', 422, "invalid_request", [[1]]),
            (b'{"title": 5}', 422, "invalid_request", [["title"]]),
            (b'[{"title": "a", "body": "b"}]', 422, "invalid_request", [[0, "body"]]),
            (rb'{"title": "a\u0000"}', 422, "invalid_request", [["title"]]),
            (json.dumps([ROW] * 1001).encode(), 422, "invalid_request", []),
        ],
        ids=lambda value: repr(value)[:40] if isinstance(value, bytes) else None,
    )
    def test_a_bad_body_is_a_problem_that_says_where(self, window, body, status, code, locations):
        assert_problem(window.post("/predict/", content=body), status, code, locations=locations)

    def test_an_unknown_route_is_not_found(self, window):
        detail = "no such route; GET /docs lists them"
        assert_problem(window.get("/nothing"), 404, "unknown_resource", detail=detail)

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", "/predict/", "POST"),
            ("PUT", "/predict", "POST"),
            ("GET", "/evaluate", "POST"),
            ("POST", "/", "GET"),
        ],
    )
    def test_a_wrong_method_is_told_the_right_one(self, window, method, path, allowed):
        answer = window.request(method, path)

        assert_problem(answer, 405, "method_not_allowed", detail="this route does not take this method")
        assert allowed == answer.headers["allow"]

    @pytest.mark.parametrize("path", ["/predict/", "/evaluate/"])
    @pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "text/jsonp", "x"])
    def test_another_content_type_is_refused(self, window, path, media_type):
        answer = window.post(path, content=b"{}", headers={"Content-Type": media_type})

        detail = f"content type {media_type!r} is not supported: send JSON with 'Content-Type: application/json'"
        assert_problem(answer, 415, "unsupported_media_type", detail=detail)

    @pytest.mark.parametrize(
        "media_type", ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/ld+json"]
    )
    def test_every_spelling_of_json_is_taken(self, window, media_type):
        answer = window.post("/predict/", content=json.dumps(ROW), headers={"Content-Type": media_type})

        assert answer.status_code == 200

    def test_a_body_without_a_content_type_is_taken_as_json(self, window):
        assert window.post("/predict/", content=json.dumps(ROW).encode()).status_code == 200

    def test_a_body_that_states_to_be_too_large_is_refused_unread(self, make_window):
        window = make_window(max_body_bytes=1024)
        read = []

        async def scenario():
            async def body():
                read.append(1)
                yield b" " * 1025

            async with window.client() as client:
                return await client.post("/predict/", content=body(), headers={"Content-Length": "1025"})

        detail = "the body is larger than 1024 bytes: send fewer rows in one call"
        assert_problem(asyncio.run(scenario()), 413, "body_too_large", detail=detail)
        assert read == []

    def test_a_body_that_streams_on_is_refused_at_the_limit(self, make_window):
        window = make_window(max_body_bytes=1024)
        sent = []

        async def scenario():
            async def body():
                for _ in range(1000):
                    sent.append(256)
                    yield b" " * 256

            async with window.client() as client:
                return await client.post("/predict/", content=body())

        assert_problem(asyncio.run(scenario()), 413, "body_too_large")
        assert sum(sent) < 10 * 256

    def test_a_body_at_the_limit_is_taken(self, make_window):
        window = make_window(max_body_bytes=1024)
        body = json.dumps(ROW).encode().ljust(1024)

        assert window.post("/predict/", content=body).status_code == 200

    def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_server_error(self, window):
        sent = []

        async def scenario():
            messages = iter([{"type": "http.request", "body": b"[", "more_body": True}, {"type": "http.disconnect"}])

            async def receive():
                return next(messages)

            async def send(message):
                sent.append(message)

            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": "POST",
                "scheme": "http",
                "path": "/predict/",
                "raw_path": b"/predict/",
                "query_string": b"",
                "headers": [(b"content-type", b"application/json")],
                "client": ("127.0.0.1", 1),
                "server": ("test", 80),
            }
            await window.app(scope, receive, send)

        asyncio.run(scenario())
        assert sent[0]["status"] == 400
        assert json.loads(sent[1]["body"])["detail"] == "the connection closed before the body was complete"

    @hypothesis.settings(max_examples=60, deadline=None)
    @hypothesis.given(st.binary(max_size=80))
    def test_no_bytes_give_a_server_error(self, window, body):
        assert window.post("/predict/", content=body).status_code in (200, 400, 422)
        assert window.post("/evaluate/", content=body).status_code in (200, 400, 404, 422)


class TestTroubleInside:
    @pytest.mark.parametrize("path", ["/predict/", "/health/ready"])
    def test_a_service_that_is_not_ready_says_when_to_come_back(self, make_window, path):
        window = make_window(ready=False)
        answer = window.post(path, json=ROW) if path == "/predict/" else window.get(path)

        assert_problem(answer, 503, "not_ready", detail="the service is starting or stopping")
        assert answer.headers["retry-after"] == "1"

    def test_a_service_that_is_not_ready_is_alive(self, make_window):
        assert make_window(ready=False).get("/health/live").status_code == 200

    def test_a_full_queue_is_told_with_when_to_come_back(self, make_window, held):
        window = make_window(engine=held, max_queue_rows=1)

        async def scenario():
            async with window.client() as client:
                computing = asyncio.create_task(client.post("/predict/", json=ROW))
                await until(held.entered.is_set)
                waiting = asyncio.create_task(client.post("/predict/", json=ROW))
                await until(lambda: window.kitchen.current.batcher.waiting)
                refused = await client.post("/predict/", json=ROW)
                held.release()
                return refused, await computing, await waiting

        refused, *answered = asyncio.run(scenario())
        assert_problem(
            refused, 429, "overloaded", detail="1 rows are waiting, at most 1 may: try again later", locations=[]
        )
        assert int(refused.headers["retry-after"]) >= 1
        assert [answer.status_code for answer in answered] == [200, 200]

    @pytest.mark.parametrize(("allowed_s", "asked_ms"), [(60, "20"), (0.02, "60000")])
    def test_a_caller_may_ask_for_less_time_and_gets_no_more_than_is_allowed(
        self, make_window, held, allowed_s, asked_ms
    ):
        window = make_window(engine=held, max_request_timeout_s=allowed_s)

        async def scenario():
            async with window.client() as client:
                answer = await client.post("/predict/", json=ROW, headers={"X-Request-Timeout-Ms": asked_ms})
                held.release()
                return answer

        assert_problem(asyncio.run(scenario()), 504, "deadline_exceeded")

    @pytest.mark.parametrize("text", ["0", "-5", "1.5", "soon", ""])
    def test_a_time_that_is_none_is_refused_with_what_was_expected(self, window, text):
        answer = window.post("/predict/", json=ROW, headers={"X-Request-Timeout-Ms": text})

        told = f"X-Request-Timeout-Ms is {text!r}: expected milliseconds, a whole number from 1"
        assert_problem(answer, 422, "invalid_request", detail=told)

    def test_a_service_whose_engine_hangs_is_not_alive(self, make_window, held):
        window = make_window(engine=held, hang_timeout_s=0.05)
        window.kitchen.current.batcher._longest_s = (
            0.0  # what the warm-up expects of a batch is longer than a test may take
        )

        async def scenario():
            async with window.client() as client:
                computing = asyncio.create_task(client.post("/predict/", json=ROW))
                await until(held.entered.is_set)
                await until(lambda: window.kitchen.hung)
                live = await client.get("/health/live")
                held.release()
                return live, await computing

        live, answered = asyncio.run(scenario())
        assert_problem(live, 503, "not_ready", detail="the engine does not come back from a batch")
        assert answered.status_code == 200

    def test_a_request_past_its_deadline_is_told(self, make_window, held):
        """At the deadline and not when the engine comes free, whether its row is being computed or waits."""
        window = make_window(engine=held, request_timeout_s=0.02)

        async def scenario():
            async with window.client() as client:
                computing = asyncio.create_task(client.post("/predict/", json=ROW))
                await until(held.entered.is_set)
                answers = await client.post("/predict/", json=ROW), await computing
                left = window.kitchen.current.batcher.waiting
                held.release()
                return left, answers

        left, answers = asyncio.run(scenario())
        for late in answers:
            detail = "the request took longer than it may and was given up"
            assert_problem(late, 504, "deadline_exceeded", detail=detail)
        assert left == 0

    def test_the_rows_of_a_client_that_has_gone_are_not_computed(self, make_window, held, monkeypatch):
        monkeypatch.setattr(batching, "WATCH_AFTER_S", 0.01)
        window = make_window(engine=held)
        body = json.dumps(ROW).encode()

        async def call(gone):
            """A call as a server makes it: the body, and a disconnect when the client goes."""
            messages = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive():
                if messages:
                    return messages.pop()
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message)

            sent = []
            headers = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": "/predict/", "query_string": b"", "headers": headers}
            await window.app(scope, receive, send)
            return sent[0]["status"]

        async def scenario():
            first = asyncio.create_task(call(asyncio.Event()))
            await until(held.entered.is_set)
            gone = asyncio.Event()
            second = asyncio.create_task(call(gone))
            await until(lambda: window.kitchen.current.batcher.waiting)
            gone.set()
            status = await second
            left = window.kitchen.current.batcher.waiting
            held.release()
            return status, left, await first

        assert asyncio.run(scenario()) == (499, 0, 200)

    def test_an_engine_that_raises_is_an_internal_error_that_tells_nothing_of_the_inside(self, make_window):
        window = make_window(engine=FailingEngine(RuntimeError("/srv/secret/model.py broke")))
        answer = window.post("/predict/", json=ROW)

        detail = "the server failed; the log has the reason"
        assert_problem(answer, 500, "internal", detail=detail)
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text

    def test_an_engine_that_raises_is_in_the_log_with_its_reason(self, make_window, caplog):
        make_window(engine=FailingEngine(RuntimeError("layer 3 broke"))).post("/predict/", json=ROW)

        assert "layer 3 broke" in caplog.text

    def test_logits_that_are_no_numbers_are_the_servers_fault(self, make_window, predictor, caplog):
        answer = make_window(engine=ConstantEngine(predictor.engine, np.nan)).post("/predict/", json=ROW)

        assert_problem(answer, 503, "checkpoint")
        assert "NaN or infinite logits" in caplog.text

    def test_the_service_answers_again_after_a_failure(self, make_window, predictor):
        window = make_window(engine=FailingEngine(RuntimeError("once")))
        assert window.post("/predict/", json=ROW).status_code == 500
        object.__setattr__(window.kitchen.predictor, "engine", predictor.engine)

        assert window.post("/predict/", json=ROW).status_code == 200

    def test_the_event_loop_is_free_while_the_engine_computes(self, make_window, held):
        window = make_window(engine=held)

        async def scenario():
            async with window.client() as client:
                computing = asyncio.create_task(client.post("/predict/", json=ROW))
                await until(held.entered.is_set)
                others = [await client.get(path) for path in ("/health/live", "/health/ready", "/model", "/")]
                bad = await client.post("/predict/", json={})
                busy = not computing.done()
                held.release()
                return busy, [answer.status_code for answer in [*others, bad, await computing]]

        assert asyncio.run(scenario()) == (True, [200, 200, 200, 200, 422, 200])

    def test_any_other_http_error_is_a_problem_too(self, window):
        from starlette.exceptions import HTTPException

        another = Window(window.kitchen)

        @another.app.get("/teapot")
        def teapot():
            raise HTTPException(418, "short and stout", headers={"X-Tea": "green"})

        answer = another.get("/teapot")
        assert_problem(answer, 418, "bad_request", detail="short and stout")
        assert answer.headers["x-tea"] == "green"


class TestRequestId:
    @pytest.mark.parametrize("given", ["abc", "A-1.b_2:c", "x" * 64])
    def test_a_sane_one_is_kept(self, window, given):
        answer = window.post("/predict/", json=ROW, headers={"X-Request-Id": given})

        assert given == answer.headers["x-request-id"]
        assert given == answer.json()["request_id"]

    @pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", 'a"b', "a\n", "ü", "a/b", "<b>", "a;b"])
    def test_any_other_is_replaced(self, window, given):
        answer = window.post("/predict/", json=ROW, headers=[(b"X-Request-Id", given.encode())])

        assert given != answer.json()["request_id"]
        assert len(answer.json()["request_id"]) == 32
        assert answer.headers["x-request-id"] == answer.json()["request_id"]

    def test_two_requests_have_two(self, window):
        first, second = (window.get("/health/live").headers["x-request-id"] for _ in range(2))

        assert first != second

    def test_a_problem_names_the_callers(self, window):
        answer = window.post("/predict/", json={}, headers={"X-Request-Id": "abc"})

        assert answer.json()["request_id"] == "abc"

    def test_behind_a_server_that_adds_the_header_the_app_leaves_it_out(self, window):
        answer = Window(window.kitchen, adds_request_id=False).post(
            "/predict/", json=ROW, headers={"X-Request-Id": "abc"}
        )

        assert "x-request-id" not in answer.headers
        assert answer.json()["request_id"] == "abc"


class TestEvaluate:
    @pytest.mark.parametrize("name", ["projects.csv", "projects"])
    def test_a_named_file_of_the_folder_is_evaluated(self, window, name):
        document = window.post("/evaluate/", json={"dataset": name}).json()

        assert (document["run_id"], document["dataset"]) == ("a-run", "projects.csv")
        assert document["overall"]["num_samples"] == 160
        assert window.kitchen.predictor.classes == list(document["per_class"])

    @pytest.mark.parametrize(
        "name",
        [
            *(
                "../secret.csv",
                "../datasets/projects.csv",
                "./projects.csv",
                "datasets/projects.csv",
                "link.csv",
                "link",
            ),
            *(
                "link",
                "inner/inner.csv",
                "inner.csv",
                "folder.csv",
                "folder",
                "notes.txt",
                "notes",
                "",
                ".",
                "..",
                "/",
                "*",
            ),
            *("projects.csv\x00", "projects.csv/", "PROJECTS.CSV", "http://127.0.0.1/projects.csv", "x" * 5000),
            *("file:///etc/passwd", "\N{GRINNING FACE}"),
        ],
        ids=lambda name: ascii(name)[:30],
    )
    def test_nothing_but_a_plain_file_of_the_folder_can_be_named(self, window, name):
        document = assert_problem(window.post("/evaluate/", json={"dataset": name}), 404, "unknown_resource")

        assert document["detail"].endswith("in the configured dataset folder")
        assert len(document["detail"]) < 200

    def test_an_absolute_path_to_a_file_of_the_folder_is_no_name(self, window, datasets):
        assert_problem(
            window.post("/evaluate/", json={"dataset": str(datasets / "projects.csv")}), 404, "unknown_resource"
        )

    def test_without_a_dataset_folder_no_name_is_known(self, make_window, datasets):
        window = make_window(datasets=datasets / "missing")

        assert_problem(window.post("/evaluate/", json={"dataset": "projects.csv"}), 404, "unknown_resource")

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("strange.csv", "'strange.csv' has the label 'gardening', which the model does not know"),
            ("latin.csv", "'latin.csv' is not UTF-8"),
            ("columns.csv", "'columns.csv' has no column 'title'"),
        ],
    )
    def test_a_file_that_cannot_be_evaluated_on_is_told_without_its_path(self, window, datasets, name, told):
        document = assert_problem(window.post("/evaluate/", json={"dataset": name}), 422, "invalid_request")

        assert document["detail"].startswith(told)
        assert str(datasets) not in document["detail"]

    def test_a_body_that_is_not_json_is_malformed(self, window):
        document = assert_problem(window.post("/evaluate/", content=b"projects.csv"), 400, "malformed_body")

        assert document["detail"].startswith("the body is not JSON: ")

    @pytest.mark.parametrize(
        "body", [{}, [], None, "projects.csv", {"dataset": 1}, {"dataset": "projects.csv", "limit": 1}, {"data": "x"}]
    )
    def test_json_of_another_shape_is_told_what_was_expected(self, window, body):
        detail = 'expected {"dataset": NAME}, the name of a file in the dataset folder'
        answer = window.post("/evaluate/", content=json.dumps(body))

        assert_problem(answer, 422, "invalid_request", detail=detail)

    def test_one_evaluation_runs_at_a_time(self, make_window, held):
        window = make_window(engine=held)

        async def scenario():
            async with window.client() as client:
                running = asyncio.create_task(client.post("/evaluate/", json={"dataset": "projects.csv"}))
                await until(held.entered.is_set)
                refused = await client.post("/evaluate/", json={"dataset": "projects.csv"})
                live = await client.get("/health/live")
                held.release()
                return refused, live, await running

        refused, live, done = asyncio.run(scenario())
        assert_problem(refused, 429, "overloaded", detail="an evaluation is running: try again when it is done")
        assert refused.headers["retry-after"] == "10"
        assert [live.status_code, done.status_code] == [200, 200]


def resolved(document, path, method):
    """An operation, and its 200 answer's content; its schema can be used by itself."""
    operation = document["paths"][path][method]
    content = operation["responses"]["200"]["content"]["application/json"]
    return operation, {**content, "schema": {**content["schema"], "components": document["components"]}}


def body_of(document, operation):
    """An operation's JSON body; its schema can be used by itself."""
    body = operation["requestBody"]["content"]["application/json"]
    return {**body, "schema": {**body["schema"], "components": document["components"]}}


class TestOpenApi:
    @pytest.fixture(scope="class")
    @staticmethod
    def document(window):
        return window.get("/openapi.json").json()

    def test_each_route_is_documented_once(self, document):
        assert [path for path in document["paths"] if not path.startswith("/v2")] == [
            *("/predict/", "/evaluate/", "/feedback/", "/", "/run_id/", "/model", "/policy", "/shadow"),
            *("/health/live", "/health/ready", "/invocations", "/ping", "/health", "/version"),
        ]

    @pytest.mark.parametrize("path", ["/predict/", "/evaluate/"])
    def test_the_example_of_a_body_fits_its_schema_and_works_when_posted(self, window, document, path):
        operation, described = resolved(document, path, "post")
        body = body_of(document, operation)
        jsonschema.validate(body["example"], body["schema"])

        answer = window.post(path, json=body["example"])
        assert answer.status_code == 200
        jsonschema.validate(answer.json(), described["schema"])

    def test_the_example_of_an_answer_fits_its_schema_and_has_the_models_labels(self, window, document):
        _, described = resolved(document, "/predict/", "post")
        example = described["example"]
        jsonschema.validate(example, described["schema"])

        (answer,) = example["results"]
        (real,) = window.post("/predict/", json=ROW).json()["results"]
        assert list(real) == list(answer)
        assert list(real["probabilities"]) == list(answer["probabilities"])
        assert sum(answer["probabilities"].values()) == pytest.approx(1.0)

    @pytest.mark.parametrize("path", ["/", "/run_id/", "/model", "/policy", "/health/live", "/health/ready"])
    def test_an_answer_of_a_get_route_fits_its_schema(self, window, document, path):
        _, described = resolved(document, path, "get")

        jsonschema.validate(window.get(path).json(), described["schema"])

    @pytest.mark.parametrize(("body", "fits"), [([ROW] * 1000, True), ([ROW] * 1001, False), ([], False), (5, False)])
    def test_the_schema_of_a_body_has_its_limits(self, document, body, fits):
        operation, _ = resolved(document, "/predict/", "post")
        schema = body_of(document, operation)["schema"]

        assert fits is jsonschema.Draft202012Validator(schema).is_valid(body)

    def test_every_problem_of_a_post_is_documented(self, document):
        operation, _ = resolved(document, "/predict/", "post")

        assert sorted(operation["responses"]) == [
            *("200", "400", "401", "403", "408", "413", "415", "422", "429", "431", "503", "504")
        ]
        problem = operation["responses"]["422"]["content"]["application/problem+json"]["schema"]
        assert problem == {"$ref": "#/components/schemas/Problem"}
        assert document["components"]["schemas"]["Problem"] == components.PROBLEM

    def test_every_schema_that_is_named_is_there(self, document):
        named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
        assert named == set(document["components"]["schemas"])

    def test_with_keys_it_says_where_they_are_needed(self, make_window, document):
        _, key = keys.create("a")
        guarded = make_window(keys=(key,)).get("/openapi.json").json()
        assert guarded["paths"]["/predict/"]["post"]["security"] == [{"bearer": []}, {"api_key": []}]
        assert "security" not in guarded["paths"]["/health/ready"]["get"]
        assert "securitySchemes" not in document["components"]


class TestLifespan:
    def test_when_the_app_ends_the_service_refuses_new_work_and_finishes_the_rest(self, make_window, held):
        window = make_window(engine=held)

        async def scenario():
            async with window.client() as client:
                lifespan = window.app.router.lifespan_context(window.app)
                await lifespan.__aenter__()
                accepted = asyncio.create_task(client.post("/predict/", json=ROW))
                await until(held.entered.is_set)
                ending = asyncio.create_task(lifespan.__aexit__(None, None, None))
                await until(lambda: not window.kitchen.ready)
                refused = await client.post("/predict/", json=ROW)
                ended_early = ending.done()
                held.release()
                await ending
                return refused.status_code, ended_early, (await accepted).status_code

        assert asyncio.run(scenario()) == (503, False, 200)
