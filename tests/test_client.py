"""The client: what it sends, what it makes of the answers, and how long it waits; the sync and the async one alike."""

import asyncio
import contextlib
import dataclasses
import datetime
import email.utils
import http.server
import json
import pickle
import re
import subprocess
import sys
import threading
import types
from pathlib import Path

import fastapi
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import madewithml
from madewithml import client, decision, errors
from madewithml.asking import clients, exchange, prediction, retries
from madewithml.asking import problems as told
from madewithml.serving import components, problems

URL = "http://service.test"
ROW = {"title": "Intro to CNNs"}
PAGE = Path(__file__).parents[1] / "docs" / "client.md"
HEAVY = ("ray", "torch", "numpy", "mlflow", "pandas", "transformers", "fastapi", "starlette", "pydantic", "sklearn")
BOTH = pytest.mark.parametrize("kind", ["sync", "async"], indirect=True)


class Clock:
    """Stands for the module `time`, and for the waiting of `asyncio`: waits at once, and remembers it."""

    def __init__(self):
        self.now = 1000.0
        self.waits = []

    def monotonic(self):
        return self.now

    def time(self):
        return 1_700_000_000.0 + self.now

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds

    async def asleep(self, seconds):
        self.sleep(seconds)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (exchange, clients, retries):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(clients, "asyncio", types.SimpleNamespace(**{**vars(asyncio), "sleep": clock.asleep}))
    return clock


@pytest.fixture
def full_jitter(monkeypatch):
    """The longest wait that the jitter may draw."""
    monkeypatch.setattr(retries, "random", types.SimpleNamespace(uniform=lambda low, high: high))


class Blocking:
    """An `AsyncClient` used from code that does not await."""

    def __init__(self, url, *arguments, **options):
        self.loop = asyncio.new_event_loop()
        self.client = client.AsyncClient(url, *arguments, **options)

    def __getattr__(self, name):
        return lambda *arguments, **options: self.loop.run_until_complete(
            getattr(self.client, name)(*arguments, **options)
        )

    def __enter__(self):
        assert self.loop.run_until_complete(self.client.__aenter__()) is self.client
        return self

    def __exit__(self, *how):
        self.loop.run_until_complete(self.client.__aexit__(*how))
        self.loop.close()


@pytest.fixture
def kind(request):
    return client.Client if request.param == "sync" else Blocking


@pytest.fixture
def connect(kind):
    """Makes clients of the kind under test, closed at the end; a handler stands for the service."""
    with contextlib.ExitStack() as stack:

        def connect(handler, *arguments, url=URL, **options):
            return stack.enter_context(kind(url, *arguments, transport=httpx.MockTransport(handler), **options))

        yield connect


def result(title, **changes):
    return {
        "prediction": title,
        "probabilities": {title: 0.75, "other": 0.25},
        "label": title,
        "confidence": 0.75,
        "decision": "accepted",
        "reason": None,
        "threshold": 0.5,
        "source": "certificate",
        "truncated": False,
        **changes,
    }


def answer(rows, *, request_id="r-1", **changes):
    """The body of an answer whose labels are the titles of the rows."""
    return {"results": [result(row["title"], **changes) for row in rows], "run_id": "run", "request_id": request_id}


def echo(request):
    body = json.loads(request.content)
    return httpx.Response(200, json=answer([body] if isinstance(body, dict) else body))


def problem(status, *, detail="", headers=None, errors=()):
    document = {
        "type": "urn:madewithml:problem:x",
        "title": "Some problem",
        "status": status,
        "detail": detail,
        "request_id": "r-9",
        "errors": list(errors),
    }
    return httpx.Response(status, json=document, headers=headers)


