"""Text: strings to the tokens that a model was trained on, and back.

Tokenizers: `char` (one token per character of the text), `byte` (UTF-8, 256 tokens), `bpe` (byte-level byte-pair
encoding, Sennrich et al. 2016), `word` (the most frequent space-separated words; the others are one unknown token),
`wordpiece` (BERT's: pieces of lower-cased words, between [CLS] and [SEP]) and `unigram` (the most probable pieces, Kudo
2018). The last four use the `tokenizers` library, whose JSON is stored unchanged; `read_tokenizer` reads existing ones.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from zoo.arrays import Example
from zoo.errors import ZooError
from zoo.files import read_json
from zoo.inputs.base import Inputs

TOKENIZERS = ("char", "byte", "bpe", "word", "wordpiece", "unigram")
UNKNOWN, BEGIN, END, MASK = "[UNK]", "[CLS]", "[SEP]", "[MASK]"
MOST_LENGTH = 2**24  # maximum of `length`
MOST_TOKENS = 2**22  # limit of token ids
SPECIAL = ("[PAD]", UNKNOWN, BEGIN, END, MASK)  # tokens of wordpiece, in BERT's order


@dataclasses.dataclass(frozen=True)
class TextInputs(Inputs):
    """Tokens of a `tokenizer`. `vocabulary` is the characters in order, or the JSON of the `tokenizers` library.

    `length` is the maximum number of tokens of a training example. `labels` names the classes in the order of the
    logits; a language model has none.
    """

    tokenizer: str
    vocabulary: str
    length: int
    labels: tuple[str, ...] = ()

    kind: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        if not isinstance(self.vocabulary, str) or not isinstance(self.labels, list | tuple):
            raise ZooError("vocabulary must be a string, labels a list")
        object.__setattr__(self, "labels", tuple(self.labels))
        if not all(isinstance(label, str) for label in self.labels):
            raise ZooError(f"labels must be strings, not {self.labels!r:.80}")
        whole = isinstance(self.length, int | np.integer) and not isinstance(self.length, bool)
        if not whole or not 0 <= self.length <= MOST_LENGTH:
            raise ZooError(f"length must be a whole number from 0 to {MOST_LENGTH}, not {self.length!r}")
        if self.tokenizer == "char" and not self.vocabulary:
            raise ZooError("a char vocabulary must have at least one character")
        if self.tokenizer not in TOKENIZERS:
            raise ZooError(f"tokenizer must be one of {', '.join(TOKENIZERS)}, not {self.tokenizer!r}")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.length,)

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the highest token id; the ids of an existing tokenizer may have gaps."""
        if self.tokenizer == "byte":
            return 256
        if self.tokenizer == "char":
            return len(self.vocabulary)
        size = max(self._library.get_vocab().values(), default=-1) + 1
        if size > MOST_TOKENS:
            raise ZooError(f"the vocabulary has a token of id {size - 1:,}; ids must be below {MOST_TOKENS:,}")
        return size

    @functools.cached_property
    def characters(self) -> np.ndarray:
        """The number of characters of each token, float32 [vocab_size]; of a UTF-8 sequence the first byte counts."""
        if self.tokenizer == "char":
            return np.ones(self.vocab_size, np.float32)
        if self.tokenizer == "byte":
            return np.array([(byte & 0xC0) != 0x80 for byte in range(256)], np.float32)
        tokens = [self._library.id_to_token(i) or "" for i in range(self.vocab_size)]  # ids may have gaps
        if self.tokenizer in ("word", "wordpiece"):  # plus the space next to a word
            return np.array([len(t) - 2 if t.startswith("##") else len(t) + 1 for t in tokens], np.float32)
        if self.tokenizer == "unigram":
            return np.array([1 if t == UNKNOWN else len(t) for t in tokens], np.float32)
        inside = {chr(code) for code in _byte_symbols()[0x80:0xC0]}
        return np.array([sum(symbol not in inside for symbol in token) for token in tokens], np.float32)

    @functools.cached_property
    def gaps(self) -> tuple[int, ...]:
        """The ids below `vocab_size` that no token has."""
        if self.tokenizer in ("char", "byte"):
            return ()
        return tuple(sorted(set(range(self.vocab_size)) - set(self._library.get_vocab().values())))

    @property
    def end(self) -> int | None:
        """The id of the token that ends a text; None for a vocabulary without one."""
        if self.tokenizer in ("char", "byte"):
            return None
        found = (self._library.token_to_id(name) for name in ("<|endoftext|>", "</s>", "<eos>"))
        return next((token for token in found if token is not None), None)

    @property
    def first_prompt(self) -> str:
        """The text to continue where none is given: a new line, if the vocabulary has one."""
        if self.tokenizer == "char":
            return "\n" if "\n" in self.vocabulary else self.vocabulary[0]
        if self.tokenizer == "byte" or self.decode(self.prompt("\n")).endswith("\n"):
            return "\n"
        words = (self.decode([token]).strip() for token in range(self.vocab_size) if token not in self.gaps)
        return "" if len(self.prompt("")) else next(word for word in words if word not in ("", *SPECIAL))

    def prompt(self, raw: str) -> np.ndarray:
        """Token ids int32 [n] of a text to continue: those of `encode` without a final [SEP]."""
        tokens = self.encode(raw)
        return tokens[:-1] if self.tokenizer == "wordpiece" and self.decode(tokens[-1:]) == END else tokens

    @property
    def mask(self) -> int:
        """The id of the mask token; ZooError if the vocabulary has none."""
        token = self._library.token_to_id(MASK) if self.tokenizer not in ("char", "byte") else None
        if token is None:
            raise ZooError(f"a {self.tokenizer} vocabulary has no {MASK}; use wordpiece")
        return token

    def encode(self, raw: str) -> np.ndarray:
        """Token ids int32 [n]; ZooError if `raw` is not a string or has a character outside the vocabulary."""
        if not isinstance(raw, str):
            raise ZooError(f"a text must be a str, not {type(raw).__name__}")
        if self.tokenizer == "byte":
            return np.frombuffer(raw.encode("utf-8", errors="replace"), np.uint8).astype(np.int32)
        if self.tokenizer != "char":
            return np.array(_asked(self._library.encode, raw).ids, np.int32)
        codes = np.frombuffer(raw.encode("utf-32-le", errors="surrogatepass"), np.uint32)
        known = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        unknown = codes[self._codes[known] != codes]
        if len(unknown):
            some = ", ".join(repr(chr(code)) for code in dict.fromkeys(unknown[:1000].tolist()))
            raise ZooError(f"{some:.80} is not among the {self.vocab_size} characters of the vocabulary")
        return known.astype(np.int32)

    def decode(self, array: Any) -> str:
        """The text of token ids [n]; ZooError for an id outside the vocabulary."""
        tokens = np.asarray(array).reshape(-1)
        wrong = tokens[(tokens < 0) | (tokens >= self.vocab_size)]
        if len(wrong):
            raise ZooError(f"token {wrong[0]} is outside the vocabulary of {self.vocab_size}")
        if self.tokenizer == "byte":
            return bytes(tokens.tolist()).decode("utf-8", errors="replace")
        if self.tokenizer == "char":
            return "".join(self.vocabulary[token] for token in tokens)
        return _asked(self._library.decode, tokens.tolist(), skip_special_tokens=False)

    def batch(self, raws: Sequence[str]) -> dict[str, np.ndarray]:
        """Texts truncated to `length` tokens (wordpiece keeps its final [SEP]): `tokens` int32 [n, length], padded with
        zeros, and `length` int32 [n]."""
        rows = [self.encode(raw) for raw in raws]
        last = 1 if self.tokenizer == "wordpiece" else 0
        rows = [
            np.r_[row[: self.length - last], row[len(row) - last :]] if len(row) > self.length else row for row in rows
        ]
        return {"tokens": padded(rows, self.length), "length": np.array([*map(len, rows)], np.int32)}

    def arguments(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = {"lengths": "length", "segments": "segments"}  # argument of the model: array of the batch
        return (batch["tokens"],), {argument: batch[key] for argument, key in named.items() if key in batch}

    def model_args(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, **super().model_args()}

    def example(self) -> Example:
        """Abstract `arguments` of a batch of one: tokens int32 [1, length]."""
        return (jax.ShapeDtypeStruct((1, self.length), np.dtype(np.int32)),), {}

    @functools.cached_property
    def _codes(self) -> np.ndarray:
        return np.array([ord(symbol) for symbol in self.vocabulary], np.uint32)

    @functools.cached_property
    def _library(self) -> Any:
        library = _asked(_tokenizers().Tokenizer.from_str, self.vocabulary)
        library.no_truncation()  # `batch` truncates and pads
        library.no_padding()
        return library


def learn(tokenizer: str, texts: Iterable[str], vocab_size: int, length: int, labels: Sequence[str] = ()) -> TextInputs:
    """Inputs with a vocabulary learnt from training texts; `vocab_size` is the maximum for tokenizers of the library.

    A `tokenizer` that is not one of TOKENIZERS is the path of an existing one. The same texts give the same vocabulary,
    except for unigram: the library sums probabilities in varying order, so that their last digits vary.
    """
    if tokenizer == "char":
        symbols = sorted(set().union(*map(set, texts)))
        return TextInputs("char", "".join(symbols), length, tuple(labels))
    if tokenizer == "byte":
        return TextInputs(tokenizer, "", length, tuple(labels))
    if tokenizer not in TOKENIZERS:
        return read_tokenizer(tokenizer, length, labels)
    library = _tokenizers()
    if tokenizer == "wordpiece":
        if vocab_size <= len(SPECIAL):
            raise ZooError(
                f"a wordpiece vocabulary needs more than its {len(SPECIAL)} special tokens, not {vocab_size}"
            )
        model = library.Tokenizer(library.models.WordPiece(unk_token=UNKNOWN))
        model.normalizer = library.normalizers.BertNormalizer(lowercase=True)
        model.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        model.decoder = library.decoders.WordPiece()
        ends = [(BEGIN, SPECIAL.index(BEGIN)), (END, SPECIAL.index(END))]
        model.post_processor = library.processors.TemplateProcessing(f"{BEGIN} $A {END}", special_tokens=ends)
        texts, first = list(texts), list(SPECIAL)
        for _ in range(2):
            trainer = library.trainers.WordPieceTrainer(
                vocab_size=vocab_size, special_tokens=first, show_progress=False
            )
            model.train_from_iterator(texts, trainer)
            # The library numbers letters inside words in hash order and breaks ties between equally frequent pairs by
            # these numbers (huggingface/tokenizers#1794). The second pass gets the letters in sorted order.
            first += sorted(piece for piece in model.get_vocab() if piece.startswith("##") and len(piece) == 3)
        learnt = json.loads(model.to_str())
        learnt["added_tokens"] = [token for token in learnt["added_tokens"] if token["content"] in SPECIAL]
        return TextInputs(tokenizer, json.dumps(learnt), length, tuple(labels))
    if tokenizer == "bpe":
        if vocab_size < 256:
            raise ZooError(f"a bpe vocabulary needs at least 256 tokens, one per byte, not {vocab_size}")
        model = library.Tokenizer(library.models.BPE())
        model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = library.decoders.ByteLevel()
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        trainer = library.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    elif tokenizer == "unigram":
        model = library.Tokenizer(library.models.Unigram())
        model.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme="never")
        model.decoder = library.decoders.Metaspace(prepend_scheme="never")
        trainer = library.trainers.UnigramTrainer(
            vocab_size=vocab_size, special_tokens=[UNKNOWN], unk_token=UNKNOWN, show_progress=False
        )
    else:
        model = library.Tokenizer(library.models.WordLevel(unk_token=UNKNOWN))
        model.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
        special = [UNKNOWN]
        trainer = library.trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    model.train_from_iterator(texts, trainer)
    return TextInputs(tokenizer, model.to_str(), length, tuple(labels))


