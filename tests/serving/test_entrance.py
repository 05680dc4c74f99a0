"""What a request passes before its route: the size of its head, its body's pace, and pages of other origins."""

import asyncio
from typing import ClassVar

import pytest

from .conftest import ROW


class TestHead:
    def test_too_many_fields_are_refused(self, make_window):
        response = make_window(max_headers=10).post("/predict/", json=ROW, headers={f"X-{i}": "1" for i in range(10)})
        assert (response.status_code, response.json()["type"]) == (431, "urn:madewithml:problem:head_too_large")
        assert "at most 10 are allowed" in response.json()["detail"]

    def test_too_long_ones_are_refused(self, make_window):
        window = make_window(max_header_bytes=1024)
        assert window.get("/model", headers={"X-Long": "a" * 1024}).status_code == 431
        assert window.get("/model", headers={"X-Long": "a" * 512}).status_code == 200


class TestSlowBodies:
    def test_a_body_that_does_not_come_is_given_up(self, make_window):
        window = make_window(body_timeout_s=0.1)

        async def dawdle():
            yield b'{"title":'
            await asyncio.sleep(60)

        response = window.post("/predict/", content=dawdle(), headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["type"]) == (408, "urn:madewithml:problem:too_slow")

    def test_a_body_in_many_pieces_is_read(self, make_window):
        async def pieces():
            for piece in (b'{"title": ', b'"Intro ', b'to CNNs"', b"}"):
                yield piece
                await asyncio.sleep(0)

        response = make_window().post("/predict/", content=pieces(), headers={"Content-Type": "application/json"})
        assert response.status_code == 200


class TestBrowsers:
    PREFLIGHT: ClassVar = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}

    def test_pages_of_other_origins_may_not_call_unless_told(self, window):
        response = window.post("/predict/", json=ROW, headers={"Origin": "https://app.example"})
        assert "access-control-allow-origin" not in response.headers
        assert window.request("OPTIONS", "/predict/", headers=self.PREFLIGHT).status_code == 405

    def test_those_that_are_named_may(self, make_window):
        window = make_window(cors_origins=("https://app.example",))
        asked = {**self.PREFLIGHT, "Access-Control-Request-Headers": "content-type, x-api-key"}
        allowed = window.request("OPTIONS", "/predict/", headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        response = window.post("/predict/", json=ROW, headers={"Origin": "https://app.example"})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert "Retry-After" in response.headers["access-control-expose-headers"]

    def test_others_still_may_not(self, make_window):
        window = make_window(cors_origins=("https://app.example",))
        asked = {**self.PREFLIGHT, "Origin": "https://evil.example"}
        assert window.request("OPTIONS", "/predict/", headers=asked).status_code == 400


@pytest.mark.parametrize("path", ["/", "/model", "/policy", "/nowhere", "/v2", "/ping"])
def test_every_answer_says_that_it_is_what_it_says_and_not_to_be_kept(window, path):
    headers = window.get(path).headers
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")


def test_no_text_and_no_key_comes_into_a_log(make_window, caplog):
    """Neither of what is answered nor of what is refused."""
    caplog.set_level("DEBUG")
    window = make_window()
    secret = "a-text-that-nobody-logs"
    for body in ({"title": secret}, {"title": secret, secret: 1}, [{"title": secret + "\x00"}], {"inputs": secret}):
        for path in ("/predict/", "/invocations", "/v2/models/madewithml/infer", "/feedback/", "/evaluate/"):
            window.post(path, json=body, headers={"X-API-Key": secret})
    assert secret not in caplog.text
