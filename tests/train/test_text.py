"""Texts: tokenizers there and back, streams that go on from batch to batch, labelled tables, and wrong files."""

import itertools
import sys

import jax
import numpy as np
import pytest

import zoo
from train import LabelledTextConfig, TextConfig
from train.data import eval_batches, load_dataset, stdlib, train_batches
from train.data.dataset import ArraySplit
from train.data.text import Stream, snippets
from zoo.inputs import inputs_from_json
from zoo.inputs.text import TextInputs, learn

TEXT = "def f(x):\n    return x + 1  # naïve — 日本\n" * 20


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_every_text_comes_back(tokenizer):
    inputs = learn(tokenizer, [TEXT], 300, 16)
    tokens = inputs.encode(TEXT)
    assert inputs.decode(tokens) == TEXT
    assert tokens.max() < inputs.vocab_size
    assert inputs.characters[tokens].sum() == len(TEXT)
    again = inputs_from_json(inputs.to_json())
    assert again == inputs
    np.testing.assert_array_equal(again.encode(TEXT), tokens)


def test_words_that_are_rare_are_one_unknown():
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
    with pytest.raises(zoo.ZooError, match="is not a tokenizer that the library can use"):
        TextInputs("bpe", "{}", 4).encode("a")


# Streams.


def stream(size=101, window=4):
    return Stream(np.arange(size).astype(np.uint16), window, np.ones(size, np.float32))


def test_rows_go_on_where_they_ended_and_targets_are_the_next_symbols():
    batches = train_batches(stream(), 5, seed=3)
    before = batches(0)
    for k in range(1, 60):
        batch = batches(k)
        np.testing.assert_array_equal(batch["tokens"][:, 0], before["targets"][:, -1])
        np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
        np.testing.assert_array_equal(batch["targets"], (batch["tokens"] + 1) % 101)
        before = batch


def test_an_epoch_reads_every_symbol_once():
    batches = train_batches(stream(120), 5, seed=1)  # 120 tokens are 6 batches of 5 rows of 4
    seen = np.concatenate([batches(k)["tokens"].ravel() for k in range(6)])
    assert sorted(seen.tolist()) == list(range(120))
    assert batches(0)["tokens"][0, 0] != train_batches(stream(120), 5, seed=2)(0)["tokens"][0, 0]


def test_processes_read_their_own_rows_of_the_global_batch():
    whole = train_batches(stream(), 6, seed=0)(7)
    parts = [train_batches(stream(), 6, 0, rows)(7) for rows in np.split(np.arange(6), 3)]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100, 150])
@pytest.mark.parametrize("window", [1, 4, 64])
def test_evaluation_tells_each_symbol_once(batch_size, window):
    told = []
    for batch in eval_batches(stream(101, window), batch_size):
        told += batch["targets"][batch["weight"] > 0].tolist()
        np.testing.assert_array_equal((batch["tokens"] + 1)[batch["weight"] > 0], batch["targets"][batch["weight"] > 0])
    assert sorted(told) == list(range(1, 101))


def test_evaluation_rows_go_on_from_batch_to_batch():
    batches = list(eval_batches(stream(101, 4), 3))
    for before, batch in itertools.pairwise(batches):
        on = batch["weight"][:, 0] > 0
        np.testing.assert_array_equal(batch["tokens"][on, 0], before["targets"][on, -1])


# Files and sets.


def test_the_standard_library_is_there_and_held_out_by_module():
    name, texts = stdlib.load()
    assert name.startswith(f"the standard library of Python {sys.version.split()[0]} (sha256 ")
    assert len(texts) == 40
    dataset = load_dataset(TextConfig("stdlib"), (64,))
    assert dataset.train.size > 1_500_000
    held_out = dataset.inputs.decode(dataset.validation.tokens)
    assert held_out == "\n".join(texts[module] for module in stdlib.VALIDATION)


def test_a_text_file_and_its_last_tenth(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghij" * 10)
    dataset = load_dataset(TextConfig(path=str(tmp_path / "a.txt"), context=4), (64,))
    assert (len(dataset.train.tokens), len(dataset.validation.tokens), dataset.test) == (90, 10, None)
    assert dataset.inputs.vocabulary == "abcdefghij"
    kept = load_dataset(TextConfig(path=str(tmp_path / "a.txt")), (64,), TextInputs("byte", "", 4))
    assert kept.inputs.tokenizer == "byte"  # a run's own vocabulary stands


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
        load_dataset(TextConfig(path=str(tmp_path / "x.txt")), (64,))


def test_a_missing_file_and_a_text_shorter_than_a_batch(tmp_path):
    with pytest.raises(zoo.ZooError, match=r"data\.path '.*none.txt' is no file or folder"):
        load_dataset(TextConfig(path=str(tmp_path / "none.txt")), (64,))
    with pytest.raises(zoo.ZooError, match="the training text has 101 tokens, fewer than one batch of batch-size 30"):
        train_batches(stream(), 30, seed=0)


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
    config = LabelledTextConfig(path=str(tmp_path), tokenizer="word", context=5)
    dataset = load_dataset(config, (64,))
    assert dataset.inputs.labels == ("no", "yes")
    assert dataset.test is None
    batch = next(eval_batches(dataset.validation, 2))
    assert (batch["label"][0], batch["length"][0], batch["weight"].tolist()) == (1, 1, [1, 0])
    (tmp_path / "plain.tsv").write_text("a b\tx\nc\ty\n" * 10)
    plain = load_dataset(LabelledTextConfig(path=str(tmp_path / "plain.tsv"), context=5), (64,))
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
        load_dataset(LabelledTextConfig(path=str(tmp_path / "t.tsv")), (64,))


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


def test_texts_come_with_others_of_their_length_and_lose_none_of_their_tokens():
    batches = train_batches(lengths_split(), 20, seed=0)
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
    order = [train_batches(lengths_split(), 20, seed=0)(k)["length"].max() for k in range(8)]
    assert order != sorted(order)


def test_every_process_pads_to_the_longest_text_of_the_whole_batch():
    whole = train_batches(lengths_split(), 20, seed=0)(49)
    parts = [train_batches(lengths_split(), 20, 0, rows)(49) for rows in np.split(np.arange(20), 4)]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
