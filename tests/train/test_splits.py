"""Files named after splits, for every source of texts; shares held out of a single file; line ends."""

import dataclasses
import itertools
import json
import pathlib
import random
import warnings

import numpy as np
import pytest

import train
import zoo
from train import Config, LabelledTextData, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, PairData, TextData
from train.config import read_settings
from train.data.files import split_names
from train.settings import to_json

NAMES = {
    "train": ["train.txt", "Train", "wiki.train.tokens", "ptb.train.txt", "training.csv", "train/a/b.txt"],
    "validation": ["valid.tsv", "val.txt", "dev", "VALIDATION.md", "wiki.valid.tokens", "en.dev.txt", "val/1.txt"],
    "test": ["test.txt", "ptb.test.txt", "wiki.test.tokens", "testing.json", "test/train.txt"],
    None: ["README.md", "contest.txt", "trainer.py", "train.test.txt", "latest.txt", "notes/test.txt", "train_0.txt"],
}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)


def test_any_names_of_files_are_split_as_people_mean_them():
    rng = random.Random(0)
    meaning = {pathlib.PurePath(name).parts: split for split, names in NAMES.items() for name in names}
    for _ in range(300):
        chosen = rng.sample(sorted(meaning), rng.randrange(1, 8))
        tops = {meaning[parts] for parts in chosen}
        if "train" in tops:
            assert split_names(chosen, "here") == {parts: meaning[parts] for parts in chosen}
        elif tops - {None}:
            with pytest.raises(zoo.ZooError, match="here has no split train beside"):
                split_names(chosen, "here")
        else:
            with warnings.catch_warnings(record=True) as caught:
                assert set(split_names(chosen, "here").values()) == {"train"}
            doubted = [parts for parts in chosen if parts in (("train.test.txt",), ("notes", "test.txt"))]
            assert len(caught) == bool(doubted)


def test_splits_of_a_folder_within_are_kept_apart():
    files = [("wiki", f"wiki.{split}.tokens") for split in ("train", "valid", "test")]
    assert [*split_names(files, "").values()] == ["train", "validation", "test"]
    assert [*split_names([*files, ("readme",)], "").values()] == ["train", "validation", "test", "train"]
    assert [*split_names([*files, ("wiki", "readme")], "").values()] == ["train", "validation", "test", None]
    code = [("a", "train.py"), ("a", "model.py"), ("b", "latest.py"), ("b", "training.py")]
    assert [*split_names(code, "").values()] == ["train"] * 4


def test_training_text_with_the_name_of_another_split_is_named():
    files = [("a", "test", "x"), ("train-00.txt",), *((f"test-{i:02}.txt",) for i in range(6)), ("Dev_1",)]
    message = "of 'd' training reads 'a/test/x', 'test-00.txt', .* and 3 more as well: names of splits are train, val"
    with pytest.warns(UserWarning, match=message):
        assert set(split_names(files, "'d'").values()) == {"train"}


def test_every_file_of_a_folder_is_in_its_split_or_named(tmp_path):
    files = {"wiki.train.tokens": "aaaa" * 9, "wiki.valid.tokens": "bbbb", "wiki.test.tokens": "cccc", "notes.md": "dd"}
    with pytest.warns(UserWarning, match=r"left out '.*notes\.md': in no split \(train, validation, test\)"):
        dataset = TextData(path=write(tmp_path, files), context=2).load((2,))
    decoded = [dataset.inputs.decode(dataset.split(name).tokens) for name in ("train", "validation", "test")]
    assert decoded == ["aaaa" * 9, "bbbb", "cccc"]
    (tmp_path / "wiki.train.tokens").unlink()
    with pytest.raises(zoo.ZooError, match=r"has no split train beside wiki\.test\.tokens, wiki\.valid\.tokens"):
        TextData(path=str(tmp_path), context=2).load((2,))


