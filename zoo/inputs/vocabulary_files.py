"""Vocabularies in the files that came before tokenizer.json, as the JSON of the `tokenizers` library.

A folder of Hugging Face's may have WordPiece's vocab.txt, GPT-2's vocab.json and merges.txt, a model of SentencePiece,
or ranks of tiktoken. The class that tokenizer_config.json names, or else the model, tells what is put around a text.
"""

import base64
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from zoo.errors import ZooError, first_line, unknown
from zoo.files import MOST_BYTES, read_json
from zoo.inputs.tokenizer_files import bytewise, pieces, words

WORDS, MERGES = "vocab.txt", ("vocab.json", "merges.txt")
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
NORMAL, UNKNOWN, CONTROL, DEFINED = 1, 2, 3, 4  # SentencePiece's kinds of pieces
Special = dict[str, bool]  # tokens found in a text before it is cut; whether they are no text


class Around(NamedTuple):
    """How a class of tokenizers goes about a text."""

    begin: str | None = None
    end: str | None = None
    pattern: str = "gpt-2"  # which cuts the text, for byte-pair encoding


LLAMA3 = Around("<|begin_of_text|>", pattern="llama3")
LLAMA3_TOKENS = (  # after its ranks
    *("<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(4))),
    *("<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"),
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)),
)
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
KINDS = {  # transformers' classes, without Fast
    "BertTokenizer": Around("[CLS]", "[SEP]"),
    "DistilBertTokenizer": Around("[CLS]", "[SEP]"),
    "MPNetTokenizer": Around("<s>", "</s>"),
    "GPT2Tokenizer": Around(),
    "RobertaTokenizer": Around("<s>", "</s>"),
    "BartTokenizer": Around("<s>", "</s>"),
    "Qwen2Tokenizer": Around(pattern="qwen2"),
    "QWenTokenizer": Around(pattern="qwen2"),
    "T5Tokenizer": Around(end="</s>"),
    "XLMRobertaTokenizer": Around("<s>", "</s>"),
    "LlamaTokenizer": Around("<s>"),
    "GemmaTokenizer": Around("<bos>"),
    "PreTrainedTokenizer": LLAMA3,
    "TokenizersBackend": LLAMA3,
}
MODELS = {  # model_type to the class, where no tokenizer_config.json names it
    **{
        "bert": "BertTokenizer",
        "distilbert": "DistilBertTokenizer",
        "mpnet": "MPNetTokenizer",
        "gpt2": "GPT2Tokenizer",
    },
    **{"roberta": "RobertaTokenizer", "bart": "BartTokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"},
    **{
        "t5": "T5Tokenizer",
        "xlm-roberta": "XLMRobertaTokenizer",
        "llama": "LlamaTokenizer",
        "mistral": "LlamaTokenizer",
    },
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
}


