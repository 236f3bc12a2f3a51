"""Text generation: `generate` for the complete text, `stream` for pieces of it, `generate_samples` for several texts.

The text of a prompt and the tokens after it is decoded together, since the text of a token depends on its neighbours: a
word has a space before it only inside a text. The generated text is what follows the decoded prompt, or where more
tokens change its end (bytes of one character), what follows the common beginning of both.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from zoo.decode.sampling import Sampling, sample
from zoo.errors import ZooError
from zoo.inputs.text import TextInputs
from zoo.run import Run

CHUNK = 16  # tokens per dispatch when streaming
RARE = "\U000f0000"  # a character of private use, which vocabularies have at most as bytes


class Generation(NamedTuple):
    """A generated text, and its tokens with the log probabilities that the model gives them."""

    text: str
    tokens: np.ndarray  # int32 [n], up to the end-of-text token, included
    log_probabilities: np.ndarray  # float32 [n], at temperature 1 and without constraints


def generate(
    run: Run,
    prompt: str | np.ndarray | None = None,
    length: int = 500,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    *,
    stop: Sequence[str] = (),
    **options: Any,
) -> str:
    """The text of at most `length` tokens after `prompt`, a text or tokens int [n], from a language model as `zoo.load`
    returns it, in one dispatch.

    A temperature of 0 takes the most probable token each time. The text ends before the first of the strings `stop`,
    and before the end-of-text token, by default the tokenizer's. `options` are the other fields of
    `zoo.decode.Sampling`: end, min_p, repetition_penalty, banned, min_length, no_repeat_ngram, processors. Ids that the
    tokenizer does not have are never drawn. Without a prompt the text begins with `run.inputs.first_prompt`.

    ZooError for a model that is not a language model, a prompt that is empty or has unknown characters, and numbers out
    of range.
    """
    options |= {"stop": stop, "chunk": length}
    return "".join(stream(run, prompt, length, temperature, top_k, top_p, seed, **options))


def stream(
    run: Run,
    prompt: str | np.ndarray | None = None,
    length: int = 500,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    *,
    stop: Sequence[str] = (),
    chunk: int = CHUNK,
    **options: Any,
) -> Iterator[str]:
    """The same text as `generate`, in pieces of about `chunk` tokens."""
    options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    tokens, sampling = _prepared(run, prompt, stop, options)
    pieces = Pieces(run.inputs, tokens, stop)
    for piece in sample(run.model, run.variables, tokens[None], length, sampling, seed=seed, chunk=chunk):
        yield pieces.add(_unended(piece[0], sampling.end))
        if pieces.stopped:
            return
    yield pieces.finish()


class Pieces:
    """The text of tokens that come one after another behind a prompt's int [n], before the first of the strings `stop`.

    No piece splits a character, or has the beginning of a stop string that the next tokens may complete.
    """

    def __init__(self, inputs: Any, prompt: np.ndarray, stop: Sequence[str] = ()):
        self.inputs, self.prompt, self.stop = inputs, prompt, stop
        self.tokens, self.shown, self.stopped = np.zeros(0, np.int32), 0, False

    def add(self, tokens: Any) -> str:
        """The text that tokens [n] make certain; after a stop string `stopped` holds."""
        self.tokens = np.concatenate([self.tokens, np.asarray(tokens, np.int32)])
        text = continuation(self.inputs, self.prompt, self.tokens, more=True)
        held = max((held_back(text, word) for word in self.stop), default=0)
        return self._piece(text, len(text) - held)

    def finish(self) -> str:
        """The text that was held back."""
        text = continuation(self.inputs, self.prompt, self.tokens)
        return self._piece(text, len(text))

    def _piece(self, text: str, end: int) -> str:
        if (place := first_stop(text, self.stop)) is not None:
            end, self.stopped = place, True
        piece, self.shown = text[self.shown : end], max(self.shown, end)
        return piece


def generate_samples(
    run: Run,
    prompt: str | np.ndarray | None = None,
    num_samples: int = 4,
    length: int = 500,
    *,
    seed: int = 0,
    stop: Sequence[str] = (),
    **options: Any,
) -> list[Generation]:
    """`num_samples` texts after one prompt, drawn together; `options` are the fields of `zoo.decode.Sampling`.

    The first is that of `generate` with the same seed. A stop string cuts the text, not the tokens.
    """
    tokens, sampling = _prepared(run, prompt, stop, options)
    given: dict[str, Any] = {"num_samples": num_samples, "log_probabilities": True, "seed": seed}
    pieces: Any = zip(*sample(run.model, run.variables, tokens[None], length, sampling, **given), strict=True)
    drawn, scores = (np.concatenate(parts, axis=1) for parts in pieces)
    found = []
    for row, by in zip(drawn, scores, strict=True):
        new = _unended(row, sampling.end)
        text = continuation(run.inputs, tokens, new)
        kept = len(new) + (len(new) < len(row))
        found.append(Generation(text[: first_stop(text, stop)], row[:kept], by[:kept]))
    return found


def continuation(inputs: Any, prompt: np.ndarray, tokens: np.ndarray, more: bool = False) -> str:
    """The text of `tokens` after that of `prompt`, decoded together; if `more` follow, what these cannot change."""
    both = np.concatenate([prompt, tokens])
    before, whole = inputs.decode(prompt), inputs.decode(both)
    if more:
        part = _part_of_character(inputs)
        changed = whole if part is None else inputs.decode(np.append(both, part))
        whole = whole[: _shared(whole, changed)].rstrip("\ufffd")
    return whole[_shared(before, whole) :]


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the strings `stop` to be complete begins in `text`; None if there is none."""
    found = [(text.find(word) + len(word), text.find(word)) for word in stop if word in text]
    return min(found)[1] if found else None


def held_back(text: str, stop: str) -> int:
    """How many of the last characters of `text` may be the beginning of `stop`."""
    return max((n for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])), default=0)


def _prepared(
    run: Run, prompt: str | np.ndarray | None, stop: Sequence[str], options: dict[str, Any]
) -> tuple[np.ndarray, Sampling]:
    """The tokens of the prompt int32 [n], and how others are drawn."""
    model: Any = run.model
    inputs: Any = run.inputs
    if not hasattr(model, "init_state"):
        raise ZooError(f"{type(model).__name__} cannot generate text: it is not a language model")
    if isinstance(stop, str) or any(not word for word in stop):
        raise ZooError(f"stop must be strings of at least one character, in a list, not {stop!r}")
    end = options.pop("end", None)
    end = inputs.end if end is None else end
    unknown = (*inputs.gaps, *range(inputs.vocab_size, model.vocab_size))
    banned = (*options.pop("banned", ()), *unknown)
    given = inputs.first_prompt if prompt is None else prompt
    tokens = given if isinstance(given, np.ndarray) else inputs.prompt(given)
    return tokens, Sampling(**options, end=end, banned=banned)


def _unended(tokens: np.ndarray, end: int | None) -> np.ndarray:
    """The tokens before the first `end`."""
    ends = np.flatnonzero(tokens == end)
    return tokens[: ends[0]] if len(ends) else tokens


def _shared(text: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    shorter = min(len(text), len(other))
    if text[:shorter] == other[:shorter]:
        return shorter
    return next(i for i in range(shorter) if text[i] != other[i])


@functools.lru_cache(maxsize=8)
def _part_of_character(inputs: TextInputs) -> int | None:
    """A token with some bytes of a character; None if the tokenizer has none."""
    try:
        tokens = inputs.encode(RARE)
    except ZooError:
        return None
    return next((int(token) for token in tokens if inputs.decode([token]) == "\ufffd"), None)