class Script:
    """A service that gives these answers one after the other, and keeps what it was asked."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        if callable(reply):
            return reply(request)
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)  # parameters are shared


# What is sent, and what comes back


@BOTH
def test_one_row_gives_one_prediction(connect):
    service = Script(echo)
    expected = client.Prediction(
        prediction="Intro to CNNs",
        label="Intro to CNNs",
        confidence=0.75,
        decision="accepted",
        reason=None,
        threshold=0.5,
        probabilities={"Intro to CNNs": 0.75, "other": 0.25},
        truncated=False,
        source="certificate",
        candidates=None,
        run_id="run",
        request_id="r-1",
        row=0,
    )
    assert expected == connect(service).predict(ROW)
    (sent,) = service.requests
    assert ("POST", f"{URL}/predict/") == (sent.method, str(sent.url))
    assert json.loads(sent.content) == ROW
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["user-agent"] == f"madewithml/{madewithml.__version__}"
    assert "authorization" not in sent.headers


@BOTH
def test_a_list_gives_a_list_even_of_one(connect):
    (prediction,) = connect(echo).predict([ROW])
    assert prediction.label == "Intro to CNNs"


@BOTH
def test_any_iterable_of_mappings_is_a_list_of_rows(connect):
    rows = (types.MappingProxyType({"title": title, "description": None}) for title in "abc")
    assert [each.label for each in connect(echo).predict(rows)] == ["a", "b", "c"]


@BOTH
def test_texts_are_sent_as_utf_8(connect):
    service = Script(echo)
    assert connect(service).predict({"title": "naïve 模型"}).label == "naïve 模型"
    assert "naïve 模型".encode() in service.requests[0].content


@BOTH
def test_a_long_list_goes_in_several_calls_and_keeps_its_order(connect):
    def reply(request):
        rows = json.loads(request.content)
        return httpx.Response(200, json=answer(rows, request_id=f"of-{rows[0]['title']}"))

    predictions = connect(reply, rows_per_call=2).predict([{"title": str(number)} for number in range(5)])

    expected = [("0", "of-0", 0), ("1", "of-0", 1), ("2", "of-2", 0), ("3", "of-2", 1), ("4", "of-4", 0)]
    assert expected == [(each.label, each.request_id, each.row) for each in predictions]


@pytest.mark.parametrize("make", [client.Client, Blocking])
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), rows_per_call=st.integers(1, 50))
def test_the_order_is_kept_whatever_the_length_and_the_size_of_a_call(make, rows, rows_per_call):
    sizes = []

    def reply(request):
        sizes.append(len(json.loads(request.content)))
        return echo(request)

    with make(URL, rows_per_call=rows_per_call, transport=httpx.MockTransport(reply)) as asked:
        predictions = asked.predict([{"title": str(number)} for number in range(rows)])

    assert [str(number) for number in range(rows)] == [each.label for each in predictions]
    assert (sum(sizes), len(sizes)) == (rows, -(-rows // rows_per_call))
    assert max(sizes) <= rows_per_call


@BOTH
def test_a_level_of_risk_goes_with_every_call(connect):
    service = Script(echo, echo)
    connect(service, rows_per_call=1).predict([ROW, ROW], max_risk=0.02)
    assert [str(each.url) for each in service.requests] == [f"{URL}/predict/?max_risk=0.02"] * 2


@BOTH
def test_a_path_in_the_url_is_kept(connect):
    service = Script(echo)
    connect(service, url="https://models.example.org/topics/").predict(ROW)
    assert str(service.requests[0].url) == "https://models.example.org/topics/predict/"


@BOTH
def test_the_key_goes_as_a_bearer_token(connect):
    service = Script(echo, httpx.Response(200, json={}))
    asked = connect(service, "s3cret")
    asked.predict(ROW)
    asked.policy()
    assert [each.headers["authorization"] for each in service.requests] == ["Bearer s3cret"] * 2


@BOTH
def test_feedback_names_the_request_the_row_and_the_label(connect):
    service = Script(httpx.Response(200, json={}), httpx.Response(204))
    asked = connect(service)
    assert asked.feedback("r-1", "mlops") is None
    assert asked.feedback("r-1", "mlops", row=3) is None
    expected = [{"request_id": "r-1", "row": row, "label": "mlops"} for row in (0, 3)]
    assert expected == [json.loads(each.content) for each in service.requests]
    assert [(each.method, each.url.path) for each in service.requests] == [("POST", "/feedback/")] * 2


@BOTH
@pytest.mark.parametrize("name", ["policy", "model"])
def test_facts_are_given_as_the_service_tells_them(connect, name):
    service = Script(httpx.Response(200, json={"threshold": 0.9}))
    assert getattr(connect(service), name)() == {"threshold": 0.9}
    assert [(each.method, each.url.path) for each in service.requests] == [("GET", f"/{name}")]


@BOTH
def test_facts_that_are_no_object_are_told(connect):
    with pytest.raises(client.AnswerError, match=re.escape(f"{URL}/model answered '[1]': expected a JSON object")):
        connect(lambda _: httpx.Response(200, json=[1])).model()


@BOTH
@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (httpx.Response(200, json={"status": "ready"}), True),
        (problem(503, headers={"Retry-After": "1"}), False),
        (problem(500), False),
        (problem(504), False),
        (httpx.ConnectError("refused"), False),
        (httpx.ConnectTimeout("slow"), False),
    ],
)
def test_ready_asks_once_and_gives_a_plain_answer(connect, clock, reply, expected):
    service = Script(reply)
    assert connect(service).ready() is expected
    assert [each.url.path for each in service.requests] == ["/health/ready"]
    assert clock.waits == []


@BOTH
def test_ready_tells_that_the_key_is_refused(connect):
    with pytest.raises(client.RequestRefusedError, match="403 Some problem"):
        connect(Script(problem(403))).ready()


# Reading answers


def test_keys_that_are_new_are_passed_over():
    document = {**answer([ROW], novel=1), "novel": 2}
    assert prediction.read_predictions(document, rows=1) == prediction.read_predictions(answer([ROW]), rows=1)


def test_an_abstained_answer_has_its_candidates():
    changes = {"prediction": "other", "decision": "abstained", "reason": "not_certified", "threshold": None}
    (read,) = prediction.read_predictions(answer([ROW], **changes, candidates=["a", "b"]), rows=1)
    assert (read.prediction, read.decision, read.reason) == ("other", "abstained", "not_certified")
    assert (read.threshold, read.candidates) == (None, ("a", "b"))


def test_a_prediction_cannot_be_changed():
    (read,) = prediction.read_predictions(answer([ROW]), rows=1)
    with pytest.raises(AttributeError, match="label"):
        read.label = "other"


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"results": [{"prediction": "a"}], "run_id": "run", "request_id": "r"}, "it has no 'label'"),
        ({"results": []}, "it has no 'run_id'"),
        ({"results": ["a"], "run_id": "run", "request_id": "r"}, "no attribute 'get'"),
        ([1], "list indices must be integers"),
        (None, "not subscriptable"),
    ],
)
def test_an_answer_of_another_shape_is_told(document, told):
    with pytest.raises(client.AnswerError, match=f"^the answer is not one of this service: .*{told}"):
        prediction.read_predictions(document, rows=1)


@BOTH
def test_fewer_answers_than_rows_are_told(connect):
    with pytest.raises(client.AnswerError, match=r"^2 rows were sent and 1 answers came back"):
        connect(lambda _: httpx.Response(200, json=answer([ROW]))).predict([ROW, ROW])


@BOTH
def test_an_answer_that_is_not_json_is_quoted(connect):
    with pytest.raises(client.AnswerError, match=re.escape(f"{URL}/predict/ answered '<html>', which is not JSON")):
        connect(lambda _: httpx.Response(200, text="<html>")).predict(ROW)


@BOTH
def test_a_redirect_is_not_followed_but_told(connect):
    """A caller's key would go along to wherever it points."""
    service = Script(httpx.Response(307, headers={"Location": "https://elsewhere.test/predict/"}))
    with pytest.raises(client.AnswerError, match=r"answered 307 and points at 'https://elsewhere.test/predict/'"):
        connect(service).predict(ROW)


