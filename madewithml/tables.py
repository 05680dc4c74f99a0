"""Results as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rich.console
import rich.markup
import rich.table


def show_evaluation(document: Mapping[str, Any], console: rich.console.Console) -> None:
    """Print what `evaluate` found."""
    overall = document["overall"]
    console.print(f"run {document['run_id']} on {document['dataset']}", highlight=False, markup=False, soft_wrap=True)
    console.print(_scores("overall", {"overall": overall}))
    console.print(_scores("class", document["per_class"]))
    console.print(_scores("slice", document["slices"]))
    console.print(_confusion(document["confusion_matrix"]))
    console.print(_selective(document["selective"]))
    rest = ", ".join(f"{name} {overall[name]:.3f}" for name in ("accuracy", "log_loss", "brier", "ece"))
    console.print(rest, highlight=False)
    for note in document["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False)


def _scores(title: str, rows: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
    table = rich.table.Table(title, "precision", "recall", "F1", "rows")
    for name, scores in rows.items():
        numbers = [_number(scores[key]) for key in ("precision", "recall", "f1")]
        table.add_row(rich.markup.escape(name), *numbers, str(scores["num_samples"]))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _selective(figures: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
    """Confidence as a judge of right and wrong, before and after calibration; coverage for each risk on these rows."""
    before, after = figures["before"], figures["after"]
    table = rich.table.Table("selective", "before", f"after (T = {after['temperature']:.3g})")
    for key, name in (("ece", "ECE"), ("aurc", "AURC"), ("e_aurc", "E-AURC"), ("augrc", "AUGRC")):
        table.add_row(name, f"{before[key]:.4f}", f"{after[key]:.4f}")
    for plain, calibrated in zip(before["coverage_at_risk"], after["coverage_at_risk"], strict=True):
        name = f"coverage at {plain['risk']:.0%} risk"
        table.add_row(name, f"{plain['coverage']:.1%}", f"{calibrated['coverage']:.1%}")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _confusion(matrix: Mapping[str, Any]) -> rich.table.Table:
    labels = matrix["labels"]
    table = rich.table.Table("true \\ predicted", *map(rich.markup.escape, labels))
    for label, counts in zip(labels, matrix["counts"], strict=True):
        table.add_row(rich.markup.escape(label), *map(str, counts))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def show_certification(document: Mapping[str, Any], console: rich.console.Console) -> None:
    """Print what `certify` found: the ladder, then the level asked for in words."""
    table = rich.table.Table("risk at most", "threshold", "coverage", "errors / accepted", "upper bound", "")
    for level in document["levels"]:
        certified = level["status"] == "certified"
        table.add_row(
            f"{level['max_risk']:.1%}",
            f"{level['threshold']:.4f}" if certified else "-",
            f"{level['coverage']:.0%}" if certified else "-",
            f"{level['num_errors']} / {level['num_accepted']}" if certified else "-",
            f"{level['risk_upper_bound']:.2%}" if certified else "-",
            level["status"],
        )
    for column in table.columns[:-1]:
        column.justify = "right"
    console.print(f"run {document['run_id']} on {document['dataset']}", highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    together = "all levels hold at once" if document["joint"] else "each level holds by itself"
    console.print(
        f"{together} at confidence level {document['asked_confidence_level']:g}; "
        f"{document['num_certify_rows']} rows certified, {document['num_tune_rows']} tuned; assumes that "
        f"{document['assumption']}",
        highlight=False,
    )
    for label, level in zip(document["labels"], document["per_class"], strict=False):  # empty unless asked for
        threshold = f"threshold {level['threshold']:.4f}" if level["threshold"] is not None else "refused"
        console.print(f"{label}: {threshold}, coverage {level['coverage']:.0%} of its answers", highlight=False)
    if document["status"] == "certified":
        console.print(_in_words(document), highlight=False)
    if not document["recorded"]:
        console.print("not recorded: the run keeps the certificate it has", highlight=False)


def _in_words(document: Mapping[str, Any]) -> str:
    return (
        f"at threshold {document['threshold']:.4f}, {document['coverage']:.0%} of inputs are answered, and at most "
        f"{document['max_risk']:.1%} of those answers are wrong (confidence level {document['confidence_level']:g})"
    )


def refusal_in_words(document: Mapping[str, Any]) -> str:
    """Why the level asked for was refused, the best within reach, and what is missing."""
    parts = [f"risk {document['max_risk']:g} cannot be certified: {document['reason']}"]
    if document["best_max_risk"] is not None:
        parts.append(f"The best these rows could certify is about {document['best_max_risk']:.3f}")
    if document["needed_rows"] is not None:
        parts.append(
            f"About {document['needed_rows']} fresh labelled rows would certify {document['max_risk']:g} with 80 % "
            f"probability, at a coverage of about {document['expected_coverage']:.0%}"
        )
    return ". ".join(parts)


def show_optimization(document: Mapping[str, Any], console: rich.console.Console) -> None:
    """Print what `optimize` found."""
    table = rich.table.Table("engine", "rows/s", "agreement", "probability", "batch", "MB", "verdict")
    for candidate in document["candidates"]:
        chosen = (candidate["engine"], candidate["precision"]) == (document["engine"], document["precision"])
        table.add_row(
            f"{candidate['engine']} {candidate['precision']}",
            f"{candidate['rows_per_second']:.0f}" if candidate["rows_per_second"] else "-",
            "-" if candidate["agreement"] is None else f"{candidate['agreement']:.1%}",
            _number(candidate["max_probability_change"]),
            _number(candidate["max_batch_change"]),
            f"{candidate['megabytes']:.0f}",
            "chosen" if chosen else "passed" if candidate["passed"] else "rejected",
        )
    table.columns[0].no_wrap = True
    for column in table.columns[1:-1]:
        column.justify = "right"
    console.print(f"run {document['run_id']} on {document['num_rows']} held-out rows", markup=False, soft_wrap=True)
    console.print(table)
    for candidate in document["candidates"]:
        if not candidate["passed"]:
            reason = f"{candidate['engine']} {candidate['precision']}: {candidate['reason']}"
            console.print(f"  rejected, {reason}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        "rows/s on one thread at the best batch size; probability and batch: the largest change of a probability "
        "against fp32 torch, and by what else is in the batch",
        soft_wrap=True,
    )
