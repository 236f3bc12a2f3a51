"""Tokenizers in other forms than tokenizer.json, as the JSON of the `tokenizers` library.

`bytewise` is GPT-2's byte-level byte-pair encoding from a vocabulary and its merges, `pieces` SentencePiece's (Kudo and
Richardson 2018) from pieces with scores. The pattern that cuts a text before it is encoded belongs to the vocabulary;
PATTERNS has the known ones by the names that GGUF files give them.
"""

import json
from collections.abc import Container, Mapping, Sequence
from typing import Any

from zoo.errors import ZooError, unknown

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS: dict[str, tuple[str, ...]] = {  # each cuts the pieces of the one before
    **dict.fromkeys(("gpt-2", "default", "olmo", "phi-2", "dbrx-gpt2"), (GPT2,)),
    "smollm": (r"\p{N}", GPT2),
    **dict.fromkeys(("llama-bpe", "llama3", "smaug-bpe"), (rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), (rf"{_WORDS}|\p{{N}}|{_REST}",)),
}
_WHOLE = ("llama-bpe", "llama3")  # a word that is a token is not merged from smaller ones
_UNREAD = "\ue000"  # before a piece that no text has: a character of private use
_COMPOSED = ("qwen2", "deepseek-r1-qwen")  # texts are brought to Unicode's composed form first


def bytewise(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    special: Mapping[str, bool],
    pattern: str = "gpt-2",
    begin: str | None = None,
    end: str | None = None,
    before: Sequence[str] = (),
    prefix: bool = False,
) -> str:
    """Byte-level byte-pair encoding. `special` has tokens that are found in a text before it is cut, with True for
    those that are no text; `begin` and `end` are put around every text; tokens of `before` take spaces before them;
    `prefix` puts a space before a text that has none. ZooError for an unknown `pattern`."""
    if pattern not in PATTERNS:
        raise unknown("way to cut texts", pattern, PATTERNS)
    cuts: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False}
        for one in PATTERNS[pattern]
    ]
    level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": prefix}
    if prefix:  # the space comes before the cuts, which are then the library's own
        if PATTERNS[pattern] != (GPT2,):
            raise ZooError(f"a space before a text goes with GPT-2's way to cut texts, not with {pattern}")
        cuts = []
    return _json(
        {
            "type": "BPE",
            "vocab": dict(vocabulary),
            "merges": [list(pair) for pair in merges],
            "ignore_merges": pattern in _WHOLE,
            "byte_fallback": False,
            "fuse_unk": False,
        },
        vocabulary,
        special,
        normalizer={"type": "NFC"} if pattern in _COMPOSED else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*cuts, level]},
        decoder=level,
        begin=begin,
        end=end,
        before=before,
    )


def words(
    ids: Mapping[str, int],
    special: Mapping[str, bool],
    lower: bool,
    strip_accents: bool | None,
    begin: str | None,
    end: str | None,
    chinese: bool = True,
) -> str:
    """BERT's pieces of words (Wu et al. 2016, section 4.1), of lower-cased words without accents if `lower`, unless
    `strip_accents` says otherwise; with `chinese` every Chinese character is a word."""
    unknown_token = "[UNK]" if "[UNK]" in ids else "<unk>"
    if unknown_token not in ids:
        raise ZooError("it must have a token [UNK]")
    return _json(
        {
            "type": "WordPiece",
            "unk_token": unknown_token,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": dict(ids),
        },
        ids,
        special,
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": chinese,
            "strip_accents": strip_accents,
            "lowercase": lower,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        begin=begin,
        end=end,
        before=("<mask>",),
    )


