"""Pairs: dates as a pure function, vocabularies of both sides, batches of few widths, and wrong files."""

import datetime
import itertools
import os
import random
import re

import numpy as np
import pytest

import zoo
from train import ImageData, PairData, TextData
from train.data import dates, stdlib
from train.data.pairs import PairSplit
from train.quality import edit_distance
from zoo.inputs import inputs_from_json
from zoo.inputs.pairs import BEGIN, END, SPECIAL, UNKNOWN, PairInputs, learn_pairs
from zoo.inputs.text import TextInputs

PAIRS = [("ein Hund rennt", "a dog runs"), ("ein Mann rennt", "a man runs"), ("Zwei Hunde", "Two dogs")]


# Dates.


def test_a_date_is_a_pure_function_of_seed_split_and_number():
    whole = [dates.example(3, "train", k) for k in range(50)]
    assert [dates.example(3, "train", k) for k in reversed(range(50))] == whole[::-1]
    assert whole != [dates.example(4, "train", k) for k in range(50)]
    assert whole != [dates.example(3, "test", k) for k in range(50)]


def test_no_day_is_in_two_splits():
    days = {split: {dates.example(0, split, k)[1] for k in range(1000)} for split in dates.SIZES}
    for a, b in itertools.combinations(days.values(), 2):
        assert not a & b
    shares = np.unique([dates.split_of(day) for day in range(dates.DAYS)], return_counts=True)[1] / dates.DAYS
    np.testing.assert_allclose(shares, [0.1, 0.8, 0.1], atol=0.01)  # test, train, validation


def test_numeric_dates_have_the_day_first_unless_iso_or_american():
    pairs = [dates.example(0, "train", k) for k in range(3000)]
    numeric = [(written, iso) for written, iso in pairs if re.fullmatch(r"[US\d /.-]+", written)]
    assert len(numeric) > 500
    for written, iso in numeric:
        a, b, c = map(int, re.findall(r"\d+", written))
        day = (c, a, b) if written.startswith("US ") else (a, b, c) if a > 31 else (c, b, a)
        assert datetime.date(*day).isoformat() == iso, written


def test_typing_errors_are_of_letters_and_leave_one_month_the_nearest():
    names = [(name, month) for months, _, _ in dates.LANGUAGES.values() for month, name in enumerate(months.split(), 1)]
    for name, month in names:
        for slip in dates.slips_of(name):
            assert slip.isalpha()
            if dates.near(slip) == {month}:
                others = min(edit_distance(slip.lower(), other.lower()) for other, number in names if number != month)
                assert others > 1, (slip, name)


def test_each_written_date_means_one_day_and_has_its_year_and_day():
    meanings = {}
    for written, iso in (dates.example(1, "train", k) for k in range(5000)):
        meanings.setdefault(written.lower(), set()).add(iso)
        numbers = {int(number) for number in re.findall(r"\d+", written)}
        assert {int(iso[:4]), int(iso[8:])} <= numbers, written
        assert len(written) <= dates.LONGEST
    assert all(len(days) == 1 for days in meanings.values())


def test_a_month_is_shortened_only_where_no_other_begins_so():
    texts = {dates.written(datetime.date(2001, 7, 4), random.Random(i)) for i in range(3000)}
    assert any(re.search(r"\bjui\b", text) for text in texts) is False  # juin or juillet
    texts = {dates.written(datetime.date(2001, 10, 4), random.Random(i)) for i in range(300)}
    assert any(re.search(r"\bOct\b", text) for text in texts)


# Inputs.


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe", "unigram", "word"])
def test_a_target_and_the_inputs_round_trip(tokenizer):
    inputs = learn_pairs(PAIRS, (tokenizer, tokenizer), 300, (40, 40), shared=False, lowercase=False)
    tokens = inputs.tokens(inputs.target, "a dog runs")
    assert tokens[-1] == END
    assert tokens[:-1].min() >= SPECIAL
    assert inputs.decode(tokens) == "a dog runs"
    assert inputs.decode(np.r_[tokens, tokens]) == "a dog runs"  # nothing after the end
    pieces = inputs.pieces(inputs.target, tokens)
    assert ("".join(pieces[:-1]).replace(" ", ""), pieces[-1]) == ("adogruns", "</s>")
    again = inputs_from_json(inputs.to_json())
    assert again == inputs
    np.testing.assert_array_equal(again.encode("ein Hund"), inputs.encode("ein Hund"))


