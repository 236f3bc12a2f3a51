"""Texts: tokenizers round-trip, streams continue from batch to batch, labelled tables, and wrong files."""

import itertools
import sys

import jax
import numpy as np
import pytest

import zoo
from train import LabelledTextData, TextData
from train.data import stdlib
from train.data.labelled_text import snippets
from train.data.source import ArraySplit
from train.data.streams import Stream
from zoo.inputs import inputs_from_json
from zoo.inputs.text import TextInputs, learn

TEXT = "def f(x):\n    return x + 1  # naïve — 日本\n" * 20


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_every_text_round_trips(tokenizer):
    inputs = learn(tokenizer, [TEXT], 300, 16)
    tokens = inputs.encode(TEXT)
    assert inputs.decode(tokens) == TEXT
    assert tokens.max() < inputs.vocab_size
    counted, characters = inputs.encode_counted(TEXT)
    np.testing.assert_array_equal(counted, tokens)
    assert characters.sum() == len(TEXT)
    again = inputs_from_json(inputs.to_json())
    assert again == inputs
    np.testing.assert_array_equal(again.encode(TEXT), tokens)


def test_rare_words_are_the_unknown_token():
    inputs = learn("word", ["a a a b b c", "a b"], 3, 8)
    assert inputs.vocab_size == 3
    assert inputs.decode(inputs.encode("a c b d")) == "a [UNK] b [UNK]"
    batch = inputs.batch(["a b", "", "a " * 20])
    assert batch["length"].tolist() == [2, 0, 8]
    assert batch["tokens"].shape == (3, 8)


def test_unknown_characters_and_tokens_are_named():
    inputs = TextInputs("char", "abc", 4)
    with pytest.raises(zoo.ZooError, match="'x', 'é' is not among the 3 characters"):
        inputs.encode("abxéx")
    with pytest.raises(zoo.ZooError, match="token 3 is outside the vocabulary of 3"):
        inputs.decode([0, 3])
    with pytest.raises(zoo.ZooError, match="a text must be a str, not bytes"):
        inputs.encode(b"abc")
    with pytest.raises(zoo.ZooError, match=r"tokenizer must be one of char, byte, bpe, .*, unigram, not 'x'"):
        TextInputs("x", "", 4)
    with pytest.raises(zoo.ZooError, match="the vocabulary is not a tokenizer that the library can use"):
        TextInputs("bpe", "{}", 4).encode("a")


# Streams.


def stream(size=101, window=4):
    return Stream(np.arange(size).astype(np.uint16), window, np.ones(size, np.float32))


def test_rows_continue_from_batch_to_batch_and_targets_are_the_next_tokens():
    batches = stream().batches(5, seed=3)
    before = batches(0)
    for k in range(1, 60):
        batch = batches(k)
        np.testing.assert_array_equal(batch["tokens"][:, 0], before["targets"][:, -1])
        np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
        np.testing.assert_array_equal(batch["targets"], (batch["tokens"] + 1) % 101)
        before = batch


def test_an_epoch_reads_every_token_once():
    batches = stream(120).batches(5, seed=1)  # 120 tokens are 6 batches of 5 rows of 4
    seen = np.concatenate([batches(k)["tokens"].ravel() for k in range(6)])
    assert sorted(seen.tolist()) == list(range(120))
    assert batches(0)["tokens"][0, 0] != stream(120).batches(5, seed=2)(0)["tokens"][0, 0]


def test_processes_read_their_own_rows_of_the_global_batch():
    whole = stream().batches(6, seed=0)(7)
    parts = [stream().batches(6, 0, rows)(7) for rows in np.split(np.arange(6), 3)]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100, 150])
@pytest.mark.parametrize("window", [1, 4, 64])
def test_evaluation_predicts_each_token_once(batch_size, window):
    predicted = []
    for batch in stream(101, window).eval_batches(batch_size):
        predicted += batch["targets"][batch["weight"] > 0].tolist()
        np.testing.assert_array_equal((batch["tokens"] + 1)[batch["weight"] > 0], batch["targets"][batch["weight"] > 0])
    assert sorted(predicted) == list(range(1, 101))


def test_evaluation_rows_continue_from_batch_to_batch():
    batches = list(stream(101, 4).eval_batches(3))
    for before, batch in itertools.pairwise(batches):
        on = batch["weight"][:, 0] > 0
        np.testing.assert_array_equal(batch["tokens"][on, 0], before["targets"][on, -1])


# Files and sets.


def test_the_standard_library_is_there_and_held_out_by_module():
    name, texts = stdlib.load()
    assert name.startswith(f"the standard library of Python {sys.version.split()[0]} (sha256 ")
    assert len(texts) == 40
    dataset = TextData("stdlib").load((64,))
    assert dataset.train.size > 1_500_000
    held_out = dataset.inputs.decode(dataset.validation.tokens)
    assert held_out == "\n".join(texts[module] for module in stdlib.VALIDATION)