@pytest.mark.parametrize(
    ("train", "validation", "test"), [("train.csv", "val.tsv", "sms.test.txt"), ("Train.tsv", "dev.tsv", "x.test.tsv")]
)
@pytest.mark.parametrize("source", [LabelledTextData(context=4), PairData()])
def test_tables_of_splits(tmp_path, source, train, validation, test):
    rows = {train: "aaa\tx\nbbb\ty\n", validation: "ccc\tx\n", test: "ddd\ty\n", "other.tsv": "eee\tx\n"}
    rows = {name: text.replace("\t", ",") if name.endswith("csv") else text for name, text in rows.items()}
    with pytest.warns(UserWarning, match=r"left out '.*other\.tsv': in no split \(train, validation, test\)"):
        dataset = dataclasses.replace(source, path=write(tmp_path, rows)).load((4,))
    assert (dataset.train.size, dataset.validation.size, dataset.test.size) == (2, 1, 1)
    (tmp_path / "train.txt").write_text("aaa\tx\n")
    with pytest.raises(zoo.ZooError, match=r"has two tables of the split train: .* and"):
        dataclasses.replace(source, path=str(tmp_path)).load((4,))
    for name in (train, "train.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(zoo.ZooError, match=r"has no train\.tsv or train\.csv"):
        dataclasses.replace(source, path=str(tmp_path)).load((4,))


def test_files_of_sources_and_targets_go_line_for_line(tmp_path):
    files = {f"{split}.{side}": f"{split} {side}\n" for split in ("train", "val", "news.test") for side in ("de", "en")}
    source = PairData(path=write(tmp_path, files), source="en", target="de")
    dataset = source.load(())
    assert dataset.train.texts == [("train en", "train de")]
    assert dataset.validation.texts == [("val en", "val de")]
    assert dataset.test.texts == [("news.test en", "news.test de")]
    with pytest.raises(zoo.ZooError, match=r"two tables of the split .*; data\.source and data\.target are the last"):
        PairData(path=str(tmp_path)).load(())
    (tmp_path / "train.fr").write_text("x\n")
    with pytest.warns(UserWarning, match=r"left out '.*train\.fr': no en or de of a split"):
        source.load(())
    (tmp_path / "val.en").unlink()
    with pytest.raises(zoo.ZooError, match="has no file en of the split validation"):
        source.load(())


def test_a_test_table_without_labels_is_left_out_with_a_warning(tmp_path):
    files = {"train.tsv": "sentence\tlabel\na\tx\nb\ty\n", "test.tsv": "index\tsentence\n0\tc\n"}
    source = LabelledTextData(path=write(tmp_path, files), context=4)
    with pytest.warns(UserWarning, match=r"left out '.*test\.tsv': it has no labels"):
        assert source.load((4,)).test is None
    (tmp_path / "test.tsv").write_text("sentence\tlabel\nc\t-1\nd\t-1\n")
    with pytest.warns(UserWarning, match=r"left out '.*test\.tsv': it has no labels"):
        assert source.load((4,)).test is None
    (tmp_path / "test.tsv").rename(tmp_path / "dev.tsv")
    with pytest.raises(zoo.ZooError, match=r"dev\.tsv' has labels that train does not have: -1"):
        source.load((4,))


# A single file.


def test_a_share_of_a_single_file_tests(tmp_path):
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 100)))
    (tmp_path / "t.txt").write_text(text)
    for validation, test in itertools.product((0.0, 0.1, 0.3), (0.0, 0.2, 0.5)):
        source = TextData(path=str(tmp_path / "t.txt"), context=2, validation_fraction=validation, test_fraction=test)
        source.check()
        dataset = source.load((2,))
        parts = [dataset.train, dataset.validation, dataset.test]
        assert "".join(dataset.inputs.decode(part.tokens) for part in parts if part is not None) == text
        assert [0 if part is None else len(part.tokens) for part in parts[1:]] == [100 * validation, 100 * test]
    (tmp_path / "t.tsv").write_text("".join(f"{i:03}\t{i % 2}\n" for i in range(100)))
    for cls in (LabelledTextData, PairData):
        source = cls(path=str(tmp_path / "t.tsv"), test_fraction=0.2)
        dataset = source.load((4,))
        assert [dataset.split(name).size for name in ("train", "validation", "test")] == [70, 10, 20]
        with pytest.raises(zoo.ZooError, match=r"data\.test-fraction must be at least 0, .* below 1, not 0\.9"):
            dataclasses.replace(source, test_fraction=0.9).check()
    assert dataset.test.texts[0] == ("080", "0")