def test_both_sides_may_share_a_vocabulary_and_lose_their_capitals():
    apart = learn_pairs(PAIRS, ("word", "char"), 100, (9, 20), shared=False, lowercase=False)
    assert apart.model_args() == {"vocab_size": len(set("a dog runsmanTwo dogs")) + 4, "source_vocab_size": 6 + 1 + 4}
    shared = learn_pairs(PAIRS, ("bpe", "bpe"), 280, (9, 20), shared=True, lowercase=True)
    assert list(shared.model_args()) == ["vocab_size"]
    np.testing.assert_array_equal(shared.encode("ZWEI"), shared.encode("zwei"))
    assert shared.shape == (20,)
    with pytest.raises(zoo.ZooError, match="a shared vocabulary needs one tokenizer, not word and bpe"):
        learn_pairs(PAIRS, ("word", "bpe"), 300, (9, 9), shared=True, lowercase=False)


def test_unknown_characters_are_one_token_and_sources_too_long_or_empty_are_refused():
    inputs = PairInputs(TextInputs("char", "abc", 5), TextInputs("char", "xyz", 5))
    assert inputs.encode("aqb").tolist() == [SPECIAL, UNKNOWN, SPECIAL + 1, END]
    assert inputs.decode([SPECIAL, UNKNOWN, SPECIAL + 2]) == "x\ufffdz"
    with pytest.raises(zoo.ZooError, match="the source has 6 tokens, more than the model's limit of 5: 'abcab'"):
        inputs.encode("abcab")
    with pytest.raises(zoo.ZooError, match="at least one character"):
        inputs.encode("  ")
    with pytest.raises(zoo.ZooError, match="a text must be a str, not int"):
        inputs.encode(3)


def test_the_decoder_reads_the_token_before_each_target():
    inputs = PairInputs(TextInputs("char", "abc", 5), TextInputs("char", "xyz", 5))
    target = np.array([[4, 5, END], [6, END, 0]], np.int32)
    args, kwargs = inputs.arguments({**inputs.batch(["a", "abc"]), "target": target})
    np.testing.assert_array_equal(args[0], [[BEGIN, 4, 5], [BEGIN, 6, END]])
    np.testing.assert_array_equal(kwargs["source_lengths"], [2, 4])
    assert kwargs["source"].shape == (2, 5)


# Batches.


def split(size=1000):
    rng = np.random.default_rng(0)
    arrays = {}
    for name, length in (("source", "source_length"), ("target", "length")):
        arrays[length] = rng.integers(1, 41, size).astype(np.int32)
        arrays[name] = np.where(np.arange(40) < arrays[length][:, None], np.arange(size)[:, None] + 4, 0)
    return PairSplit(arrays, [])


def test_batches_are_a_pure_function_of_few_widths_and_lose_nothing():
    seen, shapes = [], set()
    batches = split().batches(20, seed=5)
    for k in range(50):
        batch = batches(k)
        seen += (batch["source"][:, 0] - 4).tolist()
        shapes.add((batch["source"].shape[1], batch["target"].shape[1]))
        for name, length in (("source", "source_length"), ("target", "length")):
            np.testing.assert_array_equal((batch[name] > 0).sum(axis=1), batch[length])
    assert sorted(seen) == list(range(1000))
    assert {width for shape in shapes for width in shape} <= {8, 12, 16, 24, 32, 40}
    again = split().batches(20, seed=5)(17)
    np.testing.assert_equal(again, batches(17))
    parts = [split().batches(20, 5, rows)(17) for rows in np.split(np.arange(20), 4)]
    for name, array in again.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


# Files and sets.


def write(path, text):
    path.write_text(text)
    return str(path)


def test_a_table_its_splits_and_its_last_tenth(tmp_path):
    table = write(tmp_path / "pairs.tsv", "".join(f"s{i}\tt {i}\n" for i in range(50)))
    dataset = PairData(path=table).load(())
    assert (dataset.train.size, dataset.validation.size, dataset.test) == (45, 5, None)
    assert dataset.validation.texts[0] == ("s45", "t 45")
    batch = dataset.train.read(np.array([7]))
    assert dataset.inputs.decode(batch["target"][0]) == "t 7"
    assert (batch["source_length"][0], batch["length"][0], dataset.inputs.shape) == (3, 4, (5,))
    write(tmp_path / "train.tsv", "a\tb\nc\td\n")
    write(tmp_path / "dev.tsv", "e\tf\n")
    write(tmp_path / "test.tsv", "g\th\n")
    dataset = PairData(path=str(tmp_path)).load((), PairInputs(*[TextInputs("byte", "", 9)] * 2))
    assert (dataset.train.size, dataset.validation.texts, dataset.test.texts) == (2, [("e", "f")], [("g", "h")])
    assert dataset.inputs.source.tokenizer == "byte"  # a run keeps its own vocabulary