def test_a_text_file_and_its_last_tenth(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghij" * 10)
    dataset = TextData(path=str(tmp_path / "a.txt"), context=4).load((64,))
    assert (len(dataset.train.tokens), len(dataset.validation.tokens), dataset.test) == (90, 10, None)
    assert dataset.inputs.vocabulary == "abcdefghij"
    kept = TextData(path=str(tmp_path / "a.txt")).load((64,), TextInputs("byte", "", 4))
    assert kept.inputs.tokenizer == "byte"  # a run keeps its own vocabulary


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"abc\xff\xfe", "is not UTF-8 text: byte 0xff at 3"),
        (b"ab\x00c", "is not text: it has a zero byte at 2"),
    ],
)
def test_empty_and_binary_files(tmp_path, content, message):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(zoo.ZooError, match=message):
        TextData(path=str(tmp_path / "x.txt")).load((64,))


def test_a_missing_file_and_a_text_shorter_than_a_batch(tmp_path):
    with pytest.raises(zoo.ZooError, match=r"data\.path '.*none.txt' is no file or folder"):
        TextData(path=str(tmp_path / "none.txt")).load((64,))
    with pytest.raises(zoo.ZooError, match="the training text has 101 tokens, fewer than one batch of batch-size 30"):
        stream().batches(30, seed=0)


def test_snippets_do_not_cross_the_splits():
    text = "".join(chr(0x4E00 + i) for i in range(1000))  # every character once
    seen = {split: set() for split in ("train", "validation", "test")}
    for split, piece in snippets(text, 16):
        assert len(piece) == 16
        seen[split] |= set(piece)
    assert not seen["train"] & (seen["validation"] | seen["test"])
    assert not seen["validation"] & seen["test"]
    assert len(seen["train"]) >= 790


def test_tables_of_labelled_texts(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\ngood film\tyes\nbad film\tno\n" * 1 + "so so\tno\n")
    (tmp_path / "dev.tsv").write_text("label\tsentence\nyes\tgood\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tsecret\n")
    config = LabelledTextData(path=str(tmp_path), tokenizer="word", context=5)
    dataset = config.load((64,))
    assert dataset.inputs.labels == ("no", "yes")
    assert dataset.test is None
    batch = next(dataset.validation.eval_batches(2))
    assert (batch["label"][0], batch["length"][0], batch["weight"].tolist()) == (1, 1, [1, 0])
    (tmp_path / "plain.tsv").write_text("a b\tx\nc\ty\n" * 10)
    plain = LabelledTextData(path=str(tmp_path / "plain.tsv"), context=5).load((64,))
    assert (plain.train.size, plain.validation.size) == (18, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one column\n", "row 1 has 1 columns, not a text and a label by a tab"),
        ("a\tx\nb\tx\n", r"needs at least two labels; it has \['x'\]"),
        ("sentence\tnumber\na\t1\n", "has no column of labels"),
    ],
)
def test_wrong_tables(tmp_path, content, message):
    (tmp_path / "t.tsv").write_text(content)
    with pytest.raises(zoo.ZooError, match=message):
        LabelledTextData(path=str(tmp_path / "t.tsv")).load((64,))


def test_a_batch_is_what_the_model_takes():
    inputs = learn("word", ["a b c"], 10, 6, ("no", "yes"))
    model = zoo.create_model("lstm_classifier", hidden_size=4, embedding_size=4, **inputs.model_args())
    args, kwargs = inputs.arguments(inputs.batch(["a b", "c"]))
    variables = jax.jit(model.init)(jax.random.key(0), *args)
    assert model.apply(variables, *args, **kwargs).shape == (2, 2)


def lengths_split(size=1000):
    length = np.random.default_rng(0).integers(0, 49, size).astype(np.int32)
    tokens = np.where(np.arange(48) < length[:, None], 1, 0).astype(np.int32)
    return ArraySplit({"tokens": tokens, "length": length, "label": np.arange(size).astype(np.int32)})


def test_texts_are_batched_by_length_and_keep_all_their_tokens():
    batches = lengths_split().batches(20, seed=0)
    seen, widths, spread = [], set(), []
    for k in range(50):
        batch = batches(k)
        seen += batch["label"].tolist()
        widths.add(batch["tokens"].shape[1])
        spread.append(np.ptp(batch["length"]))
        np.testing.assert_array_equal(batch["tokens"].sum(axis=1), batch["length"])
    assert sorted(seen) == list(range(1000))  # an epoch is every example once
    assert widths == {8, 12, 16, 24, 32, 48}
    assert np.median(spread) <= 2
    order = [lengths_split().batches(20, seed=0)(k)["length"].max() for k in range(8)]
    assert order != sorted(order)


def test_every_process_pads_to_the_longest_text_of_the_whole_batch():
    whole = lengths_split().batches(20, seed=0)(49)
    parts = [lengths_split().batches(20, 0, rows)(49) for rows in np.split(np.arange(20), 4)]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
