"""Vocabularies without a tokenizer.json: ids and text as the libraries that wrote them give them, on texts of ten
scripts and on parts of these side by side."""

import json
import random

import pytest
import sentencepiece
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from zoo.errors import ZooError
from zoo.inputs.text import read_tokenizer
from zoo.inputs.tokenizer_files import PATTERNS

TEXTS = [
    "Die Straße führt nach Zürich; déjà vu, naïve façade, Ångström & Łódź.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία, είπε \u03bf Οδυσσέας.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน",
    "天地玄黄\uff0c宇宙洪荒。日月盈昃\uff0c辰宿列张。",
    "いろはにほへと ちりぬるを カタカナも漢字もある。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "👩‍👩‍👧 emoji 😀🎉🇫🇷 and ☃️, 3.14159 in 2026, 1,000,000 times; it's we'll I'D they've",
    "def f(x):\n\treturn {'a': x ** 2}  # code\n\n\nif  a != b:   pass",
    "  two  spaces, a\u00a0hard one,\ttabs\t\tand \u3000wide ones \u200b , ﬁne ① \uff46\uff55\uff4c\uff4c ",
    "e\u0301 is é, \u1112\u1161\u11ab is 한",
]
ODD = ["", " ", "   ", "\n", "a", " a", "a ", "日", "ß", "▁", "#", "\u200d", "0", "unheard 龘 Ω ⟁ Ꙃ"]
SEEN = TEXTS[:10] + TEXTS[11:12]  # what is trained on: the other texts have characters that are unknown


def mixed(number):
    """Texts of parts of the others."""
    rng = random.Random(number)
    for _ in range(number):
        parts = [text[(i := rng.randrange(len(text))) : i + rng.randrange(1, 30)] for text in rng.choices(TEXTS, k=3)]
        yield rng.choice(["", " ", "\n"]).join(parts)


ALL = [*TEXTS, *ODD, *mixed(200)]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A function that trains a model of SentencePiece, and gives its file and the library's processor."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "texts").write_text("\n".join(line for text in SEEN for line in text.splitlines()) * 4)

    def train(**settings):
        name = folder / "_".join(map(str, settings.values())).replace("/", "")
        if not name.with_suffix(".model").exists():
            sentencepiece.SentencePieceTrainer.train(
                input=str(folder / "texts"), model_prefix=str(name), minloglevel=2, **settings
            )
        path = name.with_suffix(".model")
        return path, sentencepiece.SentencePieceProcessor(model_file=str(path))

    return train


T5 = {
    "model_type": "unigram",
    "vocab_size": 420,
    "pad_id": 0,
    "eos_id": 1,
    "unk_id": 2,
    "bos_id": -1,
    "hard_vocab_limit": False,
}
XLM_R = {"model_type": "unigram", "vocab_size": 400, "hard_vocab_limit": False}
LLAMA = {
    **{"model_type": "bpe", "vocab_size": 800, "byte_fallback": True, "split_digits": True},
    **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True},
}
GEMMA = {
    **{**LLAMA, "add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
    **{"bos_piece": "<bos>", "eos_piece": "<eos>", "user_defined_symbols": "<tool>,▁▁,▁▁▁,\t,\t\t"},
}


def folder_with(folder, kind, files, **config):
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **config}))
    return folder


def of_pieces(trained, settings, name, kind, folder, **config):
    path, processor = trained(**settings)
    return read_tokenizer(folder_with(folder, kind, {name: path.read_bytes()}, **config), 64), processor


def shown(inputs, tokens):
    """The text of tokens, without special ones."""
    return inputs._library.decode(tokens, skip_special_tokens=True)


def test_t5s_pieces_end_and_sentinels(trained, tmp_path):
    inputs, processor = of_pieces(trained, T5, "spiece.model", "T5Tokenizer", tmp_path)
    assert inputs.tokenizer == "unigram"
    for text in ALL:
        tokens = processor.encode(text)
        assert inputs.encode(text).tolist() == [*tokens, 1], text
        if 2 not in tokens:
            assert shown(inputs, tokens) == processor.decode(tokens)
    size = processor.vocab_size()
    assert inputs.vocab_size == size + 100
    assert [inputs._library.token_to_id(f"<extra_id_{i}>") for i in (0, 1, 99)] == [size + 99, size + 98, size]
    a = processor.encode("a")
    assert inputs.encode("a <extra_id_0> a").tolist() == [*a, size + 99, *a, 1]


