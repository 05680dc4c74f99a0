"""Results as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rich.console
import rich.table


def show_evaluation(document: Mapping[str, Any], console: rich.console.Console) -> None:
    """Print what `evaluate` found."""
    overall = document["overall"]
    console.print(f"run {document['run_id']} on {document['dataset']}", highlight=False, soft_wrap=True)
    console.print(_scores("overall", {"overall": overall}))
    console.print(_scores("class", document["per_class"]))
    console.print(_scores("slice", document["slices"]))
    console.print(_confusion(document["confusion_matrix"]))
    rest = ", ".join(f"{name} {overall[name]:.3f}" for name in ("accuracy", "log_loss", "brier", "ece"))
    console.print(rest, highlight=False)
    for note in document["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False)


def _scores(title: str, rows: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
    table = rich.table.Table(title, "precision", "recall", "F1", "rows")
    for name, scores in rows.items():
        numbers = [_number(scores[key]) for key in ("precision", "recall", "f1")]
        table.add_row(name, *numbers, str(scores["num_samples"]))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _confusion(matrix: Mapping[str, Any]) -> rich.table.Table:
    labels = matrix["labels"]
    table = rich.table.Table("true \\ predicted", *labels)
    for label, counts in zip(labels, matrix["counts"], strict=True):
        table.add_row(label, *map(str, counts))
    for column in table.columns[1:]:
        column.justify = "right"
    return table
