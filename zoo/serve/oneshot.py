"""Requests that are answered at once: `/predict`, `/translate` and `/v1/embeddings`."""

import asyncio
import base64
import binascii
import concurrent.futures
from collections.abc import Awaitable, Mapping
from typing import Any

import numpy as np
from starlette.requests import Request

from zoo.errors import ZooError, first_line
from zoo.inputs.image_file import header
from zoo.serve.bodies import Counters, Limits, chosen, content, content_type, parsed, unless_gone
from zoo.serve.models import Classifies, Embeds, Served, Translates
from zoo.serve.protocol import Refused
from zoo.serve.worker import Full

# Pillow gives up Python's lock while it decodes; more threads would only hold more large images in memory.
DECODERS = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="decoder")


async def predict(request: Request, models: Mapping[str, Served], counters: Counters, limits: Limits) -> Any:
    """The most probable labels of images or texts. The body is JSON, or one image with the settings in the query."""
    if content_type(request).startswith("image/"):
        body: Any = {name: _plain(value) for name, value in request.query_params.items()}
        body["images"] = [await content(request, limits)]
    else:
        body = await parsed(request, limits)
    name, model = chosen(models, body, Classifies)
    _check_names(body, "model", "images", "texts", "top_k", "explain")
    field = "images" if model.inputs.kind == "image" else "texts"
    raws = _several(body.get(field), field, bytes | str if field == "images" else str, limits)
    top_k, explains = body.get("top_k"), body.get("explain", False)
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise Refused(400, f"top_k must be an integer of at least 1, not {top_k!r:.40}", "top_k")
    if not isinstance(explains, bool):
        raise Refused(400, f"explain must be true or false, not {explains!r:.40}", "explain")
    if explains and model.explained is None:
        raise Refused(400, f"{name} has no maps or attention that explain a prediction", "explain")
    if field == "images":
        loop = asyncio.get_running_loop()
        found = [loop.run_in_executor(DECODERS, _image, raw, model.inputs, limits) for raw in raws]
        raws = await asyncio.gather(*found)
    counters.rows.labels("/predict").inc(len(raws))
    probabilities = await _answer(request, model.rows(raws), limits)
    reasons = await _answer(request, model.explained(raws), limits) if explains else [{}] * len(raws)

    def labels(row: np.ndarray) -> list[dict[str, Any]]:
        return [{"label": label, "probability": value} for label, value in model.predictor.best(row, top_k)]

    one = [
        {"labels": labels(rows[0]), **({"masks": [*map(labels, rows)]} if len(rows) > 1 else {}), **reason}
        for rows, reason in zip(probabilities, reasons, strict=True)
    ]
    return {"model": name, "predictions": one}


async def translate(request: Request, models: Mapping[str, Served], counters: Counters, limits: Limits) -> Any:
    """The targets of sources, on request with their attention."""
    body = await parsed(request, limits)
    name, model = chosen(models, body, Translates)
    _check_names(body, "model", "texts", "attention")
    texts, attends = _several(body.get("texts"), "texts", str, limits), body.get("attention", False)
    if not isinstance(attends, bool):
        raise Refused(400, f"attention must be true or false, not {attends!r:.40}", "attention")
    if attends and model.attended is None:
        raise Refused(400, f"{name} has no attention over a source", "attention")
    sources = [_encoded(model.inputs, text, "texts") for text in texts]
    counters.rows.labels("/translate").inc(len(texts))
    found: list[dict[str, Any]] = [
        {"text": best.text, "score": best.score} for best in await _answer(request, model.rows(sources), limits)
    ]
    if attends:
        inputs = model.inputs
        targets = [_target(inputs, one["text"]) for one in found]
        weights = await _answer(request, model.attended([*zip(sources, targets, strict=True)]), limits)
        for one, source, target, array in zip(found, sources, targets, weights, strict=True):
            names = {"source": _pieces(inputs, "source", source), "target": _pieces(inputs, "target", target)}
            one["attention"] = {**names, "weights": np.round(array, 4).tolist()}
    return {"model": name, "translations": found}


