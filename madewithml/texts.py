"""The text of a row: what the model reads, and the hash by which a row is recognised later."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence


def row_text(row: Mapping[str, str | None], text_fields: Sequence[str]) -> str:
    """The model's input for one row: its text fields, stripped, the empty ones left out, joined by one space."""
    parts = ((row.get(name) or "").strip() for name in text_fields)
    return " ".join(part for part in parts if part)


def text_sha256(text: str) -> str:
    """Hash by which a row is recognised later, for instance as one that was trained on."""
    return hashlib.sha256(text.encode()).hexdigest()
