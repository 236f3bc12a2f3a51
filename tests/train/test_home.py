"""A ~ in a path that a user gives is the user's home, also where no shell has expanded it."""

import shutil

import numpy as np
import pytest

import zoo
from train import LabelledTextData, PairData, TextData
from train.__main__ import main
from zoo.inputs.text import learn, read_tokenizer
from zoo.registry import PRETRAINED
from zoo.weights import read_safetensors, write_safetensors


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_texts_tables_pairs_and_tokenizers(home):
    (home / "a.txt").write_text("the cat sat " * 30)
    (home / "t.tsv").write_text("good\tyes\nbad\tno\n" * 9)
    (home / "s.txt").write_text("one\ntwo\n" * 9)
    assert TextData(path="~/a.txt", context=4).load((4,)).train.size > 100
    assert LabelledTextData(path="~/t.tsv", context=4).load((4,)).inputs.labels == ("no", "yes")
    assert PairData(path="~/s.txt", target_path="~/s.txt").load((4,)).train.size > 9
    (home / "tokenizer.json").write_text(learn("word", ["a b c"], 9, 4).vocabulary)
    assert read_tokenizer("~/tokenizer.json", 4).vocab_size == 4
    assert TextData(path="~/a.txt", context=4, tokenizer="~").load((4,)).inputs.tokenizer == "word"


def test_folders_and_files_of_weights(home, capsys):
    shutil.copytree(PRETRAINED / "lenet5", home / "lenet")
    model, variables, inputs = zoo.load("~/lenet")
    tensors = read_safetensors("~/lenet/model.safetensors")
    write_safetensors(tensors, "~/copy.safetensors")
    assert (home / "copy.safetensors").is_file()
    loaded = zoo.load_weights(model, "~/copy.safetensors", inputs.shape)
    assert np.array_equal(loaded["params"]["conv1"]["kernel"], variables["params"]["conv1"]["kernel"])
    assert main(["evaluate", "lenet5", "--weights", "~/lenet/model.safetensors", "--data.image-size", "28"]) == 0
    assert main(["evaluate", "~/lenet", "--data.name", "digits", "--data.image-size", "28"]) == 0
    assert capsys.readouterr().out.count("(360 examples)") == 2
