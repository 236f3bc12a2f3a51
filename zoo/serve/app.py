"""The HTTP application: routes, limits, the key, the counters."""

import asyncio
import functools
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import prometheus_client as prometheus
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from zoo.decode.slots import Drawn
from zoo.decode.text import Pieces
from zoo.errors import ZooError, first_line
from zoo.serve.protocol import Asked, Refused, asked, scores_of, usage_of
from zoo.serve.worker import Full, Worker


class Served(NamedTuple):
    """A language model and its thread."""

    inputs: Any
    worker: Worker


class Limits(NamedTuple):
    """What a request may cost."""

    body: int = 2**24  # bytes
    reading: float = 30.0  # seconds for its body to arrive
    time: float = 600.0  # seconds for its answer


class Part(NamedTuple):
    """New text of one of the asked choices, the tokens that it came with, and its end."""

    choice: int
    text: str
    drawn: list[Drawn]
    reason: str | None


class Counters:
    """What `/metrics` shows, in Prometheus' form."""

    def __init__(self, models: Mapping[str, Served]):
        self.registry = prometheus.CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = prometheus.Counter("zoo_requests", "requests by route and status", ["route", "status"], **own)
        self.tokens = prometheus.Counter("zoo_tokens", "tokens by kind: prompt or generated", ["kind"], **own)
        self.first = prometheus.Histogram("zoo_first_token_seconds", "time to the first token", **own)
        pending = prometheus.Gauge("zoo_pending_requests", "requests that run or wait", ["model"], **own)
        for name, served in models.items():
            pending.labels(name).set_function(functools.partial(lambda worker: len(worker.pending), served.worker))


def make_app(models: Mapping[str, Served], key: str | None = None, limits: Limits | None = None) -> Starlette:
    """The application that serves language models by name; with a `key`, to those who send it."""
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

    async def list_models(request: Request) -> Response:
        data = [{"id": name, "object": "model", "created": started, "owned_by": "zoo"} for name in models]
        return JSONResponse({"object": "list", "data": data})

    async def complete(chat: bool, request: Request) -> Response:
        body = await _body(request, bounds)
        name = str(body.get("model") if isinstance(body, dict) else None)
        if name not in models:
            known = ", ".join(models)
            raise Refused(404, f"unknown model {name!r:.80}; there are {known}", "model", "model_not_found")
        served = models[name]
        wanted = await asyncio.to_thread(asked, body, served.inputs, chat)
        frame = _frame(name, wanted)
        parts = _parts(served, wanted, counters, bounds)
        first = await _unless_gone(request, anext(parts))  # errors come before the status is sent
        if wanted.stream:
            return StreamingResponse(
                _events(request, parts, first, frame, served, wanted), media_type="text/event-stream"
            )
        return JSONResponse(await _unless_gone(request, _whole(parts, first, frame, served, wanted)))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return Response(prometheus.generate_latest(counters.registry), media_type="text/plain; version=0.0.4")

    async def missing(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        return JSONResponse(Refused(status, f"no {request.method} {request.url.path:.80} here").body(), status)

    routes = [
        Route("/health", health),
        route("/metrics", metrics),
        route("/v1/models", list_models),
        route("/v1/completions", functools.partial(complete, False), "POST"),
        route("/v1/chat/completions", functools.partial(complete, True), "POST"),
    ]
    return Starlette(routes=routes, exception_handlers={404: missing, 405: missing})


def _check_key(request: Request, key: str | None) -> None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
        raise Refused(401, "the API key is missing or wrong", None, "invalid_api_key")


async def _body(request: Request, limits: Limits) -> Any:
    """The JSON of a body; Refused for another content type, a body that is too large or too slow, and no JSON."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"the content type must be application/json, not {kind or 'missing'!r:.80}")
    found = bytearray()
    try:
        async with asyncio.timeout(limits.reading):
            async for chunk in request.stream():
                found += chunk
                if len(found) > limits.body:
                    raise Refused(413, f"the body has more than {limits.body:,} bytes")
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {limits.reading:g} seconds") from None
    try:
        return json.loads(found)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {first_line(error)}") from None


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """What the work returns; if the client disconnects before, the work is cancelled. ClientDisconnect then."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        watch.cancel()
        task.cancel()


async def _parts(served: Served, wanted: Asked, counters: Counters, limits: Limits) -> AsyncIterator[Part]:
    """The texts of the choices as they come; whoever leaves early frees their slots."""
    loop, arrived = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Drawn | Exception]]()
    pieces = [Pieces(served.inputs, request.prompt, wanted.stop) for request in wanted.requests]
    left, begun = set(range(len(pieces))), time.monotonic()
    try:
        for index, request in enumerate(wanted.requests):

            def emit(item: Drawn | Exception, index: int = index) -> None:
                loop.call_soon_threadsafe(arrived.put_nowait, (index, item))

            served.worker.submit(request, emit)
            counters.tokens.labels("prompt").inc(len(request.prompt))
        while left:
            index, item = await asyncio.wait_for(arrived.get(), begun + limits.time - time.monotonic())
            if isinstance(item, Exception):
                raise item
            if not len(pieces[index].tokens):
                counters.first.observe(time.monotonic() - begun)
            counters.tokens.labels("generated").inc()
            if index in left:
                part = _advanced(pieces[index], index, item)
                if part.reason:
                    left.remove(index)
                    served.worker.release(item.request)
                yield part
    except Full as error:
        raise Refused(429, str(error), None, "rate_limit_exceeded") from None
    except ZooError as error:
        raise Refused(400, str(error), None, "context_length_exceeded" if "context" in str(error) else None) from None
    except TimeoutError:
        raise Refused(504, f"the answer took more than {limits.time:g} seconds") from None
    except (RuntimeError, MemoryError) as error:  # of XLA
        raise Refused(503, f"the model failed: {first_line(error)}") from None
    finally:
        for request in wanted.requests:
            served.worker.release(request)


