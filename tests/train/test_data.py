"""batch(k) is a pure function of seed and k; evaluation counts every example once; data sets and their mistakes."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

import train.data.source
from train import Classification, Config, LanguageModel, ModelConfig, OptimizerConfig, TextData
from train.data.batches import Batches
from train.data.image_form import statistics
from train.data.images import ImageData
from train.data.source import ArraySplit, LazySplit, hold_out
from zoo import ZooError

SHAPE = (8, 8, 1)


def numbered(size):
    images = np.arange(size, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    return ArraySplit({"image": images, "label": np.arange(size, dtype=np.int32)})


def test_each_epoch_reads_every_example_once_in_a_new_order():
    batches = Batches(numbered(10), 4, seed=0)
    labels = np.concatenate([batches(k)["label"] for k in range(10)]).reshape(4, 10)  # four epochs of ten
    assert [sorted(epoch) for epoch in labels.tolist()] == [list(range(10))] * 4
    assert len({tuple(epoch) for epoch in labels.tolist()}) == 4


def test_a_batch_is_a_function_of_seed_and_step_alone():
    split = numbered(10)
    far, again = Batches(split, 4, seed=3), Batches(split, 4, seed=3)
    for k in range(7):
        again(k)
    np.testing.assert_array_equal(far(7)["label"], again(7)["label"])
    assert any((Batches(split, 4, seed=4)(k)["label"] != far(k)["label"]).any() for k in range(3))


def test_a_batch_larger_than_the_set_spans_epochs():
    labels = Batches(numbered(3), 8, seed=0)(0)["label"]
    assert sorted(labels[:3]) == sorted(labels[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_read_their_rows_of_the_same_batch(processes):
    split = numbered(10)
    whole = Batches(split, 8, seed=0)(5)
    parts = [Batches(split, 8, 0, rows)(5) for rows in np.split(np.arange(8), processes)]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


@pytest.mark.parametrize("size", [1, 7, 8, 9])
def test_evaluation_counts_every_example_once(size):
    batches = list(numbered(size).eval_batches(4))
    assert {len(batch["label"]) for batch in batches} == {4}
    seen = np.concatenate([batch["label"][batch["weight"] == 1] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(size))


def test_sets_read_from_files_give_the_same_batches_as_in_memory():
    split = numbered(20)
    lazy = LazySplit(20, lambda indices: split.read(np.array(indices)))
    ours, theirs = (Batches(s, 6, 1).from_step(2, 9) for s in (split, lazy))
    for a, b in zip(ours, theirs, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("make", [lambda s: s, lambda s: LazySplit(20, lambda i: s.read(np.array(i)))])
def test_validation_is_the_end_of_train_in_index_order(make):
    train, validation = hold_out(make(numbered(20)), 0.1)
    assert (train.size, validation.size) == (18, 2)
    np.testing.assert_array_equal(validation.read(np.arange(2))["label"], [18, 19])
    assert hold_out(numbered(5), 0.1)[1] is None


def test_statistics_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), np.uint8)
    shape, mean, std = statistics(ArraySplit({"image": images, "label": np.zeros(50, np.int32)}))
    assert shape == (4, 5, 3)
    np.testing.assert_allclose(mean, images.reshape(-1, 3).mean(0) / 255, atol=1e-6)
    np.testing.assert_allclose(std, images.reshape(-1, 3).std(0) / 255, atol=1e-6)


def test_digits_keep_the_last_360_for_test():
    dataset = ImageData("digits").load(SHAPE)
    assert (dataset.train.size, dataset.validation.size, dataset.test.size) == (1437 - 143, 143, 360)
    assert dataset.inputs.shape == (8, 8, 1)
    assert ImageData("digits", validation_fraction=0).load(SHAPE).validation is None


@pytest.fixture
def photos(tmp_path):
    for label, colour in (("cat", (250, 0, 0)), ("dog", (0, 0, 250))):
        (tmp_path / label).mkdir()
        for i in range(10):
            Image.new("RGB", (10 + i, 20), colour).save(tmp_path / label / f"{i}.png")
    return tmp_path


def test_a_folder_of_class_folders(photos):
    dataset = ImageData(path=str(photos), image_size=8).load((32, 32, 3))
    assert dataset.inputs.labels == ("cat", "dog")
    assert (dataset.train.size, dataset.validation.size, dataset.test) == (18, 2, None)
    examples = dataset.train.read(np.arange(18))
    assert examples["image"].shape == (18, 8, 8, 3)
    np.testing.assert_array_equal(examples["image"][:, 4, 4, 0] == 250, examples["label"] == 0)
    assert 3 < examples["label"][:10].sum() < 8  # mixed, not sorted by class


def test_large_folders_are_read_batch_by_batch(photos, monkeypatch):
    config = ImageData(path=str(photos), image_size=8)
    whole = config.load((32, 32, 3)).train
    monkeypatch.setattr("train.data.pictures.IN_MEMORY_BYTES", 100)
    lazy = config.load((32, 32, 3)).train
    assert (whole.in_memory, lazy.in_memory) == (True, False)
    for a, b in zip(Batches(whole, 4, 0).from_step(0, 6), Batches(lazy, 4, 0).from_step(0, 6), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_split_folders(photos):
    for split in ("train", "val", "test"):
        (photos / split).mkdir()
        for label in ("cat", "dog"):
            (photos / split / label).mkdir()
            Image.new("L", (9, 9)).save(photos / split / label / "a.png")
    dataset = ImageData(path=str(photos), image_size=8).load((32, 32, 3))
    assert (dataset.train.size, dataset.validation.size, dataset.test.size) == (2, 2, 2)
    (photos / "test" / "bird").mkdir()
    Image.new("L", (9, 9)).save(photos / "test" / "bird" / "a.png")
    with pytest.raises(ZooError, match="classes that train does not have: bird"):
        ImageData(path=str(photos), image_size=8).load((32, 32, 3))


def test_wrong_folders_are_refused_with_what_is_needed(tmp_path):
    with pytest.raises(ZooError, match="is not a folder"):
        ImageData(path=str(tmp_path / "absent")).load(SHAPE)
    with pytest.raises(ZooError, match="needs at least two folders of images"):
        ImageData(path=str(tmp_path)).load(SHAPE)
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "empty.png").touch()
    with pytest.raises(ZooError, match=r"empty.png' is not a readable image"):
        ImageData(path=str(tmp_path)).load(SHAPE)


def test_an_unknown_set_gives_the_nearest_names(tmp_path):
    with pytest.raises(ZooError, match="unknown data set 'cifar_10'; did you mean cifar10") as error:
        ImageData("cifar_10", dir=str(tmp_path)).load(SHAPE)
    assert len(str(error.value)) < 200


def test_a_set_that_cannot_be_prepared_says_why(tmp_path):
    with pytest.raises(ZooError, match=r"imagenet2012 is not prepared in .* and could not be: "):
        ImageData("imagenet2012", dir=str(tmp_path)).load(SHAPE)


PREPARED = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def prepared(name):
    reason = f"needs the TFDS set {name} in $TFDS_DATA_DIR"
    return pytest.mark.skipif(not (PREPARED / name).is_dir(), reason=reason)


@prepared("mnist")
def test_a_tfds_set_is_read_without_tensorflow():
    import sys

    dataset = ImageData("mnist").load(SHAPE)
    assert (dataset.train.size, dataset.validation.size, dataset.test.size) == (54_000, 6_000, 10_000)
    assert dataset.inputs.shape == (28, 28, 1)
    assert np.bincount(dataset.test.read(np.arange(10_000))["label"])[:2].tolist() == [980, 1135]  # as published
    assert "tensorflow" not in sys.modules


@prepared("sst2")
def test_a_set_without_images_is_refused_by_its_features():
    with pytest.raises(ZooError, match=r"sst2 is no labelled image set: .* it has label, sentence"):
        ImageData("sst2").load(SHAPE)


def test_the_limit_of_memory_is_two_gigabytes():
    assert train.data.source.IN_MEMORY_BYTES == 2 * 1024**3


def test_digits_are_scaled_where_asked():
    dataset = ImageData(image_size=28).load((32, 32, 3))
    assert dataset.inputs.shape == (28, 28, 1)
    small = ImageData().load((32, 32, 3))
    middle = dataset.test.read(np.arange(5))["image"][:, 1::7, 1::7]  # near the middles of the old rows
    assert np.corrcoef(middle.ravel(), small.test.read(np.arange(5))["image"][:, ::2, ::2].ravel())[0, 1] > 0.5


def test_train_may_be_cut_short_and_the_rest_stays():
    whole, cut = (ImageData(train_examples=n).load((8, 8, 1)) for n in (None, 100))
    assert (cut.train.size, cut.validation.size, cut.test.size) == (100, whole.validation.size, whole.test.size)
    np.testing.assert_array_equal(cut.train.read(np.arange(100))["image"], whole.train.read(np.arange(100))["image"])
    with pytest.raises(ZooError, match=r"data\.train-examples is 1295, but digits has 1294 to train on"):
        ImageData(train_examples=1295).load((8, 8, 1))


def test_a_class_of_one_image_counts_like_any_other(tmp_path):
    for name, count in (("rare", 1), ("common", 12)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    dataset = ImageData(path=str(tmp_path), validation_fraction=0.0).load((8, 8, 3))
    labels = dataset.train.read(np.arange(dataset.train.size))["label"]
    assert dataset.inputs.labels == ("common", "rare")
    assert sorted(labels.tolist()) == [0] * 12 + [1]


def run_on(data, workdir, **changes):
    text = isinstance(data, TextData)
    model = ("lstm_lm", {"hidden_size": 8, "num_layers": 1}) if text else ("simple_cnn", {"widths": (4,)})
    task = LanguageModel() if text else Classification()
    constant = OptimizerConfig(schedule="constant")  # which more steps do not end
    model = ModelConfig(*model)
    config = Config(str(workdir), 2, 4, data=data, task=task, model=model, optimizer=constant, parallel="jit")
    return train.run(dataclasses.replace(config, **changes))


def swapped(photos):
    """Exchanges the contents of two images; number and names stay."""
    one, other = (photos / label / "3.png" for label in ("cat", "dog"))
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])


CHANGES = {
    "fewer": (
        lambda photos: (photos / "cat" / "3.png").unlink(),
        r"not those that the run began with \(train: 18 examples, sha256 \w+, now 18 examples",
    ),
    "others": (swapped, r"not those that the run began with \(train: 18 examples, sha256 \w+, now 18 examples"),
    "labels": (
        lambda photos: (photos / "cat").rename(photos / "a"),
        r"1 labels that the model does not have \(a\); it has cat, dog",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_resume_on_other_data(change, photos, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    data = ImageData(path=str(photos), image_size=8)
    run_on(data, workdir)
    run_on(data, workdir, resume=True)
    before = (workdir / "config.json").read_bytes()
    make, message = CHANGES[change]
    make(photos)
    with pytest.raises(ZooError, match=message):
        run_on(data, workdir, resume=True, steps=4)
    assert (workdir / "config.json").read_bytes() == before


def test_a_shortened_text_is_refused_but_a_run_without_a_record_of_its_data_resumes(tmp_path):
    path, workdir = tmp_path / "text", tmp_path / "run"
    path.write_text("the cat sat on the mat\n" * 40)
    data = TextData(path=str(path), context=8)
    run_on(data, workdir)
    path.write_text("the cat sat on the mat\n" * 30)
    with pytest.raises(
        ZooError, match=r"\(train: 827 examples, sha256 \w+, now 620 examples, .*validation: 91 examples"
    ):
        run_on(data, workdir, resume=True)
    about = json.loads((workdir / "config.json").read_text())
    del about["data"]
    (workdir / "config.json").write_text(json.dumps(about))
    assert run_on(data, workdir, resume=True, steps=3)["steps"] == 3
    assert "620 examples" in json.loads((workdir / "config.json").read_text())["data"]["train"]


def test_data_read_from_files_are_recognised_by_a_sample(photos, monkeypatch):
    config = ImageData(path=str(photos), image_size=8)
    monkeypatch.setattr("train.data.pictures.IN_MEMORY_BYTES", 100)
    before = config.load((32, 32, 3)).content
    assert config.load((32, 32, 3)).content == before
    swapped(photos)
    assert config.load((32, 32, 3)).content != before
