"""The faults of `chaos.py`: each is done to a service under load, and what must hold is checked.

A fault leaves the service whole. All but the last two are done to one service of two replicas, one after the other, so
that it goes through a year's bad luck in a quarter of an hour.
"""

from __future__ import annotations

import contextlib
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flood
import numpy as np
import psutil
import stopping
from scene import Load, Scene, Service, kill, until

WINDOW_S = 20.0  # of a window of load whose latency is compared
CONNECTIONS = 2000  # so many that those who wait do not keep the rest from coming
ROW_PARTS = 6  # kinds of rows in a flood
STEADY_S = 600.0
SAMPLE_EVERY_S = 5.0
FEW = 5  # descriptors that come and go by themselves
LOOKS = 5


@dataclass
class Finding:
    """What came of a fault.

    Attributes:
        bar: What must hold.
        measured: What was seen.
        broken: Which parts of the bar did not hold, in words.
        left_out: A part that could not be done here, and why.
        lost: Calls that failed.
    """

    bar: str
    measured: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    left_out: str | None = None
    lost: int = 0

    def require(self, holds: object, what: str) -> None:
        """Note what did not hold."""
        if not holds:
            self.broken.append(what)

    def take(self, load: Load) -> None:
        """Note what the callers saw; any call that failed is a fault."""
        self.measured.update(load.report())
        self.lost += load.failed
        self.require(load.failed == 0, f"{load.failed} of {len(load.answers)} calls failed: {load.outcomes}")
        self.require(len(load.answers) > 0, "there were no calls")


def replica_killed(scene: Scene, service: Service) -> Finding:
    """SIGKILL of one of two replicas."""
    finding = Finding("0 failed")
    times = 1 if scene.short else 3
    recoveries = []
    with scene.load(service.predict_url) as load:
        for _ in range(times):
            started = time.monotonic()
            victim = service.replicas()[0]
            kill(victim)
            until(lambda: victim not in service.replicas() and service.whole(), what="two replicas")  # noqa: B023
            recoveries.append(round(time.monotonic() - started, 1))
    finding.take(load)
    finding.measured |= {"killed": times, "whole_again_s": recoveries}
    return finding


def engine_stuck(scene: Scene, service: Service) -> Finding:
    """The engine's thread of one of two replicas stands still in the middle of a batch."""
    finding = Finding("replaced within 15 s, no call waits past its deadline")
    with scene.load(service.predict_url) as load:
        victim = service.replicas()[0]
        with stopping.stop_engine(victim.pid) as holder:
            started = time.monotonic()
            until(
                lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE,
                what="the end of the process",
            )
            ended_s = time.monotonic() - started
            until(service.whole, what="two replicas")
            replaced_s = time.monotonic() - started
            holder.terminate()
    finding.take(load)
    finding.measured |= {"ended_s": round(ended_s, 1), "replaced_s": round(replaced_s, 1)}
    finding.require(scene.short or replaced_s <= 15, f"replaced after {replaced_s:.1f} s")
    timeout_ms = 1000 * scene.models.settings.request_timeout_s
    finding.require(finding.measured["max_ms"] <= timeout_ms + 1000, "a call waited past its deadline")
    return finding


def alias_moved(scene: Scene, service: Service) -> Finding:
    """The alias goes back and forth between two good models."""
    finding = Finding("0 failed, every answer has the probabilities of the run that it names")
    seconds = []
    with scene.load(service.predict_url) as load:
        for run_id in _there_and_back(scene, service, times=2 if scene.short else 10):
            started = time.monotonic()
            scene.models.promote(run_id)
            until(lambda: service.runs() == {run_id}, what="the other model")  # noqa: B023
            seconds.append(time.monotonic() - started)
    finding.take(load)
    finding.measured |= {"moves": len(seconds), "seconds_a_move": _spread(seconds)}
    finding.require(load.runs == set(scene.models.good), f"answers came from {len(load.runs)} runs")
    return finding


def _there_and_back(scene: Scene, service: Service, *, times: int) -> Iterator[str]:
    (present,) = service.runs()
    other = next(run_id for run_id in scene.models.good if run_id != present)
    for number in range(times):
        yield (other, present)[number % 2]


