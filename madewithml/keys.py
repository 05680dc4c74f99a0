"""API keys: who may call, what for, and how much.

    secret, key = create("team-a", role="predict")        # the secret is shown once and kept nowhere
    find([key], secret) -> key

A secret is 32 random bytes, so its SHA-256 is safe to store: there is nothing to guess that a slow hash would protect.
Keys are kept in a file of their own, or given as a setting; both hold the same entries.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from madewithml import errors, files

PREFIX = "mwml_"
SECRET_BYTES = 32
Role = Literal["predict", "admin"]
Name = Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class Key(pydantic.BaseModel):
    """A key, without its secret.

    Attributes:
        name: Whose it is; in logs.
        role: `predict`, or `admin` for everything.
        sha256: Of the secret, in hexadecimal digits.
        rows_per_second: How many rows it may send; None for as many as there is room for.
        created: Day on which it was made.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: Name
    role: Role = "predict"
    sha256: Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    rows_per_second: Annotated[float, pydantic.Field(gt=0)] | None = None
    created: str = ""


def create(name: str, *, role: Role = "predict", rows_per_second: float | None = None) -> tuple[str, Key]:
    """Make a key.

    Returns:
        The secret, which is not kept, and the key.

    Raises:
        UsageError: The name, role or rate cannot be used.
    """
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    try:
        key = Key(name=name, role=role, sha256=_hash(secret), rows_per_second=rows_per_second, created=today)
    except pydantic.ValidationError as err:
        fault = err.errors()[0]
        raise errors.UsageError(f"bad value {fault['input']!r} for {fault['loc'][0]}: {fault['msg']}") from err
    return secret, key


def find(keys: Iterable[Key], secret: str) -> Key | None:
    """The key with this secret; takes as long whichever it is, and where it is none."""
    given, found = _hash(secret), None
    for key in keys:
        if hmac.compare_digest(key.sha256, given):
            found = key
    return found


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read(path: Path) -> tuple[Key, ...]:
    """The keys of a file.

    Raises:
        UsageError: It is not there, cannot be read, or is not what `write` writes.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return tuple(Key(**entry) for entry in document["keys"])
    except OSError as err:
        raise errors.UsageError(f"cannot read the keys in {path}: {err.strerror}") from err
    except (ValueError, TypeError, KeyError) as err:  # pydantic's and JSON's errors are ValueErrors
        msg = f"{path} is no file of keys: {errors.first_line(err)}. Make one with: madewithml keys create NAME"
        raise errors.UsageError(msg) from err


def write(path: Path, keys: Sequence[Key]) -> None:
    """Write a file of keys, whole or not at all, that its owner alone can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"keys": [key.model_dump(exclude_none=True) for key in keys]}
    files.write_whole(path, json.dumps(document, indent=2) + "\n")


def add(path: Path, key: Key) -> None:
    """Put a key into a file, which need not be there yet.

    Raises:
        UsageError: There is one of that name, or the file is not one of keys.
    """
    present = read(path) if path.exists() else ()
    if any(each.name == key.name for each in present):
        raise errors.UsageError(f"{path} has a key {key.name!r} already: choose another name, or revoke that one first")
    write(path, (*present, key))


def revoke(path: Path, name: str) -> None:
    """Take a key out of a file.

    Raises:
        UsageError: There is none of that name; says which there are.
    """
    present = read(path)
    left = [key for key in present if key.name != name]
    if len(left) == len(present):
        names = ", ".join(key.name for key in present) or "none"
        raise errors.UsageError(f"{path} has no key {name!r}; it has: {names}")
    write(path, left)