def pieces(
    scored: Sequence[tuple[str, float]],
    special: Mapping[str, bool],
    unknown_id: int,
    merged: bool,
    charsmap: bytes = b"",
    prefix: bool = True,
    squeeze: bool = False,
    begin: str | None = None,
    end: str | None = None,
    decoded: Container[str] = (),
    composed: bool = False,
) -> str:
    """SentencePiece's pieces with their scores, in the order of their ids. Those of `decoded` are in no text that is
    encoded, only among tokens that are decoded; only without `merged`.

    `merged`: by merging the pair with the best score, with bytes for what is unknown; else by the most probable pieces
    (Kudo 2018). `charsmap` is SentencePiece's table of normalisation, which with `composed` reads a text in Unicode's
    composed form: the library looks up single characters in it. `prefix` puts a space before a text, `squeeze` makes
    one of several spaces.
    """
    ids = {piece: i for i, (piece, _) in enumerate(scored)}
    normal: list[dict[str, Any]] = []
    split: dict[str, Any] | None = None
    decoder: dict[str, Any]
    if composed:
        normal.append({"type": "NFC"})
    if charsmap:
        import base64

        normal.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()})
    if squeeze:
        normal.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
        normal.append({"type": "Strip", "strip_left": True, "strip_right": True})
    if merged:
        model: dict[str, Any] = {
            "type": "BPE",
            "vocab": ids,
            "merges": _merges(scored, special),
            "unk_token": scored[unknown_id][0],
            "fuse_unk": True,
            "byte_fallback": "<0x00>" in ids,
        }
        normal += [{"type": "Prepend", "prepend": "▁"}] if prefix else []
        normal.append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
        parts: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        parts += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
        decoder = {"type": "Sequence", "decoders": parts}
    else:
        model = {
            "type": "Unigram",
            "unk_id": unknown_id,
            "vocab": [[piece, score] for piece, score in scored],
            "byte_fallback": "<0x00>" in ids,
        }
        split = decoder = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "always" if prefix else "never",
            "split": True,
        }
        if any(piece in decoded for piece, _ in scored):
            model["vocab"] = [[_UNREAD * (piece in decoded) + piece, score] for piece, score in scored]
            shown = {"type": "Replace", "pattern": {"String": _UNREAD}, "content": ""}
            decoder = {"type": "Sequence", "decoders": [shown, split]}
    normalizer = {"type": "Sequence", "normalizers": normal} if normal else None
    spaces = [] if prefix else [token for token in special if "▁" in token]  # Gemma's tokens of several spaces
    return _json(model, ids, special, normalizer, split, decoder, begin, end, normal=spaces)


def _merges(scored: Sequence[tuple[str, float]], special: Mapping[str, bool]) -> list[list[str]]:
    """The pairs of pieces that are a piece together, the best score first."""
    ids = {piece: i for i, (piece, _) in enumerate(scored)}
    found = []
    for piece, score in scored:
        if piece in special or len(piece) < 2:
            continue
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        pairs = [(ids[a], ids[b], a, b) for a, b in cuts if a in ids and b in ids]
        found += [(-score, *pair) for pair in sorted(pairs)]
    found.sort(key=lambda row: row[0])  # stable: of equal scores in the order of the pieces
    return [[a, b] for *_, a, b in found]


def _json(
    model: dict[str, Any],
    ids: Mapping[str, int],
    special: Mapping[str, bool],
    normalizer: Any = None,
    pre_tokenizer: Any = None,
    decoder: Any = None,
    begin: str | None = None,
    end: str | None = None,
    before: Sequence[str] = (),
    normal: Sequence[str] = (),
) -> str:
    """The library's JSON; tokens of `normal` are looked for in the normalised text. ZooError where `begin` or `end` is
    no token."""
    for token in (begin, end):
        if token is not None and token not in ids:
            raise ZooError(f"{token!r} is not a token of the vocabulary")
    around = [*([begin] if begin else []), None, *([end] if end else [])]
    post = {
        "type": "TemplateProcessing",
        "single": [_part(token) for token in around],
        "pair": [*(_part(token) for token in around), *(_part(token, "B") for token in around[1:])],
        "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in around if token},
    }
    plain = {"single_word": False, "rstrip": False}
    added = sorted((ids[token], token, hidden) for token, hidden in special.items() if token in ids)
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    **{"id": i, "content": token, **plain},
                    **{"lstrip": token in before, "normalized": token in normal, "special": hidden},
                }
                for i, token, hidden in added
            ],
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": post if len(around) > 1 else None,
            "decoder": decoder,
            "model": model,
        },
        ensure_ascii=False,
    )


def _part(token: str | None, text: str = "A") -> dict[str, Any]:
    kind = 0 if text == "A" else 1
    return {"SpecialToken": {"id": token, "type_id": kind}} if token else {"Sequence": {"id": text, "type_id": kind}}