@BOTH
def test_an_answer_that_cannot_be_decoded_is_told(connect):
    with pytest.raises(client.AnswerError, match=r"^GET /model: "):
        connect(lambda _: httpx.Response(200, headers={"Content-Encoding": "gzip"}, content=b"no gzip")).model()


# What the service itself writes


def test_a_prediction_has_every_key_of_the_documented_answer():
    own = {"run_id", "request_id", "row"}
    assert {each.name for each in dataclasses.fields(client.Prediction)} - own == set(components.RESULT["properties"])


@pytest.mark.parametrize("threshold", [0.5, 0.99, None])
def test_the_answers_of_a_decision_are_read_as_they_stand(threshold):
    policy = decision.DecisionPolicy(class_thresholds={"a": threshold}, source="certificate", candidate_quantile=0.9)
    (written,) = policy.answers(policy.decide(np.array([[2.0, 0.0]]), ["a", "b"]), ["a", "b"])
    (read,) = prediction.read_predictions(
        {"results": [{**written, "truncated": False}], "run_id": "run", "request_id": "r"}, rows=1
    )
    expected = {"candidates": None, **written, "truncated": False, "run_id": "run", "request_id": "r", "row": 0}
    found = dataclasses.asdict(read)
    assert expected == {**found, "candidates": found["candidates"] and list(found["candidates"])}