def test_xlm_rs_ids_are_shifted(trained, tmp_path):
    inputs, processor = of_pieces(trained, XLM_R, "sentencepiece.bpe.model", "XLMRobertaTokenizer", tmp_path)
    for text in ALL:
        tokens = [i + 1 if i else 3 for i in processor.encode(text)]
        assert inputs.encode(text).tolist() == [0, *tokens, 2], text
        if 3 not in tokens:
            assert shown(inputs, tokens) == processor.decode(processor.encode(text))
    assert inputs.mask == inputs.vocab_size - 1 == processor.vocab_size() + 1


def test_llamas_bytes_and_spaces(trained, tmp_path):
    inputs, processor = of_pieces(trained, LLAMA, "tokenizer.model", "LlamaTokenizer", tmp_path)
    for text in ALL:
        tokens = processor.encode(text)
        assert inputs.encode(text).tolist() == [1, *tokens], text
        assert shown(inputs, tokens) == processor.decode(tokens) == text.replace("▁", " ")


def test_gemmas_text_has_no_space_before_it(trained, tmp_path):
    inputs, processor = of_pieces(
        trained, GEMMA, "tokenizer.model", "GemmaTokenizer", tmp_path, bos_token="<bos>", add_eos_token=True
    )
    for text in [*ALL, "a<tool>b", "<tool>"]:
        tokens = processor.encode(text)
        assert inputs.encode(text).tolist() == [2, *tokens, 1], text
        assert inputs._library.decode(tokens) == processor.decode(tokens) == text.replace("▁", " ")


@pytest.mark.parametrize("old", [False, True])
def test_added_tokens_follow_the_pieces(old, trained, tmp_path):
    tokens = {"<|im_start|>": 800, "<call>": 801}
    about = {"add_bos_token": False, "eos_token": {"content": "<|im_start|>"}, "add_eos_token": True}
    if old:
        (tmp_path / "added_tokens.json").write_text(json.dumps(tokens))
        about["additional_special_tokens"] = ["<|im_start|>"]
    else:
        about["added_tokens_decoder"] = {
            str(i): {"content": token, "special": token != "<call>"} for token, i in tokens.items()
        }
    inputs, processor = of_pieces(trained, LLAMA, "tokenizer.model", "LlamaTokenizer", tmp_path, **about)
    a = processor.encode("a")
    ids = inputs.encode("a<|im_start|>a<call>").tolist()
    assert ids == [*a, 800, *a, 801, 800]
    assert shown(inputs, ids).split() == ["a", "a<call>"]
    assert inputs.vocab_size == 802


@pytest.fixture(scope="session")
def merges():
    """Byte-level BPE of the library: its vocabulary and merges, for a way to cut texts."""

    def train(pattern):
        made = tokenizers.Tokenizer(models.BPE())
        cuts = [pre_tokenizers.Split(tokenizers.Regex(one), "isolated") for one in PATTERNS[pattern]]
        made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(False, use_regex=False)])
        made.normalizer = normalizers.NFC()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator(SEEN * 3, trainer)
        model = json.loads(made.to_str())["model"]
        return model["vocab"], [tuple(pair) for pair in model["merges"]]

    return train


def gpt2_files(vocabulary, merges):
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges), ""]
    return {"vocab.json": json.dumps(vocabulary), "merges.txt": "\n".join(lines)}


