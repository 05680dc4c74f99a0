from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from madewithml import engine_report, errors
from madewithml.engine_report import BatchCost, Candidate, EngineReport

FAST = Candidate("openvino", "bf16", "model.onnx", rows_per_second=400.0, passed=True)
FALSE = Candidate("onnxruntime", "int8", "model-int8.onnx", rows_per_second=500.0, reason="another label on 3 %")
EXACT = Candidate("onnxruntime", "fp32", "model.onnx", rows_per_second=150.0, passed=True)
REFERENCE = Candidate("torch", "fp32", None, rows_per_second=100.0, passed=True)


def report(**changes: Any) -> EngineReport:
    values: dict[str, Any] = {
        "engine": "openvino",
        "precision": "bf16",
        "file": "model.onnx",
        "candidates": (FALSE, FAST, EXACT, REFERENCE),
        "costs": (BatchCost(1, 32, 0.003), BatchCost(8, 32, 0.016)),
        "num_rows": 200,
        "weights_sha256": "w",
        "files": {"model.onnx": "f"},
        "host": {"machine": "x86_64"},
        "libraries": {"openvino": "1"},
        "date": "2026-01-01T00:00:00+00:00",
    }
    return EngineReport(**{**values, **changes})


def test_a_report_comes_back_from_json_as_it_was() -> None:
    assert EngineReport.from_dict(report().to_dict()) == report()


def test_the_chosen_candidate_is_found_by_engine_and_precision() -> None:
    assert report().chosen == FAST


def test_the_best_of_an_engine_is_its_fastest_that_passed() -> None:
    assert report().best("onnxruntime") == EXACT
    assert report().best("openvino", precision="fp32") is None


@pytest.mark.parametrize("key", ["engine", "candidates", "host"])
def test_a_report_without_a_key_is_damaged(key: str) -> None:
    values = report().to_dict()
    del values[key]
    with pytest.raises(errors.InputError, match=r"the engine report is damaged .* run `madewithml optimize` again"):
        EngineReport.from_dict(values)


def test_a_report_that_chose_what_was_not_tried_is_damaged() -> None:
    with pytest.raises(errors.InputError, match="the engine report is damaged"):
        EngineReport.from_dict(report(engine="tensorrt").to_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": "onnxruntime", "precision": "int8", "file": "model-int8.onnx"},
        {"file": "another.onnx"},
        {"files": {}},
    ],
)
def test_a_report_edited_to_choose_what_did_not_pass_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(errors.InputError, match="which did not pass: run `madewithml optimize` again"):
        EngineReport.from_dict(report(**changes).to_dict())


def test_the_budget_is_that_of_the_smallest_batch_nearly_as_cheap_a_row_as_the_best() -> None:
    seconds = {1: 0.003, 2: 0.005, 4: 0.009, 8: 0.0161, 16: 0.032, 32: 0.068}
    costs = [BatchCost(rows, 32, value) for rows, value in seconds.items()]
    assert engine_report.batch_tokens(costs) == 8 * 32


def test_where_one_row_alone_is_cheapest_the_budget_is_one_row() -> None:
    costs = [BatchCost(rows, 50, 0.002 * rows**1.1) for rows in (1, 2, 4, 8)]
    assert engine_report.batch_tokens(costs) == 50


def test_over_several_lengths_the_budget_is_the_median() -> None:
    def best_at(rows: int, length: int) -> list[BatchCost]:
        return [BatchCost(n, length, 0.01 * n if n != rows else 0.005 * n) for n in (1, 4, 8, 32)]

    costs = [*best_at(32, 16), *best_at(8, 32), *best_at(1, 64)]
    assert engine_report.batch_tokens(costs) == 8 * 32


def test_a_candidate_is_named_by_engine_and_precision() -> None:
    assert dataclasses.replace(FAST, precision="fp32").name == "openvino fp32"


def test_the_curve_finds_what_a_batch_costs_beside_its_tokens() -> None:
    costs = [BatchCost(n, length, 1e-4 * (n * length + 25)) for n in (1, 2, 4, 8) for length in (20, 40)]
    assert engine_report.CostCurve.of(costs).overhead_tokens == pytest.approx(25, abs=0.1)


def test_where_a_batch_costs_more_than_its_rows_alone_there_is_nothing_to_share() -> None:
    costs = [BatchCost(n, 32, 1e-3 * n**1.3) for n in (1, 2, 4, 8)]
    assert engine_report.CostCurve.of(costs).overhead_tokens == 0.0
