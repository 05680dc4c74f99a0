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