def test_the_problems_of_the_service_are_read_as_they_stand(clock, full_jitter):
    faults = [{"location": [0, "titel"], "message": "unknown field 'titel'"}]
    pending = [
        errors.OverloadedError("the queue is full", retry_after_s=2.5),
        errors.InvalidRequestError("unknown field 'titel'", errors=faults),
    ]
    service = fastapi.FastAPI()
    service.state.adds_request_id = True
    problems.install(service)

    @service.post("/predict/")
    async def predict():
        raise pending.pop(0)

    with Blocking(URL, transport=httpx.ASGITransport(service)) as asked, pytest.raises(client.ClientError) as caught:
        asked.predict([ROW])
    assert clock.waits == [3.25]  # whole seconds on the wire
    told = caught.value
    assert (type(told), told.status, told.title) == (client.RequestRefusedError, 422, "Invalid request")
    assert (told.detail, told.errors, len(told.request_id)) == ("unknown field 'titel'", tuple(faults), 32)


# Refusals


@BOTH
def test_a_refusal_has_the_fields_of_the_problem_document(connect):
    faults = [{"location": ["titel"], "message": "unknown field 'titel'"}]
    service = Script(problem(422, detail="unknown field 'titel'", errors=faults))
    with pytest.raises(client.RequestRefusedError) as caught:
        connect(service).predict({"titel": "a"})
    told = caught.value
    assert str(told) == "POST /predict/: 422 Some problem: unknown field 'titel'"
    assert (told.status, told.title, told.detail) == (422, "Some problem", "unknown field 'titel'")
    assert (told.errors, told.request_id, told.first_row) == (tuple(faults), "r-9", 0)


@BOTH
def test_a_refusal_within_a_long_list_says_where_the_service_began_to_count(connect):
    def reply(request):
        return echo(request) if b"good" in request.content else problem(422, detail="row 1 has no text")

    rows = [{"title": "good"}, {"title": "good"}, {"title": "bad"}, {"title": ""}]
    with pytest.raises(client.RequestRefusedError, match=re.escape("(from row 2 of the list on")) as caught:
        connect(reply, rows_per_call=2).predict(rows)
    assert caught.value.first_row == 2


@BOTH
def test_a_failure_of_the_service_is_not_tried_again(connect, clock):
    service = Script(problem(500, detail="the log has the reason"))
    with pytest.raises(client.ServiceFailedError, match="500 Some problem: the log has the reason"):
        connect(service).predict(ROW)
    assert clock.waits == []


@BOTH
def test_504_is_a_deadline_and_not_tried_again(connect, clock):
    service = Script(problem(504, detail="not answered in time"))
    with pytest.raises(client.DeadlineError, match="504 Some problem: not answered in time") as caught:
        connect(service).predict(ROW)
    assert caught.value.request_id == "r-9"
    assert len(service.requests) == 1


@pytest.mark.parametrize("content", [b"<h1>Bad gateway</h1>", b'["Bad gateway"]', b"\xff"])
def test_what_a_proxy_says_is_quoted(content):
    read = told.read_problem(502, {"x-request-id": "p-1"}, content)
    assert (read.title, read.request_id, read.errors) == ("Bad Gateway", "p-1", ())
    assert read.detail == content.decode(errors="replace")


def test_a_problem_without_detail_or_with_a_number_nobody_knows_is_still_readable():
    assert str(told.read_problem(599, {}, b"")) == "599 Unknown status"


def test_errors_survive_a_process_boundary():
    told = client.RequestRefusedError("no", problem=client.Problem(status=422, title="t", detail="d"), first_row=7)
    copy = pickle.loads(pickle.dumps(told))
    assert (str(copy), copy.status, copy.detail, copy.first_row) == ("no", 422, "d", 7)


# Trying again


