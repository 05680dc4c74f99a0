"""Routes of other servers' protocols: the Open Inference Protocol under `/v2`, and MLflow's scoring protocol.

A team that runs another server can put this one in its place and keep its clients. What the bodies mean is said in
`inference_protocol.py` and `scoring_protocol.py`; here they meet the service. Errors under `/v2` have that protocol's
own form, `{"error": ...}`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

import madewithml
from madewithml import errors
from madewithml.serving import exchange, inference_protocol, openapi, problems, replies, scoring_protocol

if TYPE_CHECKING:
    from fastapi import FastAPI

    from madewithml.serving import service

Endpoint = Callable[[Request], Awaitable[Response]]
PREFIX = problems.INFERENCE_PROTOCOL


def add(app: FastAPI, kitchen: service.Service) -> None:
    """Register the routes of both protocols."""
    _add_server(app, kitchen)
    _add_model(app, kitchen)
    _add_scoring(app, kitchen)


def _add_server(app: FastAPI, kitchen: service.Service) -> None:
    """What the Open Inference Protocol asks of the server as a whole."""

    async def v2_server(request: Request) -> Response:
        document = {"name": "madewithml", "version": madewithml.__version__}
        return replies.json(request, {**document, "extensions": inference_protocol.EXTENSIONS})

    async def v2_live(request: Request) -> Response:
        return _state(request, "live", holds=not kitchen.hung)

    async def v2_ready(request: Request) -> Response:
        return _state(request, "ready", holds=kitchen.ready)

    _route(app, "GET", PREFIX, v2_server, "The server and its extensions")
    _route(app, "GET", f"{PREFIX}/health/live", v2_live, "Liveness")
    _route(app, "GET", f"{PREFIX}/health/ready", v2_ready, "Readiness")


def _add_model(app: FastAPI, kitchen: service.Service) -> None:
    """What it asks of a model."""

    async def v2_model(request: Request) -> Response:
        _check_model(request, kitchen)
        fields = kitchen.schema.text_fields
        described = inference_protocol.metadata(
            name=_name(kitchen),
            versions=[kitchen.current.name],
            text_fields=fields,
            num_classes=len(kitchen.predictor.classes),
        )
        return replies.json(request, described)

    async def v2_model_ready(request: Request) -> Response:
        _check_model(request, kitchen)
        return _state(request, "ready", holds=kitchen.ready, name=_name(kitchen))

    async def v2_infer(request: Request) -> Response:
        _check_model(request, kitchen)
        asked = inference_protocol.parse(
            await exchange.read_body(request, kitchen.settings),
            header_length=request.headers.get(inference_protocol.HEADER_LENGTH),
            text_fields=kitchen.schema.text_fields,
            max_rows=kitchen.schema.max_rows,
        )
        kitchen.schema.check(asked.rows, in_list=True)
        taken, answers = await exchange.answer(
            request, kitchen, asked.rows, max_risk=asked.max_risk, threshold=asked.threshold
        )
        classes = taken.predictor.classes
        shaped = inference_protocol.respond(answers, asked, name=_name(kitchen), version=taken.name, classes=classes)
        headers = replies.headers(request)
        if shaped.header_length is None:
            return Response(shaped.content, headers=headers, media_type="application/json")
        headers[inference_protocol.HEADER_LENGTH] = str(shaped.header_length)
        return Response(shaped.content, headers=headers, media_type="application/octet-stream")

    model = f"{PREFIX}/models/{{name}}"
    for path in (model, f"{model}/versions/{{version}}"):
        _route(app, "GET", path, v2_model, "A model's inputs and outputs")
        _route(app, "GET", f"{path}/ready", v2_model_ready, "Whether a model is ready")
        _route(app, "POST", f"{path}/infer", v2_infer, "Classify the elements of tensors")


def _add_scoring(app: FastAPI, kitchen: service.Service) -> None:
    """What MLflow's scoring protocol asks."""

    async def invocations(request: Request) -> Response:
        asked = scoring_protocol.parse(
            await exchange.read_body(request, kitchen.settings),
            media_type=exchange.media_type(request),
            text_fields=kitchen.schema.text_fields,
            max_rows=kitchen.schema.max_rows,
        )
        _, answers = await exchange.answer(
            request, kitchen, asked.rows, max_risk=asked.max_risk, threshold=asked.threshold
        )
        return replies.json(request, scoring_protocol.predictions(answers))

    async def ping(request: Request) -> Response:
        if not kitchen.ready:
            raise errors.NotReadyError("the service is starting or stopping", retry_after_s=1)
        return replies.json(request, {})

    async def version(request: Request) -> Response:
        return Response(madewithml.__version__, headers=replies.headers(request), media_type="text/plain")

    _route(app, "POST", "/invocations", invocations, "MLflow's scoring protocol")
    _route(app, "GET", "/ping", ping, "Readiness, as MLflow's server has it")
    _route(app, "GET", "/health", ping, "The same")
    _route(app, "GET", "/version", version, "Version of this server, as MLflow's server has it")


def _route(app: FastAPI, method: str, path: str, endpoint: Endpoint, summary: str) -> None:
    name = f"{endpoint.__name__}_version" if "{version}" in path else endpoint.__name__
    name = "health" if path == "/health" else name
    documented = openapi.of_protocol(path, method)
    app.add_api_route(
        path, endpoint, methods=[method], summary=summary, operation_id=name, response_class=Response, **documented
    )


def _state(request: Request, what: str, *, holds: bool, **more: Any) -> Response:
    content = orjson.dumps({**more, what: holds})
    return Response(content, 200 if holds else 503, headers=replies.headers(request), media_type="application/json")


def _name(kitchen: service.Service) -> str:
    return kitchen.settings.model_name


def _check_model(request: Request, kitchen: service.Service) -> None:
    """Check that a path names the model that is served.

    Raises:
        UnknownResourceError: It names another model or version; says what there is.
    """
    name, version = request.path_params["name"], request.path_params.get("version")
    if name != _name(kitchen):
        raise errors.UnknownResourceError(f"there is no model {name[:100]!r}, only {_name(kitchen)!r}")
    if version not in (None, kitchen.current.name):
        raise errors.UnknownResourceError(f"there is no version {version[:100]!r}, only {kitchen.current.name!r}")