async def embed(request: Request, models: Mapping[str, Served], counters: Counters, limits: Limits) -> Any:
    """The vectors of texts, by OpenAI's protocol."""
    body = await parsed(request, limits)
    name, model = chosen(models, body, Embeds)
    _check_names(body, "model", "input", "encoding_format", "user")
    form = body.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise Refused(400, f"encoding_format must be float or base64, not {form!r:.40}", "encoding_format")
    given = body.get("input")
    texts = _several([given] if isinstance(given, str) else given, "input", str, limits)
    sizes = [len(_encoded(model.inputs, text, "input")) for text in texts]
    if max(sizes) > model.inputs.length:
        what = f"a text has {max(sizes)} tokens, more than the model's {model.inputs.length}"
        raise Refused(400, what, "input", "context_length_exceeded")
    counters.rows.labels("/v1/embeddings").inc(len(texts))
    counters.tokens.labels("prompt").inc(sum(sizes))
    vectors = await _answer(request, model.rows(texts), limits)

    def written(vector: np.ndarray) -> Any:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector.tolist()

    data = [{"object": "embedding", "index": i, "embedding": written(vector)} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": sum(sizes), "total_tokens": sum(sizes)}
    return {"object": "list", "data": data, "model": name, "usage": usage}


async def _answer(request: Request, rows: Awaitable[Any], limits: Limits) -> Any:
    try:
        return await asyncio.wait_for(unless_gone(request, rows), limits.time)
    except Full as error:
        raise Refused(429, str(error), None, "rate_limit_exceeded") from None
    except ZooError as error:
        raise Refused(400, str(error)) from None
    except TimeoutError:
        raise Refused(504, f"the answer took more than {limits.time:g} seconds") from None
    except (RuntimeError, MemoryError) as error:  # of XLA
        raise Refused(503, f"the model failed: {first_line(error)}") from None


def _check_names(body: Mapping[str, Any], *names: str) -> None:
    for name in body:
        if name not in names:
            raise Refused(400, f"{name!r:.80} is not a parameter; there are {', '.join(names)}", str(name))


def _several(given: Any, name: str, kind: Any, limits: Limits) -> list[Any]:
    if not isinstance(given, list) or not given or not all(isinstance(one, kind) for one in given):
        raise Refused(400, f"{name} must be a list of at least one string", name)
    if len(given) > limits.rows:
        raise Refused(400, f"{name} are {len(given)}, more than {limits.rows}", name)
    return given


def _image(raw: bytes | str, inputs: Any, limits: Limits) -> np.ndarray:
    """The pixels of an image as a model reads it: of its bytes, or of them in base64. Never of a path or an address."""
    try:
        if isinstance(raw, str):
            raw = base64.b64decode(raw.partition(",")[2] if raw.startswith("data:") else raw, validate=True)
        height, width = header(raw).size
        if height * width > limits.pixels:
            what = f"the image has {width} x {height} pixels, more than {limits.pixels:,}"
            raise Refused(413, what, "images")
        return inputs.pixels(raw)
    except binascii.Error:
        raise Refused(400, "an image must be its file in base64", "images") from None
    except ZooError as error:
        raise Refused(400, str(error), "images") from None
    except MemoryError:
        raise Refused(503, "there is not enough memory for the image", "images") from None


def _encoded(inputs: Any, text: str, name: str) -> Any:
    try:
        return inputs.encode(text)
    except ZooError as error:
        raise Refused(400, str(error), name) from None


def _target(inputs: Any, text: str) -> np.ndarray:
    """A target's token ids with its end."""
    if hasattr(inputs, "tokens"):
        tokens = inputs.tokens(inputs.target, text) if text.strip() else np.array([inputs.end], np.int32)
    else:
        tokens = inputs.target.encode(text)
    return tokens[: inputs.target.length]


def _pieces(inputs: Any, side: str, tokens: np.ndarray) -> list[str]:
    own = getattr(inputs, side)
    return inputs.pieces(own, tokens) if hasattr(inputs, "pieces") else [own.decode([token]) for token in tokens]


def _plain(value: str) -> Any:
    """A setting of a query: a number or a truth value, where it is one."""
    return {"true": True, "false": False}.get(value, int(value) if value.isdecimal() else value)
