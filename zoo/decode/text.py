"""Text that goes on from a prompt: `generate` whole, `stream` as it comes."""

from collections.abc import Iterator

import numpy as np

from zoo.decode.sampling import Sampling, sample
from zoo.errors import ZooError
from zoo.inputs.text import TextInputs
from zoo.run import Run

CHUNK = 16  # tokens a dispatch when streaming


def generate(
    run: Run,
    prompt: str = "\n",
    length: int = 500,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> str:
    """The text of `length` tokens after `prompt`, by a language model as `zoo.load` gives it, in one dispatch.

    A temperature of 0 takes the most probable token each time. ZooError for a run that is no language model, a prompt
    that is empty or has characters unknown to it, and numbers out of range.
    """
    return "".join(stream(run, prompt, length, temperature, top_k, top_p, seed, chunk=length))


def stream(
    run: Run,
    prompt: str = "\n",
    length: int = 500,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    chunk: int = CHUNK,
) -> Iterator[str]:
    """The same text as `generate`, in pieces of about `chunk` tokens."""
    model, variables, inputs = run
    if not isinstance(inputs, TextInputs) or not hasattr(model, "init_state"):
        raise ZooError(f"{type(model).__name__} generates no text: it is no language model")
    tokens = inputs.encode(prompt)[None]
    pieces = sample(model, variables, tokens, length, Sampling(temperature, top_k, top_p), seed=seed, chunk=chunk)
    said, shown = [np.zeros(0, np.int32)], 0
    for piece in pieces:
        said.append(piece[0])
        text = inputs.decode(np.concatenate(said))
        whole = len(text.rstrip("\ufffd"))  # a character whose last bytes are still to come
        yield text[shown:whole]
        shown = max(shown, whole)
    yield text[shown:]
