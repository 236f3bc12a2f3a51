"""Images from arrays and from tables of files."""

import numpy as np
import pytest

from photos import SHADES, SHAPE, everything, load, photos, save
from train import ImageData, MultiLabelData
from zoo import ZooError


def arrays(n, start=0):
    return (np.arange(start, start + n) % 200).astype(np.uint8)[:, None, None] * np.ones((1, 6, 5), np.uint8)


@pytest.mark.parametrize("names", ["x_{} y_{}", "{}_images {}_labels", "X_{} Y_{}", "{}-data {}-targets"])
def test_arrays_of_an_npz_are_found_by_their_names(names, tmp_path):
    images, labels = names.split()
    parts = {"train": 40, "val": 8, "test": 6}
    saved = {images.format(split): arrays(n) for split, n in parts.items()}
    saved |= {labels.format(split): np.arange(n)[:, None] % 2 + 9 for split, n in parts.items()}
    np.savez(tmp_path / "set.npz", **saved)
    dataset = load(tmp_path / "set.npz")
    assert [split.size for split in (dataset.train, dataset.validation, dataset.test)] == [40, 8, 6]
    assert (dataset.inputs.labels, dataset.inputs.shape) == (("9", "10"), (6, 5, 1))
    np.testing.assert_array_equal(everything(dataset.test)["image"], arrays(6)[..., None])
    np.testing.assert_array_equal(everything(dataset.test)["label"], np.arange(6) % 2)


def test_arrays_sorted_by_class_are_held_out_as_a_mixture(tmp_path):
    np.savez(tmp_path / "set.npz", images=arrays(100), labels=np.repeat(["a", "b"], 50))
    dataset = ImageData(path=str(tmp_path / "set.npz"), validation_fraction=0.2).load(SHAPE)
    assert 4 < everything(dataset.validation)["label"].sum() < 16
    assert dataset.inputs.labels == ("a", "b")


def test_an_array_beside_its_labels_and_without(tmp_path):
    np.save(tmp_path / "x.npy", arrays(10))
    with pytest.raises(ZooError, match=r"needs its labels \[n\] in .*labels.npy', or both in an .npz"):
        load(tmp_path / "x.npy")
    np.save(tmp_path / "labels.npy", np.array([0, 1, -1, 0, 1, 0, 1, 0, 1, -1]))
    dataset = load(tmp_path / "x.npy")
    assert dataset.train.size == 8
    assert "images left out that have no label: 2" in dataset.notes


def test_any_dtype_of_array_is_an_image_of_8_bits(tmp_path):
    ramp = np.linspace(0, 1, 60).reshape(2, 6, 5)
    cases = {"u1": 255, "u2": 1023, "i4": 4095, "i8": 255, "f4": 1.0, "f8": 17.5}
    for dtype, most in cases.items():
        np.savez(tmp_path / f"{dtype}.npz", x=(ramp * most).astype(dtype), y=[0, 1])
        dataset = load(tmp_path / f"{dtype}.npz")
        np.testing.assert_allclose(everything(dataset.train)["image"].ravel().astype(int).sum(), 60 * 127.5, rtol=0.01)
        assert dataset.inputs.range == (None if dtype == "u1" else (0, most)), dtype


def test_channels_that_come_first_are_moved(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.moveaxis(np.full((4, 9, 7, 3), (1, 2, 3), np.uint8), -1, 1), y=[0, 1, 0, 1])
    dataset = load(tmp_path / "a.npz")
    assert everything(dataset.train)["image"][0, 0, 0].tolist() == [1, 2, 3]
    assert any("the channels come first" in note for note in dataset.notes)


