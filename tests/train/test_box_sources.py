"""Detection data in COCO's, Pascal VOC's and CSV files; bad ones get an error with file and line, or a note."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from train import DetectionData
from zoo.errors import ZooError

BOXES = {  # of images of 40 x 30: class and corners
    "a.png": [("cell", (2, 3, 12, 13)), ("plate", (20, 10, 30, 25))],
    "b.png": [],
    "c.png": [("cell", (5, 5, 25, 20))],
    "d.png": [("plate", (0, 0, 40, 30))],
}
SPLITS = {"a.png": "train", "b.png": "train", "c.png": "val", "d.png": "test"}


def pictures(folder: pathlib.Path, names: Any = BOXES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(folder / name)


def coco_json(names: Any, **changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cell"}]}
    content["categories"].append({"id": 9, "name": "plate"})
    for number, name in enumerate(names):
        content["images"].append({"id": number, "file_name": name, "width": 40, "height": 30})
        for label, (x0, y0, x1, y1) in BOXES[name]:
            category = {"cell": 7, "plate": 9}[label]
            about = {"id": len(content["annotations"]), "image_id": number, "category_id": category}
            content["annotations"].append({**about, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0})
    return {**content, **changes}


def of_split(split: str) -> list[str]:
    return [name for name, own in SPLITS.items() if own == split]


def coco_folder(root: pathlib.Path) -> pathlib.Path:
    """COCO's own layout: annotations/instances_val.json, images in folders by split."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val", "test"):
        pictures(root / f"{split}2017", of_split(split))
        content = json.dumps(coco_json(of_split(split)))
        (root / "annotations" / f"instances_{split}2017.json").write_text(content)
    return root


def roboflow_folder(root: pathlib.Path) -> pathlib.Path:
    """A folder a split, with its annotations among the images."""
    for split in ("train", "val", "test"):
        pictures(root / split, of_split(split))
        (root / split / "_annotations.coco.json").write_text(json.dumps(coco_json(of_split(split))))
    return root


def xml(name: str, boxes: Any = None, more: str = "") -> str:
    objects = "".join(
        f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for label, box in (BOXES[name] if boxes is None else boxes)
    )
    return f"<annotation><filename>{name}</filename>{objects}{more}</annotation>"


