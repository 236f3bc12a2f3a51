"""How close decoded texts come to the reference texts, as a whole set."""

from collections.abc import Sequence
from typing import Any

from zoo.errors import ZooError


def quality(
    decoded: Sequence[str], references: Sequence[str], by_character: bool, spacy_language: str | None = None
) -> dict[str, float]:
    """`exact_match`, the share of equal texts; `error_rate`, edits per unit of the references (characters, or words
    between spaces); `bleu` and `chrf` as sacreBLEU computes them, 0 to 100; with a language `spacy_bleu`, on the tokens
    of its blank spaCy pipeline instead of sacreBLEU's.
    """
    import sacrebleu

    pairs = list(zip(decoded, references, strict=True))
    edits = sum(edit_distance(units(a, by_character), units(b, by_character)) for a, b in pairs)
    found = {
        "exact_match": sum(a == b for a, b in pairs) / len(pairs),
        "error_rate": edits / sum(len(units(b, by_character)) for _, b in pairs),
        "bleu": sacrebleu.corpus_bleu(decoded, [references]).score,
        "chrf": sacrebleu.corpus_chrf(decoded, [references]).score,
    }
    if spacy_language is not None:
        cut = spacy_tokenizer(spacy_language)
        spaced = [[" ".join(token.text for token in cut(text)) for text in texts] for texts in (decoded, references)]
        found["spacy_bleu"] = sacrebleu.corpus_bleu(spaced[0], spaced[1:], tokenize="none", force=True).score
    return found


def spacy_tokenizer(language: str) -> Any:
    """The tokenizer of `spacy.blank(language)`; ZooError where spaCy is missing, or has no such language."""
    try:
        import spacy

        return spacy.blank(language).tokenizer
    except ModuleNotFoundError as error:
        raise ZooError(f"task.spacy-language needs {error.name}: pip install {error.name}") from None
    except ImportError as error:
        raise ZooError(f"task.spacy-language {language!r}: {str(error).splitlines()[0]}") from None


def units(text: str, by_character: bool) -> list[str]:
    """What edits are counted in: the characters of a text, or its words between spaces."""
    return list(text) if by_character else text.split()


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """The fewest units inserted, deleted or replaced that turn `a` into `b` (Levenshtein 1966)."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(a, b)
