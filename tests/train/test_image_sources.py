"""What is read of folders of images, and in which form; what is passed over, and noted."""

import dataclasses
import random
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from photos import SHADES, SHAPE, everything, inputs_of, load, photos, save
from train import ImageData, MultiLabelData
from zoo import ZooError
from zoo.inputs.image import ImageInputs

# Layouts: what lies in the folder, and the labels and sizes of the splits.


def test_hidden_files_and_folders_are_no_data_and_are_said(tmp_path):
    photos(tmp_path)
    for hidden in (".ipynb_checkpoints/1.png", "__MACOSX/._1.png", "cat/._1.png", "dog/.git/1.png"):
        save(tmp_path / hidden)
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"\0\5")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    dataset = load(tmp_path)
    assert (dataset.inputs.labels, dataset.train.size) == (("cat", "dog"), 12)
    (note,) = dataset.notes
    assert note.endswith("images of 2 classes, train 12; passed over: hidden: 5, no images: 1, such as 'cat/notes.txt'")


def test_content_decides_what_an_image_is(tmp_path):
    for label in "ab":
        for name, kind in (
            ("1.jfif", "JPEG"),
            ("2", "PNG"),
            ("3.PNG", "BMP"),
            ("4.data", "WEBP"),
            ("deep/er/5.tif", "TIFF"),
        ):
            save(tmp_path / label / name, kind=kind)
    assert load(tmp_path).train.size == 10


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Train", "DEV", "Test"), ("training", "val", "testing")]
)
def test_splits_are_recognised_by_any_of_their_names(names, tmp_path):
    for name, n in zip(names, (4, 3, 2), strict=True):
        photos(tmp_path / name, n=n)
    (tmp_path / "docs").mkdir()  # without images
    dataset = load(tmp_path)
    assert [split.size for split in (dataset.train, dataset.validation, dataset.test)] == [8, 6, 4]


def test_a_class_called_train_is_one_among_classes(tmp_path):
    assert load(photos(tmp_path, ["bus", "car", "train"])).inputs.labels == ("bus", "car", "train")


def test_a_folder_beside_train_that_is_no_split_is_no_class(tmp_path):
    photos(tmp_path / "train")
    save(tmp_path / "samples" / "1.png")
    with pytest.raises(ZooError, match="has folders inside train, but none inside samples: move these away if train"):
        load(tmp_path)
    save(tmp_path / "train" / "0.png")  # a class, some of whose images are in folders
    assert load(tmp_path).inputs.labels == ("samples", "train")


def test_other_folders_beside_splits_are_passed_over_and_named(tmp_path):
    for split in ("train", "val", "unlabelled"):
        photos(tmp_path / split)
    dataset = load(tmp_path)
    assert dataset.inputs.labels == ("cat", "dog")
    assert any("these folders are passed over: unlabelled" in note for note in dataset.notes)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(
        ZooError, match="has train and unlabelled with the same folders inside: splits are called train"
    ):
        load(tmp_path)
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "unlabelled").rename(tmp_path / "test")
    with pytest.raises(ZooError, match="has folders of images test, but none named train"):
        load(tmp_path)


def test_splits_inside_classes_are_refused(tmp_path):
    for label in SHADES:
        photos(tmp_path / label, ["train", "test"])
    with pytest.raises(ZooError, match="has splits inside its class folders; put them at the top"):
        load(tmp_path)


def test_a_folder_that_wraps_all_others_is_entered(tmp_path):
    photos(tmp_path / "photos" / "photos" / "Train")
    photos(tmp_path / "photos" / "photos" / "test", n=2)
    dataset = load(tmp_path)
    assert (dataset.inputs.labels, dataset.train.size, dataset.test.size) == (("cat", "dog"), 12, 4)


def test_names_in_either_unicode_composition_are_one_class(tmp_path):
    for form, name in (("NFC", "1.png"), ("NFD", "2.png")):
        save(tmp_path / unicodedata.normalize(form, "café") / name)
    photos(tmp_path, ["dog", "Dog"], n=2)
    dataset = load(tmp_path)
    assert dataset.inputs.labels == ("Dog", "café", "dog")
    assert np.bincount(everything(dataset.train)["label"]).tolist() == [2, 2, 2]
    assert "the labels Dog and dog differ by case alone" in dataset.notes
    again = load(tmp_path, inputs_of([unicodedata.normalize("NFD", "café"), "dog", "Dog"]))
    assert np.bincount(everything(again.train)["label"]).tolist() == [2, 2, 2]


