"""Balanced sampling: every class as often, every example in its turn, the same batches for everyone."""

import numpy as np
import pytest

from train import ImageData, LabelledTextData
from train.data.balance import Balanced, balanced
from train.data.source import ArraySplit, LazySplit
from zoo import ZooError


def split(*counts):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    return ArraySplit({"label": labels, "number": np.arange(len(labels))})


@pytest.mark.parametrize("counts", [(90, 9, 1), (50, 50), (7, 0, 3), (1, 1000), (5,)])
def test_an_epoch_has_every_class_as_often_and_repeats_no_example_more_than_it_must(counts):
    data = Balanced(split(*counts))
    order = data.order(np.random.default_rng(0))
    assert len(order) == data.size == sum(counts)
    drawn = np.bincount(data.labels[order], minlength=len(counts))
    present = np.array(counts) > 0
    assert drawn[present].max() - drawn[present].min() <= 1
    for label, count in enumerate(counts):
        times = np.bincount(order, minlength=data.size)[data.labels == label]
        assert not count or times.max() - times.min() <= 1


def test_other_epochs_have_other_examples_of_a_frequent_class_until_all_were_read():
    data = Balanced(split(90, 10))
    seen = {int(i) for epoch in range(8) for i in data.order(np.random.default_rng((0, epoch)))}
    assert len(seen) == 100


def test_batches_are_balanced_and_processes_read_parts_of_the_same():
    data = Balanced(split(300, 20, 10))
    whole = data.batches(32, seed=3)
    labels = np.concatenate([whole(k)["label"] for k in range(31)])  # three epochs
    assert np.abs(np.bincount(labels) / len(labels) - 1 / 3).max() < 0.02
    part = data.batches(32, seed=3, rows=np.arange(8, 16))
    assert np.array_equal(part(5)["number"], whole(5)["number"][8:16])


def test_the_setting_balances_images_and_texts(tmp_path):
    digits = ImageData("digits", train_examples=200, balanced=True).load((8, 8, 1))
    counts = np.bincount(digits.train.labels[digits.train.order(np.random.default_rng(0))])
    assert (len(counts), set(counts)) == (10, {20})
    (tmp_path / "t.tsv").write_text("good\tyes\n" * 90 + "bad\tno\n" * 10)
    texts = LabelledTextData(path=str(tmp_path / "t.tsv"), context=4, balanced=True, validation_fraction=0.0).load((4,))
    assert np.bincount(texts.train.labels[texts.train.order(np.random.default_rng(0))]).tolist() == [50, 50]


def test_labels_that_only_reading_gives_are_refused():
    with pytest.raises(ZooError, match=r"data\.balanced needs labels in memory; photos is read from files with them"):
        balanced(LazySplit(10, lambda rows: {}), "photos")
