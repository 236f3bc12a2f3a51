"""Vocabularies in files of before tokenizer.json: ids as transformers' tokenizers and tiktoken give them from the same
files, on a text in many scripts."""

import base64
import json
import pathlib
import sys
import unicodedata

import numpy as np
import pytest
from peers import transformers
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, trainers

import zoo
from zoo.inputs.text import read_tokenizer
from zoo.inputs.tokenizer_files import PATTERNS

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "zoo"))
from test_vocabulary_files import SCRIPTS, UNSEEN

pytestmark = pytest.mark.parity
TEXTS = (*SCRIPTS, *UNSEEN, "a<mask> b", "[MASK] x", "<|endoftext|>y")


def written(folder, kind, **about):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **about}))
    return folder


@pytest.mark.parametrize(
    ("kind", "special", "about"),
    [
        ("BertTokenizer", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], {}),
        ("BertTokenizer", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], {"do_lower_case": False}),
        ("DistilBertTokenizer", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], {}),
        ("MPNetTokenizer", ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"], {}),
    ],
)
def test_words(kind, special, about, tmp_path):
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(SCRIPTS * 3, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    tokens = sorted(made.get_vocab(), key=made.get_vocab().get)
    (written(tmp_path / "x", kind, **about) / "vocab.txt").write_text("\n".join(tokens) + "\n")
    theirs = getattr(transformers, kind)(str(tmp_path / "x" / "vocab.txt"), **about)
    inputs = read_tokenizer(tmp_path / "x", 16)
    for text in TEXTS:
        assert inputs.encode(text).tolist() == theirs(text)["input_ids"], text


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "Qwen2Tokenizer"])
def test_merges(kind, tmp_path):
    made = ByteLevelBPETokenizer()
    special = ["<|endoftext|>"] if kind in ("GPT2Tokenizer", "Qwen2Tokenizer") else []
    special = special or ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made.train_from_iterator(SCRIPTS * 3, vocab_size=600, special_tokens=special)
    made.save_model(str(written(tmp_path / "x", kind)))
    files = [str(tmp_path / "x" / name) for name in ("vocab.json", "merges.txt")]
    theirs = getattr(transformers, kind)(*files)
    inputs = read_tokenizer(tmp_path / "x", 16)
    for text in TEXTS:
        assert inputs.encode(text).tolist() == theirs(text)["input_ids"], text


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("PreTrainedTokenizerFast", "tokenizer.model"),
        ("LlamaTokenizer", "tokenizer.model"),
        ("Qwen2Tokenizer", "qwen.tiktoken"),
        ("QWenTokenizer", "qwen.tiktoken"),
    ],
)
def test_ranks(kind, name, tmp_path):
    tiktoken = pytest.importorskip("tiktoken", reason="its ranks are compared")
    (pattern,) = PATTERNS["qwen2" if name == "qwen.tiktoken" else "llama3"]
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(SCRIPTS * 3, vocab_size=600)
    letters = zoo.inputs.vocabulary_files._letters()
    back = {letter: byte for byte, letter in enumerate(letters)}
    tokens = [
        bytes(back[letter] for letter in token) for token, _ in sorted(made.get_vocab().items(), key=lambda x: x[1])
    ]
    ranks = {token: i for i, token in enumerate(tokens)}
    rows = b"".join(base64.b64encode(token) + b" %d\n" % i for token, i in ranks.items())
    special = {"<|begin_of_text|>": len(ranks), "<|end|>": len(ranks) + 1}
    added = {str(i): {"content": token} for token, i in special.items()}
    (written(tmp_path / "x", kind, added_tokens_decoder=added) / name).write_bytes(rows)
    theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    inputs = read_tokenizer(tmp_path / "x", 16)
    first = [] if name == "qwen.tiktoken" else [len(ranks)]
    for text in (*TEXTS, "a<|end|>b"):
        if name == "qwen.tiktoken":
            text = unicodedata.normalize("NFC", text)
        assert inputs.encode(text).tolist() == [*first, *theirs.encode(text, allowed_special="all")], text
        assert inputs.decode(inputs.encode(text)[len(first) :]) == text
    assert np.array_equal(inputs.encode(""), first)
    own = {"LlamaTokenizer": ("<|eot_id|>", 9, 256), "QWenTokenizer": ("<|im_end|>", 2, 208)}
    if kind in own:  # whose special tokens follow where the folder names none: 128,256 of Llama 3, 151,851 of Qwen
        token, place, size = own[kind]
        inputs = read_tokenizer(written(tmp_path / "x", kind), 16)
        assert inputs.encode(token).tolist() == [*first, len(ranks) + place]
        assert inputs.vocab_size == len(ranks) + size
