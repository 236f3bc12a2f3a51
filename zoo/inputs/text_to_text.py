"""Sources and targets in a published model's own tokens: those of its vocabulary, special ones where the tokenizer puts
them. What one trains itself has `PairInputs`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from zoo.arrays import Example
from zoo.errors import ZooError
from zoo.inputs.base import Inputs, make_part
from zoo.inputs.text import TextInputs, padded

DECODING = {  # settings of zoo.decode.decode_sources, with their types
    **{"beam_size": int, "length_penalty": float, "length_penalty_form": str, "early_stopping": (bool, str)},
    **{"min_length": int, "no_repeat_ngram": int, "repetition_penalty": float, "banned": tuple, "forced_first": int},
    "end_after": int,
}


@dataclasses.dataclass(frozen=True)
class TextToTextInputs(Inputs):
    """Sources and targets; the `length` of each side is its maximum number of tokens, those that end it included.

    A target begins with the token `first`, which the model is given, and ends with `end`. `decoding` are the settings
    of `zoo.decode.decode_sources` that its makers chose, as pairs of name and value.
    """

    source: TextInputs
    target: TextInputs
    first: int
    end: int
    decoding: tuple[tuple[str, Any], ...] = ()
    unknown: tuple[int, int] | None = None  # a source's ids from the first on, pieces without a token, are the second

    kind: ClassVar[str] = "text-to-text"
    labels: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            make_part(self, name, TextInputs)
        for name in ("first", "end"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise ZooError(f"{name} must be a token's id, not {getattr(self, name)!r}")
        known = self.unknown is None or (len(self.unknown) == 2 and all(type(token) is int for token in self.unknown))
        if not known:
            raise ZooError(f"unknown must be two ids, or None, not {self.unknown!r:.80}")
        try:
            settings = {str(name): tuple(v) if isinstance(v, list) else v for name, v in self.decoding}
        except (TypeError, ValueError):
            raise ZooError(f"decoding must be pairs of name and value, not {self.decoding!r:.80}") from None
        for name, value in settings.items():
            if name not in DECODING or not isinstance(value, DECODING[name]):  # type: ignore[arg-type]
                raise ZooError(f"decoding has no setting {name} of {value!r:.40}; there are {', '.join(DECODING)}")
        object.__setattr__(self, "decoding", tuple(settings.items()))

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The larger maximum length of the two sides."""
        return (max(self.source.length, self.target.length),)

    def encode(self, raw: str) -> np.ndarray:
        """A source's token ids, int32 [n]; ZooError if it is empty or longer than `source.length`."""
        if isinstance(raw, str) and not raw.strip():
            raise ZooError("a source needs at least one character, not only spaces")
        tokens = self.source.encode(raw)
        if self.unknown is not None:
            tokens = np.where(tokens < self.unknown[0], tokens, np.int32(self.unknown[1]))
        if len(tokens) > self.source.length:
            raise ZooError(
                f"the source has {len(tokens)} tokens, more than the model's limit of {self.source.length}: "
                f"{raw[:40]!r}..."
            )
        return tokens

    def decode(self, array: Any) -> str:
        """The text of a target's token ids [n], up to the end, without special tokens."""
        tokens = np.asarray(array).reshape(-1)
        ends = np.flatnonzero(tokens == self.end)
        return self.target.decode_plain(tokens[: ends[0]] if len(ends) else tokens)

    def batch(self, raws: Sequence[str]) -> dict[str, np.ndarray]:
        """Sources: `source` int32 [n, length], padded, and `source_length` int32 [n]."""
        rows = [self.encode(raw) for raw in raws]
        return {"source": padded(rows, self.source.length), "source_length": np.array([*map(len, rows)], np.int32)}

    def arguments(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for sources and targets: the tokens before each target token, `first` at the
        beginning, and the source."""
        target = jnp.asarray(batch["target"])
        before = jnp.concatenate([jnp.full((target.shape[0], 1), self.first, target.dtype), target[:, :-1]], axis=1)
        return (before,), {"source": batch["source"], "source_lengths": batch["source_length"]}

    def model_args(self) -> dict[str, Any]:
        return {"vocab_size": self.target.vocab_size}

    def example(self) -> Example:
        """Abstract `arguments` of a batch of one: target tokens int32 [1, target.length]; as keywords, source tokens
        int32 [1, source.length] and their number int32 [1]."""
        shapes = ((1, self.target.length), (1, self.source.length), (1,))
        target, source, lengths = (jax.ShapeDtypeStruct(shape, np.dtype(np.int32)) for shape in shapes)
        return (target,), {"source": source, "source_lengths": lengths}

    def to_json(self) -> dict[str, Any]:
        sides = {"source": self.source.to_json(), "target": self.target.to_json()}
        return {
            "kind": self.kind,
            **sides,
            "first": self.first,
            "end": self.end,
            "decoding": [*map(list, self.decoding)],
            "unknown": self.unknown and [*self.unknown],
        }