def voc_folder(root: pathlib.Path) -> pathlib.Path:
    pictures(root / "JPEGImages")
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name in BOXES:
        (root / "Annotations" / name.replace(".png", ".xml")).write_text(xml(name))
    for split in ("train", "val", "test"):
        names = [name.removesuffix(".png") for name in of_split(split)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


HEAD = "file,label,x0,y0,x1,y1,split"


def csv_file(root: pathlib.Path, lines: list[str] | None = None, head: str = HEAD) -> pathlib.Path:
    pictures(root / "images")
    if lines is None:
        lines = []
        for name, boxes in BOXES.items():
            lines += [f"{name},{label},{','.join(map(str, box))},{SPLITS[name]}" for label, box in boxes]
            lines += [] if boxes else [f"{name},,,,,,{SPLITS[name]}"]
    (root / "boxes.csv").write_text("\n".join([head, *lines]) + "\n")
    return root / "boxes.csv"


def load(path: Any, **settings: Any) -> Any:
    return DetectionData(path=str(path), image_size="60x80", **settings).load((64, 64, 3))


def boxes_of(split: Any, labels: tuple[str, ...], scale: float) -> list[list[tuple[str, tuple[int, ...]]]]:
    arrays = split.read(np.arange(split.size))
    return [
        [
            (labels[label], tuple(int(side) for side in np.rint(box / scale)))
            for box, label in zip(boxes, found, strict=True)
            if label >= 0
        ]
        for boxes, found in zip(arrays["boxes"], arrays["box_label"], strict=True)
    ]


@pytest.mark.parametrize("make", [coco_folder, roboflow_folder, voc_folder, csv_file])
def test_every_format_gives_the_same_boxes(make: Any, tmp_path: pathlib.Path) -> None:
    """In the frame's pixels, twice the image's; an image without boxes is one."""
    dataset = load(make(tmp_path))
    assert dataset.inputs.labels == ("cell", "plate")
    assert dataset.inputs.shape == (60, 80, 3)
    for split, names in (("train", ["a.png", "b.png"]), ("validation", ["c.png"]), ("test", ["d.png"])):
        found = boxes_of(dataset.split(split), dataset.inputs.labels, 2)
        assert sorted(found) == sorted([[*BOXES[name]] for name in names])
    assert "2 images, 2 boxes" in dataset.notes[0]


def test_the_end_of_train_validates_where_the_data_have_no_splits(tmp_path: pathlib.Path) -> None:
    pictures(tmp_path)
    (tmp_path / "boxes.json").write_text(json.dumps(coco_json(BOXES)))
    dataset = load(tmp_path / "boxes.json", validation_fraction=0.5)
    assert (dataset.train.size, dataset.validation.size, dataset.test) == (2, 2, None)


def test_boxes_are_scaled_with_the_image_into_the_frame(tmp_path: pathlib.Path) -> None:
    """An image of another shape than the frame fills its top left; the rest is grey."""
    pictures(tmp_path, ["a.png"])
    (tmp_path / "boxes.json").write_text(json.dumps(coco_json(["a.png"])))
    dataset = DetectionData(path=str(tmp_path), image_size="60x60", validation_fraction=0).load((64, 64, 3))
    example = dataset.train.read(np.arange(1))
    assert example["size"].tolist() == [[45, 60]]
    assert example["scale"].tolist() == [1.5]
    np.testing.assert_allclose(example["boxes"][0, 0], [3, 4.5, 18, 19.5])
    assert (example["image"][0, 45:] == 128).all()


def test_boxes_outside_are_cut_and_those_without_area_left_out(tmp_path: pathlib.Path) -> None:
    lines = ["a.png,cell,-9,5,20,50,train", "a.png,cell,50,5,60,20,train", "a.png,cell,7,7,7,9,train"]
    dataset = load(csv_file(tmp_path, [*lines, "c.png,cell,1,1,5,5,val"]))
    assert boxes_of(dataset.train, ("cell",), 2) == [[("cell", (0, 5, 20, 30))]]
    notes = " ".join(dataset.notes)
    assert "1 boxes that reach beyond their images are cut" in notes
    assert "2 boxes without area in their images are left out, such as" in notes
    assert "line 3" in notes


def test_500_boxes_in_an_image(tmp_path: pathlib.Path) -> None:
    lines = [f"a.png,cell,{i % 30},{i % 20},{i % 30 + 5},{i % 20 + 5},train" for i in range(500)]
    dataset = load(csv_file(tmp_path, [*lines, "c.png,cell,1,1,5,5,val"]))
    assert dataset.train.read(np.arange(1))["boxes"].shape == (1, 500, 4)


def test_crowds_and_difficult_objects_are_marked(tmp_path: pathlib.Path) -> None:
    content = coco_json(["a.png"])
    content["annotations"][1]["iscrowd"] = 1
    pictures(tmp_path / "c", ["a.png"])
    (tmp_path / "c" / "x.json").write_text(json.dumps(content))
    example = load(tmp_path / "c", validation_fraction=0).train.read(np.arange(1))
    assert example["box_ignored"].tolist() == [[False, True]]
    pictures(tmp_path / "v", ["a.png"])
    (tmp_path / "v" / "a.xml").write_text(xml("a.png").replace("<difficult>0", "<difficult>1", 1))
    example = load(tmp_path / "v", validation_fraction=0).train.read(np.arange(1))
    assert example["box_ignored"].tolist() == [[True, False]]


CSV_ERRORS = {
    "swapped": (["a.png,cell,20,5,10,9,train"], "line 2.*swapped sides"),
    "words": (["a.png,cell,20,5,x,9,train"], "line 2.*four numbers"),
    "infinite": (["a.png,cell,20,5,inf,9,train"], "line 2.*finite"),
    "missing": (["nope.png,cell,2,5,9,9,train"], "'nope.png'.*no such image"),
    "columns": (["a.png,cell,2,5,9"], "line 2 has 5 columns, not 7"),
    "split": (["a.png,cell,2,5,9,9,tarin"], "split in .*line 2.*train"),
    "two splits": (["a.png,cell,2,5,9,9,train", "a.png,cell,2,5,9,9,val"], "line 3.*splits train and validation"),
    "no label": (["a.png,,2,5,9,9,train"], "line 2 has a box without a label"),
    "shares": (["a.png,cell,0.1,0.1,0.5,0.9,train"], "shares of the image.*pixels"),
    "class": (["a.png,cell,2,5,9,9,train", "c.png,new,2,5,9,9,val"], "line 3.*no class 'new'.*cell"),
    "no box": (["a.png,,,,,,train"], "no box in its training images"),
    "no train": (["a.png,cell,2,5,9,9,test"], "no images to train on"),
}


@pytest.mark.parametrize("case", CSV_ERRORS)
def test_a_bad_row_is_an_error_with_file_and_line(case: str, tmp_path: pathlib.Path) -> None:
    lines, message = CSV_ERRORS[case]
    with pytest.raises(ZooError, match=message) as error:
        load(csv_file(tmp_path, lines))
    assert "boxes" in str(error.value)
    assert "\n" not in str(error.value)


COCO_ERRORS: dict[str, tuple[Any, str]] = {
    "schema": ({"pictures": []}, "COCO's format: it needs images, annotations and categories; it has pictures"),
    "list": ([], "COCO's format"),
    "no categories": (coco_json(["a.png"], categories=[]), "no categories"),
    "fields": (coco_json(["a.png"], images=[{"id": 0}]), r"images\[0\] needs id, file_name"),
    "category": (coco_json(["a.png"], categories=[{"id": 7, "name": "cell"}]), r"annotations\[1\].*category.*9"),
    "image": (coco_json(["a.png"], images=[]), r"annotations\[0\]: no image has the id 0"),
    "negative": (
        coco_json(["a.png"], annotations=[{"image_id": 0, "category_id": 7, "bbox": [5, 5, -3, 2]}]),
        r"annotations\[0\].*swapped",
    ),
    "three": (
        coco_json(["a.png"], annotations=[{"image_id": 0, "category_id": 7, "bbox": [5, 5, 3]}]),
        r"annotations\[0\].*four numbers",
    ),
    "text": (
        coco_json(["a.png"], annotations=[{"image_id": 0, "category_id": 7, "bbox": "5 5 3 3"}]),
        r"annotations\[0\].*four numbers",
    ),
    "parent": (coco_json(["a.png"], images=[{"id": 0, "file_name": "../../x.png"}]), "no such image"),
}


@pytest.mark.parametrize("case", COCO_ERRORS)
def test_a_bad_coco_file_is_an_error(case: str, tmp_path: pathlib.Path) -> None:
    content, message = COCO_ERRORS[case]
    pictures(tmp_path, ["a.png"])
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(ZooError, match=message) as error:
        load(tmp_path / "train.json")
    assert "train.json" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation><object>", "no XML"),
        (xml("a.png", [("cell", ("1", "2", "", "9"))]), "object 0.*four numbers"),
        (xml("a.png", [("cell", (9, 2, 1, 9))]), "object 0.*swapped"),
        (
            xml("a.png", []).replace("</annotation>", "<object><name>x</name></object></annotation>"),
            "needs name and bndbox",
        ),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + xml("a.png"), "defines entities"),
    ],
)
def test_a_bad_voc_file_is_an_error(content: str, message: str, tmp_path: pathlib.Path) -> None:
    pictures(tmp_path, ["a.png"])
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(ZooError, match=message) as error:
        load(tmp_path)
    assert "a.xml" in str(error.value)


