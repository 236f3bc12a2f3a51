"""How close decoded texts come to the reference texts, as a whole set."""

import collections
import functools
import re
from collections.abc import Sequence
from typing import Any

from zoo.errors import ZooError, first_line, unknown

ORDER = 4  # the longest n-grams of BLEU
JAPANESE = re.compile("[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f]")  # hiragana and katakana
CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
SPACELESS = re.compile("[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff]")  # Thai, Lao, Tibetan, Burmese, Khmer


def quality(
    decoded: Sequence[str],
    references: Sequence[str],
    by_character: bool,
    spacy_language: str | None = None,
    bleu_tokenizer: str | None = None,
) -> dict[str, float]:
    """`exact_match`, the share of equal texts; `error_rate`, edits per unit of the references (characters, or words
    between spaces); `bleu` and `chrf` as sacreBLEU computes them, 0 to 100; with a language `spacy_bleu`, on the tokens
    of its blank spaCy pipeline instead of sacreBLEU's.

    Where the references' script has no spaces between words, the units are characters. `bleu_tokenizer` is one of
    sacreBLEU's, by default that of `tokenizer_for`; BLEU's n-grams are those of `bleu`.
    """
    import sacrebleu

    pairs = list(zip(decoded, references, strict=True))
    by_character = by_character or spaceless(references)
    edits = sum(edit_distance(units(a, by_character), units(b, by_character)) for a, b in pairs)
    found = {
        "exact_match": sum(a == b for a, b in pairs) / len(pairs),
        "error_rate": edits / sum(len(units(b, by_character)) for _, b in pairs),
        "bleu": bleu(references, bleu_tokenizer).corpus_score(decoded, [references]).score,
        "chrf": sacrebleu.corpus_chrf(decoded, [references]).score,
    }
    if spacy_language is not None:
        cut = spacy_tokenizer(spacy_language)
        spaced = [[" ".join(token.text for token in cut(text)) for text in texts] for texts in (decoded, references)]
        found["spacy_bleu"] = sacrebleu.corpus_bleu(spaced[0], spaced[1:], tokenize="none", force=True).score
    return found


def bleu(references: Sequence[str], tokenizer: str | None = None) -> Any:
    """sacreBLEU's metric with a tokenizer of its own, by default that of `tokenizer_for`.

    Its n-grams have up to four tokens; up to as many as the longest reference has, if that is shorter, since a set
    without any 4-gram has a BLEU of 0 even where every text is right (Papineni et al. 2002, Post 2018).
    """
    import sacrebleu

    metric = sacrebleu.BLEU(tokenize=tokenizer or tokenizer_for(references), force=True)
    longest = max(len(metric.tokenizer(text.rstrip()).split()) for text in references)
    metric.max_ngram_order = max(min(ORDER, longest), 1)
    return metric


def bleu_signature(references: Sequence[str], tokenizer: str | None = None) -> str:
    """sacreBLEU's signature of `bleu`, with `order` where it is below four."""
    metric = bleu(references, tokenizer)
    metric.corpus_score(references, [references])  # which counts the references
    order = metric.max_ngram_order
    return f"{metric.get_signature()}" + (f"|order:{order}" if order < ORDER else "")


def check_bleu_tokenizer(name: str) -> None:
    """ZooError where sacreBLEU has no tokenizer of that name, or a package that it needs is missing."""
    import sacrebleu

    if name not in sacrebleu.BLEU.TOKENIZERS:
        raise unknown("task.bleu-tokenizer", name, sacrebleu.BLEU.TOKENIZERS)
    if (why := _usable(name)) is not None:
        raise ZooError(f"task.bleu-tokenizer {name!r} cannot be used: {why}")


def _usable(tokenizer: str) -> str | None:
    """Why a tokenizer of sacreBLEU cannot be used, in one line; None where it can."""
    import sacrebleu

    try:
        sacrebleu.BLEU(tokenize=tokenizer)
    except Exception as error:  # a missing package, or a model of pieces that cannot be downloaded
        return first_line(error)
    return None


def tokenizer_for(references: Sequence[str]) -> str:
    """The tokenizer of sacreBLEU for the script that most letters of the references are of.

    zh for Chinese characters; for Japanese ja-mecab where its packages are installed, else char; char for Thai, Lao,
    Tibetan, Burmese and Khmer; 13a for others.
    """
    script = _script("".join(references))
    if script == "japanese":
        return "ja-mecab" if _usable("ja-mecab") is None else "char"
    return {"chinese": "zh", "spaceless": "char"}.get(script, "13a")


def spaceless(references: Sequence[str]) -> bool:
    """Whether most letters of the references are of a script without spaces between words."""
    return _script("".join(references)) != "spaced"


@functools.lru_cache(maxsize=4)
def _script(text: str) -> str:
    counts = collections.Counter(
        japanese=len(JAPANESE.findall(text)), chinese=len(CHINESE.findall(text)), spaceless=len(SPACELESS.findall(text))
    )
    letters = sum(map(str.isalpha, text))
    east = counts["japanese"] + counts["chinese"]
    if 2 * east > letters:
        return "japanese" if counts["japanese"] * 20 > east else "chinese"
    return "spaceless" if 2 * counts["spaceless"] > letters else "spaced"


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
