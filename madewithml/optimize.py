"""Optimising a run: every engine and precision is tried on this host, and the fastest faithful one is kept.

    checkpoint -> graphs -> each candidate: logits of held-out rows -> gate (`fidelity`) -> speed -> engines/report.json

Held-out rows are those of the run that it was not fitted on, or a file. Torch in fp32 is the reference and always
passes, so there is always an engine to serve with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from madewithml import (
    certifying,
    checkpoint,
    config,
    data,
    encoders,
    engine_report,
    engines,
    errors,
    fidelity,
    graphs,
    host,
    predict,
    progress,
    runs,
    speed,
    tokenization,
)

logger = logging.getLogger(__name__)

CANDIDATES = (
    engine_report.Candidate("torch", "fp32", None),
    engine_report.Candidate("onnxruntime", "fp32", graphs.FP32),
    engine_report.Candidate("onnxruntime", "int8-dynamic", graphs.DYNAMIC),
    engine_report.Candidate("onnxruntime", "int8", graphs.STATIC),
    engine_report.Candidate("openvino", "fp32", graphs.OPENVINO),
    engine_report.Candidate("openvino", "bf16", graphs.OPENVINO),
    engine_report.Candidate("openvino", "int8-groups-128", graphs.GROUPS),
    *(engine_report.Candidate("openvino", f"int8-mixed-{group}", file) for group, file in graphs.MIXED.items()),
)
LIBRARIES = ("torch", "onnxruntime", "openvino")
MAX_ROWS = 256
HELD_OUT = ("calibration", "test", "validation")
ROWS_IN_OTHER_COMPANY = 32
SPEED_ROUNDS = 3
SPEED_BATCHES = {1: 8, 8: 3, 32: 1}
# An engine that takes so many times as long as torch in fp32 is rejected without more ado.
TOO_SLOW = 4
# Engines slower than this share of the fastest are not measured again.
WORTH_ANOTHER_LOOK = 0.7


@dataclass(frozen=True)
class OptimizeOptions:
    """What is to be optimised.

    Attributes:
        run_id: The run.
        dataset_loc: Labelled rows the model was not fitted on; None takes the run's own held-out rows.
        label_field: Column with the label, in `dataset_loc`.
    """

    run_id: str
    dataset_loc: str | None = None
    label_field: str = "tag"


@dataclass(frozen=True)
class _Trial:
    """What every candidate is tried on."""

    predictor: predict.Predictor
    tokens: list[list[int]]
    typical: list[list[int]]  # by which weights are rounded: other rows, as far as there are any
    reference: fidelity.Logits
    certify_rows: fidelity.CertifyRows | None
    workload: speed.Workload
    patience_s: float  # for one row; an engine that takes longer is not worth judging

    @property
    def source(self) -> checkpoint.Checkpoint:
        return self.predictor.checkpoint


def optimize_run(options: OptimizeOptions, settings: config.Settings) -> dict[str, Any]:
    """Try every engine on a run's best checkpoint and record the fastest faithful one in it.

    Returns:
        The document of `madewithml optimize`: the run's id and the engine report.

    Raises:
        NotFoundError: No such run, or it recorded no held-out rows and no file was given.
        InputError: The file cannot be used, or another process is optimising the run.
    """
    store = runs.connect(settings)
    predictor = predict.TorchPredictor.from_checkpoint(store.best_checkpoint(options.run_id))
    trial = _trial(options, store, predictor)
    folder = predictor.checkpoint.engines_folder
    folder.mkdir(exist_ok=True)
    with _alone(options.run_id, settings), progress.track("optimising", total=len(CANDIDATES) + 2) as bar:
        failed = graphs.Graphs(predictor.checkpoint, folder, rows=trial.typical).write()
        bar.advance(1, "graphs exported")
        tried = []
        for candidate in CANDIDATES:
            tried.append(_try(candidate, trial, failed))
            bar.advance(1, f"{candidate.name}: {tried[-1].reason or 'passed'}")
        report = _report(_with_speeds(tried, trial), trial)
        bar.advance(1, f"chosen: {report.chosen.name}")
    graphs.tidy(folder, keep=set(report.files))
    _record(store, options.run_id, predictor.checkpoint, report)
    document = {"run_id": options.run_id, **report.to_dict()}
    store.log_json(options.run_id, document, "optimization.json")
    return document


@contextlib.contextmanager
def _alone(run_id: str, settings: config.Settings) -> Iterator[None]:
    """Keep others from the run's graphs: whoever is done first would remove those that the other still tries."""
    try:
        with filelock.FileLock(_lock_file(run_id, settings), timeout=0):
            yield
    except filelock.Timeout as err:
        msg = f"run {run_id} is being optimised by another process: wait until it is done"
        raise errors.InputError(msg) from err