def vocabulary_of(folder: pathlib.Path) -> str | None:
    """The vocabulary of a folder without tokenizer.json; None where it has none of the other files.

    ZooError, in one line, for a damaged file, and for a class of tokenizers that is not known.
    """
    ranks = sorted(folder.glob("*.tiktoken"))
    models = [path for name in SENTENCEPIECE if (path := folder / name).is_file()]
    if models and not ranks and _is_text(models[0]):  # Llama 3 names its ranks tokenizer.model
        ranks, models = models, []
    merged = all((folder / name).is_file() for name in MERGES)
    found = [folder / WORDS] * (folder / WORDS).is_file() + [folder / MERGES[0]] * merged + models + ranks
    if not found:
        return None
    try:
        about = _json(folder / "tokenizer_config.json")
        kind = str(
            about.get("tokenizer_class") or MODELS.get(str(_json(folder / "config.json").get("model_type")), "none")
        )
        kind = kind.removesuffix("Fast")
        if kind not in KINDS:
            raise unknown("tokenizer_class", kind, KINDS)
        special = _added(folder, about)
        if found[0].name == WORDS:
            return _words(folder / WORDS, about, KINDS[kind], special)
        if merged:
            return _merged(folder, about, KINDS[kind], special)
        if models:
            return _sentencepiece(models[0], kind, about, special)
        return _ranked(ranks[0], kind, special)
    except ZooError as error:
        raise ZooError(f"{str(found[0])!r}: {error}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ZooError(f"{str(found[0])!r} is no vocabulary: {first_line(error)}") from None


def _json(path: pathlib.Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _added(folder: pathlib.Path, about: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """The tokens that tokenizer_config.json adds, or of old folders added_tokens.json, by id: their text, and whether
    they are no text."""
    rows = about.get("added_tokens_decoder") or {}
    special = about.get("additional_special_tokens") or ()
    old = {int(i): (token, token in special) for token, i in _json(folder / "added_tokens.json").items()}
    return old | {int(i): (row["content"], bool(row.get("special", True))) for i, row in rows.items()}


def _token(about: Mapping[str, Any], key: str, default: str) -> str:
    """A special token that tokenizer_config.json names, as a string or with its settings."""
    token = about.get(key) or default
    return token["content"] if isinstance(token, dict) else token


def _lines(path: pathlib.Path) -> list[str]:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return path.read_text("utf-8").split("\n")  # other ends of lines may be tokens


def _words(path: pathlib.Path, about: Mapping[str, Any], around: Around, added: dict[int, tuple[str, bool]]) -> str:
    """WordPiece: a token a line."""
    tokens = [line.rstrip("\r") for line in _lines(path)]
    while tokens and not tokens[-1]:
        tokens.pop()
    ids = {token: i for i, token in enumerate(tokens)}
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "<pad>", "</s>", "<unk>", "<mask>")
    special = dict.fromkeys((name for name in names if name in ids), True) | dict(added.values())
    lower = about.get("do_lower_case", True)
    chinese = about.get("tokenize_chinese_chars", True)
    return words(ids, special, lower, about.get("strip_accents"), around.begin, around.end, chinese)


def _merged(folder: pathlib.Path, about: Mapping[str, Any], around: Around, added: dict[int, tuple[str, bool]]) -> str:
    """GPT-2's: ids by token, and the pairs that are merged, the first ones first."""
    ids = read_json(folder / MERGES[0])
    lines = [line.split(" ") for line in _lines(folder / MERGES[1]) if line and not line.startswith("#version")]
    if any(len(line) != 2 for line in lines):
        raise ValueError("a line of merges.txt must be two tokens")
    pairs = [(first, second) for first, second in lines]
    ids |= {token: i for i, (token, _) in added.items()}
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>")
    special = dict.fromkeys((name for name in names if name in ids), True) | dict(added.values())
    prefix, before = about.get("add_prefix_space") is True, ("<mask>",)
    return bytewise(ids, pairs, special, around.pattern, around.begin, around.end, before, prefix)


class Model(NamedTuple):
    """A model of SentencePiece."""

    scored: list[tuple[str, float]]  # pieces with their scores
    kinds: list[int]
    merged: bool  # by pairs; else the most probable pieces
    charsmap: bytes
    composed: bool  # texts are brought to Unicode's composed form
    prefix: bool  # a space before a text
    squeeze: bool  # one of several spaces

    @property
    def unknown(self) -> int:
        return self.kinds.index(UNKNOWN)

    @property
    def special(self) -> Special:
        chosen = zip(self.scored, self.kinds, strict=True)
        return {piece: kind == CONTROL for (piece, _), kind in chosen if kind in (CONTROL, DEFINED)}

    def vocabulary(self, begin: str | None, end: str | None, special: Special) -> str:
        form = self.merged, self.charsmap, self.prefix, self.squeeze
        return pieces(self.scored, special, self.unknown, *form, begin=begin, end=end, composed=self.composed)


def sentencepiece_model(path: pathlib.Path) -> Model:
    """A file of SentencePiece. ZooError where it is damaged, or of words or characters."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise ZooError("reading it needs sentencepiece and protobuf: pip install 'flaxzoo[text]'") from None
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    if path.stat().st_size > MOST_BYTES:
        raise ZooError(f"it has more than {MOST_BYTES:,} bytes")
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # of several kinds, by the implementation of protobuf
        raise ZooError(f"it is no model of SentencePiece: {first_line(error)}") from None
    scored, kinds = [(one.piece, one.score) for one in model.pieces], [one.type for one in model.pieces]
    if kinds.count(UNKNOWN) != 1:
        raise ZooError(f"it must have one unknown piece, not {kinds.count(UNKNOWN)}")
    if not model.HasField("trainer_spec") or not model.HasField("normalizer_spec"):
        raise ZooError("it is no model of SentencePiece, or is cut off: it lacks its settings")
    form, normal = model.trainer_spec.model_type, model.normalizer_spec
    if form not in (1, 2):
        raise ZooError("it must be of kind unigram or bpe")
    if model.trainer_spec.treat_whitespace_as_suffix or not normal.escape_whitespaces:
        raise ZooError("it must write ▁ for spaces, before words")
    spaces = normal.add_dummy_prefix, normal.remove_extra_whitespaces
    return Model(scored, kinds, form == 2, normal.precompiled_charsmap, "nfkc" in normal.name, *spaces)


def _sentencepiece(path: pathlib.Path, kind: str, about: Mapping[str, Any], added: dict[int, tuple[str, bool]]) -> str:
    model, (begin, end, _) = sentencepiece_model(path), KINDS[kind]
    if kind == "XLMRobertaTokenizer":  # its ids are fairseq's
        first = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        scored = [*first, *model.scored[3:], ("<mask>", 0.0)]
        model = model._replace(scored=scored, kinds=[3, 3, 3, 2, *model.kinds[3:], 3])
    if kind == "T5Tokenizer":
        extra = [f"<extra_id_{i}>" for i in range(about.get("extra_ids", 100))][::-1]
        scored = [*model.scored, *((token, 0.0) for token in extra)]
        model = model._replace(scored=scored, kinds=[*model.kinds, *[CONTROL] * len(extra)])
    for i, (token, hidden) in sorted(added.items()):
        if i == len(model.scored):
            kinds = [*model.kinds, CONTROL if hidden else DEFINED]
            model = model._replace(scored=[*model.scored, (token, 0.0)], kinds=kinds)
        elif i > len(model.scored):
            raise ZooError(f"the added token {token!r} must have the id {len(model.scored)}, after the others, not {i}")
    begin = begin if about.get("add_bos_token", True) else None
    if about.get("add_eos_token"):
        end = _token(about, "eos_token", "<eos>" if kind == "GemmaTokenizer" else "</s>")
    return model.vocabulary(begin, end, model.special | dict(added.values()))


def side_of(folder: pathlib.Path, model: str, ids_file: str, read: bool) -> tuple[str, dict[str, int]]:
    """The vocabulary of one side of a Marian, and its ids: a model of SentencePiece cuts texts, a JSON has the ids of
    both sides. In a vocabulary that texts are `read` with, pieces without an id, which are unknown, follow the others.

    ZooError for a missing or damaged file.
    """
    for name in (model, ids_file):
        if not (folder / name).is_file():
            raise ZooError(f"{str(folder)!r} has no {name}")
    try:
        found, ids = sentencepiece_model(folder / model), read_json(folder / ids_file)
        tokens = sorted(ids, key=ids.__getitem__)
        if [ids[token] for token in tokens] != [*range(len(tokens))]:
            raise ValueError(f"the ids of {ids_file} must be 0 to {len(tokens) - 1}, each once")
        scores = {
            piece: score for (piece, score), kind in zip(found.scored, found.kinds, strict=True) if kind == NORMAL
        }
        least = min(scores.values(), default=0.0)
        names = (*("</s>", "<unk>", "<pad>"), *(token for token in tokens if token.startswith(">>")))  # >>fra<<
        special = {token: not token.startswith(">>") for token in names if token in ids}
        tokens += [piece for piece in scores if read and piece not in ids]
        vocabulary = pieces(
            [(token, scores.get(token, least)) for token in tokens],
            special,
            ids["<unk>"],
            merged=False,
            charsmap=found.charsmap,
            prefix=found.prefix,
            squeeze=found.squeeze,
            end="</s>",
            decoded={*tokens} - {*scores} - {*special},
            composed=found.composed,
        )
        return vocabulary, ids
    except ZooError as error:
        raise ZooError(f"{str(folder / model)!r}: {error}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ZooError(f"{str(folder / ids_file)!r} is no vocabulary: {first_line(error)}") from None


def _is_text(path: pathlib.Path) -> bool:
    """Whether a file begins with a line of tiktoken's: base64, a space, a rank."""
    with path.open("rb") as file:
        first = file.readline(200).split()
    return len(first) == 2 and first[1].isdigit()


def _ranked(path: pathlib.Path, kind: str, added: dict[int, tuple[str, bool]]) -> str:
    """tiktoken's ranks: a token's bytes in base64 and its id a line. A lower rank is merged first."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    rows = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError("it must have all 256 bytes")
    around = LLAMA3 if kind == "LlamaTokenizer" else KINDS[kind]
    tokens = LLAMA3_TOKENS if around is LLAMA3 else QWEN_TOKENS if kind == "QWenTokenizer" else ()
    added = added or {max(ranks.values()) + 1 + i: (token, True) for i, token in enumerate(tokens)}
    letters = _letters()
    named = {token: "".join(letters[byte] for byte in token) for token in ranks}
    ids = {named[token]: rank for token, rank in ranks.items()} | {token: i for i, (token, _) in added.items()}
    merges = [(named[a], named[b]) for a, b in _merges(ranks)]
    begin = around.begin if around.begin in ids else None
    return bytewise(ids, merges, dict(added.values()), around.pattern, begin, around.end)


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The pairs that become each token of several bytes, by rank: what is left of it by merges of lower ranks."""
    for token, rank in sorted(ranks.items(), key=lambda row: row[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = ((ranks.get(a + b, rank), i) for i, (a, b) in enumerate(itertools.pairwise(parts)))
            best, i = min(pairs)
            if best >= rank:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


def _letters() -> list[str]:
    """GPT-2's printable character for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(others)) for byte in range(256)]
