"""Text generation: `generate` for the complete text, `stream` for pieces of it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from zoo.decode.sampling import Sampling, sample
from zoo.errors import ZooError
from zoo.run import Run

CHUNK = 16  # tokens per dispatch when streaming


def generate(
    run: Run,
    prompt: str = "\n",
    length: int = 500,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
) -> str:
    """The text of `length` tokens after `prompt`, from a language model as `zoo.load` returns it, in one dispatch.

    A temperature of 0 takes the most probable token each time. The text ends before the first of the strings `stop`.
    ZooError for a model that is not a language model, a prompt that is empty or has unknown characters, and numbers out
    of range.
    """
    options: dict[str, Any] = {"min_p": min_p, "repetition_penalty": repetition_penalty, "stop": stop, "chunk": length}
    return "".join(stream(run, prompt, length, temperature, top_k, top_p, seed, **options))


def stream(
    run: Run,
    prompt: str = "\n",
    length: int = 500,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    chunk: int = CHUNK,
) -> Iterator[str]:
    """The same text as `generate`, in pieces of about `chunk` tokens."""
    model, variables, inputs = run
    if not hasattr(model, "init_state"):
        raise ZooError(f"{type(model).__name__} cannot generate text: it is not a language model")
    tokens = inputs.encode(prompt)[None]
    if any(not word for word in stop):
        raise ZooError("stop must be strings of at least one character, not ''")
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    pieces = sample(model, variables, tokens, length, sampling, seed=seed, chunk=chunk)
    generated, shown = [np.zeros(0, np.int32)], 0
    for piece in pieces:
        generated.append(piece[0])
        text = inputs.decode(np.concatenate(generated))
        ends = [text.find(word) for word in stop if word in text]
        if ends:
            yield text[shown : min(ends)]
            return
        whole = len(text.rstrip("\ufffd"))  # the last bytes of a character may be missing
        whole -= max((held_back(text[:whole], word) for word in stop), default=0)
        yield text[shown:whole]
        shown = max(shown, whole)
    yield text[shown:]


def held_back(text: str, stop: str) -> int:
    """How many of the last characters of `text` may be the beginning of `stop`."""
    return max((n for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])), default=0)