def test_a_learned_vocabulary_has_not_seen_what_is_held_out(tmp_path):
    (tmp_path / "t.txt").write_text("aa " * 80 + "bb " * 10 + "cc " * 10)
    source = TextData(path=str(tmp_path / "t.txt"), context=2, tokenizer="word", test_fraction=0.1)
    assert source.load((2,)).inputs._library.get_vocab().keys() == {"[UNK]", "aa"}


def test_line_ends_are_kept_unless_the_settings_are_of_an_earlier_version(tmp_path):
    (tmp_path / "t.txt").write_bytes("\ufeffone\r\ntwo\rthree\n".encode() * 5)
    source = TextData(path=str(tmp_path / "t.txt"), context=4, validation_fraction=0.0)
    kept = source.load((4,))
    assert kept.inputs.decode(kept.train.tokens)[:14] == "one\r\ntwo\rthree"
    folded = dataclasses.replace(source, newlines="unix").load((4,))
    assert folded.inputs.decode(folded.train.tokens)[:13] == "one\ntwo\rthree"
    stored = json.loads(json.dumps(to_json(Config("", 1, 1, data=source))))
    assert read_settings(stored).data.newlines == "keep"
    del stored["data"]["newlines"]
    for kind in ("TextData", "TextConfig"):
        stored["data"]["kind"] = kind
        assert read_settings(stored).data.newlines == "unix"


def test_a_run_of_an_earlier_version_resumes(tmp_path):
    """Its settings have no line ends, its data none but LF."""
    (tmp_path / "t.txt").write_text("the cat sat on the mat\n" * 40)
    config = Config(
        str(tmp_path / "run"), 2, 8, eval_every=2, model=ModelConfig("gru_lm", {"hidden_size": 4}),
        data=TextData(path=str(tmp_path / "t.txt"), context=4), task=LanguageModel(),
        log=LogConfig(1, tensorboard=False), optimizer=OptimizerConfig(warmup_steps=0),
    )  # fmt: skip
    train.run(config)
    stored = tmp_path / "run" / "config.json"
    about = json.loads(stored.read_text())
    del about["config"]["data"]["newlines"], about["config"]["data"]["test_fraction"]
    stored.write_text(json.dumps(about))
    train.run(dataclasses.replace(config, steps=4, resume=True))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 4
    (tmp_path / "t.txt").write_bytes(b"the cat sat on the mat\r\n" * 40)
    with pytest.raises(zoo.ZooError, match=r"'\\r' is not among the \d+ characters of the vocabulary"):
        train.run(dataclasses.replace(config, steps=6, resume=True))


def test_a_mark_at_the_beginning_of_a_text_is_no_symbol(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf" + b"abab" * 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = TextData(path=str(tmp_path / "t.txt"), context=2).load((2,))
    assert dataset.inputs.vocabulary == "ab"
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf\n")
    with pytest.raises(zoo.ZooError, match="is empty"):
        TextData(path=str(tmp_path / "t.txt")).load((2,))


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe", "unigram", "word", "wordpiece"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_characters_of_a_split_add_up_to_its_texts(tmp_path, tokenizer, packed):
    """Those of the first token of a text are not counted, since nothing predicts it."""
    texts = ["the cat sat é", "on the  mat 日本\n", "a dog"]
    write(tmp_path, {f"{i}.txt": text for i, text in enumerate(texts)})
    source = TextData(
        path=str(tmp_path), context=3, tokenizer=tokenizer, packed=packed, validation_fraction=0.0, vocab_size=300
    )
    dataset = source.load((3,))
    wholes = texts if packed else ["\n".join(texts)]
    expected = sum(len(text) - dataset.inputs.encode_counted(text)[1][0] for text in wholes)
    for batch_size in (1, 4):
        batches = dataset.train.eval_batches(batch_size)
        assert sum((batch["characters"] * batch["weight"]).sum() for batch in batches) == expected
    assert dataset.train.characters.dtype == np.uint8
