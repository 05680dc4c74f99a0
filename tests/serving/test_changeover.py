"""The change from one model to the next in a service that answers, step by step and under calls."""

import asyncio
import dataclasses
import threading

import pytest

from madewithml import errors
from madewithml.serving import changeover, pointer, trial

from .conftest import ROW, HeldEngine, Window, until

FIRST = pointer.Target("a-run", "/models/1", "1")
SECOND = pointer.Target("run-2", "/models/2", "2", seq=1)
THIRD = pointer.Target("run-3", "/models/3", "3", seq=2)


@pytest.fixture
def where(tmp_path):
    return pointer.Pointer.create(tmp_path, FIRST)


@pytest.fixture
def kitchen(make_service):
    return make_service()


def passed(present, candidate, texts, stop):
    return trial.Verdict([])


@pytest.fixture
def make_watch(kitchen, where, predictor):
    """A changeover of a service; `loaded` gives the predictor of each folder, `attempt` the verdict on it."""

    def build(loaded=lambda _: None, *, attempt=passed, kitchen=kitchen):
        return changeover.Changeover(
            kitchen,
            where,
            serving=FIRST,
            load=lambda folder: loaded(folder) or predictor,
            attempt=attempt,
            interval_s=0.01,
        )

    return build


def candidate(kitchen):
    return Window(kitchen).get("/model").json()["candidate"]


class TestAGoodCandidate:
    def test_it_takes_over_and_every_answer_names_it(self, make_watch, where, kitchen):
        where.want(SECOND)
        make_watch().look()
        answer = Window(kitchen).post("/predict/", json=ROW).json()
        model = Window(kitchen).get("/model").json()

        assert where.accepted() == SECOND
        assert answer["run_id"] == model["run_id"] == "run-2"
        assert (model["model_version"], model["candidate"]) == ("2", None)
        assert model["changes"] == {"swaps": 1, "refused": 0}

    def test_the_other_replica_does_the_same_without_a_trial_of_its_own(self, make_watch, where, make_service):
        other = make_service()
        second_watch = make_watch(kitchen=other)
        where.want(SECOND)
        make_watch().look()
        second_watch.look()

        assert other.run_id == "run-2"

    def test_while_another_replica_judges_it_is_checking(self, make_watch, where, kitchen):
        where.want(SECOND)
        where.claim(SECOND)
        make_watch().look()

        assert candidate(kitchen)["status"] == "checking"
        assert kitchen.run_id == "a-run"

    def test_a_judge_that_never_says_is_not_waited_for_for_ever(self, make_watch, where, kitchen, monkeypatch):
        monkeypatch.setattr(changeover, "VERDICT_PATIENCE_S", -1.0)
        where.want(SECOND)
        where.claim(SECOND)
        watch = make_watch()
        watch.look()
        watch.look()

        assert candidate(kitchen)["reasons"] == ["the replica that tried it never gave a verdict; promote it again"]

    def test_the_old_model_answers_what_it_has_taken(self, make_watch, make_service, where, predictor):
        held = HeldEngine(predictor.engine)
        kitchen = make_service(engine=held)
        window = Window(kitchen)
        where.want(SECOND)

        async def scenario():
            async with window.client() as client:
                before = asyncio.create_task(client.post("/predict/", json=ROW))
                await until(held.entered.is_set)
                watching = asyncio.create_task(asyncio.to_thread(make_watch(kitchen=kitchen).look))
                await until(lambda: kitchen.run_id == "run-2")
                after = await client.post("/predict/", json=ROW)
                held.release()
                await watching
                return (await before).json(), after.json()

        before, after = asyncio.run(scenario())
        assert (before["run_id"], after["run_id"]) == ("a-run", "run-2")
        assert kitchen._leaving == []

    def test_it_is_tried_on_the_texts_of_late_and_the_way_back_needs_no_trial(self, make_watch, where, kitchen):
        tried = []

        def attempt(present, candidate, texts, stop):
            tried.append((present, candidate, texts))
            return trial.Verdict([])

        watch = make_watch(attempt=attempt)
        Window(kitchen).post("/predict/", json=ROW)
        for target in (SECOND, dataclasses.replace(FIRST, seq=2), dataclasses.replace(SECOND, seq=3)):
            where.want(target)
            watch.look()
            assert kitchen.run_id == target.run_id

        assert tried == [(FIRST, SECOND, kitchen.predictor.texts([ROW]))]

    def test_without_texts_of_late_it_is_tried_on_the_example(self, make_watch, where, kitchen):
        tried = []
        where.want(SECOND)
        make_watch(attempt=lambda _, __, texts, ___: tried.append(texts) or trial.Verdict([])).look()

        assert tried == [[kitchen.example]]

    def test_a_replica_that_ends_meanwhile_leaves_the_trial_to_another(self, make_watch, where, make_service):
        def attempt(*_):
            raise trial.Stopped

        other = make_service()
        where.want(SECOND)
        with pytest.raises(trial.Stopped):
            make_watch(attempt=attempt).look()
        make_watch(kitchen=other).look()

        assert other.run_id == "run-2"


