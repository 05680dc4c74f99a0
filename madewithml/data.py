"""Labelled text: read it, check it, turn a row into one text, split it.

A data file is a CSV, JSON Lines or Parquet file (path or URL) with one column per text field and, for training
and evaluation, one label column. `read_table` brings it in as strings; `labelled` checks it and drops what cannot
be used (rows without text or label, duplicates) and says how many; `split` assigns every row to one of four parts.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import logging
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from madewithml import errors, texts

logger = logging.getLogger(__name__)

# A fifth to test, and a seventh to certify a threshold: a certificate is only as good as its rows.
DEFAULT_SHARES = {"train": 0.58, "validation": 0.08, "calibration": 0.14, "test": 0.20}
MIN_TRAIN_SHARE = 0.1
READERS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class LabelledText:
    """Rows that can be trained or evaluated on.

    Attributes:
        rows: The text fields of each row, in file order.
        texts: The model's input for each row.
        labels: The label of each row.
        notes: What was left out and why, one sentence each.
    """

    rows: list[dict[str, str]]
    texts: list[str]
    labels: list[str]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, positions: Iterable[int]) -> LabelledText:
        """The rows at `positions`, in that order."""
        chosen = list(positions)
        return LabelledText(
            [self.rows[i] for i in chosen], [self.texts[i] for i in chosen], [self.labels[i] for i in chosen]
        )

    @property
    def sha256(self) -> str:
        """Hash of texts and labels in order: the same data give the same hash, whatever the file format."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            digest.update(f"{len(text)}:{text}{len(label)}:{label}".encode())
        return digest.hexdigest()


def file_format(location: str) -> str:
    """`csv`, `jsonl` or `parquet`, from the ending of a path or URL.

    Raises:
        InputError: The ending is none of these.
    """
    bare = location.split("?", 1)[0].lower()
    for ending, name in READERS.items():
        if bare.endswith(ending):
            return name
    msg = f"cannot tell the format of {location!r}: expected a name ending in {', '.join(READERS)}"
    raise errors.InputError(msg)


def read_table(location: str) -> pd.DataFrame:
    """Read a data file; every value becomes a string, a missing one the empty string.

    Args:
        location: Path or URL of a CSV, JSON Lines or Parquet file.

    Raises:
        InputError: The file is missing, empty, not UTF-8 or not in its format.
    """
    return _checked(location, _read)


def first_rows(location: str, *, count: int) -> pd.DataFrame:
    """The first rows of a CSV or JSON Lines file, as `read_table` would read them, to see that it can be read.

    Raises:
        InputError: As `read_table`, as far as those rows show it.
    """
    return _checked(location, functools.partial(_read_first, count=count))


def _checked(location: str, read: Callable[[str, str], pd.DataFrame]) -> pd.DataFrame:
    """What `read` makes of a file of its kind, with an error for a person if that is nothing."""
    kind = file_format(location)
    try:
        table = read(location, kind)
    except FileNotFoundError as err:
        msg = f"no file {location!r}: check --dataset-loc (paths are relative to the current folder)"
        raise errors.InputError(msg) from err
    except UnicodeDecodeError as err:
        msg = f"{location!r} is not UTF-8 (byte {err.object[err.start]:#04x} at position {err.start}): save it as UTF-8"
        raise errors.InputError(msg) from err
    except pd.errors.EmptyDataError as err:
        raise errors.InputError(f"{location!r} is empty: expected a header line and rows") from err
    except (ValueError, OSError) as err:  # pandas and pyarrow parse errors are ValueErrors
        raise errors.InputError(f"{location!r} cannot be read as {kind}: {err}") from err
    if table.empty:
        raise errors.InputError(f"{location!r} has no rows")
    return table


def _read(location: str, kind: str) -> pd.DataFrame:
    if kind == "csv":
        return require_one_cell_a_column(read_csv(location))
    return as_text(read_json_lines(location) if kind == "jsonl" else pd.read_parquet(location))


def _read_first(location: str, kind: str, *, count: int) -> pd.DataFrame:
    with contextlib.closing(blocks(location, kind, rows=count)) as tables:
        return next(tables, pd.DataFrame())


