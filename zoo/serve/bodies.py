"""What a request may cost, what is counted, and the reading of bodies."""

import asyncio
import functools
import json
from collections.abc import Awaitable, Mapping
from typing import Any, NamedTuple

import prometheus_client as prometheus
from starlette.requests import ClientDisconnect, Request

from zoo.errors import first_line
from zoo.serve.models import Served
from zoo.serve.protocol import Refused


class Limits(NamedTuple):
    """What a request may cost."""

    body: int = 2**24  # bytes
    pixels: int = 2**26  # of an image
    rows: int = 64  # images or texts
    reading: float = 30.0  # seconds for its body to arrive
    time: float = 600.0  # seconds for its answer


class Counters:
    """What `/metrics` shows, in Prometheus' form."""

    def __init__(self, models: Mapping[str, Served]):
        self.registry = prometheus.CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = prometheus.Counter("zoo_requests", "requests by route and status", ["route", "status"], **own)
        self.rows = prometheus.Counter("zoo_rows", "images and texts by route", ["route"], **own)
        self.tokens = prometheus.Counter("zoo_tokens", "tokens by kind: prompt or generated", ["kind"], **own)
        self.first = prometheus.Histogram("zoo_first_token_seconds", "time to the first token", **own)
        pending = prometheus.Gauge("zoo_pending_requests", "requests that run or wait", ["model"], **own)
        for name, model in models.items():
            pending.labels(name).set_function(functools.partial(getattr, model, "pending"))


def content_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def content(request: Request, limits: Limits) -> bytes:
    """The bytes of a body; Refused for one that is too large or too slow."""
    found = bytearray()
    try:
        async with asyncio.timeout(limits.reading):
            async for chunk in request.stream():
                found += chunk
                if len(found) > limits.body:
                    raise Refused(413, f"the body has more than {limits.body:,} bytes")
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {limits.reading:g} seconds") from None
    return bytes(found)


async def parsed(request: Request, limits: Limits) -> Any:
    """The JSON of a body; Refused for another content type, and for no JSON."""
    if (kind := content_type(request)) != "application/json":
        raise Refused(415, f"the content type must be application/json, not {kind or 'missing'!r:.80}")
    found = await content(request, limits)
    try:
        return json.loads(found)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {first_line(error)}") from None


def chosen(models: Mapping[str, Served], body: Any, kind: type) -> tuple[str, Any]:
    """The name and the model of a kind that a body asks for; where it names none, the only one of that kind."""
    if not isinstance(body, Mapping):
        raise Refused(400, "the body must be a JSON object")
    fit = [name for name, model in models.items() if isinstance(model, kind)]
    name = body.get("model", fit[0] if len(fit) == 1 else None)
    if not isinstance(name, str) or name not in models:
        known = ", ".join(models)
        raise Refused(404, f"unknown model {name!r:.80}; there are {known}", "model", "model_not_found")
    if name not in fit:
        what = f"{name} is no {kind.kind}; there are {', '.join(fit) or 'none'}"  # type: ignore[attr-defined]
        raise Refused(400, what, "model", "model_not_found")
    return name, models[name]


async def unless_gone(request: Request, work: Awaitable[Any]) -> Any:
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