def test_a_folder_without_annotations_is_an_error(tmp_path: pathlib.Path) -> None:
    pictures(tmp_path)
    with pytest.raises(ZooError, match=r"no COCO JSON .*, no Pascal VOC XML"):
        load(tmp_path)
    with pytest.raises(ZooError, match="is no folder"):
        load(tmp_path / "nowhere")


def test_an_unreadable_image_is_left_out_or_an_error(tmp_path: pathlib.Path) -> None:
    file = csv_file(tmp_path)
    (tmp_path / "images" / "b.png").write_bytes(b"no image")
    with pytest.raises(ZooError, match=r"1 of 4 images cannot be read.*b\.png"):
        load(file)
    dataset = load(file, most_unreadable=0.5)
    assert dataset.train.size == 1
    assert any("left out that cannot be read" in note for note in dataset.notes)


def test_labels_of_a_model_stand(tmp_path: pathlib.Path) -> None:
    """Data that lack one of a trained model's classes get its numbers; a class that it does not have is an error."""
    first = load(csv_file(tmp_path / "one"))
    (tmp_path / "two").mkdir()
    file = csv_file(tmp_path / "two", ["a.png,plate,2,5,9,9,train", "c.png,plate,2,5,9,9,val"])
    again = DetectionData(path=str(file)).load((64, 64, 3), first.inputs)
    assert again.inputs == first.inputs
    assert again.train.read(np.arange(1))["box_label"].tolist() == [[1]]
    other = csv_file(tmp_path / "three", ["a.png,new,2,5,9,9,train", "c.png,new,2,5,9,9,val"])
    with pytest.raises(ZooError, match="the model has no class 'new'"):
        DetectionData(path=str(other)).load((64, 64, 3), first.inputs)
