"""MLflow's scoring protocol: the bodies of `POST /invocations` to rows, and answers to its predictions.

    {"dataframe_split": ...} | {"dataframe_records": ...} | {"instances": ...} | {"inputs": ...} | text/csv -> rows

Answers are those that `mlflow.pyfunc.load_model(...).predict` gives for the run: a record for each row. As there,
columns that are no text fields are ignored, a missing value is an empty text, and a row without text is answered too.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from madewithml import errors
from madewithml.serving import schemas

JSON, CSV = "application/json", "text/csv"
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
PARAMETERS = ("max_risk", "threshold")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Invocation:
    """What a call asks for.

    Attributes:
        rows: To be answered.
        max_risk: Certified level to decide at; None for the model's own threshold.
        threshold: Threshold of the caller's own; None for the model's.
    """

    rows: list[schemas.Row]
    max_risk: float | None = None
    threshold: float | None = None


def parse(body: bytes, *, media_type: str, text_fields: Sequence[str], max_rows: int) -> Invocation:
    """A body to what it asks for.

    Args:
        body: JSON or CSV.
        media_type: Which of the two.
        text_fields: Of the model.
        max_rows: Rows allowed in one call.

    Raises:
        UnsupportedMediaError: Another media type.
        MalformedBodyError: It is no JSON, or no UTF-8.
        InvalidRequestError: It has another shape, or no text field.
    """
    if media_type == CSV:
        return Invocation(_rows(_of_csv(body, max_rows=max_rows), text_fields, max_rows=max_rows))
    if media_type != JSON:
        msg = f"content type {media_type[:100]!r} is not supported: send {JSON} or {CSV}"
        raise errors.UnsupportedMediaError(msg)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as err:
        raise errors.MalformedBodyError(f"the body is not JSON: {err}") from err
    given = [form for form in FORMS if isinstance(document, dict) and form in document]
    if len(given) != 1:
        raise errors.InvalidRequestError(f"expected an object with one of {', '.join(FORMS)}")
    records = _of_split(document[given[0]]) if given[0] == FORMS[0] else _of_records(document[given[0]], given[0])
    parameters = {} if document.get("params") is None else document["params"]
    if not isinstance(parameters, dict):
        raise errors.InvalidRequestError("params: expected an object")
    if unknown := sorted(set(parameters) - set(PARAMETERS)):
        raise errors.InvalidRequestError(f"params: {unknown[0][:100]!r} is unknown; known: {', '.join(PARAMETERS)}")
    return Invocation(
        _rows(records, text_fields, max_rows=max_rows), *(_share(parameters.get(name), name) for name in PARAMETERS)
    )


def _of_csv(body: bytes, *, max_rows: int) -> list[Record]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise errors.MalformedBodyError(f"the body is not UTF-8: {err.reason} at byte {err.start}") from err
    try:
        records: list[Record] = list(itertools.islice(csv.DictReader(io.StringIO(text), strict=True), max_rows + 1))
    except csv.Error as err:
        raise errors.MalformedBodyError(f"the body is not CSV: {err}") from err
    if wider := [index for index, record in enumerate(records) if None in record]:
        raise errors.InvalidRequestError(f"row {wider[0]} has more values than there are columns: is a comma unquoted?")
    return records


def _of_split(given: Any) -> list[Record]:
    columns: Any = given.get("columns") if isinstance(given, dict) else None
    table: Any = given.get("data") if isinstance(given, dict) else None
    named = isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    if not (
        named and isinstance(table, list) and all(isinstance(row, list) and len(row) == len(columns) for row in table)
    ):
        msg = 'dataframe_split: expected {"columns": [...], "data": [[...], ...]}, in each row a value for each column'
        raise errors.InvalidRequestError(msg)
    return [dict(zip(columns, row, strict=True)) for row in table]


def _of_records(given: Any, form: str) -> list[Record]:
    """Records as a list; `inputs` and `instances` may also be an object of columns."""
    if isinstance(given, dict) and form != "dataframe_records":
        columns = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
        if len({len(values) for values in columns.values()}) > 1:
            raise errors.InvalidRequestError(f"{form}: its columns have different lengths")
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if isinstance(given, list) and all(isinstance(record, dict) for record in given):
        return given
    raise errors.InvalidRequestError(f"{form}: expected a list of objects, a value for each text field")


def _rows(records: Sequence[Record], text_fields: Sequence[str], *, max_rows: int) -> list[schemas.Row]:
    if not records:
        raise errors.InvalidRequestError("there are no rows: send at least one")
    if len(records) > max_rows:
        msg = f"{len(records)} rows in one call, at most {max_rows} allowed: send them in several calls"
        raise errors.InvalidRequestError(msg)
    if not any(name in record for record in records for name in text_fields):
        msg = f"no row has a text field: expected {', '.join(text_fields)}, found {', '.join(_known(records[0]))}"
        raise errors.InvalidRequestError(msg)
    return [
        {name: _text(record.get(name), index, name) for name in text_fields} for index, record in enumerate(records)
    ]


def _known(record: Record) -> list[str]:
    return [repr(name[:100]) for name in list(record)[:20]] or ["nothing"]


def _text(value: Any, index: int, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a column of numbers, as a data frame has it
    raise errors.InvalidRequestError(f"row {index}: {name} is no text")


def _share(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise errors.InvalidRequestError(f"params: {name} is {str(value)[:100]}: expected a number from 0 to 1")
    return float(value)


def predictions(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Answers as MLflow writes a data frame: a record for each row, all with the same keys."""
    keys = dict.fromkeys(key for answer in answers for key in answer)
    return {"predictions": [{key: answer.get(key) for key in keys} for answer in answers]}