def padded(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Rows of at most `length` tokens as one array int32 [n, length], padded with zeros."""
    array = np.zeros((len(rows), length), np.int32)
    for to, row in zip(array, rows, strict=True):
        to[: len(row)] = row
    return array


def width_for(longest: int) -> int:
    """The padded width of a batch whose longest text has `longest` tokens: 8, 12, 16, 24, 32, ..., so that few shapes
    are compiled."""
    width = max(8, 1 << (max(longest, 1) - 1).bit_length())
    return width * 3 // 4 if width > 8 and longest <= width * 3 // 4 else width


def read_tokenizer(path: str | os.PathLike, length: int, labels: Sequence[str] = ()) -> TextInputs:
    """Inputs from a `tokenizer.json` of the `tokenizers` library, or from a folder with one, as Hugging Face's.

    ZooError if the file is not such a tokenizer, or its kind is not supported: WordPiece, byte-level BPE and WordLevel
    are.
    """
    file = pathlib.Path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise ZooError(f"no tokenizer {str(path)!r}: give {', '.join(TOKENIZERS)}, or a folder with a tokenizer.json")
    try:
        kind = read_json(file)["model"].get("type", "WordPiece")
        text = file.read_text("utf-8")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ZooError(f"{str(file)!r} is not a tokenizer's JSON") from None
    kinds = {"WordPiece": "wordpiece", "BPE": "bpe", "WordLevel": "word"}
    if str(kind) not in kinds:
        raise ZooError(f"{str(file)!r} is a tokenizer of kind {kind}; there are {', '.join(kinds)}")
    inputs = TextInputs(kinds[kind], text, length, tuple(labels))
    inputs.vocab_size  # noqa: B018 - validates the vocabulary now
    return inputs


def _byte_symbols() -> list[int]:
    """The character by which byte-level BPE writes each byte: the byte's own where it is printable, else one from 256
    on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(256, 512))
    return [byte if byte in visible else next(hidden) for byte in range(256)]


def _asked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of a call to the library; ZooError if the JSON is not a valid tokenizer, which may show late."""
    try:
        return function(*args, **kwargs)
    except BaseException as error:  # it raises plain Exceptions, and panics, which are not Exceptions
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ZooError(f"the vocabulary is not a tokenizer that the library can use: {error!s:.100}") from None


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ZooError("tokenizers other than char and byte need tokenizers: pip install 'flaxzoo[text]'") from None
    return tokenizers