@BOTH
@pytest.mark.parametrize(
    "reply",
    [
        problem(429),
        problem(503),
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
    ],
)
def test_what_passes_is_tried_again(connect, clock, reply):
    service = Script(reply, reply, echo)
    assert connect(service).predict(ROW).label == "Intro to CNNs"
    assert len(clock.waits) == 2


@BOTH
def test_waits_double_up_to_a_bound(connect, clock, full_jitter):
    service = Script(*[problem(503)] * 7, echo)
    connect(service, retries=7, timeout_s=60.0).predict(ROW)
    assert clock.waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0]


def test_jitter_is_full():
    """Anything from nothing to the bound: callers who failed together do not come back together."""
    waits = [retries.wait_s(2, asked_s=None) for _ in range(1000)]
    assert min(waits) < 0.1
    assert 0.9 < max(waits) <= 1.0


@BOTH
def test_a_wait_is_no_shorter_than_the_service_asks(connect, clock, full_jitter):
    service = Script(problem(429, headers={"Retry-After": "3"}), echo)
    connect(service).predict(ROW)
    assert clock.waits == [3.25]


@BOTH
def test_the_service_may_ask_by_date(connect, clock, full_jitter):
    moment = datetime.datetime.fromtimestamp(clock.time() + 5, tz=datetime.timezone.utc)
    service = Script(problem(503, headers={"Retry-After": email.utils.format_datetime(moment, usegmt=True)}), echo)
    connect(service).predict(ROW)
    assert clock.waits == [5.25]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("0", 0.0),
        (" 12 ", 12.0),
        ("9" * 400, float("inf")),
        ("soon", None),
        ("-1", None),
        ("Wed, 15 Nov 2023 00:00:00 GMT", 100.0),
        ("Wed, 15 Nov 2023 00:00:00 -0000", 100.0),
        ("Wed, 15 Nov 1995 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_or_nothing(clock, text, expected):
    clock.now = 6_300.0  # 1,700,006,300 in all: a hundred seconds before that date in 2023
    assert retries.read_retry_after(text) == expected


@BOTH
def test_retries_come_to_an_end(connect, clock):
    service = Script(*[problem(429, detail="the queue is full")] * 3)
    with pytest.raises(client.UnavailableError) as caught:
        connect(service, retries=2).predict(ROW)
    told = "POST /predict/: 429 Some problem: the queue is full (tries: 3; no retry is left)"
    assert (str(caught.value), caught.value.status, caught.value.request_id) == (told, 429, "r-9")


@BOTH
def test_a_service_that_is_not_there_is_told_with_its_address(connect, clock):
    told = re.escape(f"no answer from {URL}/predict/: refused. Is the service running there? (tries: 1; no retry")
    with pytest.raises(client.UnavailableError, match=told) as caught:
        connect(Script(httpx.ConnectError("refused")), retries=0).predict(ROW)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert caught.value.status is None


# The deadline


@BOTH
def test_a_wait_that_would_end_past_the_deadline_is_not_begun(connect, clock, full_jitter):
    service = Script(problem(503, headers={"Retry-After": "1"}), problem(503, headers={"Retry-After": "60"}))
    told = re.escape("(tries: 2; the next in 60.5 s, but only 8.8 s of 10 s are left)")
    with pytest.raises(client.UnavailableError, match=told):
        connect(service, timeout_s=10.0).predict(ROW)
    assert clock.waits == [1.25]


@BOTH
def test_the_service_is_told_what_is_left_of_the_time(connect, clock, full_jitter):
    def slow(request):
        clock.now += 2.0
        return problem(503)

    service = Script(slow, echo)
    connect(service, timeout_s=10.0).predict(ROW)
    assert [each.headers["x-request-timeout-ms"] for each in service.requests] == ["10000", "7750"]


@BOTH
def test_a_long_list_has_one_deadline(connect, kind, clock):
    def slow(request):
        clock.now += 4.0
        return echo(request)

    service = Script(slow, slow, slow)
    one_by_one = {"calls_at_once": 1} if kind is Blocking else {}
    told = r"not answered within 10 s: give a longer timeout_s, or fewer rows"
    with pytest.raises(client.DeadlineError, match=told) as caught:
        connect(service, timeout_s=10.0, rows_per_call=1, **one_by_one).predict([ROW] * 4)
    assert [each.headers["x-request-timeout-ms"] for each in service.requests] == ["10000", "6000", "2000"]
    assert caught.value.first_row in (2, 3)  # the late answer is noticed when it comes, or before the next call


@BOTH
def test_less_than_a_millisecond_is_sent_as_one(connect, clock):
    service = Script(echo)
    connect(service, timeout_s=0.0005).predict(ROW)
    assert service.requests[0].headers["x-request-timeout-ms"] == "1"


@BOTH
@pytest.mark.parametrize("err", [httpx.ConnectTimeout("slow"), httpx.ReadTimeout("slow"), httpx.PoolTimeout("slow")])
def test_each_step_may_take_what_is_left_and_then_it_is_the_deadline(connect, clock, err):
    service = Script(problem(503), err)
    with pytest.raises(client.DeadlineError, match=r"^POST /predict/: not answered within 10 s"):
        connect(service, timeout_s=10.0).predict(ROW)
    assert service.requests[0].extensions["timeout"] == dict.fromkeys(("connect", "read", "write", "pool"), 10.0)
    assert service.requests[1].extensions["timeout"]["read"] == pytest.approx(10.0 - clock.waits[0])


# Several calls at a time


def test_calls_that_are_answered_out_of_order_give_answers_in_order():
    async def ask():
        last_came = asyncio.Event()

        async def reply(request):
            if b'"5"' in request.content:
                last_came.set()
            await last_came.wait()
            return echo(request)

        transport = httpx.MockTransport(reply)
        async with client.AsyncClient(URL, rows_per_call=2, calls_at_once=3, transport=transport) as asked:
            return await asked.predict([{"title": str(number)} for number in range(6)])

    assert [each.label for each in asyncio.run(ask())] == ["0", "1", "2", "3", "4", "5"]


def test_no_more_calls_are_on_their_way_than_allowed():
    most = now = 0

    async def reply(request):
        nonlocal most, now
        now += 1
        most = max(most, now)
        for _ in range(10):
            await asyncio.sleep(0)  # lets every other task run
        now -= 1
        return echo(request)

    async def ask():
        transport = httpx.MockTransport(reply)
        async with client.AsyncClient(URL, rows_per_call=1, calls_at_once=3, transport=transport) as asked:
            await asked.predict([ROW] * 12)

    asyncio.run(ask())
    assert most == 3


def test_after_the_first_error_the_other_calls_are_called_off():
    called_off = []

    async def reply(request):
        if b"bad" in request.content:
            return problem(422)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            called_off.append(json.loads(request.content)[0]["title"])
            raise

    async def ask():
        transport = httpx.MockTransport(reply)
        async with client.AsyncClient(URL, rows_per_call=1, calls_at_once=3, transport=transport) as asked:
            with pytest.raises(client.RequestRefusedError, match="422"):
                await asked.predict([{"title": title} for title in ("a", "b", "bad", "never sent")])
            return list(called_off)

    assert sorted(asyncio.run(ask())) == ["a", "b"]


# Wrong usage


@BOTH
@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "the list is empty: give at least one row"),
        ("Intro to CNNs", "rows is 'Intro to CNNs' (str): expected a mapping {'title': 'Intro to CNNs'}, or a list"),
        (7, "rows is 7 (int): expected a mapping"),
        ([ROW, "Intro"], "row 1 is 'Intro' (str): expected a mapping of text fields to texts"),
        ([ROW, {"title": float("nan")}], "row 1: 'title' is nan (float): expected a text, or None for an empty one"),
        ({"title": 3}, "the row: 'title' is 3 (int): expected a text"),
        ({3: "title"}, "the row has a field 3 (int): expected the name of a text field"),
        ({"title": "\ud800"}, "cannot be sent as JSON: 'utf-8' codec can't encode character '\\ud800'"),
    ],
)
def test_rows_that_cannot_be_used_are_told_before_anything_is_sent(connect, rows, told):
    service = Script()
    with pytest.raises(client.UsageError, match=f"^{re.escape(told)}"):
        connect(service).predict(rows)
    assert service.requests == []


