"""Answers of language models, whole or as streams of server-sent events, by OpenAI's protocol."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

from starlette.requests import Request

from zoo.decode.slots import Drawn
from zoo.decode.text import Pieces
from zoo.errors import ZooError, first_line
from zoo.serve.bodies import Counters, Limits
from zoo.serve.models import Generates
from zoo.serve.protocol import Asked, Refused, scores_of, usage_of
from zoo.serve.worker import Full


class Part(NamedTuple):
    """New text of one of the asked choices, the tokens that it came with, and its end."""

    choice: int
    text: str
    drawn: list[Drawn]
    reason: str | None


async def parts_of(served: Generates, wanted: Asked, counters: Counters, limits: Limits) -> AsyncIterator[Part]:
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


def frame_of(name: str, wanted: Asked) -> dict[str, Any]:
    prefix, kind = ("chatcmpl", "chat.completion") if wanted.chat else ("cmpl", "text_completion")
    kind += ".chunk" if wanted.stream and wanted.chat else ""
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": name}


async def whole_of(
    parts: AsyncIterator[Part], first: Part, frame: Mapping[str, Any], served: Generates, wanted: Asked
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


async def events_of(
    request: Request,
    parts: AsyncIterator[Part],
    first: Part,
    frame: Mapping[str, Any],
    served: Generates,
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