@pytest.mark.parametrize("prefix", [False, True])
def test_gpt2s_and_robertas_vocabularies_with_merges(prefix, merges, tmp_path):
    vocabulary, pairs = merges("gpt-2")
    reference = tokenizers.Tokenizer(models.BPE(vocabulary, pairs))
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    own = {**vocabulary, **{name: 600 + i for i, name in enumerate(names)}}
    inputs = {}
    for kind, held in (("GPT2Tokenizer", {**vocabulary, "<|endoftext|>": 600}), ("RobertaTokenizer", own)):
        (tmp_path / kind).mkdir()
        folder_with(tmp_path / kind, kind, gpt2_files(held, pairs), add_prefix_space=prefix)
        inputs[kind] = read_tokenizer(tmp_path / kind, 64)
    for text in ALL:
        tokens = reference.encode(text).ids
        assert inputs["GPT2Tokenizer"].encode(text).tolist() == tokens, text
        assert inputs["RobertaTokenizer"].encode(text).tolist() == [600, *tokens, 602], text
        assert shown(inputs["GPT2Tokenizer"], tokens) == " " * (prefix and text[:1] not in ("", " ")) + text
    assert inputs["GPT2Tokenizer"].encode("a<|endoftext|>")[-1] == 600
    masked = inputs["RobertaTokenizer"].encode("a <mask>")
    assert masked.tolist() == [600, *reference.encode("a").ids, 604, 602]  # the space is the mask's


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"tokenize_chinese_chars": False},
    ],
)
def test_berts_pieces_of_words(config, tmp_path):
    settings = {
        "lowercase": config.get("do_lower_case", True),
        "strip_accents": config.get("strip_accents"),
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
    }
    made = tokenizers.BertWordPieceTokenizer(**settings)
    made.train_from_iterator(SEEN * 3, vocab_size=500, show_progress=False)
    lines = sorted(made.get_vocab(), key=made.get_vocab().get)
    folder_with(tmp_path, "BertTokenizer", {"vocab.txt": "\n".join(lines) + "\n"}, **config)
    reference = tokenizers.BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), **settings)
    inputs = read_tokenizer(tmp_path, 64)
    for text in ALL:
        tokens = reference.encode(text).ids
        assert inputs.encode(text).tolist() == tokens, text
        assert shown(inputs, tokens) == reference.decode(tokens)
    assert inputs.mask == lines.index("[MASK]")


def one_line(folder, match):
    with pytest.raises(ZooError, match=match) as caught:
        read_tokenizer(folder, 8)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("why", "kind", "files", "config"),
    [
        ("invalid type: string", "GPT2Tokenizer", {"vocab.json": '{"a": "b"}', "merges.txt": ""}, {}),
        ("Token `c` out of vocabulary", "GPT2Tokenizer", {"vocab.json": '{"a": 0, "b": 1}', "merges.txt": "a c\n"}, {}),
        ("'<s>' is not a token", "RobertaTokenizer", {"vocab.json": '{"a": 0}', "merges.txt": ""}, {}),
        (
            "a space before a text goes with GPT-2's way",
            "Qwen2Tokenizer",
            {"vocab.json": '{"a": 0}', "merges.txt": ""},
            {"add_prefix_space": True},
        ),
        ("'<|im_end|>' must have the id 800", "LlamaTokenizer", None, {"9": {"content": "<|im_end|>"}}),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused_with_its_file(why, kind, files, config, trained, tmp_path):
    if files is None:
        files, config = (
            {"tokenizer.model": trained(**LLAMA)[0].read_bytes()},
            {"added_tokens_decoder": {"803": {"content": "<|im_end|>"}}},
        )
    one_line(folder_with(tmp_path, kind, files, **config), why.replace("|", r"\|"))


def test_a_model_of_sentencepiece_cut_between_its_fields_is_refused(trained, tmp_path):
    """What protobuf reads without complaint: some pieces, and no settings."""
    good = trained(**LLAMA)[0].read_bytes()
    place, cuts = 0, [0]
    while good[place] == 10:  # a piece: its size in one byte, and itself
        place += 2 + good[place + 1]
        cuts.append(place)
    assert len(cuts) > 800
    for cut in cuts[::80]:
        one_line(
            folder_with(tmp_path, "LlamaTokenizer", {"tokenizer.model": good[:cut]}), "unknown piece|lacks its settings"
        )
