"""What `/openapi.json` says of bodies and answers, with examples from the loaded checkpoint.

Every schema stands once, under `components`, so that generated clients have one class for it with a sane name.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute

from madewithml import errors
from madewithml.serving import access, identity, problems, schemas, scoring_protocol

if TYPE_CHECKING:
    from fastapi import FastAPI

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
INFERENCE_EXAMPLE = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["Intro to CNNs"]}]}
INFERENCE_ERROR: Schema = {"type": "object", "required": ["error"], "properties": {"error": TEXT}}
INVOCATION_EXAMPLE = {"dataframe_records": [schemas.EXAMPLE_TEXTS]}
NEVER: Schema = {"not": {}}
DOCUMENT: Schema = {"type": "object", "additionalProperties": True}
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
# What may become of any request: an app that asks for no keys gives the first two to nobody.
COMING_IN = (
    errors.UnauthorizedError,
    errors.ForbiddenError,
    errors.RateLimitedError,
    errors.HeadTooLargeError,
)
POSTING = (
    errors.MalformedBodyError,
    errors.TooSlowError,
    errors.BodyTooLargeError,
    errors.UnsupportedMediaError,
    errors.InvalidRequestError,
    errors.OverloadedError,
    errors.NotReadyError,
    errors.DeadlineExceededError,
)
POST_ERRORS = (*COMING_IN, *POSTING)


def policy_parameters(levels: Sequence[float], *, own_thresholds: bool) -> dict[str, Schema]:
    """What a caller may say of how sure to be.

    Args:
        levels: Those that the model is certified at.
        own_thresholds: Whether callers may choose a threshold.
    """
    found: dict[str, Schema] = {}
    if levels:
        # Twice negated: generators of clients know no enumeration of numbers, and fail where they see one.
        one_of_them = {"not": {"not": {"enum": list(levels)}}}
        text = f"a certified level: {', '.join(f'{level:g}' for level in levels)}"
        found["max_risk"] = {"type": "number", **one_of_them, "description": text}
    if own_thresholds:
        found["threshold"] = SHARE
    return found


def predict(
    schema: schemas.RequestSchema, classes: Sequence[str], *, run_id: str, parameters: Mapping[str, Schema]
) -> dict[str, Any]:
    """Documentation of `POST /predict/`.

    Args:
        schema: Of the rows.
        classes: The model's.
        run_id: The model's.
        parameters: See `policy_parameters`.
    """
    rest = 0.02 / max(1, len(classes) - 1)
    answer = {
        "prediction": classes[0],
        "probabilities": {name: 0.98 if name == classes[0] else rest for name in classes},
        "label": classes[0],
        "confidence": 0.98,
        "decision": "accepted",
        "reason": None,
        "threshold": 0.9,
        "source": "default",
        "truncated": False,
    }
    documented = _documented(
        body=_one_or_many("Row", most=schema.max_rows),
        body_example=schema.example(),
        answer="Answers",
        answer_example={"results": [answer], "run_id": run_id, "request_id": "5f2b9c0e"},
    )
    documented["openapi_extra"]["parameters"] = [
        {"name": name, "in": "query", "schema": each} for name, each in parameters.items()
    ]
    return documented


def evaluate() -> dict[str, Any]:
    """Documentation of `POST /evaluate/`."""
    documented = _documented(
        body=_ref("DatasetName"), body_example={"dataset": "projects.csv"}, answer="Document", answer_example={}
    )
    documented["responses"][404] = _problem("No such dataset")
    return documented


def feedback(classes: Sequence[str], *, max_rows: int) -> dict[str, Any]:
    """Documentation of `POST /feedback/`."""
    return _documented(
        body=_one_or_many("Feedback", most=max_rows),
        body_example={"request_id": "5f2b9c0e", "row": 0, "label": classes[0]},
        answer="FeedbackKept",
        answer_example={"kept": 1, "request_id": "77aa01d2"},
    )


def plain() -> dict[str, Any]:
    """Documentation of a route without a body."""
    known = (*COMING_IN, errors.UnknownResourceError, errors.NotReadyError)
    return {"responses": {200: _json(_ref("Document")), **{err.status: _problem(err.title) for err in known}}}


def pages(*, max_limit: int) -> dict[str, Any]:
    """Documentation of a route that gives a list page by page."""
    documented = plain()
    documented["openapi_extra"] = {
        "parameters": [
            {"name": "after", "in": "query", "schema": {"type": "integer", "minimum": 0}},
            {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": max_limit}},
        ]
    }
    documented["responses"][422] = _problem("Invalid request")
    return documented


def of_protocol(path: str, method: str) -> dict[str, Any]:
    """Documentation of a route of another protocol: what is its own is said where that protocol is specified."""
    names = [name for name in ("name", "version") if f"{{{name}}}" in path]
    parameters = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in names]
    faults = (errors.UnknownResourceError, errors.NotReadyError) if names else (errors.NotReadyError,)
    known = (*COMING_IN, *faults) if method == "GET" else (*faults, *POST_ERRORS)
    answer: dict[str, Any] = (
        {"content": {"text/plain": {"schema": TEXT}}}
        if path == "/version"
        else _json({} if path in ("/ping", "/health") else _ref("Document"))
    )
    documented: dict[str, Any] = {
        "openapi_extra": {"parameters": parameters},
        "responses": {200: answer, **{err.status: _error(err.title, path) for err in known}},
    }
    if method == "POST":
        body, example = ("Inference", INFERENCE_EXAMPLE) if names else ("Invocation", INVOCATION_EXAMPLE)
        content = {"application/json": {"schema": _ref(body), "example": example}}
        documented["openapi_extra"]["requestBody"] = {"required": True, "content": content}
    return documented


def finish(
    app: FastAPI,
    schema: schemas.RequestSchema,
    classes: Sequence[str],
    *,
    parameters: Mapping[str, Schema],
    asks_for_keys: bool,
) -> None:
    """Complete the document: the schemas, the examples as they are, and which routes ask for a key.

    Args:
        app: With all its routes.
        schema: Of the rows.
        classes: The model's.
        parameters: See `policy_parameters`.
        asks_for_keys: Whether there are keys.
    """
    document = app.openapi()  # made once; later calls give the same object
    document["components"] = {"schemas": _components(schema, classes, parameters)}
    if asks_for_keys:
        document["components"]["securitySchemes"] = SECURITY
    for route in app.routes:
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        operation = document["paths"][route.path][next(iter(route.methods or ())).lower()]
        _put_examples_back(route, operation)
        if asks_for_keys and (route.path.rstrip("/") or "/") not in access.OPEN:
            operation["security"] = [{name: []} for name in SECURITY]


def _put_examples_back(route: APIRoute, operation: dict[str, Any]) -> None:
    """FastAPI drops nulls, also from within examples."""
    for status, response in route.responses.items():
        for media_type, content in response.get("content", {}).items():
            if "example" in content:
                operation["responses"][str(status)]["content"][media_type]["example"] = content["example"]


def _components(
    schema: schemas.RequestSchema, classes: Sequence[str], parameters: Mapping[str, Schema]
) -> dict[str, Schema]:
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
            "inputs": {"type": "array", "items": _ref("Tensor"), "minItems": 1},
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


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _one_or_many(name: str, *, most: int) -> Schema:
    return {"anyOf": [_ref(name), {"type": "array", "items": _ref(name), "minItems": 1, "maxItems": most}]}


def _json(schema: Schema) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _documented(*, body: Schema, body_example: Any, answer: str, answer_example: Any) -> dict[str, Any]:
    responses: dict[int, Any] = {
        200: {"content": {"application/json": {"schema": _ref(answer), "example": answer_example}}},
        **{err.status: _problem(err.title) for err in POST_ERRORS},
    }
    content = {"application/json": {"schema": body, "example": body_example}}
    return {"openapi_extra": {"requestBody": {"required": True, "content": content}}, "responses": responses}


def _problem(title: str) -> dict[str, Any]:
    return {"description": title, "content": {problems.MEDIA_TYPE: {"schema": _ref("Problem")}}}


def _error(title: str, path: str) -> dict[str, Any]:
    if not path.startswith(problems.INFERENCE_PROTOCOL):
        return _problem(title)
    return {"description": title, **_json(_ref("InferenceError"))}