def test_an_empty_split_or_class_is_said(tmp_path):
    photos(tmp_path / "train")
    (tmp_path / "train" / "bird").mkdir()
    (tmp_path / "test" / "cat").mkdir(parents=True)
    dataset = load(tmp_path)
    assert dataset.test is None
    assert any("there is no split test: the folder 'test' has no images" in note for note in dataset.notes)
    assert any("which are no classes: 'test/cat', 'train/bird'" in n for n in dataset.notes)
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(ZooError, match="val' has no images: fill it with class folders, or remove it"):
        load(tmp_path)
    shutil.rmtree(tmp_path / "val")
    photos(tmp_path / "test")
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(ZooError, match="none named train"):
        load(tmp_path)


def read_or_refused(root):
    try:
        return load(root, most_unreadable=1.0)
    except ZooError as error:
        return print(error) if "\n" not in str(error) else error  # which has no splits


def test_any_folder_is_read_or_refused_in_a_line(tmp_path):
    """Seeded: trees of files of any kind and name."""
    rng = random.Random(1)
    names = [
        "train",
        "Val",
        "test",
        "cat",
        "dog",
        ".git",
        "__MACOSX",
        "café",
        "cafe\u0301",
        "a b",
        "x" * 60,
        "notes.txt",
    ]
    good = tmp_path / "good.png"
    save(good)
    contents = [good.read_bytes()] * 6 + [b"", b"text", good.read_bytes()[:40]]
    read = 0
    for k in range(60):
        root = tmp_path / str(k)
        root.mkdir()
        for i in range(rng.randrange(16)):
            folder = root.joinpath(*rng.choices(names, k=rng.randrange(4)))
            path = folder / (f"{i}" + rng.choice([".png", ".JPG", "", ".txt"]))
            content = rng.choice(contents)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        dataset = read_or_refused(root)
        if dataset is None:
            continue
        read += 1
        sizes = [split.size for split in (dataset.train, dataset.validation, dataset.test) if split is not None]
        expected = sum(
            not any(part.startswith((".", "__")) for part in path.relative_to(root).parts)
            for path in root.rglob("*")
            if path.is_file() and path.read_bytes() == good.read_bytes()
        )
        assert 0 < sum(sizes) <= expected
        assert all(not label.startswith((".", "__")) for label in dataset.inputs.labels)
    assert read > 10


# The labels of a model.


def test_labels_are_matched_by_name(tmp_path):
    dataset = load(photos(tmp_path), known := inputs_of(["zebra", "dog", "cat"]))
    assert dataset.inputs is known
    examples = everything(dataset.train)
    np.testing.assert_array_equal(examples["label"] == 1, examples["image"][:, 0, 0, 0] == 200)
    assert set(examples["label"].tolist()) == {1, 2}
    assert any(note.endswith("has 2 of the model's 3 labels; it lacks zebra") for note in dataset.notes)
    with pytest.raises(ZooError, match=r"has 1 labels that the model does not have \(dog\); it has cat, bird"):
        load(tmp_path, inputs_of(["cat", "bird"]))
    shutil.rmtree(tmp_path / "dog")
    alone = load(tmp_path, known)
    assert alone.train.size == 6
    with pytest.raises(ZooError, match="has no split test with labels; it has train"):
        alone.split("test")


def test_weights_without_labels_give_shape_and_normalisation(tmp_path):
    known = inputs_of([], (5, 4, 1))
    found = load(photos(tmp_path), known).inputs
    assert found == dataclasses.replace(known, labels=("cat", "dog"))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_shape_that_is_asked_for_goes_before_that_of_weights_to_be_tuned(channels, tmp_path):
    photos(tmp_path)
    known = ImageInputs((8, 8, 3), (0.3, 0.4, 0.5), (0.1, 0.2, 0.3), ())
    dataset = load(tmp_path, known, image_size="6x5", channels=channels)
    mean, std = [(0.3, 0.4, 0.5), (0.1, 0.2, 0.3)] if channels > 1 else [(0.4,), (0.2,)]
    assert (dataset.inputs.shape, dataset.inputs.mean[:3]) == ((6, 5, channels), pytest.approx(mean))
    assert dataset.inputs.std[:3] == pytest.approx(std)
    assert any("as the settings say; the weights were trained on 8 x 8 x 3" in note for note in dataset.notes)
    trained = dataclasses.replace(known, labels=("cat", "dog"))
    dataset = load(tmp_path, trained, image_size="6x5", channels=channels)
    assert dataset.inputs is trained
    assert any("8 x 8 x 3, the model's; data.image-size and data.channels are not used" in n for n in dataset.notes)


@pytest.mark.parametrize("labels", [tuple("9876543210"), tuple(map(str, range(12)))])
def test_digits_are_brought_to_a_models_inputs(labels):
    known = inputs_of(labels, (28, 20, 3))
    dataset = ImageData("digits", validation_fraction=0).load((8, 8, 1), known)
    own = ImageData("digits", validation_fraction=0).load((8, 8, 1))
    assert dataset.inputs is known
    found, theirs = everything(dataset.test), everything(own.test)
    assert found["image"].shape == (360, 28, 20, 3)
    assert [labels[i] for i in found["label"]] == [str(i) for i in theirs["label"]]


