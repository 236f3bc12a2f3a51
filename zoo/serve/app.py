"""The HTTP application: routes, the key, the counters."""

import asyncio
import functools
import hmac
import pathlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import prometheus_client as prometheus
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from zoo.serve import oneshot
from zoo.serve.bodies import Counters, Limits, chosen, parsed, unless_gone
from zoo.serve.completions import events_of, frame_of, parts_of, whole_of
from zoo.serve.models import Generates, Served
from zoo.serve.protocol import Refused, asked

PAGE = pathlib.Path(__file__).parent / "page.html"
ALONE = "default-src 'none'; connect-src 'self'; img-src data: blob:; script-src 'unsafe-inline'; "
POLICY = ALONE + "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def make_app(models: Mapping[str, Served], key: str | None = None, limits: Limits | None = None) -> Starlette:
    """The application that serves models by name; with a `key`, to those who send it."""
    bounds, counters, started = limits or Limits(), Counters(models), int(time.time())

    def route(path: str, answer: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                _check_key(request, key)
                response = await answer(request)
            except Refused as error:
                headers = {"Retry-After": "1"} if error.status == 429 else None
                response = JSONResponse(error.body(), error.status, headers)
            except ClientDisconnect:
                response = Response(status_code=499)
            counters.requests.labels(path, response.status_code).inc()
            return response

        return Route(path, endpoint, methods=[method])

    def once(path: str, work: Callable[..., Awaitable[Any]]) -> Route:
        async def answer(request: Request) -> Response:
            return JSONResponse(await work(request, models, counters, bounds))

        return route(path, answer, "POST")

    async def list_models(request: Request) -> Response:
        own = {"object": "model", "created": started, "owned_by": "zoo"}
        data = [{"id": name, **own, "kind": model.kind, **model.about} for name, model in models.items()]
        return JSONResponse({"object": "list", "data": data})

    async def complete(chat: bool, request: Request) -> Response:
        body = await parsed(request, bounds)
        name, model = chosen(models, body, Generates)
        wanted = await asyncio.to_thread(asked, body, model.inputs, chat)
        frame = frame_of(name, wanted)
        parts = parts_of(model, wanted, counters, bounds)
        first = await unless_gone(request, anext(parts))  # errors come before the status is sent
        if wanted.stream:
            return StreamingResponse(
                events_of(request, parts, first, frame, model, wanted), media_type="text/event-stream"
            )
        return JSONResponse(await unless_gone(request, whole_of(parts, first, frame, model, wanted)))

    async def page(request: Request) -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
        return Response(PAGE.read_bytes(), media_type="text/html", headers=headers)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return Response(prometheus.generate_latest(counters.registry), media_type="text/plain; version=0.0.4")

    async def missing(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        return JSONResponse(Refused(status, f"no {request.method} {request.url.path:.80} here").body(), status)

    routes = [
        Route("/", page),
        Route("/health", health),
        route("/metrics", metrics),
        route("/v1/models", list_models),
        route("/v1/completions", functools.partial(complete, False), "POST"),
        route("/v1/chat/completions", functools.partial(complete, True), "POST"),
        once("/v1/embeddings", oneshot.embed),
        once("/predict", oneshot.predict),
        once("/translate", oneshot.translate),
    ]
    return Starlette(routes=routes, exception_handlers={404: missing, 405: missing})


def _check_key(request: Request, key: str | None) -> None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
        raise Refused(401, "the API key is missing or wrong", None, "invalid_api_key")
