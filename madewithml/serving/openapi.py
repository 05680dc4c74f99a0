"""What `/openapi.json` says of bodies and answers, with examples from the loaded checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute

from madewithml import errors
from madewithml.serving import identity, problems, schemas

if TYPE_CHECKING:
    from fastapi import FastAPI

PROBLEM: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "required": ["type", "title", "status", "detail", "request_id", "errors"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}
RESULT: dict[str, Any] = {
    "type": "object",
    "title": "Answer",
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
        "prediction": {"type": "string", "description": "the label if accepted, else the abstain label"},
        "probabilities": {"type": "object", "additionalProperties": {"type": "number"}},
        "label": {"type": "string", "description": "the most probable class"},
        "confidence": {"type": "number", "description": "its probability"},
        "decision": {"type": "string", "enum": ["accepted", "abstained"]},
        "reason": {"type": ["string", "null"]},
        "threshold": {"type": ["number", "null"], "description": "null: no answer of this label is let through"},
        "source": {"type": "string", "enum": ["certificate", "operator", "default", "caller"]},
        "truncated": {"type": "boolean", "description": "whether the text was cut to fit the model"},
        "candidates": {"type": "array", "items": {"type": "string"}},
    },
}
INFERENCE: dict[str, Any] = {
    "type": "object",
    "title": "Inference",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape", "data"],
                "properties": {
                    "name": {"type": "string", "description": "a text field, or `text` alone"},
                    "datatype": {"type": "string", "enum": ["BYTES"]},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                    "data": {"type": "array"},
                },
            },
        },
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
    },
}
INFERENCE_EXAMPLE = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["Intro to CNNs"]}]}
INVOCATION: dict[str, Any] = {
    "type": "object",
    "title": "Invocation",
    "properties": {
        "dataframe_split": {"type": "object"},
        "dataframe_records": {"type": "array", "items": {"type": "object"}},
        "instances": {"type": ["array", "object"]},
        "inputs": {"type": ["array", "object"]},
        "params": {"type": "object"},
    },
}
INVOCATION_EXAMPLE = {"dataframe_records": [schemas.EXAMPLE_TEXTS]}
POST_ERRORS = (
    errors.MalformedBodyError,
    errors.BodyTooLargeError,
    errors.UnsupportedMediaError,
    errors.InvalidRequestError,
    errors.OverloadedError,
    errors.NotReadyError,
    errors.DeadlineExceededError,
)


def predict(schema: schemas.RequestSchema, classes: Sequence[str], *, run_id: str) -> dict[str, Any]:
    """Documentation of `POST /predict/`."""
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
    answers = {
        "type": "object",
        "title": "Answers",
        "required": ["results", "run_id", "request_id"],
        "properties": {
            "results": {"type": "array", "items": RESULT},
            "run_id": {"type": "string"},
            "request_id": {"type": "string"},
        },
    }
    example = {"results": [answer], "run_id": run_id, "request_id": "5f2b9c0e"}
    documented = _documented(
        body=schema.json_schema(), body_example=schema.example(), answer=answers, answer_example=example
    )
    share = {"type": "number", "minimum": 0, "maximum": 1}
    documented["openapi_extra"]["parameters"] = [
        {"name": "max_risk", "in": "query", "schema": share, "description": "decide at this certified level"},
        {"name": "threshold", "in": "query", "schema": share, "description": "where the operator allows it"},
    ]
    return documented


def evaluate() -> dict[str, Any]:
    """Documentation of `POST /evaluate/`."""
    body = {
        "type": "object",
        "required": ["dataset"],
        "properties": {"dataset": {"type": "string"}},
        "additionalProperties": False,
    }
    documented = _documented(
        body=body, body_example={"dataset": "projects.csv"}, answer={"type": "object"}, answer_example={}
    )
    documented["responses"][404] = _problem("No such dataset")
    return documented


def feedback(classes: Sequence[str]) -> dict[str, Any]:
    """Documentation of `POST /feedback/`."""
    entry = {
        "type": "object",
        "title": "Feedback",
        "required": ["request_id", "label"],
        "properties": {
            "request_id": {"type": "string", "pattern": f"^{identity.SANE.pattern}$"},
            "row": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1, "default": 0},
            "label": {"type": "string", "enum": list(classes)},
        },
        "additionalProperties": False,
    }
    answer = {
        "type": "object",
        "title": "FeedbackKept",
        "required": ["kept", "request_id"],
        "properties": {"kept": {"type": "integer"}, "request_id": {"type": "string"}},
    }
    return _documented(
        body={"anyOf": [entry, {"type": "array", "items": entry, "minItems": 1}]},
        body_example={"request_id": "5f2b9c0e", "row": 0, "label": classes[0]},
        answer=answer,
        answer_example={"kept": 1, "request_id": "77aa01d2"},
    )


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
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    answer = {"content": {"application/json": {"schema": {"type": "object"}}}}
    faults = (errors.UnknownResourceError, errors.NotReadyError) if names else (errors.NotReadyError,)
    known = faults if method == "GET" else (*faults, *POST_ERRORS)
    documented: dict[str, Any] = {
        "openapi_extra": {"parameters": parameters},
        "responses": {200: answer, **{err.status: _error(err.title, path) for err in known}},
    }
    if method == "POST":
        body, example = (INFERENCE, INFERENCE_EXAMPLE) if names else (INVOCATION, INVOCATION_EXAMPLE)
        content = {"application/json": {"schema": body, "example": example}}
        documented["openapi_extra"]["requestBody"] = {"required": True, "content": content}
    return documented


def _error(title: str, path: str) -> dict[str, Any]:
    if not path.startswith("/v2"):
        return _problem(title)
    schema = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    return {"description": title, "content": {"application/json": {"schema": schema}}}


def plain() -> dict[str, Any]:
    """Documentation of a route without a body."""
    return {
        "responses": {
            200: {"content": {"application/json": {"schema": {"type": "object"}}}},
            503: _problem("Not ready"),
        }
    }


def keep_nulls(app: FastAPI) -> None:
    """Put the examples back into the finished document: FastAPI drops nulls, also from within them."""
    paths = app.openapi()["paths"]  # made once; later calls give the same object
    for route in app.routes:
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        method = next(iter(route.methods or ()))
        documented = paths[route.path][method.lower()]["responses"]
        for status, response in route.responses.items():
            for media_type, content in response.get("content", {}).items():
                if "example" in content:
                    documented[str(status)]["content"][media_type]["example"] = content["example"]


def _documented(
    *, body: dict[str, Any], body_example: dict[str, Any], answer: dict[str, Any], answer_example: dict[str, Any]
) -> dict[str, Any]:
    responses: dict[int, Any] = {
        200: {"content": {"application/json": {"schema": answer, "example": answer_example}}},
        **{err.status: _problem(err.title) for err in POST_ERRORS},
    }
    content = {"application/json": {"schema": body, "example": body_example}}
    return {"openapi_extra": {"requestBody": {"required": True, "content": content}}, "responses": responses}


def _problem(title: str) -> dict[str, Any]:
    return {"description": title, "content": {problems.MEDIA_TYPE: {"schema": PROBLEM}}}