def blocks(source: Any, kind: str, *, rows: int) -> Generator[pd.DataFrame, None, None]:
    """CSV or JSON Lines as `read_table` has it, in tables of so many rows.

    Args:
        source: Path, URL or open file.
        kind: `csv` or `jsonl`.
        rows: Of each table but the last.
    """
    read, shape = (read_csv, require_one_cell_a_column) if kind == "csv" else (read_json_lines, as_text)
    with read(source, chunksize=rows) as tables:
        yield from map(shape, tables)


def read_csv(source: Any, *, chunksize: int | None = None) -> Any:
    """CSV by pandas, every value a string: a table, or an iterator of tables if `chunksize` is given."""
    return pd.read_csv(source, dtype=str, keep_default_na=False, encoding="utf-8", chunksize=chunksize)


def require_one_cell_a_column(table: pd.DataFrame) -> pd.DataFrame:
    """The table of a CSV, after checking that its rows are no longer than its header.

    Raises:
        ValueError: They are; pandas takes the surplus cells for an index and shifts the rest.
    """
    if not isinstance(table.index, pd.RangeIndex):
        msg = "its rows have more cells than the header (a text with a comma in it must be quoted)"
        raise ValueError(msg)
    return table


def read_json_lines(source: Any, *, chunksize: int | None = None) -> Any:
    """JSON Lines by pandas, every value left as it is: a table, or an iterator of tables if `chunksize` is given."""
    with warnings.catch_warnings():  # newer versions deprecate what older ones need to leave dates as they are
        warnings.simplefilter("ignore", DeprecationWarning)
        return pd.read_json(source, lines=True, dtype=False, convert_dates=False, encoding="utf-8", chunksize=chunksize)


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every value as a string, a missing one as the empty string."""
    return table.astype(object).where(table.notna(), "").astype(str)


def as_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    """The table's rows as dictionaries of strings."""
    rows: Any = as_text(table).to_dict("records")
    return list(rows)


def require_columns(
    columns: Iterable[str],
    wanted: Sequence[str],
    *,
    location: str,
    hint: str = "Name the columns with --text-fields and --label-field.",
) -> None:
    """Check that all wanted columns are there.

    Args:
        columns: Those of the file.
        wanted: Those that must be among them.
        location: The file.
        hint: What to do about a missing one.

    Raises:
        InputError: Names the first missing column, what the file has, and the hint.
    """
    present = list(columns)
    missing = [name for name in wanted if name not in present]
    if missing:
        msg = f"{location!r} has no column {missing[0]!r}; it has {', '.join(map(repr, present))}. {hint}"
        raise errors.InputError(msg)


def require_known_labels(labels: Iterable[str], classes: Iterable[str], *, dataset: str) -> None:
    """Check that the model knows every label.

    Raises:
        InputError: Names the unknown ones and the known ones.
    """
    known = list(classes)
    unknown = sorted(set(labels) - set(known))
    if unknown:
        msg = (
            f"{dataset!r} has the label {unknown[0]!r}, which the model does not know"
            f"{f' (and {len(unknown) - 1} more)' if len(unknown) > 1 else ''}; it knows {', '.join(map(repr, known))}"
        )
        raise errors.InputError(msg)


def labelled(table: pd.DataFrame, *, text_fields: Sequence[str], label_field: str, location: str) -> LabelledText:
    """Turn a table into rows with text and label; drop what cannot be used, and say so in `notes`.

    A row without any text or without a label is dropped. Of rows with the same text the first is kept, so that no
    text can be in two splits. Line numbers in the notes count the header as line 1.

    Raises:
        InputError: A column is missing, or no row is left.
    """
    require_columns(table.columns, [*text_fields, label_field], location=location)
    rows = as_rows(table[list(text_fields)])
    labels = table[label_field].str.strip().tolist()
    first_label: dict[str, str] = {}
    kept: list[int] = []
    inputs: list[str] = []
    dropped: dict[str, list[int]] = collections.defaultdict(list)
    for position, (row, label) in enumerate(zip(rows, labels, strict=True)):
        text = texts.row_text(row, text_fields)
        reason = _reason_to_drop(text, label, first_label)
        if reason:
            dropped[reason].append(position + 2)
            continue
        first_label[text] = label
        kept.append(position)
        inputs.append(text)
    notes = [_note(reason, lines) for reason, lines in dropped.items()]
    for note in notes:
        logger.warning("%s: %s", location, note)
    if not kept:
        raise errors.InputError(f"{location!r} has no usable row: {'; '.join(notes)}")
    return LabelledText([rows[i] for i in kept], inputs, [labels[i] for i in kept], notes)


