"""Texts to token ids and back, as config.json's `inputs` say: characters, bytes, or the `tokenizers` library."""

import functools
from typing import Any

from program import HERE

FIRST, UNKNOWN = 4, 3  # of pairs: the first id of the tokenizer, the id of an unknown character


def encode(text: str, about: dict[str, Any]) -> list[int]:
    """A text's token ids; -1 for a character outside the vocabulary."""
    if about["tokenizer"] == "char":
        return [about["vocabulary"].find(character) for character in text]
    return list(text.encode("utf-8")) if about["tokenizer"] == "byte" else library(about["file"]).encode(text).ids


def decode(tokens: list[int], about: dict[str, Any], plain: bool = False) -> str:
    """The text of token ids; `plain`: without special tokens."""
    if about["tokenizer"] == "char":
        return "".join(about["vocabulary"][token] for token in tokens)
    if about["tokenizer"] == "byte":
        return bytes(tokens).decode("utf-8", errors="replace")
    return library(about["file"]).decode(tokens, skip_special_tokens=plain)


def encode_source(text: str, about: dict[str, Any]) -> list[int]:
    """The token ids of an encoder-decoder's source, the token that ends it included."""
    if about["kind"] == "pair":
        ids = encode(text.lower() if about["lowercase"] else text, about["source"])
        return [*(UNKNOWN if token < 0 else FIRST + token for token in ids), about["end"]]
    first, other = about["unknown"] or (1 << 31, 0)
    return [token if token < first else other for token in encode(text, about["source"])]


def decode_target(tokens: list[int], about: dict[str, Any]) -> str:
    """The text of a target's token ids."""
    if about["kind"] == "pair":
        return decode([token - FIRST for token in tokens if token >= FIRST], about["target"])
    return decode(tokens, about["target"], plain=True)


@functools.cache
def library(file: str) -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(HERE / file))
