"""Tokenizers of others and our own: characters counted in the text, prompts, ends, gaps, windows around a mask."""

import json
import random

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import zoo
from zoo.inputs.text import TextInputs, learn, read_tokenizer

CORPUS = ["the cat sat on the mat.\n", "naïve café, déjà vu £5 日本", "The Dog ran"] * 5


def sentencepiece_bpe():
    """As Llama 2's: a space before the text, ▁ for spaces, bytes for unknown characters."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return "bpe", made


def t5():
    """As T5's: Unigram behind a normalizer that folds characters and spaces, with an end token."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁the", "cat", "▁sat", "a", "t", "é"]
    made = tokenizers.Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    made.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.decoder = decoders.Metaspace()
    made.add_special_tokens([*pieces[:3], "<extra_id_0>"])
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return "unigram", made


def roberta():
    """As RoBERTa's: byte-level BPE whose offsets leave out the space before a word, between <s> and </s>."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<s>", "</s>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return "bpe", made


MADE = {make.__name__: make() for make in (sentencepiece_bpe, t5, roberta)}
INPUTS = {name: TextInputs(kind, made.to_str(), 16) for name, (kind, made) in MADE.items()}
INPUTS |= {kind: learn(kind, CORPUS, 300, 16) for kind in ("byte", "bpe", "word", "wordpiece", "unigram")}
SYMBOLS = [*"the cat sat\n\t .,é日😀▁ﬁ\u00a0İ\ud800\0ﷺ", "e\u0301", "  ", "\r\n", "[MASK]"]


@pytest.mark.parametrize("name", INPUTS)
def test_every_character_of_a_text_counts_once_whatever_the_tokens(name):
    rng, inputs = random.Random(0), INPUTS[name]
    for _ in range(200):
        text = "".join(rng.choices(SYMBOLS, k=rng.randrange(30)))
        tokens, characters = inputs.encode_counted(text)
        np.testing.assert_array_equal(tokens, inputs.encode(text))
        assert (characters >= 0).all()
        assert characters.sum() == (len(text) if len(tokens) else 0)
        inputs.decode(tokens)


def test_characters_count_for_the_token_that_first_covers_them():
    _, characters = INPUTS["roberta"].encode_counted("the cat é")
    # <s>, " the" without its space, " cat", the pieces of " é", </s>
    assert [*characters[:3], characters[3:-1].sum(), characters[-1]] == [0, 3, 4, 2, 0]
    assert INPUTS["byte"].encode_counted("aé日")[1].tolist() == [1, 1, 0, 1, 0, 0]
    assert INPUTS["word"].encode_counted("  the \n unheard ")[1].tolist() == [5, 11]


@pytest.mark.parametrize(
    ("name", "opening", "closing", "first", "end"),
    [
        ("sentencepiece_bpe", 1, 0, "\n", "</s>"),
        ("t5", 0, 1, "the", "</s>"),
        ("roberta", 1, 1, "\n", "</s>"),
        ("byte", 0, 0, "\n", None),
        ("bpe", 0, 0, "\n", None),
        ("word", 0, 0, "the", None),
        ("wordpiece", 1, 1, "", None),
        ("unigram", 0, 0, "\n", None),
    ],
)
def test_a_prompt_has_no_closing_tokens_and_there_is_always_a_first_one(name, opening, closing, first, end):
    inputs = INPUTS[name]
    whole, prompt = inputs.encode("the cat"), inputs.prompt("the cat")
    np.testing.assert_array_equal(prompt, whole[: len(whole) - closing])
    assert prompt.dtype == np.int32
    assert len(inputs.prompt("")) == opening
    assert inputs.first_prompt == first
    assert len(inputs.prompt(inputs.first_prompt)) > 0
    assert inputs.end == (None if end is None else inputs._library.token_to_id(end))


def test_a_character_vocabulary_without_a_new_line_begins_with_its_first_character():
    assert TextInputs("char", "abc", 4).first_prompt == "a"
    assert TextInputs("char", "\nabc", 4).first_prompt == "\n"
    assert TextInputs("char", "abc", 4).end is None


@pytest.mark.parametrize("name", MADE)
def test_tokenizers_of_others_are_read_from_their_file(name, tmp_path):
    MADE[name][1].save(str(tmp_path / "tokenizer.json"))
    inputs = read_tokenizer(tmp_path, 16)
    text = "the cat sat"
    np.testing.assert_array_equal(inputs.encode(text), MADE[name][1].encode(text).ids)
    assert inputs.tokenizer == MADE[name][0]


def test_a_file_without_the_name_of_its_model_is_known_by_its_merges(tmp_path):
    """As early versions of the library wrote it."""
    written = json.loads(MADE["roberta"][1].to_str())
    del written["model"]["type"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    assert read_tokenizer(tmp_path, 16).tokenizer == "bpe"


@pytest.mark.parametrize("name", ["sentencepiece_bpe", "roberta", "bpe", "word", "wordpiece"])
def test_ids_may_have_gaps_and_those_without_a_token_have_no_text(name):
    written = json.loads(INPUTS[name].vocabulary)
    vocabulary = written["model"]["vocab"]
    moved = max(vocabulary, key=lambda token: (token.isalpha(), vocabulary[token]))
    vocabulary[moved] += 500
    inputs = TextInputs(INPUTS[name].tokenizer, json.dumps(written), 16)
    assert inputs.vocab_size == vocabulary[moved] + 1
    gaps = inputs.gaps
    assert {*gaps} | {*inputs._library.get_vocab().values()} == {*range(inputs.vocab_size)}
    assert len(gaps) >= 450
    tokens = inputs.encode("the cat")
    padding = [inputs.vocab_size, inputs.vocab_size + 100]  # rows of a model beyond the tokenizer
    assert inputs.decode([*tokens, *gaps[:3], *padding]) == inputs.decode(tokens)
    assert inputs.decode([*gaps, *padding]) == ""
    with pytest.raises(zoo.ZooError, match=r"token -1 is outside the vocabulary"):
        inputs.decode([-1])


def test_an_added_token_that_the_library_numbers_otherwise_is_refused(tmp_path):
    written = json.loads(INPUTS["bpe"].vocabulary)
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    written["added_tokens"] = [{"id": 5000, "content": "<late>", **token}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(zoo.ZooError, match=r"the library reads the token '<late>' as \d+, not as 5000"):
        read_tokenizer(tmp_path, 16)


@pytest.mark.parametrize("name", ["byte", "bpe", "word", "wordpiece", "unigram", *MADE])
def test_lone_surrogates_are_replaced_and_pairs_are_characters(name):
    inputs = INPUTS[name]
    bad = b"the caf\xe9".decode("utf-8", "surrogateescape")
    np.testing.assert_array_equal(inputs.encode(bad), inputs.encode("the caf\ufffd"))
    np.testing.assert_array_equal(inputs.encode("\ud83d\ude00"), inputs.encode("😀"))
    assert learn("char", [bad], 0, 4).vocabulary == " acefht\ufffd"
    with pytest.raises(zoo.ZooError, match="'\ufffd' is not among the 3 characters"):
        TextInputs("char", "abc", 4).encode("\udce9")


def test_a_long_text_is_cut_around_its_mask():
    inputs = learn("wordpiece", CORPUS, 60, 8)
    body = inputs.encode("the cat sat on the mat the cat sat on the mat")[1:-1]
    for place in range(len(body)):
        words = inputs.decode(np.r_[body[:place], inputs.mask, body[place + 1 :]])
        row = inputs.batch([words])["tokens"][0]
        assert (row[0], row[-1]) == (2, 3)  # [CLS], [SEP]
        assert (row == inputs.mask).sum() == 1
        at = int(np.flatnonzero(row == inputs.mask)[0])
        assert at == 1 + (place if place < 6 else max(3, 6 - (len(body) - place)))  # in the middle, or near an end
        np.testing.assert_array_equal(row[1:at], body[place - at + 1 : place])
    for first in range(len(body)):
        for second in range(first + 1, min(first + 6, len(body))):  # six tokens between [CLS] and [SEP]
            parts = np.split(np.delete(body, [first, second]), [first, second - 1])
            row = np.concatenate([parts[0], [inputs.mask], parts[1], [inputs.mask], parts[2]])
            assert (inputs.batch([inputs.decode(row)])["tokens"] == inputs.mask).sum() == 2
    with pytest.warns(UserWarning, match=r"1 of 2 \[MASK\] are outside the 8 tokens of a text"):
        inputs.batch(["[MASK] " + inputs.decode(body) + " [MASK]"])
    assert INPUTS["roberta"].mask == 2


def test_the_tokens_that_close_a_text_are_kept_when_it_is_cut():
    for name in ("t5", "roberta", "wordpiece"):
        inputs = INPUTS[name]
        row = inputs.batch(["the cat sat on the mat " * 9])["tokens"][0]
        whole = inputs.encode("the cat sat on the mat " * 9)
        closing = inputs._special[1]
        np.testing.assert_array_equal(row, np.r_[whole[: 16 - closing], whole[len(whole) - closing :]])


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2**27)  # takes no space
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_: pytest.fail("it was read"))
    with pytest.raises(zoo.ZooError, match="is not a tokenizer's JSON"):
        read_tokenizer(tmp_path, 16)
