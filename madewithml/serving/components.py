"""The schemas of `/openapi.json`: of what is sent and of what comes back, each by its name."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from madewithml.serving import identity, schemas, scoring_protocol

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
FAULT: Schema = {
    "type": "object",
    "required": ["location", "message"],
    "properties": {
        "location": {"type": "array", "items": {"anyOf": [TEXT, {"type": "integer"}]}},
        "message": TEXT,
    },
}
PROBLEM: Schema = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "request_id", "errors"],
    "properties": {
        "type": TEXT,
        "title": TEXT,
        "status": {"type": "integer"},
        "detail": TEXT,
        "request_id": TEXT,
        "errors": {"type": "array", "items": {"$ref": "#/components/schemas/Fault"}},
    },
}
RESULT: Schema = {
    "type": "object",
    "required": [
        "prediction",
        "probabilities",
        "label",
        "confidence",
        "decision",
        "reason",
        "threshold",
        "source",
        "truncated",
    ],
    "properties": {
        "prediction": {**TEXT, "description": "the label if accepted, else the abstain label"},
        "probabilities": {"type": "object", "additionalProperties": {"type": "number"}},
        "label": {**TEXT, "description": "the most probable class"},
        "confidence": {"type": "number", "description": "its probability"},
        "decision": {**TEXT, "enum": ["accepted", "abstained"]},
        "reason": {"anyOf": [TEXT, {"type": "null"}]},
        "threshold": {
            "anyOf": [{"type": "number"}, {"type": "null"}],
            "description": "null: no answer of this label is let through",
        },
        "source": {**TEXT, "enum": ["certificate", "operator", "default", "caller"]},
        "truncated": {"type": "boolean", "description": "whether the text was cut to fit the model"},
        "candidates": {"type": "array", "items": TEXT},
    },
}
ANSWERS: Schema = {
    "type": "object",
    "required": ["results", "run_id", "request_id"],
    "properties": {
        "results": {"type": "array", "items": {"$ref": "#/components/schemas/Answer"}},
        "run_id": TEXT,
        "request_id": TEXT,
    },
}
DATASET: Schema = {
    "type": "object",
    "required": ["dataset"],
    "properties": {"dataset": TEXT},
    "additionalProperties": False,
}
KEPT: Schema = {
    "type": "object",
    "required": ["kept", "request_id"],
    "properties": {"kept": {"type": "integer"}, "request_id": TEXT},
}
TENSOR: Schema = {
    "type": "object",
    "required": ["name", "datatype", "shape", "data"],
    "properties": {
        "name": {**TEXT, "description": "a text field, or `text` alone"},
        "datatype": {**TEXT, "enum": ["BYTES"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 2},
        "data": {"type": "array", "items": TEXT},
    },
}
INFERENCE_ERROR: Schema = {"type": "object", "required": ["error"], "properties": {"error": TEXT}}
NEVER: Schema = {"not": {}}
DOCUMENT: Schema = {"type": "object", "additionalProperties": True}


def of(schema: schemas.RequestSchema, classes: Sequence[str], parameters: Mapping[str, Schema]) -> dict[str, Schema]:
    """All of them, by name.

    Args:
        schema: Of the rows.
        classes: The model's.
        parameters: What a caller may say of how sure to be, with their schemas.
    """
    entry = {
        "type": "object",
        "required": ["request_id", "label"],
        "properties": {
            "request_id": {**TEXT, "pattern": f"^{identity.SANE.pattern}$"},
            "row": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1, "default": 0},
            "label": {**TEXT, "enum": list(classes)},
        },
        "additionalProperties": False,
    }
    return {
        "Row": schema.row_schema(),
        "Answer": RESULT,
        "Answers": ANSWERS,
        "DatasetName": DATASET,
        "Document": DOCUMENT,
        "Fault": FAULT,
        "Feedback": entry,
        "FeedbackKept": KEPT,
        "Inference": _inference(parameters),
        "InferenceError": INFERENCE_ERROR,
        "Invocation": _invocation(schema.text_fields, parameters),
        "Problem": PROBLEM,
        "Tensor": TENSOR,
    }


def _inference(parameters: Mapping[str, Schema]) -> Schema:
    output = {"type": "object", "required": ["name"], "properties": {"name": TEXT}}
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": TEXT,
            "parameters": {"type": "object", "properties": dict(parameters)},
            "inputs": {"type": "array", "items": ref("Tensor"), "minItems": 1},
            "outputs": {"type": "array", "items": output},
        },
    }


def _invocation(text_fields: Sequence[str], parameters: Mapping[str, Schema]) -> Schema:
    """One of the forms with a record for each row; a record has a text field at least, and may have more columns.

    MLflow's documentation has the others, `dataframe_split` and columns, which no schema can describe exactly.
    """
    value = {"anyOf": [TEXT, {"type": "number"}, {"type": "null"}]}
    record = {
        "type": "object",
        "properties": dict.fromkeys(text_fields, value),
        "not": {"properties": dict.fromkeys(text_fields, NEVER)},
    }
    records = {"type": "array", "items": record, "minItems": 1}
    nullable = {name: {"anyOf": [each, {"type": "null"}]} for name, each in parameters.items()}
    params = {"type": "object", "properties": nullable, "additionalProperties": False}
    forms = scoring_protocol.FORMS
    none, two = {"properties": dict.fromkeys(forms[1:], NEVER)}, itertools.combinations(forms, 2)
    return {
        "type": "object",
        "properties": {**dict.fromkeys(forms[1:], records), "params": {"anyOf": [params, {"type": "null"}]}},
        "not": {"anyOf": [none, *({"required": list(pair)} for pair in two)]},
    }


def ref(name: str) -> Schema:
    """Stands for the schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}
