"""Sources and targets in a published model's own tokens: those of its vocabulary, special ones where the tokenizer puts
them. What one trains itself has `PairInputs`."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from zoo.errors import ZooError
from zoo.inputs.sides import Sides
from zoo.inputs.text import TextInputs

DECODING = {  # settings of zoo.decode.decode_sources, with their types
    **{"beam_size": int, "length_penalty": float, "length_penalty_form": str, "early_stopping": (bool, str)},
    **{"min_length": int, "no_repeat_ngram": int, "repetition_penalty": float, "banned": tuple, "forced_first": int},
    "end_after": int,
}


@dataclasses.dataclass(frozen=True)
class TextToTextInputs(Sides):
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

    def __post_init__(self) -> None:
        super().__post_init__()
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

    def encode(self, raw: str) -> np.ndarray:
        """A source's token ids, int32 [n]; ZooError if it is empty or longer than `source.length`."""
        if isinstance(raw, str) and not raw.strip():
            raise ZooError("a source needs at least one character, not only spaces")
        tokens = self.source.encode(raw)
        if self.unknown is not None:
            tokens = np.where(tokens < self.unknown[0], tokens, np.int32(self.unknown[1]))
        return self.bounded(tokens, raw)

    def decode(self, array: Any) -> str:
        """The text of a target's token ids [n], up to the end, without special tokens."""
        return self.target.decode_plain(self.before_end(array))

    def model_args(self) -> dict[str, Any]:
        return {"vocab_size": self.target.vocab_size}

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