def bad_candidates(scene: Scene, service: Service) -> Finding:
    """Models that must not answer are promoted, one after the other."""
    finding = Finding("refused each time, 0 failed")
    (present,) = service.runs()
    refused = {}
    with scene.load(service.predict_url) as load:
        for bad in scene.models.bad:
            started = time.monotonic()
            scene.models.promote(bad.run_id)
            candidate = until(lambda: _refused(service, bad.run_id), what=f"the refusal of {bad.name}")  # noqa: B023
            refused[bad.name] = {"seconds": round(time.monotonic() - started, 1), "reasons": candidate["reasons"]}
            said = "; ".join(candidate["reasons"])
            finding.require(bad.reason in said, f"{bad.name} was refused for another reason: {said}")
        scene.models.promote(present)
        until(lambda: not service.get("/model").get("candidate"), what="the way back")
    finding.take(load)
    finding.measured["refused"] = refused
    finding.require(load.runs == {present}, "another model answered")
    return finding


def _refused(service: Service, run_id: str) -> dict[str, Any] | None:
    candidate = service.get("/model").get("candidate") or {}
    return candidate if (candidate.get("run_id"), candidate.get("status")) == (run_id, "refused") else None


def redeployed(scene: Scene, service: Service) -> Finding:
    """All replicas are replaced, by SIGHUP."""
    finding = Finding("0 failed, under 15 s each")
    times = 1 if scene.short else 2
    with scene.load(service.predict_url) as load:
        for _ in range(times):
            said = service.server.log().count("replicas replaced")
            service.server.signal(signal.SIGHUP)
            until(lambda: service.server.log().count("replicas replaced") > said, what="new replicas")  # noqa: B023
            until(service.whole, what="two replicas")
    lines = [line for line in service.server.log().splitlines() if line.startswith("replicas replaced")][-times:]
    seconds = [float(line.split()[-2]) for line in lines]
    finding.take(load)
    finding.measured["seconds"] = seconds
    finding.require(scene.short or max(seconds) < 15, f"it took {max(seconds):.1f} s")
    return finding


def overloaded(scene: Scene, service: Service) -> Finding:
    """Ten times the capacity."""
    finding = Finding(
        "only 200 and 429, p99 of the 200s at most 3 times that at 70 %, memory bounded, normal within 5 s"
    )
    seconds = 5 if scene.short else 60
    before_mb = service.server.memory().total_mb
    usual = _flood(scene, service, rate=scene.rate, connections=64, seconds=5 if scene.short else 15)
    flooded = _flood(scene, service, rate=10 * scene.capacity, connections=CONNECTIONS, seconds=seconds)
    ended = time.time()
    after_mb = service.server.memory().total_mb
    with scene.load(service.predict_url) as load:
        enough = 7 if scene.short else 12
        until(lambda: time.time() > ended + enough, what="some seconds more")
    late = [answer for answer in load.answers if answer.sent_s > ended + 5]
    back = Load()
    back.answers = late
    p99 = {name: round(1000 * _p99(answers), 1) for name, answers in (("usual", usual), ("flood", flooded))}
    statuses = dict(sorted(Counter(answer.status for answer in flooded).items()))
    finding.measured |= {
        "calls_per_second": round(len(flooded) / seconds),
        "statuses": statuses,
        "p99_ms_at_70_percent": p99["usual"],
        "p99_ms_of_the_200s": p99["flood"],
        "memory_mb": [before_mb, after_mb],
        "afterwards": back.report(),
    }
    finding.require(set(statuses) <= {200, 429}, f"other answers: {statuses}")
    finding.require(statuses.get(200, 0) > 0, "nothing was answered")
    finding.require(scene.short or p99["flood"] <= 3 * p99["usual"], f"p99 {p99}")
    finding.require(after_mb < 1.3 * before_mb, f"memory went from {before_mb} to {after_mb} MB")
    finding.require(not back.failed and late, f"five seconds later: {back.outcomes}")
    return finding


def _flood(scene: Scene, service: Service, *, rate: float, connections: int, seconds: float) -> list[flood.Timed]:
    """The scene's calls at a rate; a few rows stand for all of them."""
    if flood.available():
        parts = _parts([call.body for call in scene.calls])
        return flood.run(
            service.predict_url, parts, rate=rate, connections=connections, seconds=seconds, folder=scene.folder
        )
    with scene.load(service.predict_url, rate=rate) as load:
        last = time.monotonic() + seconds
        until(lambda: time.monotonic() > last, what="the end of the flood")
    return [
        flood.Timed(int(answer.outcome) if answer.outcome.isdecimal() else 0, answer.latency_ms / 1000)
        for answer in load.answers
    ]