def _reason_to_drop(text: str, label: str, first_label: Mapping[str, str]) -> str | None:
    if not text:
        return "without any text"
    if not label:
        return "without a label"
    if text not in first_label:
        return None
    return "repeating an earlier text" if first_label[text] == label else "repeating an earlier text with another label"


def _note(reason: str, lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
    return f"left out {len(lines)} row{'s' if len(lines) > 1 else ''} {reason} (line {shown})"


def read_labelled(location: str, *, text_fields: Sequence[str], label_field: str) -> LabelledText:
    """`read_table` and `labelled` in one step."""
    return labelled(read_table(location), text_fields=text_fields, label_field=label_field, location=location)


def shares(*, validation: float, calibration: float, test: float) -> dict[str, float]:
    """Shares of the four parts; what is not given to the others is trained on.

    Raises:
        UsageError: A share is negative, nothing validates, or too little is left to train on.
    """
    given = {"validation": validation, "calibration": calibration, "test": test}
    rest = round(1.0 - sum(given.values()), 9)
    if not all(share >= 0 for share in given.values()) or validation <= 0 or rest < MIN_TRAIN_SHARE:
        told = ", ".join(f"{name} {share:g}" for name, share in given.items())
        msg = (
            f"the shares {told} leave {rest:g} to train on: expected shares from 0, a validation share above 0, and "
            f"at least {MIN_TRAIN_SHARE:g} left"
        )
        raise errors.UsageError(msg)
    return {"train": rest, **given}


def split(labels: Sequence[str], *, shares: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Assign every row to one part, stratified by label and repeatable.

    Each class is shuffled and cut at the cumulated shares, so that every part holds each class in proportion and,
    where its share is not zero, at least one row of it.

    Args:
        labels: The label of each row, length n.
        shares: Part name to share; the shares sum to 1.
        seed: The same seed gives the same split.

    Returns:
        Part name to ascending row positions; the parts are disjoint and cover all n rows.

    Raises:
        InputError: A class has fewer rows than there are parts.
    """
    parts = [name for name, share in shares.items() if share > 0]
    generator = np.random.default_rng(seed)
    result: dict[str, list[int]] = {name: [] for name in shares}
    by_label: dict[str, list[int]] = collections.defaultdict(list)
    for position, label in enumerate(labels):
        by_label[label].append(position)
    for label, positions in sorted(by_label.items()):
        if len(positions) < len(parts):
            msg = (
                f"class {label!r} has {len(positions)} row(s); at least {len(parts)} are needed, one for each of "
                f"{', '.join(parts)}. Add rows of it, merge it with another class, or leave it out."
            )
            raise errors.InputError(msg)
        shuffled = generator.permutation(positions)
        for name, chunk in zip(
            parts, np.split(shuffled, _cuts(len(positions), [shares[p] for p in parts])), strict=True
        ):
            result[name].extend(int(i) for i in chunk)
    return {name: sorted(positions) for name, positions in result.items()}


def _cuts(count: int, shares: Sequence[float]) -> list[int]:
    """Where to cut `count` rows so that each part has at least one."""
    cuts: list[int] = []
    for index, edge in enumerate(np.cumsum(shares)[:-1], start=1):
        lowest = (cuts[-1] if cuts else 0) + 1
        highest = count - (len(shares) - index)
        cuts.append(int(np.clip(round(count * float(edge)), lowest, highest)))
    return cuts
