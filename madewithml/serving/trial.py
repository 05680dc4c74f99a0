"""A candidate is tried in a process of its own, which takes what callers leave.

    replica (changeover.py) -- question --> python -m madewithml.serving.trial -- verdict --> replica

Importing PyTorch, compiling a graph and replaying texts take seconds of processor time, and hold the interpreter that
answers calls. In a process of low priority they cost callers next to nothing; and a candidate that takes all memory,
ends in native code or never comes back takes no replica with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from madewithml import checkpoint, errors, predict
from madewithml.serving import gate, loader

# Beside callers who want every core, such a process gets about a tenth of one; of cores that idle, all it can use.
NICENESS = 10
# A trial is some ten seconds of processor time: this is enough for one beside a service that is never idle.
PATIENCE_S = 300.0
POLL_S = 0.1
NEVER_ENDED = f"its trial did not end within {PATIENCE_S:g} s; promote it again"


class Stopped(Exception):  # noqa: N818 - no fault: the service ends
    """The service ends while a candidate is tried."""


@dataclass(frozen=True)
class Question:
    """What is to be judged.

    Attributes:
        present: Checkpoint folder of the model that is answering.
        candidate: Checkpoint folder of the candidate.
        loader: What loads both.
        texts: Of recent traffic; the present model's golden texts are added.
        limits: How far the candidate may go.
    """

    present: str
    candidate: str
    loader: loader.Loader
    texts: list[str]
    limits: gate.Limits

    @classmethod
    def of(cls, document: dict[str, Any]) -> Question:
        """Of what `dataclasses.asdict` made of one."""
        parts = {"loader": loader.Loader(**document["loader"]), "limits": gate.Limits(**document["limits"])}
        return cls(**{**document, **parts})


@dataclass(frozen=True)
class Verdict:
    """What came of a trial.

    Attributes:
        reasons: Why the candidate may not take over, in words; empty if it may.
        report: `gate.Report` as a dictionary; empty if it did not come to that.
    """

    reasons: list[str]
    report: dict[str, Any] = dataclasses.field(default_factory=dict)


def judge(question: Question) -> Verdict:
    """Judge in this process. Whatever a candidate does wrong is a reason not to take it."""
    try:
        candidate = question.loader.load(question.candidate)
        candidate.check_golden()
        own, other = checkpoint.read(Path(question.present)), candidate.checkpoint
        if broken := gate.contract_faults(own, other, question.limits):
            return Verdict(broken)
        return _compared(question.loader.load(question.present), candidate, question)
    except Exception as err:  # noqa: BLE001 - a candidate may fail in ways that nobody thought of
        return Verdict([in_words(err)])


def _compared(present: predict.Predictor, candidate: predict.Predictor, question: Question) -> Verdict:
    golden = present.checkpoint.read_golden()
    texts = [*question.texts, *(golden.texts if golden else ())]
    seconds = gate.latencies(present, candidate, texts)
    report = gate.compare(gate.NOTHING, gate.NOTHING, seconds)
    too_slow = gate.faults(report, question.limits)
    if too_slow:  # it would take its time over the texts too
        return Verdict(too_slow, dataclasses.asdict(report))
    report = gate.compare(gate.replay(present, texts), gate.replay(candidate, texts), seconds)
    return Verdict(gate.faults(report, question.limits), dataclasses.asdict(report))


def in_words(err: BaseException) -> str:
    """An error as `GET /model` shows it."""
    return err.message if isinstance(err, errors.MadeWithMLError) else f"{type(err).__name__}: {err}"


def run(question: Question, *, stop: threading.Event) -> Verdict:
    """Judge in a process of low priority. Blocks; not for the event loop.

    Args:
        question: What is to be judged.
        stop: Set when the service ends.

    Raises:
        Stopped: `stop` was set.
    """
    try:
        return _run(question, stop)
    except errors.StartError as err:
        return Verdict([err.message])


def _run(question: Question, stop: threading.Event) -> Verdict:
    with tempfile.TemporaryFile() as said, _process(said) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: its status says more
            process.stdin.write(json.dumps(dataclasses.asdict(question)).encode() + b"\n")
            process.stdin.flush()  # and not closed: see `_end_with_asker`
        if not _ended(process, stop):
            return Verdict([NEVER_ENDED])
        if process.returncode == 0:
            return Verdict(**json.loads(process.stdout.read()))
        return Verdict([_death(process.returncode, said)])


@contextlib.contextmanager
def _process(said: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for a question; killed at the end, if it has not ended.

    Raises:
        StartError: It cannot be started.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "madewithml.serving.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
        )
    except OSError as err:
        raise errors.StartError(f"no process could be started to try it in: {in_words(err)}") from err
    with process:
        try:
            yield process
        finally:
            process.kill()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # a question that it did not read is still in the buffer
                process.stdin.close()


def _ended(process: subprocess.Popen[bytes], stop: threading.Event) -> bool:
    last = time.monotonic() + PATIENCE_S
    while process.poll() is None:
        if stop.wait(POLL_S):
            raise Stopped
        if time.monotonic() > last:
            return False
    return True


def _death(status: int, said: IO[bytes]) -> str:
    """Why there is no verdict."""
    if status == -signal.SIGKILL:
        return "its trial was killed: is there memory for a second model?"
    said.seek(0)
    lines = said.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    ended = f"by signal {-status}" if status < 0 else f"with status {status}"
    return f"its trial ended {ended}: {last}"


def main() -> None:
    """Read a question, judge, write the verdict."""
    _give_way()
    verdict_file = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no verdict
    question = Question.of(json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_asker, daemon=True).start()
    with verdict_file:
        json.dump(dataclasses.asdict(judge(question)), verdict_file)
    os._exit(0)  # nothing is left to tidy, and the interpreter's end takes a part of a second


def _give_way() -> None:
    """To callers, for a core; to everybody, for memory. Not to Ctrl-C: the service ends this process itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _end_with_asker() -> None:
    sys.stdin.read()  # ends when the asker does, however it does
    os._exit(1)


if __name__ == "__main__":
    main()
