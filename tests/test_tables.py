from __future__ import annotations

import io
from pathlib import Path

import pytest
import rich.console

from madewithml import data, evaluate, predict, tables


@pytest.fixture
def shown(predictor: predict.Predictor, small_file: Path) -> str:
    rows = data.read_labelled(str(small_file), text_fields=["title", "description"], label_field="tag")
    rows.notes.append("left out 1 row [without] any text (line 3)")
    document = evaluate.evaluate(predictor, rows, run_id="run-7", dataset="a[b].csv", slices={"[/never]": "xyzzy"})
    console = rich.console.Console(file=io.StringIO(), width=160)
    tables.show_evaluation(document, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_an_evaluation_is_shown_with_all_of_its_parts(shown: str) -> None:
    for part in ("run run-7 on a[b].csv", "overall", "computer-vision", "true \\ predicted", "accuracy 0.", "ece 0."):
        assert part in shown


def test_a_score_that_does_not_exist_is_a_dash(shown: str) -> None:
    line = next(line for line in shown.splitlines() if "[/never]" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["[/never]", "-", "-", "-", "0"]


def test_brackets_in_names_and_notes_are_shown_as_they_are(shown: str) -> None:
    assert "[/never]" in shown
    assert "note: left out 1 row [without] any text (line 3)" in shown


def test_an_optimisation_is_shown_with_every_candidate_and_why_it_was_rejected() -> None:
    def candidate(engine: str, precision: str, **more: object) -> dict[str, object]:
        empty = {"rows_per_second": 0.0, "agreement": None, "max_probability_change": None, "max_batch_change": None}
        passed = {"passed": "reason" not in more}
        return {"engine": engine, "precision": precision, **empty, **passed, "megabytes": 0.0, "reason": None, **more}

    document = {
        "run_id": "run-7",
        "num_rows": 200,
        "engine": "openvino",
        "precision": "bf16",
        "candidates": [
            candidate("openvino", "bf16", rows_per_second=321.4, agreement=1.0, max_probability_change=0.009),
            candidate("onnxruntime", "int8", reason="another [label] on 3.0% of rows"),
            candidate("torch", "fp32"),
        ],
    }
    console = rich.console.Console(file=io.StringIO(), width=160)
    tables.show_optimization(document, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    assert "run run-7 on 200 held-out rows" in text
    assert cells == [
        ["openvino bf16", "321", "100.0%", "0.009", "-", "0", "chosen"],
        ["onnxruntime int8", "-", "-", "-", "-", "0", "rejected"],
        ["torch fp32", "-", "-", "-", "-", "0", "passed"],
    ]
    assert "  rejected, onnxruntime int8: another [label] on 3.0% of rows\n" in text
