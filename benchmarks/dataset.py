"""The rows of a file, and the bodies that callers send of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

TEXT_FIELDS = ("title", "description")


def rows(path: Path, fields: Sequence[str] | None = TEXT_FIELDS) -> list[dict[str, str]]:
    """These fields of each row of a CSV file; None: all of them."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: row[name] or "" for name in fields or row} for row in csv.DictReader(file)]


def write_bodies(bodies: Iterable[Any], path: Path) -> Path:
    """Write one JSON body a line; returns the path."""
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies), encoding="utf-8")
    return path