def test_scenes_are_brought_to_a_models_labels():
    known = inputs_of("9876543210", (28, 28, 1), exclusive=False)
    dataset, own = MultiLabelData().load((28, 28, 1), known), MultiLabelData().load((28, 28, 1))
    np.testing.assert_array_equal(dataset.test.arrays["labels"], own.test.arrays["labels"][:, ::-1])


# Pixels: channels, depth, size.


def test_grey_sets_stay_grey_unless_asked(tmp_path):
    photos(tmp_path, mode="L")
    assert load(tmp_path).inputs.shape == (8, 8, 1)
    assert load(tmp_path, channels=3).inputs.shape == (8, 8, 3)
    assert load(tmp_path, channels=4).inputs.shape == (8, 8, 4)
    save(tmp_path / "cat" / "colour.png", mode="RGB")
    assert load(tmp_path).inputs.shape == (8, 8, 3)
    assert load(tmp_path, channels=1).inputs.shape == (8, 8, 1)
    with pytest.raises(ZooError, match=r"data\.channels must be 1, 3 or 4, not 2"):
        ImageData(channels=2).check()


def deep(root, most=4095):
    for label, low, high in (("dark", 0, most // 4), ("light", most // 2, most)):
        for i in range(6):
            (root / label).mkdir(parents=True, exist_ok=True)
            ramp = np.linspace(low, high, 64).reshape(8, 8).astype(np.uint16)
            Image.fromarray(ramp).save(root / label / f"{i}.png")
    return root


def test_twelve_bits_in_a_16_bit_file_are_seen(tmp_path):
    dataset = load(deep(tmp_path))
    assert (dataset.inputs.range, dataset.inputs.shape) == ((0, 4095), (8, 8, 1))
    examples = everything(dataset.train)
    means = [examples["image"][examples["label"] == label].mean() for label in (0, 1)]
    np.testing.assert_allclose(means, [255 / 8, 255 * 3 / 4], atol=1)
    assert any("values 0 to 4095 of images with more than 8 bits become 0 to 255" in note for note in dataset.notes)
    path = tmp_path / "light" / "0.png"
    light = examples["image"][examples["label"] == 1][0]
    np.testing.assert_array_equal(dataset.inputs.pixels(path), light)  # prediction reads it likewise


def test_a_range_that_is_asked_for_is_the_models(tmp_path):
    assert load(deep(tmp_path), range=[0.0, 1000.0]).inputs.range == (0, 1000)
    with pytest.raises(ZooError, match=r"data.range must be two numbers, the lower one first, not \[3.0\]"):
        ImageData(range=[3.0]).check()
    with pytest.raises(ZooError, match=r"data\.range is for images of more than 8 bits"):
        load(photos(tmp_path / "eight"), range=[0.0, 100.0])


def test_a_run_without_a_range_reads_as_it_was_trained(tmp_path):
    """Settings of earlier versions, which took the upper 8 bits."""
    dataset = load(deep(tmp_path), inputs_of(["dark", "light"], (8, 8, 1)))
    assert everything(dataset.train)["image"].max() == 4095 >> 8
    fine_tuned = load(tmp_path, inputs_of([], (8, 8, 1)))
    assert fine_tuned.inputs.range == (0, 4095)


def test_images_of_one_elongated_size_keep_it(tmp_path):
    photos(tmp_path / "same", size=(256, 64), mode="L")  # width, height
    dataset = load(tmp_path / "same")
    assert dataset.inputs.shape == (64, 256, 1)
    assert any("all images have 64 x 256 pixels and keep them" in note for note in dataset.notes)
    assert load(tmp_path / "same", image_size="16x40").inputs.shape == (16, 40, 1)
    square = load(tmp_path / "same", image_size=16)
    assert square.inputs.shape == (16, 16, 1)
    assert any("all images lose half or more of their pixels in the cut to 16 x 16" in note for note in square.notes)
    shutil.copytree(tmp_path / "same", tmp_path / "other")
    save(tmp_path / "other" / "cat" / "0.png", size=(9, 9), mode="L")
    varied = load(tmp_path / "other")
    assert varied.inputs.shape == (8, 8, 1)
    assert any("11 of 12 images lose half or more" in note for note in varied.notes)
    assert load(photos(tmp_path / "square", size=(30, 20))).inputs.shape == SHAPE  # as ever: the model's


@pytest.mark.parametrize("size", ["0", "8x0", "x", "8x8x8", "-1", "99999", 0, -3, "8 x 8"])
def test_a_wrong_size_is_refused(size):
    with pytest.raises(ZooError, match=r"data\.image-size must be "):
        ImageData(image_size=size).check()