@pytest.mark.parametrize("make", [client.Client, client.AsyncClient])
@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost:8000", "url is 'localhost:8000': expected one like 'http://127.0.0.1:8000'"),
        ("127.0.0.1:8000", "url is '127.0.0.1:8000': expected one like"),
        ("", "url is '': expected one like"),
        (None, "url is None: expected one like"),
        ("ftp://a.test", "url is 'ftp://a.test': expected one like"),
        ("http://", "url is 'http://': expected one like"),
        ("http://a.test:port", "url is 'http://a.test:port': expected one like"),
        ("http://a.test/?max_risk=0.1", "url is 'http://a.test/?max_risk=0.1': expected one like"),
        ("http://me:s3cret@a.test", "url holds a user name or a password: give the service's key as api_key"),
    ],
)
def test_an_url_that_cannot_be_used_is_told(make, url, told):
    with pytest.raises(client.UsageError, match=f"^{re.escape(told)}") as caught:
        make(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("api_key", ["", "s3cret\n", "s3 cret", "s3crét"])
def test_a_key_that_cannot_be_sent_is_told_and_not_shown(api_key):
    with pytest.raises(client.UsageError, match=r"^api_key is empty or holds spaces") as caught:
        client.Client(URL, api_key)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"timeout_s": 0}, "timeout_s is 0: expected a finite number of seconds above 0"),
        ({"timeout_s": None}, "timeout_s is None: expected a finite number"),
        ({"timeout_s": float("nan")}, "timeout_s is nan: expected a finite number"),
        ({"timeout_s": float("inf")}, "timeout_s is inf: expected a finite number"),
        ({"retries": -1}, "retries is -1: expected a whole number from 0"),
        ({"rows_per_call": 0}, "rows_per_call is 0: expected a whole number from 1"),
        ({"rows_per_call": 2.5}, "rows_per_call is 2.5: expected a whole number from 1"),
        ({"calls_at_once": 0}, "calls_at_once is 0: expected a whole number from 1"),
    ],
)
def test_settings_that_cannot_be_used_are_told(options, told):
    with pytest.raises(client.UsageError, match=f"^{re.escape(told)}"):
        client.AsyncClient(URL, **options)


