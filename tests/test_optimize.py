"""Optimising the session's tiny run for real: every engine, every precision, this host."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest

from madewithml import certifying, checkpoint, config, engines, errors, graphs, host, optimize, predict, runs, train

TINY_ROWS = [{"title": "Intro to CNNs", "description": "Processing images with layers."}, {"title": "a"}]


@pytest.fixture(scope="module")
def optimised(trained: train.TrainResult, settings: config.Settings) -> Any:
    """The document of a real `optimize`, with the checkpoint as it was afterwards."""
    document = optimize.optimize_run(optimize.OptimizeOptions(trained.run_id), settings)
    yield document
    shutil.rmtree(trained.checkpoint / checkpoint.ENGINES)


@pytest.fixture
def found(optimised: dict[str, Any], checkpoint_folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.read(checkpoint_folder)


def test_every_engine_and_precision_was_tried(optimised: dict[str, Any]) -> None:
    tried = {(c["engine"], c["precision"]) for c in optimised["candidates"]}
    assert tried == {(c.engine, c.precision) for c in optimize.CANDIDATES}
    for candidate in optimised["candidates"]:
        assert candidate["rows_per_second"] > 0
        assert set(candidate["rows_per_second_by_batch"]) == {"1", "8", "32"}
        assert candidate["passed"] is (candidate["reason"] is None)


def test_fp32_always_passes_and_is_exact(optimised: dict[str, Any]) -> None:
    exact = [c for c in optimised["candidates"] if c["precision"] == "fp32"]
    assert [c["passed"] for c in exact] == [True, True, True]
    assert max(c["max_probability_change"] for c in exact) < 1e-4


def test_the_fastest_that_passed_is_chosen(optimised: dict[str, Any]) -> None:
    passed = [c for c in optimised["candidates"] if c["passed"]]
    fastest = max(passed, key=lambda c: c["rows_per_second"])
    assert (optimised["engine"], optimised["precision"]) == (fastest["engine"], fastest["precision"])


def test_only_graphs_that_may_serve_are_kept_the_fastest_of_each_engine_and_fp32(
    optimised: dict[str, Any], checkpoint_folder: Path
) -> None:
    kept = {path.name for path in (checkpoint_folder / checkpoint.ENGINES).iterdir()} - {checkpoint.ENGINE_REPORT}
    passed = [c for c in optimised["candidates"] if c["passed"] and c["file"]]
    fastest = {c["engine"]: c["file"] for c in reversed(passed)}
    graphs = {*fastest.values(), *(c["file"] for c in passed if c["precision"] == "fp32")}
    weights = {name.replace(".xml", ".bin") for name in graphs}
    assert kept == set(optimised["files"]) == graphs | weights


def test_the_report_says_that_padding_costs_nothing(optimised: dict[str, Any]) -> None:
    assert optimised["pads"] is (optimised["engine"] == "torch")


def test_the_report_is_stored_with_the_run(
    optimised: dict[str, Any], trained: train.TrainResult, settings: config.Settings
) -> None:
    store = runs.connect(settings)
    path = store.client.download_artifacts(trained.run_id, "optimization.json")
    assert json.loads(Path(path).read_text())["engine"] == optimised["engine"]


def test_auto_serves_with_the_chosen_engine_and_its_answers_are_those_of_torch(
    optimised: dict[str, Any], checkpoint_folder: Path
) -> None:
    own = predict.Predictor.from_checkpoint(checkpoint_folder, threads=1)
    reference = predict.Predictor.from_checkpoint(checkpoint_folder, engine="torch", threads=1)
    assert (own.engine.name, own.engine.precision) == (optimised["engine"], optimised["precision"])
    np.testing.assert_allclose(own.predict_proba(TINY_ROWS), reference.predict_proba(TINY_ROWS), atol=0.02)
    report = checkpoint.read(checkpoint_folder).read_engines()
    assert report is not None
    assert (own.curve, reference.curve) == (report.curve, None)
    own.check_golden()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_an_engine_can_be_named(found: checkpoint.Checkpoint, name: str) -> None:
    assert engines.load(found, name=name, threads=1).name == name


def test_on_another_host_auto_falls_back_to_fp32_and_says_why(
    found: checkpoint.Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host, "traits", lambda: {"processor": "another", "machine": "m", "system": "s", "features": ""})
    with caplog.at_level(logging.WARNING):
        engine = engines.load(found, threads=1)
    assert (engine.name, engine.precision) == ("onnxruntime", "fp32")
    assert "measured on another host (other features, machine, processor, system)" in caplog.text


def test_without_the_chosen_library_auto_falls_back_to_what_is_installed(
    found: checkpoint.Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engines, "installed", lambda name: name == "torch")
    with caplog.at_level(logging.WARNING):
        engine = engines.load(found, threads=1)
    assert (engine.name, engine.precision) == ("torch", "fp32")
    assert "is not installed" in caplog.text


def test_a_named_engine_that_is_not_installed_is_refused(
    found: checkpoint.Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "installed", lambda _name: False)
    with pytest.raises(errors.UsageError, match="engine 'openvino' is not installed: pip install openvino"):
        engines.load(found, name="openvino")


def test_a_named_engine_that_may_not_serve_is_refused_with_the_reason(
    found: checkpoint.Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = found.read_engines()
    assert report is not None
    failed = tuple(
        dataclasses.replace(c, passed=False, reason="too far off") if c.engine == "openvino" else c
        for c in report.candidates
    )
    edited = dataclasses.replace(report, candidates=failed)
    monkeypatch.setattr(checkpoint.Checkpoint, "read_engines", lambda _self: edited)
    with pytest.raises(errors.UsageError, match=r"engine 'openvino' may not serve this checkpoint: .*too far off"):
        engines.load(found, name="openvino")


def test_a_graph_that_was_changed_is_refused(optimised: dict[str, Any], spoiled: Path) -> None:
    for graph in (spoiled / checkpoint.ENGINES).glob("*.onnx"):
        graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(errors.CheckpointError, match=r"\.onnx' is missing or damaged: run `madewithml optimize`"):
        engines.load(checkpoint.read(spoiled), name="onnxruntime")


def test_a_report_of_other_weights_is_refused(optimised: dict[str, Any], spoiled: Path) -> None:
    path = spoiled / checkpoint.ENGINES / checkpoint.ENGINE_REPORT
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights_sha256": "another"}))
    with pytest.raises(errors.CheckpointError, match="belongs to another model: run `madewithml optimize` again"):
        checkpoint.read(spoiled).read_engines()


def test_a_report_that_is_damaged_is_refused_by_name(optimised: dict[str, Any], spoiled: Path) -> None:
    (spoiled / checkpoint.ENGINES / checkpoint.ENGINE_REPORT).write_text("{}")
    with pytest.raises(errors.CheckpointError, match=r"report.json': the engine report is damaged"):
        checkpoint.read(spoiled).read_engines()


def test_an_engine_that_fails_or_has_no_graph_is_reported_and_the_others_go_on(
    trained: train.TrainResult, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise RuntimeError("no such thing\nmore")

    monkeypatch.setattr(graphs.quantising, "quantise_static", broken)
    monkeypatch.setattr(engines, "OpenVinoEngine", broken)
    document = optimize.optimize_run(optimize.OptimizeOptions(trained.run_id), settings)
    reasons = {(c["engine"], c["precision"]): c["reason"] for c in document["candidates"]}
    assert reasons["onnxruntime", "int8"] == "no graph: no such thing"
    assert reasons["openvino", "fp32"] == "it fails here: no such thing"
    assert document["engine"] in ("torch", "onnxruntime")


def test_rows_of_a_file_are_judged_on_if_the_model_was_not_fitted_on_them(
    trained: train.TrainResult, settings: config.Settings, small_file: Path
) -> None:
    options = optimize.OptimizeOptions(trained.run_id, dataset_loc=str(small_file))
    with pytest.raises(errors.InputError, match="were used in fitting run"):
        optimize.optimize_run(options, settings)


def test_a_run_that_another_process_optimises_is_left_alone(
    optimised: dict[str, Any], trained: train.TrainResult, settings: config.Settings
) -> None:
    graphs_then = sorted((trained.checkpoint / checkpoint.ENGINES).iterdir())
    with (
        filelock.FileLock(optimize._lock_file(trained.run_id, settings)),
        pytest.raises(errors.InputError, match="is being optimised by another process"),
    ):
        optimize.optimize_run(optimize.OptimizeOptions(trained.run_id), settings)
    assert sorted((trained.checkpoint / checkpoint.ENGINES).iterdir()) == graphs_then


def test_the_rows_of_a_certificate_are_found_among_the_held_out_ones(
    trained: train.TrainResult, settings: config.Settings
) -> None:
    store = runs.connect(settings)
    rows = store.recorded_rows(trained.run_id, "calibration")
    predictor = predict.TorchPredictor.from_checkpoint(trained.checkpoint)
    document = {"data_sha256": rows.sha256, "num_certify_rows": len(rows)}
    policy = dataclasses.replace(predictor.policy, certificates=document)
    certified = dataclasses.replace(predictor, policy=policy)
    test_rows = store.recorded_rows(trained.run_id, "test")
    found = optimize._certify_rows([test_rows, rows], certified)
    assert found is not None
    assert found.positions.tolist() == list(range(len(test_rows), len(test_rows) + len(rows)))
    assert found.truth.tolist() == predictor.label_indices(rows.labels).tolist()
    assert optimize._certify_rows([test_rows], certified) is None


def test_rows_that_tuned_do_not_count_as_certify_rows() -> None:
    mask = certifying.certify_mask({"num_certify_rows": 70}, 100)
    assert 0 < int(mask.sum()) < 100
    assert certifying.certify_mask({"num_certify_rows": 100}, 100).all()


def test_an_engine_by_name_needs_a_graph(checkpoint_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "plain"
    shutil.copytree(checkpoint_folder, copy, ignore=shutil.ignore_patterns(checkpoint.ENGINES))
    with pytest.raises(errors.UsageError, match="needs an exported graph: run `madewithml optimize` first"):
        engines.load(checkpoint.read(copy), name="onnxruntime")