class TestABadCandidate:
    def refused(self, watch, where, kitchen):
        where.want(SECOND)
        watch.look()
        watch.look()
        assert kitchen.run_id == "a-run"
        assert Window(kitchen).post("/predict/", json=ROW).json()["run_id"] == "a-run"
        shown = candidate(kitchen)
        assert (shown["run_id"], shown["status"]) == ("run-2", "refused")
        return shown

    def test_one_that_fails_its_trial_is_not_loaded_and_the_report_is_shown(self, make_watch, where, kitchen):
        loaded = []
        watch = make_watch(loaded.append, attempt=lambda *_: trial.Verdict(["too slow"], {"num_rows": 9}))
        shown = self.refused(watch, where, kitchen)

        assert loaded == []
        assert (shown["reasons"], shown["report"]) == (["too slow"], {"num_rows": 9})

    def test_one_that_cannot_be_loaded_beside_the_present_model_is_refused(self, make_watch, where, kitchen):
        def load(_):
            raise MemoryError("no room")

        assert self.refused(make_watch(load), where, kitchen)["reasons"] == ["MemoryError: no room"]

    def test_promoted_again_it_is_tried_again(self, make_watch, where, kitchen):
        failures = [errors.CheckpointError("not yet")]

        def load(_):
            if failures:
                raise failures.pop()

        where.want(SECOND)
        watch = make_watch(load)
        watch.look()
        where.want(dataclasses.replace(SECOND, promoted="again", seq=2))
        watch.look()

        assert kitchen.run_id == "run-2"
        assert candidate(kitchen) is None

    def test_accepted_elsewhere_but_not_loadable_here_it_is_shown_and_not_tried_for_ever(
        self, make_watch, where, kitchen
    ):
        asked = []

        def load(target):
            asked.append(target)
            raise MemoryError

        where.want(SECOND)
        where.accept(SECOND)
        watch = make_watch(load)
        watch.look()
        watch.look()

        assert len(asked) == 1
        assert candidate(kitchen)["status"] == "failed"


class TestTheThread:
    def test_it_looks_until_it_is_stopped_and_survives_a_folder_that_is_away(self, make_watch, where, kitchen):
        watch = make_watch()
        where.folder.rename(where.folder.with_name("away"))
        watch.start()
        where.folder.with_name("away").rename(where.folder)
        where.want(SECOND)
        asyncio.run(until(lambda: kitchen.run_id == "run-2"))
        watch.stop()

        asyncio.run(until(lambda: not any(thread.name == "changeover" for thread in threading.enumerate())))


@pytest.mark.parametrize("swaps", [20])
def test_under_calls_every_answer_is_that_of_the_run_it_names(kitchen, predictor, swaps):
    """Two models whose probabilities differ, swapped again and again beneath calls of one row and of many."""
    scaled = dataclasses.replace(predictor, policy=dataclasses.replace(predictor.policy, temperature=3.0))
    expected = {"a-run": predictor.predict([ROW])[0], "run-2": scaled.predict([ROW])[0]}
    assert expected["a-run"]["confidence"] != pytest.approx(expected["run-2"]["confidence"], abs=1e-3)
    window, answers, stop = Window(kitchen), [], threading.Event()

    async def call(client, body):
        while not stop.is_set():
            answers.append(await client.post("/predict/", json=body))

    async def scenario():
        async with window.client() as client:
            calls = [asyncio.create_task(call(client, body)) for body in (ROW, ROW, [ROW] * 5, [ROW] * 3)]
            for number in range(swaps):
                run_id, chosen = (("run-2", scaled), ("a-run", predictor))[number % 2]
                prepared = await asyncio.to_thread(kitchen.prepare, chosen, run_id=run_id, version=None)
                old = kitchen.swap(prepared)
                await asyncio.to_thread(kitchen.release, old)
            stop.set()
            await asyncio.gather(*calls)

    asyncio.run(scenario())
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["run_id"] for answer in answers} == set(expected)
    for answer in answers:
        document = answer.json()
        for result in document["results"]:
            assert result["confidence"] == pytest.approx(expected[document["run_id"]]["confidence"], abs=1e-4)
