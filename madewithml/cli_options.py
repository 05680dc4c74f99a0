"""What the commands of `cli.py` share: their options, what is typed for them, and files of results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from madewithml import errors, host

RunId = Annotated[str, typer.Option("--run-id", help="MLflow run id.")]
Dataset = Annotated[str, typer.Option("--dataset-loc", help="CSV, JSON Lines or Parquet file (path or URL).")]
Experiment = Annotated[str, typer.Option("--experiment-name", help="MLflow experiment.")]
TextFields = Annotated[str, typer.Option(help="Columns whose texts are the model's input, comma-separated.")]
LabelField = Annotated[str, typer.Option(help="Column with the label.")]
Results = Annotated[Path | None, typer.Option("--results-fp", help="Write the result here as JSON.")]
Home = Annotated[Path | None, typer.Option(help="Folder of all state (MADEWITHML_HOME).", show_default=False)]
Engine = Annotated[
    str | None,
    typer.Option(help="auto, torch, onnxruntime or openvino; auto takes what `optimize` chose.", show_default=False),
]
Threshold = Annotated[
    float | None,
    typer.Option(help="Confidence below which an answer abstains; default: the run's certificate, else 0.9."),
]


def names(value: str) -> tuple[str, ...]:
    """Comma-separated names."""
    found = tuple(name.strip() for name in value.split(",") if name.strip())
    if not found:
        raise errors.UsageError(f"expected comma-separated names, got {value!r}")
    return found


def pairs(items: Sequence[str] | None, flag: str) -> dict[str, str]:
    """What a flag that may be repeated says, NAME=VALUE each time."""
    return dict(_pair(item, flag) for item in items or ())


def _pair(item: str, flag: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not name or not equals:
        raise errors.UsageError(f"{flag} is {item!r}: expected NAME=VALUE")
    return name, value


def replica_count(value: str) -> int:
    """A number of replicas; `auto` is one per core."""
    if value == "auto":
        return host.available_cores()
    if not value.isdecimal() or int(value) < 1:
        raise errors.UsageError(f"--replicas is {value!r}: expected a number from 1 or 'auto'")
    return int(value)


def check_writable(path: Path | None) -> None:
    """Check a file of results before the work, so that none is done in vain."""
    if path is not None and not path.parent.is_dir():
        raise errors.InputError(f"no folder {str(path.parent)!r} to write {path.name!r} into")
    if path is not None and path.is_dir():
        raise errors.InputError(f"{str(path)!r} is a folder: --results-fp expects a file to write")


def write_results(document: Mapping[str, Any], path: Path | None) -> None:
    """Write a file of results, if one is wanted."""
    if path is not None:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
