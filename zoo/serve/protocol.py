"""OpenAI's protocol for language models: what a body asks for, and the objects that answer it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.decode import Drawn, Request, Sampling
from zoo.errors import ZooError

NUMBERS: dict[str, tuple[type, float, float]] = {  # a parameter's type, and its least and greatest value
    "temperature": (float, 0, 2),
    "top_p": (float, 1e-6, 1),
    "top_k": (int, 1, 2**31 - 1),
    "min_p": (float, 0, 1),
    "max_tokens": (int, 1, 2**31 - 1),
    "max_completion_tokens": (int, 1, 2**31 - 1),
    "n": (int, 1, 16),
    "seed": (int, 0, 2**32 - 1),
    "top_logprobs": (int, 0, 20),
}
FLAGS = ("stream", "echo")
READ = ("model", "messages", "prompt", "stop", "stream_options", "logprobs", *NUMBERS, *FLAGS)
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
NEUTRAL: dict[str, Any] = {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "best_of": 1, "suffix": ""}
DEFAULT_LENGTH = {"chat": 512, "text": 16}  # tokens, where a body gives no number


class Refused(Exception):
    """An error for the client: its HTTP status, message, the parameter at fault, and OpenAI's code."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a body asks for: texts to continue, each `n` times."""

    requests: list[Request]
    stop: tuple[str, ...]
    scores: int | None  # alternatives of each token whose log probabilities are wanted; None: no log probabilities
    stream: bool
    usage: bool  # a last chunk of a stream with the counts
    chat: bool


def asked(body: Any, inputs: Any, chat: bool) -> Asked:
    """The requests of a body, for a model with the inputs; Refused for one of another form or out of range."""
    if not isinstance(body, Mapping):
        raise Refused(400, "the body must be a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name not in READ and name not in IGNORED and value != NEUTRAL.get(name, []):
            raise Refused(400, f"{name} is not supported", name, "unsupported_parameter")
    numbers = {name: _number(name, given[name]) for name in NUMBERS if name in given}
    for name in FLAGS:
        if not isinstance(given.get(name, False), bool):
            raise Refused(400, f"{name} must be true or false, not {given[name]!r:.40}", name)
    if given.get("echo"):
        raise Refused(400, "echo is not supported", "echo", "unsupported_parameter")
    length = numbers.get("max_completion_tokens", numbers.get("max_tokens", DEFAULT_LENGTH["chat" if chat else "text"]))
    names = ("top_k", "top_p", "min_p")
    filters: Any = {name: numbers.get(name) for name in names}
    sampling = Sampling(numbers.get("temperature", 1.0), **filters, end=inputs.end)
    seed, count = numbers.get("seed"), numbers.get("n", 1)
    first = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    prompts = [_chat(given, inputs)] if chat else _prompts(given, inputs)
    requests = [Request(prompt, length, sampling, (first + i) % 2**32) for prompt in prompts for i in range(count)]
    options = given.get("stream_options", {})
    usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
    return Asked(requests, _stop(given), _scores(given, numbers, chat), given.get("stream", False), usage, chat)


def _number(name: str, value: Any) -> Any:
    kind, low, high = NUMBERS[name]
    right = isinstance(value, int) or (kind is float and isinstance(value, float))
    if isinstance(value, bool) or not right or not (math.isfinite(value) and low <= value <= high):
        what = "a number" if kind is float else "an integer"
        raise Refused(400, f"{name} must be {what} from {low:g} to {high:g}, not {value!r:.40}", name)
    return value


def _scores(given: Mapping[str, Any], numbers: Mapping[str, Any], chat: bool) -> int | None:
    wanted = given.get("logprobs")
    if not chat:
        if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 <= wanted <= 20):
            raise Refused(400, f"logprobs must be an integer from 0 to 20, not {wanted!r:.40}", "logprobs")
        return wanted
    if wanted not in (None, True, False):
        raise Refused(400, f"logprobs must be true or false, not {wanted!r:.40}", "logprobs")
    if "top_logprobs" in numbers and not wanted:
        raise Refused(400, "top_logprobs needs logprobs to be true", "top_logprobs")
    return numbers.get("top_logprobs", 0) if wanted else None


def _stop(given: Mapping[str, Any]) -> tuple[str, ...]:
    stop = given.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(text, str) and text for text in stop):
        raise Refused(400, "stop must be a string, or at most 4, each of at least one character", "stop")
    return tuple(stop)


def _prompts(given: Mapping[str, Any], inputs: Any) -> list[np.ndarray]:
    prompt = given.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if isinstance(prompts, list) and prompts and all(type(token) is int for token in prompts):
        prompts = [prompts]
    if not isinstance(prompts, list) or not 0 < len(prompts) <= 64:
        raise Refused(400, "prompt must be a text, a list of tokens, or a list of at most 64 of either", "prompt")
    try:
        return [inputs.prompt(one) if isinstance(one, str) else np.array(_tokens(one), np.int32) for one in prompts]
    except ZooError as error:
        raise Refused(400, str(error), "prompt") from None


def _tokens(prompt: Any) -> list[int]:
    if not isinstance(prompt, list) or not all(type(token) is int and 0 <= token < 2**31 for token in prompt):
        raise Refused(400, f"a prompt must be a text or a list of tokens, not {prompt!r:.40}", "prompt")
    return prompt


def _chat(given: Mapping[str, Any], inputs: Any) -> np.ndarray:
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, Mapping) for one in messages):
        raise Refused(400, "messages must be a list of at least one object with role and content", "messages")
    try:
        return inputs.chat([{**message, "content": _content(message.get("content"))} for message in messages])
    except ZooError as error:
        raise Refused(400, str(error), "messages") from None


def _content(content: Any) -> str:
    """A message's content: a text, or a list of parts that are texts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        raise Refused(400, f"a message's content must be a text, not {content!r:.40}", "messages")
    return "".join(part["text"] for part in parts)


def scores_of(drawn: Sequence[Drawn], inputs: Any, asked: Asked) -> dict[str, Any] | None:
    """The log probabilities of tokens in the protocol's form."""
    if asked.scores is None:
        return None

    def text(token: int) -> str:
        return inputs.decode([token])

    def pairs(one: Drawn) -> list[tuple[str, float]]:
        found = zip(*(array[: asked.scores].tolist() for array in one.best), strict=True)
        return [(text(token), max(value, -9999.0)) for token, value in found]

    def entry(name: str, value: float) -> dict[str, Any]:
        return {"token": name, "logprob": value, "bytes": [*name.encode()]}

    if asked.chat:
        content = [
            {**entry(text(one.token), one.log_probability), "top_logprobs": [entry(*pair) for pair in pairs(one)]}
            for one in drawn
        ]
        return {"content": content, "refusal": None}
    return {
        "tokens": [text(one.token) for one in drawn],
        "token_logprobs": [one.log_probability for one in drawn],
        "top_logprobs": [dict(pairs(one)) for one in drawn],
        "text_offset": [],
    }


def usage_of(asked: Asked) -> dict[str, int]:
    """The counts of tokens; a prompt that is continued several times counts once for each."""
    prompt, new = (sum(len(getattr(one, name)) for one in asked.requests) for name in ("prompt", "tokens"))
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
