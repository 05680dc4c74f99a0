"""The trial of a candidate: what is judged, and the process that it is judged in."""

import dataclasses
import os
import signal
import threading

import pytest

from madewithml import errors
from madewithml.serving import gate, loader, trial

from .conftest import ConstantEngine
from .running import until

LIMITS = gate.Limits(
    max_flip_rate=0.2, max_coverage_change=0.2, max_latency_ratio=20.0, min_samples=1, allow_uncertified=False
)
TEXTS = [f"Row {i} about layers and serving" for i in range(10)]


@pytest.fixture
def question(checkpoint_folder):
    """Whether a model may take over from itself."""
    folder = str(checkpoint_folder)
    return trial.Question(folder, folder, loader.Loader("torch", threads=1, threshold=None), TEXTS, LIMITS)


def loading(monkeypatch, predictors):
    """Have the folders loaded as these predictors."""
    monkeypatch.setattr(loader.Loader, "load", lambda _, folder: predictors[folder])


class TestJudging:
    def test_a_model_may_take_over_from_itself(self, question):
        verdict = trial.judge(question)

        assert verdict.reasons == []
        assert verdict.report["num_rows"] >= len(TEXTS)
        assert verdict.report["flip_rate"] == 0
        assert verdict.report["latency_s"] > 0

    def test_one_whose_golden_rows_are_off_is_refused(self, question, other_golden):
        (reason,) = trial.judge(dataclasses.replace(question, candidate=str(other_golden))).reasons

        assert "does not reproduce the golden rows" in reason

    def test_one_that_is_not_there_is_refused_in_words(self, question):
        (reason,) = trial.judge(dataclasses.replace(question, candidate="nowhere")).reasons

        assert "'nowhere'" in reason

    def test_what_callers_rely_on_is_looked_at_before_the_present_model_is_loaded(
        self, question, predictor, monkeypatch
    ):
        loading(monkeypatch, {question.candidate: predictor})
        monkeypatch.setattr(gate, "contract_faults", lambda *_: ["other labels"])

        assert trial.judge(question) == trial.Verdict(["other labels"])

    def test_one_that_behaves_otherwise_is_refused_with_the_report(self, question, predictor, monkeypatch):
        eager = dataclasses.replace(predictor, policy=predictor.policy.with_threshold(0.0, source="operator"))
        loading(monkeypatch, {question.present: predictor, "eager": eager})
        limits = dataclasses.replace(LIMITS, max_coverage_change=0.0)
        verdict = trial.judge(dataclasses.replace(question, candidate="eager", limits=limits))

        assert verdict.report["candidate_coverage"] == 1.0
        assert "gate_max_coverage_change" in verdict.reasons[0]

    def test_one_that_is_too_slow_is_not_replayed(self, question, predictor, monkeypatch):
        monkeypatch.setattr(gate, "latencies", lambda *_: (0.01, 1.0))
        monkeypatch.setattr(gate, "replay", lambda *_: pytest.fail("replayed"))
        loading(monkeypatch, {question.present: predictor})
        verdict = trial.judge(question)

        assert verdict.report["num_rows"] == 0
        assert "gate_max_latency_ratio" in verdict.reasons[0]

    def test_one_that_fails_in_a_way_nobody_thought_of_is_refused_too(self, question, monkeypatch):
        def load(*_):
            raise ZeroDivisionError("oh")

        monkeypatch.setattr(loader.Loader, "load", load)

        assert trial.judge(question).reasons == ["ZeroDivisionError: oh"]

    def test_nan_is_the_candidates_fault(self, question, predictor, monkeypatch):
        broken = dataclasses.replace(predictor, engine=ConstantEngine(predictor.engine, float("nan")))
        loading(monkeypatch, {question.present: predictor, "broken": broken})
        (reason,) = trial.judge(dataclasses.replace(question, candidate="broken")).reasons

        assert "golden rows" in reason


class TestTheProcess:
    @pytest.fixture
    def started(self, monkeypatch):
        """The processes that are started."""
        found, popen = [], trial.subprocess.Popen

        def start(*arguments, **options):
            found.append(popen(*arguments, **options))
            return found[-1]

        monkeypatch.setattr(trial.subprocess, "Popen", start)
        yield found
        assert all(process.returncode is not None for process in found)

    @pytest.fixture
    def in_thread(self, question):
        """Asks in a thread; gives what came of it."""

        def ask(stop, **changes):
            outcome = []

            def target():
                try:
                    outcome.append(trial.run(dataclasses.replace(question, **changes), stop=stop))
                except trial.Stopped as err:
                    outcome.append(err)

            thread = threading.Thread(target=target)
            thread.start()
            return thread, outcome

        return ask

    def test_it_gives_the_same_verdict(self, question):
        own = trial.judge(question)
        its = trial.run(question, stop=threading.Event())

        timeless = {"latency_s": 0, "candidate_latency_s": 0}
        assert (its.reasons, its.report | timeless) == (own.reasons, own.report | timeless)

    def test_where_none_can_be_started_the_candidate_is_refused(self, question, monkeypatch):
        def start(*_, **__):
            raise OSError("too many processes")

        monkeypatch.setattr(trial.subprocess, "Popen", start)
        (reason,) = trial.run(question, stop=threading.Event()).reasons

        assert reason == "no process could be started to try it in: OSError: too many processes"

    def test_a_refusal_comes_in_the_candidates_words(self, question, other_golden):
        verdict = trial.run(dataclasses.replace(question, candidate=str(other_golden)), stop=threading.Event())

        assert "does not reproduce the golden rows" in verdict.reasons[0]

    def test_it_gives_way_to_callers_and_is_killed_when_the_service_ends(self, in_thread, started):
        stop = threading.Event()
        thread, outcome = in_thread(stop)
        until(lambda: started and os.getpriority(os.PRIO_PROCESS, started[0].pid) == trial.NICENESS)
        stop.set()
        thread.join(30)

        assert isinstance(outcome[0], trial.Stopped)

    @pytest.mark.parametrize(
        ("number", "said"), [(signal.SIGKILL, "is there memory for a second model?"), (signal.SIGSEGV, "by signal 11")]
    )
    def test_one_that_takes_its_process_down_is_refused(self, in_thread, started, number, said):
        thread, outcome = in_thread(threading.Event())
        until(lambda: started)
        started[0].send_signal(number)
        thread.join(30)

        assert said in outcome[0].reasons[0]

    def test_one_that_never_ends_is_refused(self, in_thread, started, monkeypatch):
        monkeypatch.setattr(trial, "PATIENCE_S", 0.0)
        thread, outcome = in_thread(threading.Event())
        thread.join(30)

        assert outcome[0].reasons == [trial.NEVER_ENDED]

    def test_it_ends_with_whoever_asked(self, question, started):
        with trial.tempfile.TemporaryFile() as said, trial._process(said) as process:
            process.stdin.write(trial.json.dumps(dataclasses.asdict(question)).encode() + b"\n")
            process.stdin.close()
            process.wait(30)

        assert process.returncode == 1

    def test_what_a_process_said_last_is_told(self, question, monkeypatch):
        monkeypatch.setattr(trial.sys, "executable", "/bin/false")
        verdict = trial.run(question, stop=threading.Event())

        assert verdict.reasons == ["its trial ended with status 1: no message"]


def test_errors_are_told_in_their_own_words():
    assert trial.in_words(errors.InputError("no rows")) == "no rows"
    assert trial.in_words(KeyError("x")) == "KeyError: 'x'"
