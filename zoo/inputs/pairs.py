"""A source and a target: a text to the tokens of an encoder-decoder, and the tokens it says back to text.

Each side has a tokenizer and a vocabulary of its own, or both have one. Of a model's tokens the first four are special
(padding, the beginning and the end of a text, a character that the vocabulary does not have); the tokenizer's follow.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from zoo.arrays import Example
from zoo.errors import ZooError
from zoo.inputs.base import Inputs
from zoo.inputs.text import TextInputs, learn, padded

PAD, BEGIN, END, UNKNOWN, SPECIAL = range(5)  # padding is zeros; the last is how many they are
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class PairInputs(Inputs):
    """Sources and targets, whose `length` is the most tokens of an example, its end among them.

    With `lowercase` both sides are brought to lower case. Where both vocabularies are the same, the model's is one too.
    """

    source: TextInputs
    target: TextInputs
    lowercase: bool = False

    kind: ClassVar[str] = "pair"
    labels: ClassVar[tuple[str, ...]] = ()  # type: ignore[misc]
    first: ClassVar[int] = BEGIN  # the token that a target begins with
    end: ClassVar[int] = END

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            side = getattr(self, name)
            if isinstance(side, dict):  # as JSON has it
                side = TextInputs(**{k: v for k, v in side.items() if k != "kind"})
                object.__setattr__(self, name, side)
            if not isinstance(side, TextInputs):
                raise ZooError(f"{name} must be inputs of text, not {side!r:.80}")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The most tokens of either side."""
        return (max(self.source.length, self.target.length),)

    @property
    def by_character(self) -> bool:
        """Whether a target's tokens are characters, so that words between spaces need not be what it is made of."""
        return self.target.tokenizer in ("char", "byte")

    def encode(self, raw: str) -> np.ndarray:
        """A source's tokens and its end, int32 [n]; ZooError for one that is empty or longer than the model takes."""
        tokens = self.tokens(self.source, raw)
        if len(tokens) > self.source.length:
            raise ZooError(
                f"the source has {len(tokens)} tokens, more than the {self.source.length} that the model takes: "
                f"{raw[:40]!r}..."
            )
        return tokens

    def decode(self, array: Any) -> str:
        """The text of a target's tokens [n], up to its end; what is unknown is U+FFFD."""
        tokens = np.asarray(array).reshape(-1)
        ends = np.flatnonzero(tokens == END)
        tokens = tokens[: ends[0]] if len(ends) else tokens
        return _text(self.target, tokens)

    def pieces(self, side: TextInputs, array: Any) -> list[str]:
        """What each of the tokens [n] stands for, by itself."""
        names = {PAD: "", BEGIN: "<s>", END: "</s>"}
        return [names.get(int(token), _text(side, np.array([token]))) for token in np.asarray(array).reshape(-1)]

    def tokens(self, side: TextInputs, raw: str) -> np.ndarray:
        """A text's tokens in the vocabulary of a side and its end, int32 [n], however many."""
        if not isinstance(raw, str):
            raise ZooError(f"a text must be a str, not {type(raw).__name__}")
        if not raw.strip():
            raise ZooError("a text to translate needs at least one character, not only spaces")
        raw = raw.lower() if self.lowercase else raw
        if side.tokenizer != "char":
            return np.append(side.encode(raw) + SPECIAL, np.int32(END))
        known = _known(side.vocabulary)
        return np.array([*(known.get(character, UNKNOWN) for character in raw), END], np.int32)

    def batch(self, raws: Sequence[str]) -> dict[str, np.ndarray]:
        """Sources: `source` int32 [n, length], padded, and `source_length` int32 [n]."""
        rows = [self.encode(raw) for raw in raws]
        return {"source": padded(rows, self.source.length), "source_length": np.array([*map(len, rows)], np.int32)}

    def arguments(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a model is applied to, of sources and their targets: what precedes each token of a target (the
        target's own, if no `before` says otherwise), and the source."""
        before = batch.get("before")
        if before is None:
            target = jnp.asarray(batch["target"])
            before = jnp.concatenate([jnp.full((len(target), 1), BEGIN, target.dtype), target[:, :-1]], axis=1)
        return (before,), {"source": batch["source"], "source_lengths": batch["source_length"]}

    def model_args(self) -> dict[str, Any]:
        sizes = {"vocab_size": self.target.vocab_size + SPECIAL}
        if (self.source.tokenizer, self.source.vocabulary) != (self.target.tokenizer, self.target.vocabulary):
            sizes["source_vocab_size"] = self.source.vocab_size + SPECIAL
        return sizes

    def example(self) -> Example:
        """Abstract `arguments` of a batch of one: target tokens int32 [1, target.length]; as keywords, source tokens
        int32 [1, source.length] and their number int32 [1]."""
        target, source = ((1, side.length) for side in (self.target, self.source))
        arrays = [jax.ShapeDtypeStruct(shape, np.dtype(np.int32)) for shape in (target, source, (1,))]
        return (arrays[0],), {"source": arrays[1], "source_lengths": arrays[2]}

    def to_json(self) -> dict[str, Any]:
        sides = {"source": self.source.to_json(), "target": self.target.to_json()}
        return {"kind": self.kind, **sides, "lowercase": self.lowercase}


def learn_pairs(
    pairs: Sequence[Pair], tokenizers: Pair, vocab_size: int, lengths: tuple[int, int], shared: bool, lowercase: bool
) -> PairInputs:
    """The inputs whose vocabularies, or `shared` one, are learnt from training pairs by a tokenizer a side."""
    texts = [[text.lower() if lowercase else text for text in side] for side in zip(*pairs, strict=True)]
    if shared:
        if tokenizers[0] != tokenizers[1]:
            raise ZooError(f"a shared vocabulary is of one tokenizer, not of {tokenizers[0]} and {tokenizers[1]}")
        texts = [texts[0] + texts[1]] * 2
    source = learn(tokenizers[0], texts[0], vocab_size, lengths[0])
    if shared:
        return PairInputs(source, dataclasses.replace(source, length=lengths[1]), lowercase)
    return PairInputs(source, learn(tokenizers[1], texts[1], vocab_size, lengths[1]), lowercase)


def _text(side: TextInputs, tokens: np.ndarray) -> str:
    """The text of tokens, special ones left out but for the unknown."""
    runs = np.split(tokens, np.flatnonzero(np.diff(tokens == UNKNOWN)) + 1) if len(tokens) else []
    texts = []
    for run in runs:
        known = run[run >= SPECIAL] - SPECIAL
        texts.append("\ufffd" * int((run == UNKNOWN).sum()) or (side.decode(known) if len(known) else ""))
    return "".join(texts)


@functools.lru_cache(maxsize=8)
def _known(vocabulary: str) -> dict[str, int]:
    return {character: SPECIAL + i for i, character in enumerate(vocabulary)}
