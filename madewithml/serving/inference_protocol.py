"""The Open Inference Protocol (KServe V2) over REST: its tensors to rows, and answers to its tensors.

    body -> JSON part, binary part -> one BYTES tensor for each text field, or one named `text` -> rows
    answers -> the tensors that were asked for, as JSON or, with the binary extension, behind it

Specification: https://github.com/kserve/open-inference-protocol, and for the binary extension
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md. Pure functions.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from madewithml import errors
from madewithml.serving import schemas

HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ["binary_tensor_data"]
TEXT = "text"
BYTES, FP32 = "BYTES", "FP32"
OUTPUTS = {"prediction": BYTES, "label": BYTES, "decision": BYTES, "confidence": FP32, "probabilities": FP32}
LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Inference:
    """What a call asks for.

    Attributes:
        rows: One for each element of the tensors.
        id: Of the request; None if the caller gave none.
        outputs: Names of the tensors wanted, in their order, and whether each is wanted in binary form.
        max_risk: Certified level to decide at; None for the model's own threshold.
        threshold: Threshold of the caller's own; None for the model's.
    """

    rows: list[schemas.Row]
    id: str | None
    outputs: dict[str, bool]
    max_risk: float | None
    threshold: float | None


@dataclass
class _Binary:
    """The bytes behind the JSON, taken tensor by tensor."""

    content: bytes
    taken: int = field(default=0)

    def take(self, size: int, *, name: str) -> bytes:
        piece = self.content[self.taken : self.taken + size]
        if size < 0 or len(piece) != size:
            raise errors.InvalidRequestError(f"input {name!r}: binary_data_size is {size}, {len(piece)} bytes are left")
        self.taken += size
        return piece


def parse(body: bytes, *, header_length: str | None, text_fields: Sequence[str], max_rows: int) -> Inference:
    """A body to what it asks for.

    Args:
        body: JSON, or with the binary extension JSON and what follows it.
        header_length: `Inference-Header-Content-Length`: bytes of the JSON; None means all.
        text_fields: Of the model.
        max_rows: Rows allowed in one call.

    Raises:
        MalformedBodyError: The JSON part is none.
        InvalidRequestError: It is JSON of another shape; says what was expected.
    """
    head = _head_length(header_length, len(body))
    try:
        document = orjson.loads(memoryview(body)[:head])
    except orjson.JSONDecodeError as err:
        raise errors.MalformedBodyError(f"the body is not JSON: {err}") from err
    inputs = document.get("inputs") if isinstance(document, dict) else None
    if not isinstance(inputs, list) or not inputs:
        raise errors.InvalidRequestError('expected {"inputs": [...]} with at least one tensor')
    binary = _Binary(body[head:])
    tensors = dict(_tensor(each, binary, max_rows=max_rows) for each in inputs)
    if len(tensors) != len(inputs):
        raise errors.InvalidRequestError("an input is given twice")
    if binary.taken != len(binary.content):
        msg = f"{len(binary.content) - binary.taken} bytes follow the tensors: is a binary_data_size missing?"
        raise errors.InvalidRequestError(msg)
    parameters = _mapping(document.get("parameters"), "parameters")
    return Inference(
        rows=_rows(tensors, text_fields),
        id=_optional_text(document.get("id"), "id"),
        outputs=_outputs(document.get("outputs"), binary=bool(parameters.get("binary_data_output"))),
        max_risk=_share(parameters, "max_risk"),
        threshold=_share(parameters, "threshold"),
    )


def _head_length(given: str | None, size: int) -> int:
    if given is None:
        return size
    if not (given.isascii() and given.isdecimal() and int(given[:18]) <= size):
        raise errors.InvalidRequestError(
            f"{HEADER_LENGTH} is {given[:100]!r}: expected at most {size}, the body's length"
        )
    return int(given[:18])


def _tensor(given: Any, binary: _Binary, *, max_rows: int) -> tuple[str, list[str]]:
    """Name and texts of one input."""
    tensor = _mapping(given, "an input")
    name = tensor.get("name")
    if not isinstance(name, str):
        raise errors.InvalidRequestError("an input has no name")
    name = name[:100]
    if tensor.get("datatype") != BYTES:
        msg = f"input {name!r} has datatype {str(tensor.get('datatype'))[:100]!r}: expected {BYTES}, a text an element"
        raise errors.InvalidRequestError(msg)
    count = _count(tensor.get("shape"), name, max_rows=max_rows)
    size = _mapping(tensor.get("parameters"), f"parameters of {name!r}").get("binary_data_size")
    if size is not None:
        if not isinstance(size, int) or isinstance(size, bool):
            raise errors.InvalidRequestError(f"input {name!r}: binary_data_size is no whole number")
        texts = _unpacked(binary.take(size, name=name), name)
    else:
        texts = _listed(tensor.get("data"), name)
    if len(texts) != count:
        raise errors.InvalidRequestError(f"input {name!r} has {len(texts)} elements, its shape says {count}")
    return name, texts


def _count(shape: Any, name: str, *, max_rows: int) -> int:
    whole = isinstance(shape, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in shape)
    if not whole or not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)) or shape[0] < 1:
        raise errors.InvalidRequestError(f"input {name!r} has shape {str(shape)[:100]}: expected [n] or [n, 1]")
    if shape[0] > max_rows:
        msg = f"{shape[0]} rows in one call, at most {max_rows} allowed: send them in several calls"
        raise errors.InvalidRequestError(msg)
    return int(shape[0])


def _unpacked(content: bytes, name: str) -> list[str]:
    """Elements of a binary BYTES tensor: for each its length in four bytes, little endian, then itself."""
    texts, at = [], 0
    while at < len(content):
        start = at + LENGTH.size
        end = start + LENGTH.unpack_from(content, at)[0] if start <= len(content) else len(content) + 1
        if end > len(content):
            raise errors.InvalidRequestError(f"input {name!r}: its binary data ends within an element")
        texts.append(_decoded(content[start:end], name))
        at = end
    return texts


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as err:
        raise errors.InvalidRequestError(f"input {name!r}: an element is not UTF-8") from err


def _listed(given: Any, name: str) -> list[str]:
    """Elements of a tensor given as JSON, flat or nested like its shape."""
    if not isinstance(given, list):
        raise errors.InvalidRequestError(f"input {name!r} has neither data nor binary_data_size")
    texts = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in given]
    if not all(isinstance(text, str) for text in texts):
        raise errors.InvalidRequestError(f"input {name!r}: expected a text for each element of data")
    return texts


def _rows(tensors: Mapping[str, list[str]], text_fields: Sequence[str]) -> list[schemas.Row]:
    expected = f"expected {', '.join(text_fields)}, or {TEXT} alone"
    if set(tensors) == {TEXT} and TEXT not in text_fields:
        return [{text_fields[0]: text} for text in tensors[TEXT]]  # of a row with one field it is the whole text
    if unknown := sorted(set(tensors) - set(text_fields)):
        raise errors.InvalidRequestError(f"unknown input {unknown[0]!r}: {expected}")
    if len({len(texts) for texts in tensors.values()}) != 1:
        raise errors.InvalidRequestError("the inputs have different numbers of elements")
    return [dict(zip(tensors, row, strict=True)) for row in zip(*tensors.values(), strict=True)]


def _outputs(given: Any, *, binary: bool) -> dict[str, bool]:
    if given is None:
        return dict.fromkeys(OUTPUTS, binary)
    if not isinstance(given, list):
        raise errors.InvalidRequestError("outputs is no list")
    wanted = {}
    for each in given:
        output = _mapping(each, "an output")
        name = output.get("name")
        if not isinstance(name, str) or name not in OUTPUTS:
            raise errors.InvalidRequestError(f"unknown output {str(name)[:100]!r}: known are {', '.join(OUTPUTS)}")
        own = _mapping(output.get("parameters"), f"parameters of {name!r}").get("binary_data", binary)
        wanted[name] = bool(own)
    return wanted


def _mapping(given: Any, what: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise errors.InvalidRequestError(f"{what}: expected an object")
    return given


def _optional_text(given: Any, what: str) -> str | None:
    if given is not None and not isinstance(given, str):
        raise errors.InvalidRequestError(f"{what}: expected a text")
    return given


def _share(parameters: Mapping[str, Any], name: str) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise errors.InvalidRequestError(f"parameter {name}: expected a number from 0 to 1")
    return float(value)


@dataclass(frozen=True)
class Response:
    """An answer on the wire.

    Attributes:
        content: JSON, and behind it the tensors wanted in binary form.
        header_length: Bytes of the JSON; None if nothing follows it.
    """

    content: bytes
    header_length: int | None


def respond(
    answers: Sequence[Mapping[str, Any]], asked: Inference, *, name: str, version: str, classes: Sequence[str]
) -> Response:
    """Answers as the tensors that were asked for.

    Args:
        answers: One for each row.
        asked: The call.
        name: Of the model.
        version: Of the model.
        classes: In the order of the probabilities.
    """
    tensors: list[dict[str, Any]] = []
    pieces: list[bytes] = []
    for output, in_binary in asked.outputs.items():
        values = _values(answers, output, classes)
        tensor: dict[str, Any] = {"name": output, "datatype": OUTPUTS[output], "shape": [len(answers)]}
        parameters: dict[str, Any] = {}
        if output == "probabilities":
            tensor["shape"] = [len(answers), len(classes)]
            parameters["labels"] = ",".join(classes)
        if in_binary:
            pieces.append(_packed(values, OUTPUTS[output]))
            parameters["binary_data_size"] = len(pieces[-1])
        else:
            tensor["data"] = values
        tensors.append({**tensor, **({"parameters": parameters} if parameters else {})})
    document = {"model_name": name, "model_version": version, **({"id": asked.id} if asked.id is not None else {})}
    head = orjson.dumps({**document, "outputs": tensors})
    return Response(b"".join([head, *pieces]), len(head) if pieces else None)


def _values(answers: Sequence[Mapping[str, Any]], output: str, classes: Sequence[str]) -> list[Any]:
    if output == "probabilities":
        return [answer["probabilities"][name] for answer in answers for name in classes]
    return [answer[output] for answer in answers]


def _packed(values: Sequence[Any], datatype: str) -> bytes:
    if datatype == FP32:
        return np.asarray(values, dtype="<f4").tobytes()
    return b"".join(LENGTH.pack(len(content)) + content for content in (value.encode() for value in values))


def metadata(*, name: str, versions: Sequence[str], text_fields: Sequence[str], num_classes: int) -> dict[str, Any]:
    """What `GET /v2/models/{name}` says."""
    inputs = [{"name": each, "datatype": BYTES, "shape": [-1]} for each in text_fields]
    outputs = [
        {"name": each, "datatype": kind, "shape": [-1, num_classes] if each == "probabilities" else [-1]}
        for each, kind in OUTPUTS.items()
    ]
    return {"name": name, "versions": list(versions), "platform": "madewithml", "inputs": inputs, "outputs": outputs}
