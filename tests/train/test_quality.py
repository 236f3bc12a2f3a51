"""How decoded texts are compared with references: edits, and BLEU by the script of the references."""

import sys

import pytest
import sacrebleu

import zoo
from train import Translation
from train.quality import bleu, bleu_signature, edit_distance, quality, tokenizer_for


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_edit_distance(a, b, edits):
    assert edit_distance(a, b) == edits


def test_quality_counts_edits_of_the_whole_set():
    right, decoded = ["the cat sat on the mat", "a dog"], ["the cat sat on a mat", "a dog"]
    by_word = quality(decoded, right, by_character=False)
    assert (by_word["exact_match"], by_word["error_rate"]) == (0.5, 1 / 8)
    by_character = quality(decoded, right, by_character=True)
    assert by_character["error_rate"] == 3 / 27
    same = quality(right, right, by_character=False)
    assert (same["error_rate"], same["bleu"], same["chrf"]) == (0.0, pytest.approx(100), pytest.approx(100))


def test_bleu_on_the_tokens_of_spacy():
    pytest.importorskip("spacy", reason="spaCy comes with the extra benchmarks")
    right, decoded = ["they don't run on the street today"], ["they do n't run on the street today"]
    found = quality(decoded, right, by_character=False, spacy_language="en")
    assert found["spacy_bleu"] == pytest.approx(100)
    assert found["bleu"] < 90
    with pytest.raises(zoo.ZooError, match=r"task\.spacy-language 'xyz'"):
        Translation(spacy_language="xyz").check()


def test_a_missing_spacy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(zoo.ZooError, match=r"task\.spacy-language needs spacy: pip install spacy"):
        Translation(spacy_language="en").check()


# BLEU by script.

CHINESE = ["我喜欢吃苹果。", "他在公园里跑步。", "今天天气很好。"]
JAPANESE = ["私はリンゴが好きです。", "猫が座った。"]
THAI = ["ฉันชอบแมว", "แมวนั่ง"]
ENGLISH = ["The cat sat on the mat, today.", "A dog ran 猫 quickly away."]


@pytest.mark.parametrize(
    ("references", "tokenizer"),
    [
        (CHINESE, "zh"),
        (THAI, "char"),
        (ENGLISH, "13a"),
        (["고양이가 앙아 있었다."], "13a"),
        (["Кот сидел."], "13a"),
        (["2021-03-03"], "13a"),
        (["iPhone 的价格很贵,我不买了"], "zh"),
        (["ကြောင်"], "char"),
        (["ឆ្មា"], "char"),
    ],
)
def test_the_script_of_the_references_chooses_the_tokenizer(references, tokenizer):
    assert tokenizer_for(references) == tokenizer
    found = quality(references * 9, references * 9, by_character=False)
    assert found["bleu"] == pytest.approx(100)
    assert found["error_rate"] == 0


def test_japanese_is_cut_by_mecab_where_it_is_installed(monkeypatch):
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    assert tokenizer_for(JAPANESE) == "char"
    assert quality(JAPANESE, JAPANESE, by_character=False)["bleu"] == pytest.approx(100)
    monkeypatch.setattr("train.quality._usable", lambda name: None)
    assert tokenizer_for(JAPANESE) == "ja-mecab"


def test_a_near_miss_has_the_bleu_and_the_edits_of_its_script():
    near = [text[:-2] + "了。" for text in CHINESE]
    found = quality(near, CHINESE, by_character=False)
    assert found["bleu"] == sacrebleu.corpus_bleu(near, [CHINESE], tokenize="zh").score
    assert 50 < found["bleu"] < 90
    assert found["error_rate"] == 3 / sum(map(len, CHINESE))
    assert quality(near, CHINESE, False, bleu_tokenizer="none")["bleu"] == 0


@pytest.mark.parametrize(("text", "order"), [("hello", 1), ("hello world", 2), ("one two three", 3), ("a b c d e", 4)])
def test_short_texts_are_compared_up_to_their_length(text, order):
    assert quality([text] * 5, [text] * 5, by_character=False)["bleu"] == pytest.approx(100)
    wrong = quality(["bad"] * 5, [text] * 5, by_character=False)["bleu"]
    assert wrong < 30
    assert bleu([text]).max_ngram_order == order
    assert bleu_signature([text]).endswith(f"|order:{order}") == (order < 4)


def test_bleu_of_longer_texts_is_sacrebleus_own():
    decoded = ["The cat sat on a mat, today.", "A dog ran quickly."]
    assert quality(decoded, ENGLISH, False)["bleu"] == sacrebleu.corpus_bleu(decoded, [ENGLISH]).score
    metric = sacrebleu.BLEU()
    metric.corpus_score(decoded, [ENGLISH])
    assert bleu_signature(ENGLISH) == str(metric.get_signature())


def test_a_tokenizer_of_bleu_that_cannot_be_used_is_refused_before_training():
    Translation(bleu_tokenizer="char").check()
    with pytest.raises(zoo.ZooError, match=r"unknown task\.bleu-tokenizer 'ja_mecab'; did you mean ja-mecab"):
        Translation(bleu_tokenizer="ja_mecab").check()


def test_a_tokenizer_of_bleu_whose_package_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    with pytest.raises(zoo.ZooError, match=r"task\.bleu-tokenizer 'ja-mecab' cannot be used: Japanese tokenization"):
        Translation(bleu_tokenizer="ja-mecab").check()
