"""Source and target: a text to the tokens of an encoder-decoder, and its output tokens back to text.

The sides have separate tokenizers and vocabularies, or share one. The first four ids are special (padding, beginning
and end of a text, unknown character); the ids of the tokenizer follow.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from zoo.errors import ZooError
from zoo.inputs.sides import Sides
from zoo.inputs.text import TextInputs, learn

PAD, BEGIN, END, UNKNOWN, SPECIAL = range(5)  # padding is zeros; SPECIAL is their number
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class PairInputs(Sides):
    """Sources and targets; the `length` of each side is its maximum number of tokens, the end token included.

    `lowercase` lower-cases both sides. If both sides have the same vocabulary, the model has one.
    """

    source: TextInputs
    target: TextInputs
    lowercase: bool = False

    kind: ClassVar[str] = "pair"
    first: ClassVar[int] = BEGIN  # the first token of a target
    end: ClassVar[int] = END

    @property
    def by_character(self) -> bool:
        """Whether a target's tokens are characters, so that space-separated words are not its units."""
        return self.target.tokenizer in ("char", "byte")

    def encode(self, raw: str) -> np.ndarray:
        """A source's token ids and the end token, int32 [n]; ZooError if it is empty or longer than `source.length`."""
        return self.bounded(self.tokens(self.source, raw), raw)

    def decode(self, array: Any) -> str:
        """The text of a target's token ids [n], up to the end token; unknown tokens become U+FFFD."""
        return _text(self.target, self.before_end(array))

    def pieces(self, side: TextInputs, array: Any) -> list[str]:
        """The text of each single token of [n]."""
        names = {PAD: "", BEGIN: "<s>", END: "</s>"}
        return [names.get(int(token), _text(side, np.array([token]))) for token in np.asarray(array).reshape(-1)]

    def tokens(self, side: TextInputs, raw: str) -> np.ndarray:
        """A text's ids in the vocabulary of a side and the end token, int32 [n], of any length."""
        if not isinstance(raw, str):
            raise ZooError(f"a text must be a str, not {type(raw).__name__}")
        if not raw.strip():
            raise ZooError("a text to translate needs at least one character, not only spaces")
        raw = raw.lower() if self.lowercase else raw
        if side.tokenizer != "char":
            return np.append(side.encode(raw) + SPECIAL, np.int32(END))
        known = _known(side.vocabulary)
        return np.array([*(known.get(character, UNKNOWN) for character in raw), END], np.int32)

    def model_args(self) -> dict[str, Any]:
        sizes = {"vocab_size": self.target.vocab_size + SPECIAL}
        if (self.source.tokenizer, self.source.vocabulary) != (self.target.tokenizer, self.target.vocabulary):
            sizes["source_vocab_size"] = self.source.vocab_size + SPECIAL
        return sizes

    def to_json(self) -> dict[str, Any]:
        sides = {"source": self.source.to_json(), "target": self.target.to_json()}
        return {"kind": self.kind, **sides, "lowercase": self.lowercase}


def learn_pairs(
    pairs: Sequence[Pair], tokenizers: Pair, vocab_size: int, lengths: tuple[int, int], shared: bool, lowercase: bool
) -> PairInputs:
    """Inputs with vocabularies learnt from training pairs by one tokenizer per side, or one vocabulary if `shared`."""
    texts = [[text.lower() if lowercase else text for text in side] for side in zip(*pairs, strict=True)]
    if shared:
        if tokenizers[0] != tokenizers[1]:
            raise ZooError(f"a shared vocabulary needs one tokenizer, not {tokenizers[0]} and {tokenizers[1]}")
        texts = [texts[0] + texts[1]] * 2
    source = learn(tokenizers[0], texts[0], vocab_size, lengths[0])
    if shared:
        return PairInputs(source, dataclasses.replace(source, length=lengths[1]), lowercase)
    return PairInputs(source, learn(tokenizers[1], texts[1], vocab_size, lengths[1]), lowercase)


def _text(side: TextInputs, tokens: np.ndarray) -> str:
    """The text of tokens, without special tokens except the unknown one."""
    runs = np.split(tokens, np.flatnonzero(np.diff(tokens == UNKNOWN)) + 1) if len(tokens) else []
    texts = []
    for run in runs:
        known = run[run >= SPECIAL] - SPECIAL
        texts.append("\ufffd" * int((run == UNKNOWN).sum()) or (side.decode(known) if len(known) else ""))
    return "".join(texts)


@functools.lru_cache(maxsize=8)
def _known(vocabulary: str) -> dict[str, int]:
    return {character: SPECIAL + i for i, character in enumerate(vocabulary)}
