"""The second model that answers nobody: what it counts, and that it can neither slow nor fail a call."""

import asyncio
import dataclasses
import logging

import pytest

from madewithml.serving import sample, shadow

from .conftest import ROW, FailingEngine, HeldEngine, Window, until


@pytest.fixture
def make_shadow(predictor):
    def build(*, engine=None, share=1.0, is_idle=lambda: True):
        other = dataclasses.replace(predictor, engine=engine or predictor.engine)
        return shadow.Shadow(other, run_id="challenger", share=share, is_idle=is_idle)

    return build


@pytest.fixture
def answers(predictor):
    return predictor.predict([ROW])


def test_without_one_the_route_says_how_to_get_one(window):
    answer = window.get("/shadow")

    assert answer.status_code == 404
    assert "--shadow models:/NAME@ALIAS" in answer.json()["detail"]


def test_what_was_asked_is_answered_again_and_counted(make_service, make_shadow):
    kitchen = make_service()
    kitchen.shadow = make_shadow()
    kitchen.shadow.start()
    kitchen.helpers.append(kitchen.shadow)
    window = Window(kitchen)
    window.post("/predict/", json=[ROW, ROW])
    asyncio.run(until(lambda: kitchen.shadow.report()["num_rows"] == 2))
    report = window.get("/shadow").json()
    asyncio.run(kitchen.stop())

    assert (report["run_id"], report["agreement"], report["failed"], report["dropped"]) == ("challenger", 1.0, 0, 0)
    assert report["coverage"] == report["shadow_coverage"]
    assert report["shadow_seconds_per_row"]["p50"] > 0


def test_a_share_of_nothing_sees_nothing(make_shadow, answers):
    seen = make_shadow(share=0.0)
    seen.offer("id", [ROW], answers)

    assert seen._queue.empty()


def test_what_does_not_fit_the_queue_is_dropped_and_counted(make_shadow, answers):
    seen = make_shadow()
    for _ in range(shadow.MAX_WAITING + 5):
        seen.offer("id", [ROW], answers)

    assert seen.report()["dropped"] == 5


def test_of_a_long_list_a_few_rows_are_enough(make_shadow, answers):
    seen = make_shadow()
    seen.offer("id", [ROW] * 100, answers * 100)
    seen.compare(seen._queue.get())

    assert seen.report()["num_rows"] == shadow.MAX_ROWS


def test_while_somebody_waits_nothing_is_computed(make_shadow, answers, monkeypatch):
    monkeypatch.setattr(shadow, "PATIENCE_S", 0.02)
    seen = make_shadow(is_idle=lambda: False, engine=FailingEngine(AssertionError("it was computed")))
    seen.compare(("id", [ROW], answers))

    assert (seen.report()["dropped"], seen.report()["failed"]) == (1, 0)


def test_its_failures_stay_with_it_and_are_said_once(make_shadow, answers, caplog):
    seen = make_shadow(engine=FailingEngine(RuntimeError("broken")))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            seen.compare(("id", [ROW], answers))

    assert seen.report()["failed"] == 3
    assert caplog.text.count("the shadow model, run challenger, failed") == 1


def test_calls_are_answered_while_it_hangs(make_service, make_shadow, predictor):
    held = HeldEngine(predictor.engine)
    kitchen = make_service()
    kitchen.shadow = make_shadow(engine=held)
    kitchen.shadow.start()
    window = Window(kitchen)
    window.post("/predict/", json=ROW)
    asyncio.run(until(held.entered.is_set))

    assert window.post("/predict/", json=ROW).status_code == 200
    kitchen.shadow.stop()
    held.release()
    kitchen.shadow._thread.join(30)
    assert not kitchen.shadow._thread.is_alive()


class TestRecentTexts:
    def test_it_keeps_the_last_ones_and_no_more_than_its_capacity(self):
        recent = sample.RecentTexts(capacity=3, every=1)
        for i in range(5):
            recent.offer([str(i)])

        assert recent.texts() == ["2", "3", "4"]

    def test_once_full_one_request_in_so_many_is_recorded(self):
        recent = sample.RecentTexts(capacity=2, every=10)
        for i in range(40):
            recent.offer([str(i)])

        assert recent.texts() == ["29", "39"]

    def test_a_long_text_is_cut(self):
        recent = sample.RecentTexts()
        recent.offer(["a" * 10_000])

        assert [len(text) for text in recent.texts()] == [sample.MAX_CHARACTERS]

    def test_a_service_records_what_it_is_asked_only_where_a_model_may_take_over(self, make_service):
        kitchen = make_service()
        Window(kitchen).post("/predict/", json=ROW)
        assert kitchen.recent is None
        kitchen.recent = sample.RecentTexts()
        Window(kitchen).post("/predict/", json=ROW)

        assert kitchen.recent.texts() == ["Intro to CNNs Processing images with layers."]
