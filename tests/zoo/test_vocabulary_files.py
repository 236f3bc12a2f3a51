"""Vocabularies without a tokenizer.json: SentencePiece's ids on a text in many scripts, and what damaged files get.

`tests/parity/test_vocabularies.py` compares with transformers and tiktoken.
"""

import io
import json

import numpy as np
import pytest
import sentencepiece

import zoo
from zoo.inputs.text import read_tokenizer

SCRIPTS = (
    "The naïve café in Zürich, déjà vu: 1234 x 56.7",
    "Быстрая коричневая лиса прыгает",
    "\u0397 γρήγορη καφέ αλεπού",
    "الثعلب البني السريع يقفز",
    "השועל החום המהיר קופץ",
    "तेज़ भूरी लोमड़ी कूदती है",
    "สุนัขจิ้งจอกสีน้ำตาลกระโดด",
    "敏捷的棕色狐狸跳过懒狗。",
    "素早い茶色の狐がのろまな犬を飛び越える",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다",
    "emoji 🙂👍🏽 and  several   spaces\tand tabs",
    "def f(x):\n    return x**2  # code",
    "ﬁligree ½ ① e\u0301",
)
UNSEEN = ("Ελλάδα και ζωή 日本国 Україна", " leading", "trailing  ", "", "ქართული ენა \U0001d518", "don't WE'LL")


def trained(kind, prefix=True, **options):
    model = io.BytesIO()
    rule = {"normalization_rule_name": "nmt_nfkc"} if kind == "unigram" else {"normalization_rule_name": "identity"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SCRIPTS * 3),
        model_writer=model,
        vocab_size=560 if kind == "bpe" else 330,
        model_type=kind,
        byte_fallback=kind == "bpe",
        remove_extra_whitespaces=kind == "unigram",
        add_dummy_prefix=prefix,
        character_coverage=1.0 if kind == "unigram" else 0.98,
        hard_vocab_limit=False,
        minloglevel=2,
        **rule,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def models():
    t5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    gemma = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>"}
    return {
        "LlamaTokenizer": trained("bpe"),
        "GemmaTokenizer": trained("bpe", prefix=False, **gemma),
        "T5Tokenizer": trained("unigram", **t5),
        "XLMRobertaTokenizer": trained("unigram"),
    }


def folder_of(kind, content, place, **about):
    names = {"T5Tokenizer": "spiece.model", "XLMRobertaTokenizer": "sentencepiece.bpe.model"}
    place.mkdir(exist_ok=True)
    (place / names.get(kind, "tokenizer.model")).write_bytes(content)
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **about}))
    return place


def expected(kind, library, text):
    """The ids by SentencePiece itself, and what transformers' class puts around them."""
    ids = library.encode(text)
    if kind == "XLMRobertaTokenizer":
        return [0, *(3 if i == library.unk_id() else i + 1 for i in ids), 2]
    return [*ids, library.eos_id()] if kind == "T5Tokenizer" else [library.bos_id(), *ids]


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "GemmaTokenizer", "T5Tokenizer", "XLMRobertaTokenizer"])
def test_a_model_of_sentencepiece_gives_its_ids(kind, models, tmp_path):
    library = sentencepiece.SentencePieceProcessor(model_proto=models[kind])
    inputs = read_tokenizer(folder_of(kind, models[kind], tmp_path / "x"), 16)
    for text in (*SCRIPTS, *UNSEEN):
        assert inputs.encode(text).tolist() == expected(kind, library, text), text
    for text in SCRIPTS[:10]:
        around = {
            "LlamaTokenizer": (1, 0),
            "GemmaTokenizer": (1, 0),
            "T5Tokenizer": (0, 1),
            "XLMRobertaTokenizer": (1, 1),
        }
        before, after = around[kind]
        ids = inputs.encode(text)
        assert inputs.decode(ids[before : len(ids) - after]) == library.decode(library.encode(text))


def test_t5s_extra_ids_and_a_saved_vocabulary(models, tmp_path):
    inputs = read_tokenizer(folder_of("T5Tokenizer", models["T5Tokenizer"], tmp_path / "x"), 16)
    size = sentencepiece.SentencePieceProcessor(model_proto=models["T5Tokenizer"]).get_piece_size()
    assert inputs.encode("a <extra_id_0> b").tolist().count(size + 99) == 1
    assert inputs.vocab_size == size + 100
    (tmp_path / "tokenizer.json").write_text(inputs.vocabulary)
    again = read_tokenizer(tmp_path, 16)
    assert again.encode(SCRIPTS[0]).tolist() == inputs.encode(SCRIPTS[0]).tolist()


def test_tokens_that_are_added(models, tmp_path):
    library = sentencepiece.SentencePieceProcessor(model_proto=models["LlamaTokenizer"])
    size = library.get_piece_size()
    added = {str(size): {"content": "<|im_start|>", "special": True}, "1": {"content": "<s>"}}
    folder = folder_of("LlamaTokenizer", models["LlamaTokenizer"], tmp_path / "x", added_tokens_decoder=added)
    assert size in read_tokenizer(folder, 16).encode("hi<|im_start|>you").tolist()
    plain = folder_of(
        "LlamaTokenizer", models["LlamaTokenizer"], tmp_path / "y", add_bos_token=False, add_eos_token=True
    )
    ids = read_tokenizer(plain, 16).encode("hi").tolist()
    assert ids == [*library.encode("hi"), library.eos_id()]


def refused(folder, message):
    with pytest.raises(zoo.ZooError, match=message) as caught:
        read_tokenizer(folder, 16)
    assert "\n" not in str(caught.value)


def test_damaged_files_get_one_line(models, tmp_path):
    content = models["LlamaTokenizer"]
    refused(folder_of("LlamaTokenizer", content[: len(content) // 2], tmp_path / "cut"), "tokenizer.model'")
    refused(folder_of("LlamaTokenizer", b"", tmp_path / "empty"), "it must have one unknown piece, not 0")
    refused(folder_of("LamaTokenizer", content, tmp_path / "class"), "'LamaTokenizer'; did you mean LlamaTokenizer")
    words = tmp_path / "words"
    words.mkdir()
    (words / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (words / "vocab.txt").write_text("a\nb\n")
    refused(words, r"it must have a token \[UNK\]")
    (words / "vocab.txt").write_bytes(b"\xff\xfe\n")
    refused(words, "is no vocabulary: ")
    merges = tmp_path / "merges"
    merges.mkdir()
    (merges / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (merges / "vocab.json").write_text('{"a": 0}')
    (merges / "merges.txt").write_text("#version: 0.2\na b c\n")
    refused(merges, "a line of merges.txt must be two tokens")
    (merges / "merges.txt").write_text("a b\n")
    refused(merges, "not a tokenizer that the library can use")
    ranks = tmp_path / "ranks"
    ranks.mkdir()
    (ranks / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    (ranks / "qwen.tiktoken").write_text("IQ== 0\n")
    refused(ranks, "it must have all 256 bytes")
    (ranks / "qwen.tiktoken").write_text("I 0\n")
    refused(ranks, "is no vocabulary: ")


def test_mutations_of_a_model_are_read_or_refused(models, tmp_path):
    rng = np.random.default_rng(0)
    content, refused = models["T5Tokenizer"], 0
    for number in range(60):
        changed = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            changed[place] = rng.integers(0, 256)
        folder = folder_of("T5Tokenizer", bytes(changed), tmp_path / str(number))
        try:
            read_tokenizer(folder, 16).encode("the cat")
        except zoo.ZooError:
            refused += 1
    assert refused
