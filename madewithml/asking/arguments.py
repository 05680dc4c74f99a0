"""What a caller gives, checked before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import httpx

from madewithml.asking import problems

Row = Mapping[str, str | None]

EXAMPLE = "{'title': 'Intro to CNNs'}"


def base_url(url: str) -> str:
    """The url without a final slash.

    Raises:
        UsageError: It is none of a service.
    """
    expected = "expected one like 'http://127.0.0.1:8000' or 'https://models.example.org/topics'"
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as err:
        raise problems.UsageError(f"url is {url!r}: {expected}") from err
    if parsed.userinfo:  # not quoted: it may hold a password
        raise problems.UsageError("url holds a user name or a password: give the service's key as api_key")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise problems.UsageError(f"url is {url!r}: {expected}")
    return str(parsed).rstrip("/")


def authorization(api_key: str | None) -> dict[str, str]:
    """The header that carries a key.

    Raises:
        UsageError: It cannot be a key.
    """
    if api_key is None:
        return {}
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        # not quoted: it is a secret
        raise problems.UsageError(
            "api_key is empty or holds spaces or other than ASCII characters: give the key alone, or None"
        )
    return {"Authorization": f"Bearer {api_key}"}


def at_least(least: int, value: int, *, name: str) -> int:
    """The number.

    Raises:
        UsageError: It is less, or none.
    """
    if not isinstance(value, int) or value < least:
        raise problems.UsageError(f"{name} is {value!r}: expected a whole number from {least}")
    return value


def checked_list(rows: Iterable[Row]) -> list[dict[str, str | None]]:
    """The rows as JSON has them.

    Raises:
        UsageError: There is none, or one cannot be used.
    """
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise problems.UsageError(f"rows is {_shown(rows)}: expected a mapping {EXAMPLE}, or a list of them")
    checked = [checked_row(row, name=f"row {index}") for index, row in enumerate(rows)]
    if not checked:
        raise problems.UsageError("the list is empty: give at least one row")
    return checked


def checked_row(row: Row, *, name: str) -> dict[str, str | None]:
    """A row as JSON has it: what `json` cannot write, or writes as no text, is told before anything is sent."""
    if not isinstance(row, Mapping):
        raise problems.UsageError(f"{name} is {_shown(row)}: expected a mapping of text fields to texts, {EXAMPLE}")
    for field, text in row.items():
        if not isinstance(field, str):
            raise problems.UsageError(
                f"{name} has a field {_shown(field)}: expected the name of a text field, {EXAMPLE}"
            )
        if text is not None and not isinstance(text, str):
            raise problems.UsageError(f"{name}: {field!r} is {_shown(text)}: expected a text, or None for an empty one")
    return dict(row)


def _shown(value: object) -> str:
    return f"{repr(value)[:80]} ({type(value).__name__})"


def encoded(body: Any) -> bytes:
    """A body.

    Raises:
        UsageError: JSON cannot hold it.
    """
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as err:
        raise problems.UsageError(f"cannot be sent as JSON: {err}") from err
