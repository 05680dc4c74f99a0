"""What `/openapi.json` says of bodies and answers, with examples from the loaded checkpoint.

Every schema stands once, under `components`, so that generated clients have one class for it with a sane name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute

from madewithml import errors
from madewithml.serving import access, components, problems, schemas

if TYPE_CHECKING:
    from fastapi import FastAPI

INFERENCE_EXAMPLE = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["Intro to CNNs"]}]}
INVOCATION_EXAMPLE = {"dataframe_records": [schemas.EXAMPLE_TEXTS]}
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
POST_ERRORS = (
    *COMING_IN,
    errors.MalformedBodyError,
    errors.TooSlowError,
    errors.BodyTooLargeError,
    errors.UnsupportedMediaError,
    errors.InvalidRequestError,
    errors.OverloadedError,
    errors.NotReadyError,
    errors.DeadlineExceededError,
)


def policy_parameters(levels: Sequence[float], *, own_thresholds: bool) -> dict[str, components.Schema]:
    """What a caller may say of how sure to be.

    Args:
        levels: Those that the model is certified at.
        own_thresholds: Whether callers may choose a threshold.
    """
    found: dict[str, components.Schema] = {}
    if levels:
        # Twice negated: generators of clients know no enumeration of numbers, and fail where they see one.
        one_of_them = {"not": {"not": {"enum": list(levels)}}}
        text = f"a certified level: {', '.join(f'{level:g}' for level in levels)}"
        found["max_risk"] = {"type": "number", **one_of_them, "description": text}
    if own_thresholds:
        found["threshold"] = components.SHARE
    return found


def predict(
    schema: schemas.RequestSchema, classes: Sequence[str], *, run_id: str, parameters: Mapping[str, components.Schema]
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
        body=components.ref("DatasetName"),
        body_example={"dataset": "projects.csv"},
        answer="Document",
        answer_example={},
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
    return {"responses": {200: _json(components.ref("Document")), **{err.status: _problem(err.title) for err in known}}}


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
    parameters = [{"name": name, "in": "path", "required": True, "schema": components.TEXT} for name in names]
    faults = (errors.UnknownResourceError, errors.NotReadyError) if names else (errors.NotReadyError,)
    known = (*COMING_IN, *faults) if method == "GET" else (*faults, *POST_ERRORS)
    answer: dict[str, Any] = (
        {"content": {"text/plain": {"schema": components.TEXT}}}
        if path == "/version"
        else _json({} if path in ("/ping", "/health") else components.ref("Document"))
    )
    documented: dict[str, Any] = {
        "openapi_extra": {"parameters": parameters},
        "responses": {200: answer, **{err.status: _error(err.title, path) for err in known}},
    }
    if method == "POST":
        body, example = ("Inference", INFERENCE_EXAMPLE) if names else ("Invocation", INVOCATION_EXAMPLE)
        content = {"application/json": {"schema": components.ref(body), "example": example}}
        documented["openapi_extra"]["requestBody"] = {"required": True, "content": content}
    return documented


def finish(
    app: FastAPI,
    schema: schemas.RequestSchema,
    classes: Sequence[str],
    *,
    parameters: Mapping[str, components.Schema],
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
    document["components"] = {"schemas": components.of(schema, classes, parameters)}
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


def _one_or_many(name: str, *, most: int) -> components.Schema:
    return {
        "anyOf": [
            components.ref(name),
            {"type": "array", "items": components.ref(name), "minItems": 1, "maxItems": most},
        ]
    }


def _json(schema: components.Schema) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _documented(*, body: components.Schema, body_example: Any, answer: str, answer_example: Any) -> dict[str, Any]:
    responses: dict[int, Any] = {
        200: {"content": {"application/json": {"schema": components.ref(answer), "example": answer_example}}},
        **{err.status: _problem(err.title) for err in POST_ERRORS},
    }
    content = {"application/json": {"schema": body, "example": body_example}}
    return {"openapi_extra": {"requestBody": {"required": True, "content": content}}, "responses": responses}


def _problem(title: str) -> dict[str, Any]:
    return {"description": title, "content": {problems.MEDIA_TYPE: {"schema": components.ref("Problem")}}}


def _error(title: str, path: str) -> dict[str, Any]:
    if not path.startswith(problems.INFERENCE_PROTOCOL):
        return _problem(title)
    return {"description": title, **_json(components.ref("InferenceError"))}