def _advanced(pieces: Pieces, index: int, drawn: Drawn) -> Part:
    """The text that a token brings, and whether the choice ends with it."""
    request, number = drawn.request, len(pieces.tokens) + 1
    if drawn.token == request.sampling.end:
        return Part(index, pieces.finish(), [drawn], "stop")
    text = pieces.add([drawn.token])
    if pieces.stopped:
        return Part(index, text, [drawn], "stop")
    if number == request.length:
        text += pieces.finish()
        return Part(index, text, [drawn], "stop" if pieces.stopped else "length")
    return Part(index, text, [drawn], None)


def _frame(name: str, wanted: Asked) -> dict[str, Any]:
    prefix, kind = ("chatcmpl", "chat.completion") if wanted.chat else ("cmpl", "text_completion")
    kind += ".chunk" if wanted.stream and wanted.chat else ""
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": name}


async def _whole(
    parts: AsyncIterator[Part], first: Part, frame: Mapping[str, Any], served: Served, wanted: Asked
) -> dict[str, Any]:
    """The answer in one object."""
    found: list[list[Part]] = [[] for _ in wanted.requests]
    found[first.choice].append(first)
    async for part in parts:
        found[part.choice].append(part)
    choices = []
    for index, own in enumerate(found):
        text, drawn = "".join(part.text for part in own), [one for part in own for one in part.drawn]
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if wanted.chat else {"text": text}
        scores = scores_of(drawn, served.inputs, wanted)
        choices.append({"index": index, **said, "logprobs": scores, "finish_reason": own[-1].reason})
    return {**frame, "choices": choices, "usage": usage_of(wanted)}


async def _events(
    request: Request,
    parts: AsyncIterator[Part],
    first: Part,
    frame: Mapping[str, Any],
    served: Served,
    wanted: Asked,
) -> AsyncIterator[str]:
    """The answer as server-sent events."""

    def event(choices: list[Any], **more: Any) -> str:
        return f"data: {json.dumps({**frame, 'choices': choices, **more})}\n\n"

    def choice(part: Part) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": {"content": part.text}} if wanted.chat else {"text": part.text}
        scores = scores_of(part.drawn, served.inputs, wanted)
        return {"index": part.choice, **said, "logprobs": scores, "finish_reason": part.reason}

    try:
        if wanted.chat:
            for index in range(len(wanted.requests)):
                delta = {"role": "assistant", "content": ""}
                yield event([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
        yield event([choice(first)])
        async for part in parts:
            if await request.is_disconnected():
                return
            if part.text or part.reason or wanted.scores is not None:
                yield event([choice(part)])
        if wanted.usage:
            yield event([], usage=usage_of(wanted))
        yield "data: [DONE]\n\n"
    except Refused as error:
        yield f"data: {json.dumps(error.body())}\n\n"
    finally:
        await parts.aclose()  # type: ignore[attr-defined]
