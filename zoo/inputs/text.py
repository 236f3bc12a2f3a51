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
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from zoo.arrays import Example
from zoo.errors import ZooError
from zoo.files import parse_json, read_json
from zoo.inputs.base import Inputs
from zoo.inputs.chat import render
from zoo.inputs.vocabulary_files import vocabulary_of

TOKENIZERS = ("char", "byte", "bpe", "word", "wordpiece", "unigram")
UNKNOWN, BEGIN, END, MASK = "[UNK]", "[CLS]", "[SEP]", "[MASK]"
MASKS = (MASK, "<mask>")
ENDS = (  # in the order in which they are looked for
    *("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    *("</s>", "<eos>", "<|eos|>", "[EOS]", "<EOS>", "<|return|>"),
)
SURROGATES = re.compile("[\ud800-\udfff]")
MOST_LENGTH = 2**24  # maximum of `length`
MOST_TOKENS = 2**22  # limit of token ids
SPECIAL = ("[PAD]", UNKNOWN, BEGIN, END, MASK)  # tokens of wordpiece, in BERT's order


@dataclasses.dataclass(frozen=True)
class TextInputs(Inputs):
    """Tokens of a `tokenizer`. `vocabulary` is the characters in order, or the JSON of the `tokenizers` library.

    `length` is the maximum number of tokens of a training example. `labels` names the classes in the order of the
    logits; a language model has none. `chat_template` is Jinja's (see `zoo.inputs.chat`), `begin_token` and `end_token`
    are the tokens around a text; they are empty where the vocabulary alone says what there is.
    """

    tokenizer: str
    vocabulary: str
    length: int
    labels: tuple[str, ...] = ()
    chat_template: str = ""
    begin_token: str = ""
    end_token: str = ""

    kind: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        texts = self.vocabulary, self.chat_template, self.begin_token, self.end_token
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.labels, list | tuple):
            raise ZooError("vocabulary, chat_template and tokens must be strings, labels a list")
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
    def gaps(self) -> tuple[int, ...]:
        """The ids below `vocab_size` that no token has."""
        if self.tokenizer in ("char", "byte"):
            return ()
        return tuple(sorted({*range(self.vocab_size)} - {*self._library.get_vocab().values()}))

    @property
    def mask(self) -> int:
        """The id of the mask token; ZooError if the vocabulary has none."""
        if self._mask is None:
            raise ZooError(f"a {self.tokenizer} vocabulary has no {MASK}; use wordpiece")
        return self._mask

    @property
    def end(self) -> int | None:
        """The id of the token that ends a text, as `</s>`; None for a vocabulary without one."""
        if self.tokenizer in ("char", "byte"):
            return None
        if self.end_token:
            return self._library.token_to_id(self.end_token)
        added = {token.content: number for number, token in self._library.get_added_tokens_decoder().items()}
        return next((added[name] for name in ENDS if name in added), None)

    @property
    def first_prompt(self) -> str:
        """What a text begins with if nothing is given: a new line; the empty text, where the vocabulary has no new line
        but a token that begins every text; else the first character or word of the vocabulary."""
        if self.tokenizer == "char":
            return "\n" if "\n" in self.vocabulary else self.vocabulary[0]
        if self.tokenizer == "byte" or self.decode(self.prompt("\n")).endswith("\n"):
            return "\n"
        if len(self.prompt("")):
            return ""
        added = self._library.get_added_tokens_decoder()
        words = (self.decode([i]).strip() for i in range(self.vocab_size) if i not in added)
        return next((word for word in words if word and self.decode(self.prompt(word)).strip() == word), "")

    def encode(self, raw: str) -> np.ndarray:
        """Token ids int32 [n]; ZooError if `raw` is not a string or has a character outside the vocabulary.

        Lone surrogates, which are no characters, become U+FFFD.
        """
        raw = _characters(raw)
        if self.tokenizer == "byte":
            return np.frombuffer(raw.encode("utf-8"), np.uint8).astype(np.int32)
        if self.tokenizer != "char":
            return np.array(_asked(self._library.encode, raw).ids, np.int32)
        codes = np.frombuffer(raw.encode("utf-32-le"), np.uint32)
        known = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        unknown = codes[self._codes[known] != codes]
        if len(unknown):
            some = ", ".join(repr(chr(code)) for code in dict.fromkeys(unknown[:1000].tolist()))
            raise ZooError(f"{some:.80} is not among the {self.vocab_size} characters of the vocabulary")
        return known.astype(np.int32)

    def encode_counted(self, raw: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int32 [n], and the number of characters of `raw` that each stands for, int64 [n].

        A character counts for the first token that covers it; one that no token covers, as a space between words, for
        the next token, or else the last. If there is a token, the sum is `len(raw)`.
        """
        raw = _characters(raw)
        if self.tokenizer in ("char", "byte"):
            tokens = self.encode(raw)
            continues = tokens & 0xC0 == 0x80  # a byte within a character of UTF-8
            return tokens, np.where((self.tokenizer == "byte") & continues, 0, 1)
        found = _asked(self._library.encode, raw)
        ends = np.fromiter((end for _, end in found.offsets), np.int64, len(found.ids))
        ends = np.maximum.accumulate(np.minimum(ends, len(raw)))
        ends[-1:] = len(raw)
        return np.array(found.ids, np.int32), np.diff(ends, prepend=0)

    def prompt(self, raw: str) -> np.ndarray:
        """The token ids of a text to continue, int32 [n]: without the special tokens that close a text, as [SEP]."""
        tokens = self.encode(raw)
        return tokens[: len(tokens) - self._special[1]]

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The token ids of a conversation, int32 [n], up to where the answer begins: messages of `role` ("system",
        "user", "assistant") and `content`. ZooError for a vocabulary without a chat template, and as
        `zoo.inputs.chat.render`."""
        if not self.chat_template:
            raise ZooError("these inputs have no chat template: it is not a model for dialogue")
        return self.encode_rendered(render(self.chat_template, messages, True, self.begin_token, self.end_token))

    def encode_rendered(self, text: str) -> np.ndarray:
        """Token ids int32 [n] of a text that has its special tokens already, as those of chat templates."""
        if self.tokenizer in ("char", "byte"):
            return self.encode(text)
        return np.array(_asked(self._library.encode, _characters(text), add_special_tokens=False).ids, np.int32)

    def decode(self, array: Any) -> str:
        """The text of token ids [n]; ZooError for an id outside the vocabulary.

        Ids that a tokenizer of the library does not have, as those of a model's padded rows, have no text.
        """
        tokens = np.asarray(array).reshape(-1)
        library = self.tokenizer not in ("char", "byte")
        wrong = tokens[(tokens < 0) | (tokens >= self.vocab_size) & (not library)]
        if len(wrong):
            raise ZooError(f"token {wrong[0]} is outside the vocabulary of {self.vocab_size}")
        if self.tokenizer == "byte":
            return bytes(tokens.tolist()).decode("utf-8", errors="replace")
        if self.tokenizer == "char":
            return "".join(self.vocabulary[token] for token in tokens)
        known = tokens[tokens < self.vocab_size].tolist()
        return _asked(self._library.decode, known, skip_special_tokens=False)

    def decode_plain(self, array: Any) -> str:
        """The text of token ids [n] of a library's tokenizer without its special tokens, and without ids that it does
        not have."""
        tokens = np.asarray(array).reshape(-1)
        return _asked(self._library.decode, tokens[tokens < self.vocab_size].tolist(), skip_special_tokens=True)

    def batch(self, raws: Sequence[str]) -> dict[str, np.ndarray]:
        """Texts cut to `length` tokens: `tokens` int32 [n, length], padded with zeros, and `length` int32 [n].

        Special tokens that open or close a text are kept, as [SEP]. A text with a [MASK] that is not among the first
        tokens is cut around all of its [MASK], or else the first; another loses its end.
        """
        rows = [self._cut(self.encode(raw)) for raw in raws]
        return {"tokens": padded(rows, self.length), "length": np.array([*map(len, rows)], np.int32)}

    def _cut(self, row: np.ndarray) -> np.ndarray:
        if len(row) <= self.length:
            return row
        opening, closing = self._special
        body, start = row[opening : len(row) - closing], 0
        room = max(self.length - opening - closing, 0)
        masks = np.flatnonzero(body == (-1 if self._mask is None else self._mask))
        if len(masks) and masks[-1] >= room:
            first, last = (int(masks[0]), int(masks[-1])) if masks[-1] - masks[0] < room else (int(masks[0]),) * 2
            start = min(max((first + last - room) // 2, last - room + 1, 0), first, len(body) - room)
        if lost := sum(not start <= place < start + room for place in masks):
            warnings.warn(f"{lost} of {len(masks)} {MASK} are outside the {self.length} tokens of a text", stacklevel=3)
        return np.r_[row[:opening], body[start : start + room], row[len(row) - closing :]][: self.length]

    def arguments(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = {"lengths": "length", "segments": "segments"}  # argument of the model: array of the batch
        return (batch["tokens"],), {argument: batch[key] for argument, key in named.items() if key in batch}

    def model_args(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, **super().model_args()}

    def example(self) -> Example:
        """Abstract `arguments` of a batch of one: tokens int32 [1, length]."""
        return (jax.ShapeDtypeStruct((1, self.length), np.dtype(np.int32)),), {}

    @functools.cached_property
    def _mask(self) -> int | None:
        if self.tokenizer in ("char", "byte"):
            return None
        found = (self._library.token_to_id(name) for name in MASKS)
        return next((number for number in found if number is not None), None)

    @functools.cached_property
    def _special(self) -> tuple[int, int]:
        """How many special tokens open a text, and how many close it."""
        if self.tokenizer in ("char", "byte"):
            return 0, 0
        library = _tokenizers()
        one = library.Tokenizer(library.models.WordLevel({"x": 0}, unk_token="x")).encode("x")
        mask = _asked(self._library.post_process, one).special_tokens_mask
        return (mask.index(0), mask[::-1].index(0)) if 0 in mask else (0, 0)

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
    texts = map(_characters, texts)
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


def _characters(raw: str) -> str:
    """A text whose pairs of surrogates are characters and whose lone ones are U+FFFD; ZooError for another object."""
    if not isinstance(raw, str):
        raise ZooError(f"a text must be a str, not {type(raw).__name__}")
    if not SURROGATES.search(raw):
        return raw
    return raw.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


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
    """Inputs from a `tokenizer.json` of the `tokenizers` library, or from a folder with one, as Hugging Face's, or with
    the files of `zoo.inputs.vocabulary_files`.

    ZooError if the file is not such a tokenizer, or of another kind than WordPiece, BPE, Unigram and WordLevel.
    """
    file = pathlib.Path(path).expanduser()
    older = vocabulary_of(file) if file.is_dir() and not (file / "tokenizer.json").is_file() else None
    file = file / "tokenizer.json" if file.is_dir() and older is None else file
    if older is None and not file.is_file():
        raise ZooError(f"no tokenizer {str(path)!r}: give {', '.join(TOKENIZERS)}, or a folder with a tokenizer.json")
    try:
        content = read_json(file) if older is None else parse_json(older)
        model = content["model"]
        added = {str(token["content"]): token["id"] for token in content.get("added_tokens") or ()}
        kind = model.get("type", "BPE" if "merges" in model else "WordPiece")
        text = file.read_text("utf-8") if older is None else older
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ZooError(f"{str(file)!r} is not a tokenizer's JSON") from None
    kinds = {"WordPiece": "wordpiece", "BPE": "bpe", "WordLevel": "word", "Unigram": "unigram"}
    if str(kind) not in kinds:
        raise ZooError(f"{str(file)!r} is a tokenizer of kind {kind}; there are {', '.join(kinds)}")
    inputs = TextInputs(kinds[kind], text, length, tuple(labels))
    try:
        inputs.vocab_size  # noqa: B018 - validates the vocabulary now
    except ZooError as error:
        raise ZooError(f"{str(file)!r}: {error}") from None
    for token, number in added.items():
        if (found := inputs._library.token_to_id(token)) != number:  # the library numbers added tokens by itself
            raise ZooError(f"{str(file)!r}: the library reads the token {token!r} as {found}, not as {number}")
    return inputs


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
