"""Files that others read while they are written."""

from __future__ import annotations

import tempfile
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all; its owner alone can read it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False, encoding="utf-8") as scratch:
        scratch.write(text)
    Path(scratch.name).replace(path)