def _lock_file(run_id: str, settings: config.Settings) -> Path:
    return settings.home / f".optimize-{run_id}.lock"


def _trial(options: OptimizeOptions, store: runs.Store, predictor: predict.Predictor) -> _Trial:
    rows = _held_out(options, store, predictor)
    certify_rows = _certify_rows(rows, predictor)
    enough = max(MAX_ROWS, len(rows[0]))  # all of the first part: certificates may rest on it
    texts = [text for part in rows for text in part.texts][: enough + graphs.ROWS_FOR_ROUNDING]
    every = [encoded.ids for encoded in predictor.tokenizer.encode(texts)]
    tokens, others = every[:enough], every[enough:]
    logger.info("judging engines on %d held-out rows", len(tokens))
    workload = speed.Workload.of(tokens, pad_id=predictor.tokenizer.pad_id)
    reference = predictor.logits(tokens)
    return _Trial(
        predictor,
        tokens,
        (others + tokens)[: graphs.ROWS_FOR_ROUNDING],
        reference,
        certify_rows,
        workload,
        TOO_SLOW / speed.rows_per_second(predictor.engine, workload, size=1, batches=4),
    )


def _held_out(options: OptimizeOptions, store: runs.Store, predictor: predict.Predictor) -> list[data.LabelledText]:
    """Rows the model was not fitted on, those that certificates rest on first."""
    if options.dataset_loc is not None:
        label_field = options.label_field
        return [
            certifying.unfitted_rows(options.dataset_loc, predictor, store, options.run_id, label_field=label_field)
        ]
    recorded = store.recorded_hashes(options.run_id) or {}
    found = [store.recorded_rows(options.run_id, part) for part in HELD_OUT if recorded.get(part)]
    if not found:
        msg = f"run {options.run_id!r} recorded no held-out rows to judge engines on: give a file with --dataset-loc"
        raise errors.NotFoundError(msg)
    return found


def _certify_rows(parts: list[data.LabelledText], predictor: predict.Predictor) -> fidelity.CertifyRows | None:
    """Where among the rows those of the certificate are; None if they are not there."""
    document = predictor.policy.certificates or {}
    first = 0
    for part in parts:
        if part.sha256 == document.get("data_sha256"):
            certifies = certifying.certify_mask(document, len(part))
            truth = predictor.label_indices(part.labels)
            return fidelity.CertifyRows(first + np.flatnonzero(certifies), truth[certifies])
        first += len(part)
    return None


def _try(candidate: engine_report.Candidate, trial: _Trial, failed: dict[str, str]) -> engine_report.Candidate:
    """The candidate with its fidelity, or with the reason why it could not be tried."""
    if not engines.installed(candidate.engine):
        return dataclasses.replace(candidate, reason=f"{candidate.engine} is not installed")
    if candidate.file in failed:
        return dataclasses.replace(candidate, reason=f"no graph: {failed[str(candidate.file)]}")
    try:
        return _judged(candidate, _build(candidate, trial), trial)
    except Exception as err:  # noqa: BLE001 - what an engine raises on a graph it cannot run; the reason is reported
        return dataclasses.replace(candidate, reason=f"it fails here: {graphs.first_line(err)}")


def _build(candidate: engine_report.Candidate, trial: _Trial) -> engines.Engine:
    return engines.build(trial.source, engines.Choice.of(candidate), threads=1)


def _judged(candidate: engine_report.Candidate, engine: engines.Engine, trial: _Trial) -> engine_report.Candidate:
    size = sum(path.stat().st_size for path in _files(candidate, trial.source))
    candidate = dataclasses.replace(candidate, megabytes=round(size / 1e6, 1))
    rate = speed.rows_per_second(engine, trial.workload, size=1, batches=1)
    if 1 / rate > trial.patience_s:  # bfloat16 without hardware for it, for instance: not worth minutes
        return dataclasses.replace(candidate, rows_per_second=round(rate, 1), reason=f"{TOO_SLOW}x slower than torch")
    own = dataclasses.replace(trial.predictor, engine=engine).logits(trial.tokens)
    policy = trial.predictor.policy
    found = fidelity.compare(
        trial.reference, own, alone=_in_other_company(engine, trial), temperature=policy.temperature
    )
    reason = fidelity.fault(found) or fidelity.certificate_fault(policy, own, trial.certify_rows)
    speeds = _speeds(engine, trial)
    return dataclasses.replace(
        candidate,
        **found._asdict(),
        **_speed_fields([speeds]),
        passed=reason is None,
        reason=reason,
    )