def test_wrong_usage_is_a_value_error_too():
    with pytest.raises(ValueError, match=r"^url is"):
        client.Client("nowhere")


# A real server


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.connections += 1

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/feedback/":
            self.reply({})
        else:
            self.reply(answer([body] if isinstance(body, dict) else body))

    def do_GET(self):
        if self.server.manner == "hangs":
            self.server.ended.wait()
        self.reply({"dripped": self.server.manner == "drips"}, drips=self.server.manner == "drips")

    def reply(self, document, *, drips=False):
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + 1_000_000 * drips))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has gone
            while drips and not self.server.ended.wait(0.01):
                self.wfile.write(b" ")
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.connections, server.manner, server.ended = 0, "answers", threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


@BOTH
def test_calls_share_a_connection(kind, server):
    with kind(server.url) as asked:
        labels = [asked.predict({"title": str(number)}).label for number in range(5)]
        assert asked.ready()
        asked.feedback("r-1", "mlops")
    assert labels == ["0", "1", "2", "3", "4"]
    assert server.connections == 1


@BOTH
@pytest.mark.parametrize("manner", ["hangs", "drips"])
def test_a_server_that_hangs_or_drips_cannot_hold_a_caller_past_the_deadline(kind, server, manner):
    server.manner = manner
    with kind(server.url, timeout_s=0.2) as asked, pytest.raises(client.DeadlineError, match=r"within 0\.2 s"):
        asked.model()


@BOTH
def test_a_port_where_nobody_listens_is_unavailable(kind, server):
    server.server_close()
    told = re.escape(f"no answer from {server.url}/model")
    with kind(server.url, retries=1) as asked, pytest.raises(client.UnavailableError, match=told):
        asked.model()


def test_a_closed_client_sends_nothing_more(server):
    asked = client.Client(server.url)
    asked.close()
    with pytest.raises(RuntimeError, match="closed"):
        asked.model()


@pytest.mark.parametrize("program", re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S))
def test_the_python_of_the_page_runs(program, server, capsys):
    exec(compile(program.replace("http://127.0.0.1:8000", server.url), str(PAGE), "exec"), {})
    assert capsys.readouterr().out in ("Intro to CNNs 0.75\n", "1000\n")


def test_importing_the_client_imports_nothing_heavy(tmp_path):
    code = f"import sys, madewithml.client; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(Path(madewithml.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
