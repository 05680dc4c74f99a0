"""The app: routes that parse, call and shape; nothing else. The same under Ray Serve, uvicorn and a test client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

import madewithml
from madewithml import errors
from madewithml.serving import access, entrance, exchange, identity, openapi, problems, protocols, replies

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from madewithml.serving import service

MAX_PAGE = 1000
Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(
    kitchen: service.Service,
    *,
    adds_request_id: bool = True,
    behind_haproxy: bool = False,
    sharers: int = 1,
    door: AbstractAsyncContextManager[Any] | None = None,
) -> FastAPI:
    """Build the app around a service.

    Args:
        kitchen: The service; warmed up by the time the first request comes.
        adds_request_id: Whether answers get an `X-Request-Id` here; False where the server in front adds one.
        behind_haproxy: Whether our HAProxy is in front, whose word on a rush counts.
        sharers: Processes that share the calls, and so the rates of keys.
        door: Another way in, open for as long as this app runs.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with door or nullcontext():
            yield
        await kitchen.stop()  # last: what comes while the door closes is answered, not refused

    app = DirectApp(
        title="Made With ML",
        version=madewithml.__version__,
        description='A text classifier that says "other" when it is not sure.',
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.adds_request_id = adds_request_id
    app.state.behind_haproxy = behind_haproxy
    gate = entrance.Entrance(kitchen.settings, sharers=sharers)
    app.admit = gate.admit
    if kitchen.settings.cors_origins:
        app.front = entrance.for_browsers(app.enter, kitchen.settings.cors_origins)
    problems.install(app)
    app.direct = _add_predict(app, kitchen)
    _add_evaluate(app, kitchen)
    _add_feedback(app, kitchen)
    _add_facts(app, kitchen)
    _add_health(app, kitchen)
    protocols.add(app, kitchen)
    openapi.finish(
        app,
        kitchen.schema,
        kitchen.predictor.classes,
        parameters=_policy_parameters(kitchen),
        asks_for_keys=gate.asks_for_keys,
    )
    return app


class DirectApp(FastAPI):
    """A FastAPI app whose busiest routes do not pass its router and layers: they cost more than the rest of the path.

    Attributes:
        direct: Endpoints of POST requests by path; the router knows them too, for the documentation.
        front: What a request comes to first, whatever its route.
        admit: Raises where a request may not come in.
    """

    direct: Mapping[str, Endpoint] = MappingProxyType({})
    front: ASGIApp | None = None
    admit: Callable[[Scope], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        await (self.front or self.enter)(scope, receive, send)

    async def enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, if it may come in."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        response = await self._response(Request(scope, receive))
        if response is None:
            await super().__call__(scope, receive, send)
        else:
            await response(scope, receive, send)

    async def _response(self, request: Request) -> Response | None:
        """The answer to a request; None where the router is to find it."""
        scope = request.scope
        try:
            self.admit(scope)
            endpoint = self.direct.get(scope["path"]) if scope["method"] == "POST" else None
            return await endpoint(request) if endpoint is not None else None
        except errors.MadeWithMLError as err:
            return problems.of_error(request, err)
        except Exception as err:  # noqa: BLE001 - the outer edge, as the layers that were passed by have it
            return problems.of_unexpected(request, err)


def _policy_parameters(kitchen: service.Service) -> dict[str, Any]:
    levels = list(kitchen.predictor.policy.certified_levels)
    return openapi.policy_parameters(levels, own_thresholds=kitchen.settings.allow_caller_threshold)


def _add_predict(app: FastAPI, kitchen: service.Service) -> dict[str, Endpoint]:
    async def predict(request: Request) -> Response:
        body = await exchange.read_json(request, kitchen.settings)
        rows, parameters = kitchen.schema.parse(body), exchange.policy_parameters(request)
        taken, results = await exchange.answer(request, kitchen, rows, **parameters)
        request_id = identity.request_id(request)
        document = {"results": results, "run_id": taken.run_id, "request_id": request_id}
        return replies.json(request, document)

    documentation = openapi.predict(
        kitchen.schema,
        kitchen.predictor.classes,
        run_id=kitchen.run_id,
        parameters=_policy_parameters(kitchen),
    )
    _post(app, "/predict", predict, summary="Classify one row or a list of rows", documentation=documentation)
    return {"/predict/": predict, "/predict": predict}


def _add_evaluate(app: FastAPI, kitchen: service.Service) -> None:
    async def evaluate(request: Request) -> Response:
        name = _dataset_name(await exchange.read_json(request, kitchen.settings))
        return replies.json(request, await kitchen.evaluate(name))

    summary = "Evaluate on a named dataset of the configured folder"
    _post(app, "/evaluate", evaluate, summary=summary, documentation=openapi.evaluate())


def _add_feedback(app: FastAPI, kitchen: service.Service) -> None:
    async def feedback(request: Request) -> Response:
        body = await exchange.read_json(request, kitchen.settings)
        kept = await kitchen.keep_feedback(body, caller=access.caller_name(request.scope))
        return replies.json(request, {"kept": kept, "request_id": identity.request_id(request)})

    async def feedback_export(request: Request) -> Response:
        after, limit = exchange.page_parameters(request, max_limit=MAX_PAGE)
        entries = await kitchen.run_beside(kitchen.feedback.page, after, limit)
        following = entries[-1]["number"] if len(entries) == limit else None
        return replies.json(request, {"feedback": entries, "next": following})

    documentation = openapi.feedback(kitchen.predictor.classes, max_rows=kitchen.settings.max_rows)
    summary = "Tell the true label of a row that was asked about"
    _post(app, "/feedback", feedback, summary=summary, documentation=documentation)
    _get(app, "/feedback/", feedback_export, summary="What callers told, in the order of its coming", pages=True)


def _add_facts(app: FastAPI, kitchen: service.Service) -> None:
    async def index(request: Request) -> Response:
        return replies.json(request, {"message": "OK", "status-code": 200, "data": {}})

    async def run_id(request: Request) -> Response:
        return replies.json(request, {"run_id": kitchen.run_id})

    async def model(request: Request) -> Response:
        return replies.json(request, kitchen.description())

    async def policy(request: Request) -> Response:
        return replies.json(request, kitchen.predictor.policy.to_dict())

    async def shadow(request: Request) -> Response:
        if kitchen.shadow is None:
            raise errors.UnknownResourceError("there is no shadow model: start with --shadow models:/NAME@ALIAS")
        return replies.json(request, await kitchen.run_beside(kitchen.shadow.report, kitchen.feedback.labels))

    _get(app, "/", index, summary="Whether it answers at all")
    _get(app, "/run_id/", run_id, summary="The run behind the answers")
    _get(app, "/model", model, summary="Labels, text fields, engine, limits and hashes of the model")
    _get(app, "/policy", policy, summary="Threshold, temperature and what they rest on")
    _get(app, "/shadow", shadow, summary="How a second model answers a share of the traffic, beside this one")


def _add_health(app: FastAPI, kitchen: service.Service) -> None:
    async def live(request: Request) -> Response:
        if kitchen.hung:
            raise errors.NotReadyError("the engine does not come back from a batch", retry_after_s=1)
        return replies.json(request, {"status": "live"})

    async def ready(request: Request) -> Response:
        if not kitchen.ready:
            raise errors.NotReadyError("the service is starting or stopping", retry_after_s=1)
        return replies.json(request, {"status": "ready"})

    _get(app, "/health/live", live, summary="Liveness")
    _get(app, "/health/ready", ready, summary="Readiness: weights loaded and verified, golden rows agree, warmed up")


def _post(app: FastAPI, path: str, endpoint: Any, *, summary: str, documentation: dict[str, Any]) -> None:
    """Register with and without the final slash; only one of them is documented."""
    name = endpoint.__name__
    app.post(f"{path}/", summary=summary, operation_id=name, response_class=Response, **documentation)(endpoint)
    app.post(path, include_in_schema=False, response_class=Response)(endpoint)


def _get(app: FastAPI, path: str, endpoint: Any, *, summary: str, pages: bool = False) -> None:
    name = endpoint.__name__
    documented = openapi.pages(max_limit=MAX_PAGE) if pages else openapi.plain()
    app.get(path, summary=summary, operation_id=name, response_class=Response, **documented)(endpoint)
    other = path.rstrip("/") if path.endswith("/") else f"{path}/"
    if other:
        app.get(other, include_in_schema=False, response_class=Response)(endpoint)


def _dataset_name(body: bytes) -> str:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as err:
        raise errors.MalformedBodyError(f"the body is not JSON: {err}") from err
    name = document.get("dataset") if isinstance(document, dict) else None
    if not isinstance(name, str) or set(document) != {"dataset"}:
        raise errors.InvalidRequestError('expected {"dataset": NAME}, the name of a file in the dataset folder')
    return name