def _files(candidate: engine_report.Candidate, source: checkpoint.Checkpoint) -> list[Path]:
    """The files a candidate reads."""
    if candidate.file is None:
        return [source.folder / "model.safetensors"]
    names = (candidate.file, engine_report.weights_file(candidate.file))
    return [path for name in dict.fromkeys(names) if (path := source.engines_folder / name).is_file()]


def _in_other_company(engine: engines.Engine, trial: _Trial) -> dict[int, fidelity.Logits]:
    """Logits of some rows, each computed alone, and in one batch with rows of every length."""
    chosen = np.random.default_rng(0).permutation(len(trial.tokens))[:ROWS_IN_OTHER_COMPANY].tolist()
    pad_id = trial.predictor.tokenizer.pad_id
    mixed = engine.logits(*tokenization.pad([trial.tokens[i] for i in chosen], pad_id=pad_id))
    alone = (engine.logits(*tokenization.pad([trial.tokens[i]], pad_id=pad_id))[0] for i in chosen)
    return {i: np.stack(both) for i, *both in zip(chosen, mixed, alone, strict=True)}


def _speeds(engine: engines.Engine, trial: _Trial) -> dict[int, float]:
    return {
        size: speed.rows_per_second(engine, trial.workload, size=size, batches=count)
        for size, count in SPEED_BATCHES.items()
    }


def _speed_fields(rounds: list[dict[int, float]]) -> dict[str, Any]:
    by_batch = {str(size): round(statistics.median(r[size] for r in rounds), 1) for size in SPEED_BATCHES}
    return {"rows_per_second_by_batch": by_batch, "rows_per_second": max(by_batch.values())}


def _with_speeds(tried: list[engine_report.Candidate], trial: _Trial) -> list[engine_report.Candidate]:
    """The candidates, the best of them measured again, turn by turn, so that a slow moment hits all alike."""
    fastest = max(candidate.rows_per_second for candidate in tried if candidate.passed)
    again = [c for c in tried if c.passed and c.rows_per_second >= WORTH_ANOTHER_LOOK * fastest]
    built = {candidate.name: _build(candidate, trial) for candidate in again}
    rounds: dict[str, list[dict[int, float]]] = {name: [] for name in built}
    for _ in range(SPEED_ROUNDS):
        for name, engine in built.items():
            rounds[name].append(_speeds(engine, trial))
    measured = [
        dataclasses.replace(candidate, **_speed_fields(rounds[candidate.name])) if candidate in again else candidate
        for candidate in tried
    ]
    return sorted(measured, key=lambda candidate: -candidate.rows_per_second)


def _report(candidates: list[engine_report.Candidate], trial: _Trial) -> engine_report.EngineReport:
    chosen = next(candidate for candidate in candidates if candidate.passed)
    kept = {path for c in candidates if c.file and _has_use(c, candidates) for path in _files(c, trial.source)}
    engine = _build(chosen, trial)
    return engine_report.EngineReport(
        engine=chosen.engine,
        precision=chosen.precision,
        file=chosen.file,
        candidates=tuple(candidates),
        costs=tuple(speed.batch_costs(engine, trial.workload)),
        num_rows=len(trial.tokens),
        weights_sha256=trial.source.weights_sha256,
        files={path.name: encoders.file_sha256(path) for path in sorted(kept)},
        host=host.traits(),
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES if engines.installed(name)},
        date=datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
        pads=engine.pads,
    )


def _has_use(candidate: engine_report.Candidate, candidates: Sequence[engine_report.Candidate]) -> bool:
    """Whether it may ever serve: the fastest of its engine on this host, or fp32, which is trusted on another one."""
    first = next((c for c in candidates if c.engine == candidate.engine and c.passed), None)
    return candidate.passed and (candidate is first or candidate.precision == "fp32")


def _record(store: runs.Store, run_id: str, source: checkpoint.Checkpoint, report: engine_report.EngineReport) -> None:
    for name in report.files:
        store.add_to_checkpoint(run_id, source.engines_folder / name, folder=checkpoint.ENGINES)
    store.add_to_checkpoint(run_id, source.write_engines(report), folder=checkpoint.ENGINES)
