"""Images that cannot be read: an error beyond a share of them, before training where they are in memory; replaced,
counted and listed in a large set, whose run resumes once they are deleted, or the set has moved."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import train
from train import Config, ImageData, ModelConfig, OptimizerConfig
from train.data.unreadable import Unreadable, listed
from zoo import ZooError

SHAPE = (8, 8, 3)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(20):
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            image.save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path / "photos"


def cut(path):
    """Leaves a file a whole header and half of its pixels."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def source(photos, most=0.1):
    return ImageData(path=str(photos), image_size=8, most_unreadable=most)


def test_too_many_are_an_error_before_training_that_names_them(photos):
    cut(photos / "cat" / "3.png")
    (photos / "dog" / "4.png").write_bytes(b"")
    with pytest.raises(
        ZooError, match=r"^2 of 40 images cannot be read; repair or remove them, or raise data.most-unreadable, 0.01: "
    ) as e:
        ImageData(path=str(photos), image_size=8).load(SHAPE)
    assert "dog/4.png' is not a readable image" in str(e.value)
    assert "cat/3.png' is not a readable image" in str(e.value)


def test_few_are_left_out_of_a_set_in_memory_and_deleting_them_changes_nothing(photos):
    cut(photos / "cat" / "3.png")
    (photos / "dog" / "4.png").write_bytes(b"")
    dataset = source(photos).load(SHAPE)
    assert dataset.train.size + dataset.validation.size == 38
    assert any(note.startswith("images left out that cannot be read, 2: ") for note in dataset.notes)
    (photos / "cat" / "3.png").unlink()
    (photos / "dog" / "4.png").unlink()
    assert source(photos).load(SHAPE).content == dataset.content


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr("train.data.pictures.IN_MEMORY_BYTES", 100)


def of_split(dataset, part):
    """The path of a file of the training or the held-out part of a large set."""
    return part.pictures.images[part.chosen[2]]


def test_one_of_a_large_set_is_replaced_by_another_of_its_split(photos, large):
    whole = source(photos).load(SHAPE)
    path = of_split(whole, whole.train)
    cut(path)
    with pytest.warns(UserWarning, match=r"png' is not a readable image: .*; the next image takes its place"):
        dataset = source(photos).load(SHAPE)
    read = dataset.train.read(np.arange(6))
    expected = whole.train.read(np.array([0, 1, 3, 3, 4, 5]))
    for name in expected:
        np.testing.assert_array_equal(read[name], expected[name])
    assert [*dataset.unreadable.replaced] == [str(path.relative_to(photos))]
    with pytest.raises(ZooError, match="is not a readable image"):
        list(dataset.train.eval_batches(8))  # an evaluation replaces nothing


def test_held_out_ones_of_a_large_set_are_left_out_before_training(photos, large, tmp_path):
    whole = source(photos).load(SHAPE)
    path = of_split(whole, whole.validation)
    cut(path)
    dataset = source(photos).load(SHAPE)
    assert (dataset.train.size, dataset.validation.size) == (36, 3)
    assert any(note.startswith("images left out that cannot be read, 1: ") for note in dataset.notes)
    assert sum(batch["weight"].sum() for batch in dataset.validation.eval_batches(2)) == 3
    dataset.unreadable.keep_in(tmp_path)
    path.unlink()
    assert source(photos).load(SHAPE, replaced=listed(tmp_path)).content == dataset.content


def test_too_many_replaced_are_an_error(photos, large):
    dataset = source(photos, most=0.02).load(SHAPE)
    for path in (photos / "cat").iterdir():
        cut(path)
    with (
        pytest.warns(UserWarning, match="takes its place"),
        pytest.raises(ZooError, match="1 of 40 images cannot be read"),
    ):
        dataset.train.read(np.arange(36))


def config(photos, workdir, **changes):
    model, optimizer = ModelConfig("simple_cnn", {"widths": (4,)}), OptimizerConfig(schedule="constant")
    settings = Config(str(workdir), 12, 8, eval_every=6, data=source(photos), model=model, optimizer=optimizer)
    return dataclasses.replace(settings, parallel="jit", log=train.LogConfig(every=6, tensorboard=False), **changes)


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:.*takes its place")
def test_a_run_on_a_large_set_survives_a_bad_photo_and_its_deletion(photos, large, tmp_path):
    whole = source(photos).load(SHAPE)
    path = of_split(whole, whole.train)
    cut(path)
    train.run(config(photos, tmp_path / "through"))
    assert (tmp_path / "through" / "unreadable.txt").read_text() == f"{path.relative_to(photos)}\n"
    train.run(config(photos, tmp_path / "run", steps=6))
    path.unlink()
    train.run(config(photos, tmp_path / "run", resume=True))
    assert metrics(tmp_path / "run") == metrics(tmp_path / "through")
    assert (tmp_path / "run" / "unreadable.txt").read_text() == f"{path.relative_to(photos)}\n"


def test_a_run_resumes_on_photos_that_moved_and_on_no_others(photos, tmp_path):
    train.run(config(photos, tmp_path / "run", steps=6))
    moved = tmp_path / "elsewhere" / "pictures"
    shutil.move(photos, moved)
    train.run(config(moved, tmp_path / "run", resume=True))
    Image.new("RGB", (8, 8)).save(moved / "cat" / "3.png")
    with pytest.raises(ZooError, match="the data are not those that the run began with"):
        train.run(config(moved, tmp_path / "run", resume=True, steps=18))


def test_what_is_replaced_is_listed_once(tmp_path):
    unreadable = Unreadable(1.0, 3)
    with pytest.warns(UserWarning, match=r"a is broken; the next image takes its place, and unreadable.txt lists it"):
        unreadable.replace("a", "a is broken")
    (tmp_path / "unreadable.txt").write_text("a\n")
    for name in ("b", "b", "c"):
        unreadable.keep_in(tmp_path)
        unreadable.replace(name, "broken")
    assert (tmp_path / "unreadable.txt").read_text() == "a\nb\nc\n"