WRONG = {
    "no labels": ({"x_train": arrays(4)}, "has images of the split train alone"),
    "no train": ({"x_test": arrays(4), "y_test": np.arange(4)}, "has no arrays of the split train"),
    "other names": ({"a": arrays(4)}, "needs arrays such as x_train and y_train"),
    "lengths": ({"x": arrays(4), "y": np.arange(3)}, "has 4 images, but 3 labels"),
    "objects": ({"x": arrays(2), "y": np.array([{}, []], object)}, "is no array of numbers"),
    "one-hot": ({"x": arrays(2), "y": np.eye(2)}, "one an image"),
    "fractions": ({"x": arrays(2), "y": np.array([0.5, 1])}, "must be whole numbers or strings"),
    "flat": ({"x": np.zeros((4, 64)), "y": np.arange(4)}, "images must be numbers"),
    "channels": ({"x": np.zeros((4, 6, 6, 7)), "y": np.arange(4)}, "images must be numbers"),
    "one label": ({"x": arrays(2), "y": np.zeros(2)}, "needs at least two labels"),
    "another label": (
        {"x": arrays(2), "y": [0, 1], "x_val": arrays(1), "y_val": [2]},
        "labels that train does not have: 2",
    ),
    "two alike": ({"x": arrays(2), "images": arrays(2), "y": [0, 1]}, "has two arrays of images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays_are_refused(case, tmp_path):
    saved, message = WRONG[case]
    np.savez(tmp_path / "a.npz", **saved)
    with pytest.raises(ZooError, match=message) as error:
        load(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("header", ["file,label", "Path;Class", "\ufeffimage,label", "filename\tcategory"])
def test_a_table_of_files_and_labels(header, tmp_path):
    separator = next(mark for mark in ",;\t" if mark in header)
    photos(tmp_path / "photos")
    rows = [header + f"{separator}split"]
    for label in SHADES:
        rows += [separator.join((f"photos/{label}/{i}.png", label, "" if i < 4 else "Val")) for i in range(6)]
    (tmp_path / "t.csv").write_text("\r\n".join(rows))
    dataset = load(tmp_path / "t.csv")
    assert (dataset.inputs.labels, dataset.train.size, dataset.validation.size) == (("cat", "dog"), 8, 4)
    examples = everything(dataset.train)
    np.testing.assert_array_equal(examples["image"][:, 0, 0, 0] == 200, examples["label"] == 1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,labels\na.png,x;y\na.png,y\n", "the source is MultiLabelData"),
        ("a,b\n1,2\n", "must have the columns file and label"),
        ("file,label\n", "must have the columns file and label, and a row"),
        ("", "is empty"),
        ("file,label\na.png,x\nb.png,y\n", "1 of 2 images cannot be read; .*no image file"),
        ("file,label\na.png,x,3\n", "row 1 has 3 columns, not 2"),
        ("file,label,split\na.png,x,trian\n", "unknown split in .*did you mean train"),
        ("file,label,split\na.png,x,test\n", "has no row of the split train"),
        ("file,label,split\na.png,x,\na.png,y,\na.png,z,val\n", "labels that train does not have: z"),
        ("file,file\na.png,x\n", "two columns of one name"),
        ("file,label\n,x\n", "row 1 names no file"),
        ("file,label\na.png,x\na.png,x\n", "needs at least two labels; it has"),
        (b"\xff\xfe\x00", "is UTF-16, not UTF-8 text"),
    ],
)
def test_a_wrong_table_is_refused(table, message, tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(ZooError, match=message):
        load(tmp_path / "t.csv")


def test_home_is_expanded_in_data_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    photos(tmp_path / "photos")
    np.savez(tmp_path / "a.npz", x=arrays(4), y=[0, 1, 0, 1])
    (tmp_path / "t.csv").write_text("file,labels\n~/photos/cat/1.png,a;b\nphotos/dog/1.png,b\n")
    assert load("~/photos").train.size == 12
    assert load("~/a.npz").train.size == 4
    assert MultiLabelData(path="~/t.csv", validation_fraction=0.0).load(SHAPE).train.size == 2


def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path):
    for name in ("photos.zip", "photos.tar.gz", "photo.png", "noext"):
        (tmp_path / name).write_bytes(b"PK\x03\x04\xf6")
        with pytest.raises(ZooError, match="is not a folder of images, a table"):
            load(tmp_path / name)
