"""The wire contract of `POST /predict/`: what a body may be, and how a fault in it is told.

The row type is built from the checkpoint's own text fields. Bodies are parsed and checked in one pass by Pydantic's
compiled JSON validator; a good row costs about a microsecond.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import pydantic
import pydantic_core
from typing_extensions import TypedDict

from madewithml import errors

Row = dict[str, str | None]
NO_NUL = r"^[^\u0000]*$"
MAX_ERRORS = 20  # told to the caller
MAX_FAULTS = 10_000  # looked at: each costs microseconds of the event loop
EXAMPLE_TEXTS = {"title": "Intro to CNNs", "description": "Processing images with layers."}


class RequestSchema:
    """Parses the body of a prediction request.

    Args:
        text_fields: The checkpoint's text fields.
        max_rows: Rows allowed in one call.
        max_text_characters: Characters allowed in one text; None for as many as fit into a body.
    """

    def __init__(self, text_fields: Sequence[str], *, max_rows: int, max_text_characters: int | None = None) -> None:
        self.text_fields = list(text_fields)
        self.max_rows = max_rows
        self._max_text_characters = max_text_characters or sys.maxsize
        row_type = cast("Any", TypedDict)("Row", dict.fromkeys(text_fields, str | None), total=False)
        row_type.__pydantic_config__ = pydantic.ConfigDict(extra="forbid", strict=True)
        self._one: pydantic.TypeAdapter[Row] = pydantic.TypeAdapter(row_type)
        # Bounded while it is read: a body of a million rows is refused before a million faults are collected.
        rows_type: Any = Annotated[cast("Any", list)[row_type], pydantic.Field(max_length=max_rows)]
        self._many: pydantic.TypeAdapter[list[Row]] = pydantic.TypeAdapter(rows_type)

    def parse(self, body: bytes) -> list[Row]:
        """Body to rows.

        Raises:
            MalformedBodyError: It is not JSON; says where.
            InvalidRequestError: It is JSON of another shape, or a row cannot be used; one entry per fault.
        """
        start = body.lstrip(b" \t\r\n")[:1]
        try:
            rows = self._many.validate_json(body) if start == b"[" else [self._one.validate_json(body)]
        except pydantic.ValidationError as err:
            raise _as_problem(err, in_list=start == b"[", text_fields=self.text_fields) from err
        self.check(rows, in_list=start == b"[")
        return rows

    def check(self, rows: Sequence[Row], *, in_list: bool) -> None:
        """Check that each row can be answered.

        Args:
            rows: Of this type.
            in_list: Whether they came as a list, so that a fault's location begins with a row's number.

        Raises:
            InvalidRequestError: There is none, or one has no text, a NUL character or too long a text; an entry for
                each fault.
        """
        if not rows:
            raise errors.InvalidRequestError("the list is empty: send at least one row")
        faults = [fault for index, row in enumerate(rows) for fault in self._faults(index, row, in_list=in_list)]
        if faults:
            raise errors.InvalidRequestError(_summary(faults), errors=faults[:MAX_ERRORS])

    def _faults(self, index: int, row: Row, *, in_list: bool) -> list[dict[str, Any]]:
        where = [index] if in_list else []
        texts = [text for text in row.values() if text]
        if not any(text.strip() for text in texts):
            message = f"row {index} has no text: fill at least one of {', '.join(self.text_fields)}"
            return [{"location": where, "message": message}]
        limit = self._max_text_characters
        return [
            {"location": [*where, name], "message": f"row {index}: {name} {fault}"}
            for name, text in row.items()
            if text and (fault := _text_fault(text, limit))
        ]

    def example(self) -> dict[str, str]:
        """A row that works when pasted."""
        return {name: EXAMPLE_TEXTS.get(name, "A text to classify.") for name in self.text_fields}

    def row_schema(self) -> dict[str, Any]:
        """JSON schema of a row: what it accepts is what `parse` accepts."""
        text = {"anyOf": [{"type": "string", "pattern": NO_NUL}, {"type": "null"}]}
        blank = {"anyOf": [{"type": "string", "pattern": r"^\s*$"}, {"type": "null"}]}
        return {
            "type": "object",
            "properties": dict.fromkeys(self.text_fields, text),
            "additionalProperties": False,
            "not": {"properties": dict.fromkeys(self.text_fields, blank)},
        }


def _text_fault(text: str, max_characters: int) -> str | None:
    if "\x00" in text:
        return "contains a NUL character"
    return f"has {len(text)} characters, at most {max_characters} are allowed" if len(text) > max_characters else None


def _as_problem(
    err: pydantic.ValidationError, *, in_list: bool, text_fields: Sequence[str]
) -> errors.MalformedBodyError | errors.InvalidRequestError:
    if err.error_count() > MAX_FAULTS:
        return errors.InvalidRequestError(
            f"{err.error_count()} faults, too many to name: expected {', '.join(text_fields)} and nothing else in a row"
        )
    faults = err.errors(include_url=False, include_input=False)
    if faults[0]["type"] == "too_long":
        limits = faults[0]["ctx"]
        told = f"{limits['actual_length']} rows in one call, at most {limits['max_length']} allowed"
        return errors.InvalidRequestError(f"{told}: send them in several calls")
    if faults[0]["type"] == "json_invalid":
        return errors.MalformedBodyError(f"the body is not JSON: {faults[0]['msg'].removeprefix('Invalid JSON: ')}")
    if faults[0]["loc"] == () and not in_list:
        return errors.InvalidRequestError(
            f"expected one object with {', '.join(text_fields)}, or a list of such objects"
        )
    entries = [_fault(fault, text_fields) for fault in faults]
    return errors.InvalidRequestError(_summary(entries), errors=entries[:MAX_ERRORS])


def _fault(fault: pydantic_core.ErrorDetails, text_fields: Sequence[str]) -> dict[str, Any]:
    where = [_printable(part) for part in fault["loc"]]
    name = f"{where[-1]!r}" if where else "the body"
    if fault["type"] == "extra_forbidden":
        message = f"unknown field {name}: expected {', '.join(text_fields)}"
    elif fault["type"] == "dict_type":
        message = "expected an object"
    else:
        message = f"{name}: {fault['msg']}"
    return {"location": where, "message": message}


def _printable(part: str | int) -> str | int:
    """A key is the caller's: bounded before it is sent back."""
    return part[:100] if isinstance(part, str) else part


def _summary(faults: Sequence[Mapping[str, Any]]) -> str:
    rest = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{faults[0]['message']}{rest}"
