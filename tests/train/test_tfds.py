"""Image sets of TFDS: formats, splits, features and labels of any kind, in sets made here."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from train import ImageData
from zoo import ZooError
from zoo.inputs.image import ImageInputs

CLASS = "tensorflow_datasets.core.features."
LABEL = {"classLabel": {"numClasses": "2"}, "pythonClassName": f"{CLASS}class_label_feature.ClassLabel"}


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def made(folder, splits, dtype="uint8", channels=3, label=LABEL, file_format="array_record", names=None):
    """Writes the set `own` of 8 x 8 images; `splits` are pairs of images [n, 8, 8, C] and labels."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    root = folder / "own" / "1.0.0"
    root.mkdir(parents=True)
    image = {"dtype": dtype, "shape": {"dimensions": ["8", "8", str(channels)]}, "encodingFormat": "png"}
    features = {"image": {"image": image, "pythonClassName": f"{CLASS}image_feature.Image"}, "label": label}
    dictionary = f"{CLASS}features_dict.FeaturesDict"
    (root / "features.json").write_text(
        json.dumps({"featuresDict": {"features": features}, "pythonClassName": dictionary})
    )
    if names:
        (root / "label.labels.txt").write_text("\n".join(names) + "\n")
    about = []
    for split, (images, labels) in splits.items():
        writer = ArrayRecordWriter(str(root / f"own-{split}.{file_format}-00000-of-00001"), "group_size:1")
        for pixels, number in zip(images, labels, strict=True):
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(encoded(pixels))
            example.features.feature["label"].int64_list.value.append(int(number))
            writer.write(example.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        about.append(
            {"filepathTemplate": template, "name": split, "numBytes": "1000", "shardLengths": [str(len(labels))]}
        )
    described = {"fileFormat": file_format, "moduleName": "own", "name": "own", "splits": about, "version": "1.0.0"}
    (root / "dataset_info.json").write_text(json.dumps(described))
    return ImageData("own", dir=str(folder), validation_fraction=0.0)


def examples(n=10, dtype=np.uint8, channels=3, most=256):
    rng = np.random.default_rng(0)
    return rng.integers(0, most, (n, 8, 8, channels)).astype(dtype), np.arange(n) % 2


def everything(split):
    return split.read(np.arange(split.size))


def test_images_and_labels_are_read_as_they_are(tmp_path):
    images, labels = examples()
    dataset = made(tmp_path, {"train": (images, labels)}, names=["cat", "dog"]).load((8, 8, 3))
    found = everything(dataset.train)
    np.testing.assert_array_equal(found["image"], images)
    np.testing.assert_array_equal(found["label"], labels)
    assert dataset.inputs.labels == ("cat", "dog")


def test_labels_without_names_are_numbers(tmp_path):
    assert made(tmp_path, {"train": examples()}).load((8, 8, 3)).inputs.labels == ("0", "1")


def test_16_bits_are_scaled_not_cut(tmp_path):
    images, labels = examples(dtype=np.uint16, channels=1, most=2000)
    images = images + (40_000 * labels).astype(np.uint16)[:, None, None, None]
    dataset = made(tmp_path, {"train": (images, labels)}, "uint16", 1).load((8, 8, 1))
    assert dataset.inputs.range == (0, 65535)
    found = everything(dataset.train)["image"].astype(float)
    np.testing.assert_allclose(found, images * (255 / 65535), atol=0.51)  # rounding


def test_a_set_is_brought_to_a_models_inputs(tmp_path):
    images, labels = examples()
    known = ImageInputs((6, 5, 1), (0.5,), (0.2,), ("dog", "bird", "cat"))
    dataset = made(tmp_path, {"train": (images, labels)}, names=["cat", "dog"]).load((8, 8, 3), known)
    assert dataset.inputs is known
    found = everything(dataset.train)
    assert found["image"].shape == (10, 6, 5, 1)
    np.testing.assert_array_equal(found["label"], np.where(labels == 0, 2, 0))


def test_four_channels_train_and_are_read_from_files(tmp_path):
    images, labels = examples(channels=4)
    dataset = made(tmp_path, {"train": (images, labels)}, channels=4).load((8, 8, 3))
    assert dataset.inputs.shape == (8, 8, 4)
    np.testing.assert_array_equal(dataset.inputs.pixels(encoded(images[0])), images[0])


def test_an_empty_split_is_said(tmp_path):
    dataset = made(tmp_path, {"train": examples(), "test": examples(0)}).load((8, 8, 3))
    assert dataset.test is None
    assert dataset.notes == ("own has an empty split test, left out",)


def test_examples_without_a_label_are_left_out_and_said(tmp_path):
    images, labels = examples()
    unlabelled = np.where(np.arange(10) < 3, -1, labels)
    splits = {"train": (images, unlabelled), "test": (images, np.full(10, -1))}
    dataset = made(tmp_path, splits).load((8, 8, 3))
    np.testing.assert_array_equal(everything(dataset.train)["image"], images[3:])
    assert dataset.test is None
    assert dataset.notes == ("images left out that have no label: 13",)


def test_true_and_false_are_labels(tmp_path):
    label = {"tensor": {"shape": {}, "dtype": "bool", "encoding": "none"}, "pythonClassName": f"{CLASS}scalar.Scalar"}
    dataset = made(tmp_path, {"train": examples()}, label=label).load((8, 8, 3))
    assert dataset.inputs.labels == ("False", "True")
    assert everything(dataset.train)["label"].tolist() == [0, 1] * 5


INT64 = {"tensor": {"shape": {}, "dtype": "int64", "encoding": "none"}, "pythonClassName": f"{CLASS}scalar.Scalar"}
WRONG = {
    "tfrecord": (
        {"file_format": "tfrecord"},
        r"own in '.*1.0.0' is stored as tfrecord, which cannot be read by number",
    ),
    "no number": ({"label": {**LABEL, "classLabel": {}}}, "the feature label does not say how many classes it has"),
    "no class": ({"label": INT64}, r"the feature label is Scalar int64, not a class \(ClassLabel\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_set_that_cannot_be_read_is_refused_in_a_line(case, tmp_path):
    changes, message = WRONG[case]
    with pytest.raises(ZooError, match=message) as error:
        made(tmp_path, {"train": examples()}, **changes).load((8, 8, 3))
    assert "\n" not in str(error.value)


def test_a_set_without_training_examples_is_refused(tmp_path):
    with pytest.raises(ZooError, match="own has no examples in a split train; it has train, test"):
        made(tmp_path, {"train": examples(0), "test": examples()}).load((8, 8, 3))