def _parts(bodies: Sequence[str]) -> list[flood.Part]:
    """A few rows for all rows, by length; lists and long texts each by themselves."""
    ordered = sorted(bodies, key=len)
    usual = [body for body in ordered if len(body) < 4 * len(ordered[len(ordered) // 2])]
    chunks = np.array_split(np.arange(len(usual)), min(ROW_PARTS, len(usual)))
    rows = [flood.Part(usual[chunk[len(chunk) // 2]], len(chunk) / len(ordered)) for chunk in chunks]
    return rows + [flood.Part(body, 1 / len(ordered)) for body in ordered[len(usual) :]]


def _p99(answers: Sequence[flood.Timed]) -> float:
    return float(np.quantile([answer.seconds for answer in answers if answer.status == 200], 0.99))


def bad_clients(scene: Scene, service: Service) -> Finding:
    """Clients that hang up, that send a byte a second, and that never read."""
    finding = Finding("others unaffected: p99 within 1.5 times")
    window_s, rounds = (3.0, 1) if scene.short else (WINDOW_S, 3)
    usual, beside = [], []
    for _ in range(rounds):
        usual.append(_window(scene, service, window_s))
        with _bad_clients(service):
            beside.append(_window(scene, service, window_s))
    p99 = [statistics.median(load.latency_ms(0.99) for load in loads) for loads in (usual, beside)]
    everything = Load()
    everything.answers = [answer for load in (*usual, *beside) for answer in load.answers]
    finding.take(everything)
    finding.measured |= {"p99_ms_usual": round(p99[0], 1), "p99_ms_beside_them": round(p99[1], 1)}
    finding.require(scene.short or p99[1] <= 1.5 * p99[0], f"p99 went from {p99[0]:.1f} to {p99[1]:.1f} ms")
    return finding


def _window(scene: Scene, service: Service, seconds: float) -> Load:
    with scene.load(service.predict_url) as load:
        last = time.monotonic() + seconds
        until(lambda: time.monotonic() > last, what="the end of the window")
    return load


@contextlib.contextmanager
def _bad_clients(service: Service) -> Iterator[None]:
    script = Path(__file__).with_name("bad_clients.py")
    running = subprocess.Popen([sys.executable, str(script), service.predict_url], start_new_session=True)
    try:
        yield
        assert running.poll() is None, "the bad clients gave up"
    finally:
        running.terminate()
        running.wait()


def dependencies_down(scene: Scene, service: Service) -> Finding:
    """MLflow's store becomes unreadable, and the disk full; both come back."""
    finding = Finding("0 failed")
    (present,) = service.runs()
    other = next(run_id for run_id in scene.models.good if run_id != present)
    database = scene.models.settings.home / "mlflow.db"
    whole = database.read_bytes()
    with scene.load(service.predict_url) as load:
        said = service.server.log().count("cannot look where the alias points")
        database.write_bytes(b"unreadable" * 100)  # the same file, also for those that have it open
        try:
            until(lambda: service.server.log().count("cannot look where") > said + 1, what="the warning")
        finally:
            database.write_bytes(whole)
        with _full_disk(scene.models.settings.home) as full:
            last = time.monotonic() + (1 if scene.short else 10)
            until(lambda: time.monotonic() > last, what="a while with a full disk")
        if not full:
            finding.left_out = "disk full: the state folder has no file system of its own"
        scene.models.promote(other)
        until(lambda: service.runs() == {other}, what="the other model, once all is well again")
    finding.take(load)
    finding.measured["followed_again"] = True
    return finding


@contextlib.contextmanager
def _full_disk(home: Path) -> Iterator[bool]:
    """Fill the file system of a folder, if it is one of its own; says whether."""
    if not home.is_mount():
        yield False
        return
    filler = home / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(2**20)):
                pass
        yield True
    finally:
        filler.unlink()


def steady(scene: Scene, service: Service) -> Finding:
    """Ten minutes of load, and nothing else."""
    finding = Finding("memory slope within noise, no descriptor growth")
    seconds = 6.0 if scene.short else STEADY_S
    samples: list[tuple[float, float]] = []
    looks = 1 if scene.short else LOOKS
    before = _descriptors_at_rest(service, looks=looks)
    with scene.load(service.predict_url) as load:
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            due = started + len(samples) * (0.5 if scene.short else SAMPLE_EVERY_S)
            until(lambda: time.monotonic() >= due, what="the next sample")  # noqa: B023
            processes = [process for process in service.replicas() if process.is_running()]
            memory = sum(process.memory_full_info().pss / 2**20 for process in processes)
            samples.append((time.monotonic() - started, memory))
    after = _descriptors_at_rest(service, looks=LOOKS, enough=before + FEW)
    finding.take(load)
    quarter = len(samples) // 4  # the first is warming up
    times, used = (np.array(column) for column in zip(*samples[quarter:], strict=True))
    slope, noise = _slope(times, used)
    finding.measured |= {
        "minutes": round(seconds / 60, 1),
        "replicas_mb": [round(float(used[0]), 1), round(float(used[-1]), 1)],
        "mb_per_hour": round(slope * 3600, 1),
        "mb_per_hour_noise": round(2 * noise * 3600, 1),
        "descriptors_at_rest": [before, after],
    }
    # A slope that ten minutes can tell from nothing, and that would matter: a hundredth of the memory in that time.
    grows = slope > 2 * noise and slope * STEADY_S > 0.01 * float(used[0])
    finding.require(scene.short or not grows, f"memory grows by {slope * 3600:.0f} MB an hour")
    finding.require(after <= before + FEW, f"descriptors go from {before} to {after}")
    return finding


def _descriptors_at_rest(service: Service, *, looks: int, enough: int = 0) -> int:
    """Open files and sockets once idle connections are closed; under load they are as many as calls at a time.

    HAProxy closes those it does not need by and by, a few at a time and no two looks alike: only what has not fallen
    at all for so many looks will not fall any more. Nothing is waited for once there are no more than enough.
    """
    counts = [_descriptors(service)]

    def falls_no_more() -> bool:
        due = time.monotonic() + SAMPLE_EVERY_S
        until(lambda: counts[-1] <= enough or time.monotonic() >= due, what="the next sample")
        counts.append(_descriptors(service))
        return counts[-1] <= enough or (len(counts) > looks and counts[-1] >= counts[-1 - looks])

    until(falls_no_more, what="the end of idle connections")
    return counts[-1]


def _descriptors(service: Service) -> int:
    return sum(service.server.each(lambda process: int(process.num_fds())))


def _slope(times: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Slope of the least-squares line, and its standard error from blocks: neighbouring samples are not independent."""
    slope = float(np.polyfit(times, values, 1)[0])
    blocks = [np.polyfit(t, v, 1)[0] for t, v in zip(np.array_split(times, 5), np.array_split(values, 5), strict=True)]
    return slope, float(np.std(blocks, ddof=1) / np.sqrt(len(blocks))) if len(times) >= 10 else float("inf")


def terminated(scene: Scene, service: Service) -> Finding:
    """SIGTERM under load."""
    finding = Finding("every accepted call answered, no process left, exit status 0")
    with scene.load(service.predict_url) as load:
        last = time.monotonic() + (1 if scene.short else 5)
        until(lambda: time.monotonic() > last, what="some load")
        started = time.monotonic()
        service.server.signal(signal.SIGTERM)
        status = service.server.status(60)
        seconds = time.monotonic() - started
    left = until(lambda: not service.server.processes(), what="the end of its processes", seconds=20)
    finding.measured |= {**load.report(), "status": status, "seconds": round(seconds, 1)}
    # Refused: it does not listen any more, so nothing was accepted.
    lost = load.impolite - load.outcomes.get("refused", 0)
    finding.require(lost == 0, f"{lost} calls were lost: {load.outcomes}")
    finding.require(load.outcomes.get("200", 0) > 0, "nothing was answered")
    finding.require(status == 0 and left, f"it ended with status {status}")
    return finding


def only_replica_killed(scene: Scene, service: Service) -> Finding:
    """SIGKILL of the only replica."""
    finding = Finding("failures only as 503 with Retry-After, answering again within 10 s")
    with scene.load(service.predict_url) as load:
        (victim,) = service.replicas()
        last = time.monotonic() + 2
        until(lambda: time.monotonic() > last, what="some load")
        killed = time.time()
        kill(victim)
        until(lambda: victim not in service.replicas() and service.whole(), what="the replica")
        whole = time.monotonic() + 3
        until(lambda: time.monotonic() > whole, what="some load")
    bad = [answer.sent_s for answer in load.answers if not answer.ok]
    again_s = max(bad, default=killed) - killed
    finding.measured |= {**load.report(), "answering_again_s": round(again_s, 1)}
    finding.require(load.impolite == 0 and "429" not in load.outcomes, f"other answers: {load.outcomes}")
    finding.require(scene.short or again_s <= 10, f"answering again after {again_s:.1f} s")
    return finding


Fault = Callable[[Scene, Service], Finding]

# Done to one service of two replicas in this order; the last one ends it.
TWO_REPLICAS: tuple[Fault, ...] = (
    *(replica_killed, engine_stuck, alias_moved, bad_candidates, redeployed),
    *(overloaded, bad_clients, dependencies_down, steady, terminated),
)
ONE_REPLICA: tuple[Fault, ...] = (only_replica_killed,)


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 1), "min": round(min(values), 1), "max": round(max(values), 1)}