def test_two_files_line_for_line(tmp_path):
    sources, targets = write(tmp_path / "a.de", "ein\nzwei\n"), write(tmp_path / "a.en", "one\ntwo")
    dataset = PairData(path=sources, target_path=targets, lowercase=True).load(())
    assert (dataset.train.texts, dataset.validation) == ([("ein", "one"), ("zwei", "two")], None)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("a\nb\n", "x\n", "'.*a.de' has 2 lines, '.*a.en' 1: they must go line for line"),
        ("a\n\n", "x\ny\n", "a.de': line 2 is empty"),
        ("a\nb\n", "x\n \n", "a.en': line 2 is empty"),
        ("a\nb\n", "", "a.en' is empty"),
        ("a\tx\nb\n", None, r"row 2 has 1 columns, not 2 as row 1: \['b'\]"),
        ("a\tx\n\n \ty\n", None, "row 3 is not a source and a target by a tab"),
        ("a\tx\ty\n", None, r"row 1 is not a source and a target by a tab: .*; data\.source and data\.target name"),
        ("a\t \n", None, "row 1 is not a source and a target by a tab"),
    ],
)
def test_wrong_files_are_named_with_the_line(source, target, message, tmp_path):
    path = write(tmp_path / "a.de", source)
    target_path = None if target is None else write(tmp_path / "a.en", target)
    with pytest.raises(zoo.ZooError, match=message):
        PairData(path=path, target_path=target_path).load(())


def test_pairs_that_are_too_long_are_left_out_of_training_and_nowhere_else(tmp_path):
    write(tmp_path / "train.tsv", "abc\tx\nabcdefgh\ty\n")
    config = PairData(path=str(tmp_path), source_length=5)
    with pytest.warns(UserWarning, match="of 2 pairs to train 1 are longer than 5 and 2 tokens and left out"):
        assert config.load(()).train.texts == [("abc", "x")]
    write(tmp_path / "test.tsv", "abcdef\tx\n")
    with pytest.raises(zoo.ZooError, match="of 1 pairs to test 1 are longer than 5 and 2 tokens, which all must fit"):
        config.load(())
    with pytest.raises(zoo.ZooError, match="so that none is left"):
        PairData(path=str(tmp_path / "train.tsv"), target_length=1).load(())


def test_a_runs_inputs_are_not_those_of_another_task(tmp_path):
    table = write(tmp_path / "pairs.tsv", "a\tb\n" * 10)
    with pytest.raises(zoo.ZooError, match="the run takes texts, not pairs such as"):
        PairData(path=table).load((), TextInputs("byte", "", 4))
    inputs = PairData(path=table).load(()).inputs
    with pytest.raises(zoo.ZooError, match="the run takes pairs, not images such as digits"):
        ImageData().load((8, 8, 1), inputs)
    with pytest.raises(zoo.ZooError, match="the run takes pairs, not texts such as stdlib"):
        TextData().load((8,), inputs)


def test_functions_of_the_standard_library_and_the_first_lines_of_their_docstrings():
    source = b'def f(x):\n    """Twice x.\n\n    More."""\n    return 2 * x\n\n\ndef g():\n    """Nothing."""\n'
    assert stdlib.documented_functions(source) == [("def f(x):\n    return 2 * x", "Twice x.")]


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="needs TFDS_DATA_DIR with multi30k")
def test_a_set_of_tfds_by_its_own_and_by_given_features():
    own = PairData("multi30k", source_tokenizer="byte", target_tokenizer="byte").load(())
    assert (own.train.size, own.validation.size, own.test.size) == (29_000, 1014, 1000)
    assert own.test.texts[3] == ("Zwei Jungen spielen auf dem Gehsteig.", "Two boys are playing on the sidewalk.")
    with pytest.raises(zoo.ZooError, match=r"multi30k has no pair of texts 'fr' and 'en': .* two of de, en"):
        PairData("multi30k", source="fr").load(())
    with pytest.raises(zoo.ZooError, match="mnist has no pair of texts"):
        PairData("mnist").load(())
