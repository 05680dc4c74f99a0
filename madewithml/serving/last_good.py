"""What was last served from an address of the model registry, for a start while MLflow is away."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from madewithml import files
from madewithml.serving import pointer

logger = logging.getLogger(__name__)

FILE = "last-good.json"


def record(home: Path, uri: str, target: pointer.Target) -> None:
    """Remember a model that serves; a folder that cannot be written is a warning."""
    path = home / FILE
    document = {**_read(path), uri: dataclasses.asdict(dataclasses.replace(target, seq=0))}
    try:
        home.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, json.dumps(document, indent=2))
    except OSError as err:
        logger.warning("cannot record in %s what is served: %s", path, err.strerror)


def recall(home: Path, uri: str) -> pointer.Target | None:
    """What was last served from this address, or None."""
    found = _read(home / FILE).get(uri)
    return None if found is None else pointer.Target(**found)


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or cut short: it only ever helps
        return {}
    return document
