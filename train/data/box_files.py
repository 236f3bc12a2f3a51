"""Boxes around objects in files: COCO's JSON, Pascal VOC's XML, a CSV of boxes; and the images that they are of."""

import collections
import csv
import functools
import io
import json
import pathlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from typing import Any

from train.data.files import HELD_OUT, read_text
from train.data.labels import plain
from train.data.scenes import Box, Scene, checked
from train.data.splits import NAMES, SPLITS, split_of
from zoo.errors import ZooError, first_line, unknown
from zoo.inputs.image_file import SUFFIXES
from zoo.inputs.walk import walk

Scenes = dict[str, list[Scene]]
FILE = ("file", "filename", "image", "path", "file_name", "image_path")
LABEL = ("label", "class", "category")
CORNERS = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))
MOST_XML = 2**20  # bytes of one annotation


def load(path: str) -> tuple[str, Scenes]:
    """The name and the scenes of each split of a folder, a COCO JSON or a CSV file."""
    root = pathlib.Path(path).expanduser()
    if root.is_file():
        images = _Images(root.parent)
        if root.suffix.lower() == ".json":
            return root.stem, _by_split([(root, _coco(root, _json(root), images))])
        if root.suffix.lower() in (".csv", ".tsv", ".txt"):
            return root.stem, _table(root, images)
    if not root.is_dir():
        raise ZooError(f"data.path {path!r} is no folder of images and annotations, no COCO JSON and no CSV of boxes")
    images, files = _Images(root), walk(path).files
    if xml := [file for file in files if file.suffix.lower() == ".xml"]:
        return root.name, _voc(root, xml, files, images)
    parsed = {root / file: _json(root / file) for file in files if file.suffix.lower() == ".json"}
    if found := {file: content for file, content in parsed.items() if _is_coco(content)}:
        return root.name, _by_split([(file, _coco(file, content, images)) for file, content in found.items()])
    tables = [root / file for file in files if file.suffix.lower() == ".csv"]
    if len(tables) == 1:
        return root.name, _table(tables[0], images)
    raise ZooError(
        f"{path!r} has no COCO JSON (with images, annotations and categories), no Pascal VOC XML, and "
        f"{len(tables)} CSV files, where one of boxes is expected"
    )


class _Images:
    """The images under a folder, found by the ends of their paths."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.by_name: dict[str, list[pathlib.PurePath]] = collections.defaultdict(list)
        for file in walk(root).files:
            if file.suffix.lower() in SUFFIXES:
                self.by_name[file.name].append(file)

    def find(self, name: str, beside: pathlib.Path, where: str) -> pathlib.Path:
        """The image that annotations in the folder `beside` call `name`; ZooError where none or several could be."""
        wanted = pathlib.PurePosixPath(name.replace("\\", "/"))
        if (near := beside / wanted).is_file() and not wanted.is_absolute() and ".." not in wanted.parts:
            return near
        found = [file for file in self.by_name.get(wanted.name, []) if file.parts[-len(wanted.parts) :] == wanted.parts]
        found = found or self.by_name.get(wanted.name, [])
        if len(found) > 1:
            closest = [file for file in found if (self.root / file).parent.parent == beside.parent]
            found = closest if len(closest) == 1 else found
        if len(found) != 1:
            many = f"{len(found)} images of this name" if found else "no such image"
            raise ZooError(f"{where}: image {name!r}: there is {many} under {str(self.root)!r}")
        return self.root / found[0]


def _by_split(parts: Iterable[tuple[pathlib.Path, list[Scene]]]) -> Scenes:
    """The scenes of files by the split that a file's name, or its folder's, means: instances_val2017.json."""
    found: Scenes = {}
    for file, scenes in parts:
        found.setdefault(_split_in(file.stem) or split_of(file.parent.name) or "train", []).extend(scenes)
    return {split: found[split] for split in SPLITS if split in found}


def _split_in(name: str) -> str | None:
    """The split of a name such as instances_val2017 or _annotations.test; None where none, or two, are in it."""
    if "train" in name.lower():
        return "train"
    held = {NAMES[match.lower()] for match in HELD_OUT.findall(name)}
    return held.pop() if len(held) == 1 else None


def _json(file: pathlib.Path) -> Any:
    try:
        return json.loads(read_text(file))
    except ValueError as error:
        raise ZooError(f"{str(file)!r} is no JSON: {first_line(error)}") from None


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def _coco(file: pathlib.Path, content: Any, images: _Images) -> list[Scene]:
    """The scenes of a file in the format of COCO's object detection: boxes are (x, y, width, height)."""
    name = str(file)
    if not _is_coco(content):
        has = ", ".join(content)[:80] if isinstance(content, dict) else type(content).__name__
        raise ZooError(f"{name!r} is not in COCO's format: it needs images, annotations and categories; it has {has}")
    parts = {}
    for part, fields in {
        "images": ("id", "file_name"),
        "categories": ("id", "name"),
        "annotations": ("image_id", "category_id", "bbox"),
    }.items():
        entries = content[part]
        for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            if not isinstance(entry, dict) or not {*fields} <= entry.keys():
                raise ZooError(f"{name!r}: {part}[{number}] needs {', '.join(fields)}, and is {entry!r:.80}")
        parts[part] = entries
    labels = {entry["id"]: plain(str(entry["name"])) for entry in parts["categories"]}
    if not labels:
        raise ZooError(f"{name!r} has no categories")
    boxes: dict[Any, list[Box]] = {entry["id"]: [] for entry in parts["images"]}
    for number, entry in enumerate(parts["annotations"]):
        where = f"{name!r}: annotations[{number}]"
        if entry["image_id"] not in boxes:
            raise ZooError(f"{where}: no image has the id {entry['image_id']!r}")
        if entry["category_id"] not in labels:
            raise ZooError(f"{where}: no category has the id {entry['category_id']!r}")
        corners = entry["bbox"]
        if isinstance(corners, list) and len(corners) == 4 and all(isinstance(n, int | float) for n in corners):
            x, y, width, height = corners
            corners = x, y, x + width, y + height
        box = Box(checked(corners, where), labels[entry["category_id"]], where, bool(entry.get("iscrowd", 0)))
        boxes[entry["image_id"]].append(box)
    scenes = []
    for number, entry in enumerate(parts["images"]):
        where = f"{name!r}: images[{number}]"
        path = images.find(str(entry["file_name"]), file.parent, where)
        scenes.append(_scene(path, boxes[entry["id"]]))
    return scenes


def _scene(path: pathlib.Path, boxes: Iterable[Box]) -> Scene:
    return Scene(repr(str(path)), functools.partial(pathlib.Path, path), tuple(boxes))


def _voc(
    root: pathlib.Path, xml: Iterable[pathlib.PurePath], files: Iterable[pathlib.PurePath], images: _Images
) -> Scenes:
    """The scenes of Pascal VOC's annotations, one XML file an image. ImageSets/Main/train.txt, val.txt and test.txt
    name those of each split; else folders train, valid and test do, or all are train."""
    lists: dict[str, str] = {}
    for file in files:
        split = split_of(file.stem) if file.suffix == ".txt" and file.parent.name == "Main" else None
        for line in read_text(root / file).split() if split else ():
            lists[line] = str(split)
    found: Scenes = {}
    for file in xml:
        split = lists.get(file.stem) if lists else next(filter(None, map(split_of, file.parts[:-1])), "train")
        if split is not None:
            found.setdefault(split, []).append(_voc_scene(root / file, images))
    return {split: found[split] for split in SPLITS if split in found}


def _voc_scene(file: pathlib.Path, images: _Images) -> Scene:
    name = str(file)
    if file.stat().st_size > MOST_XML:
        raise ZooError(f"{name!r} has {file.stat().st_size:,} bytes, more than an annotation's {MOST_XML:,}")
    text = read_text(file)
    if "<!ENTITY" in text:
        raise ZooError(f"{name!r} defines entities, which no annotation needs")
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ZooError(f"{name!r} is no XML: {error}") from None
    boxes = []
    for number, item in enumerate(tree.iter("object")):
        where, label, box = f"{name!r}: object {number}", item.findtext("name"), item.find("bndbox")
        if not label or box is None:
            raise ZooError(f"{where} needs name and bndbox")
        corners = [box.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax")]
        difficult = (item.findtext("difficult") or "0").strip() not in ("0", "")
        boxes.append(Box(checked(corners, where), plain(label), where, difficult))
    given = tree.findtext("filename") or ""
    same = [path for suffix in SUFFIXES for path in images.by_name.get(file.stem + suffix, [])]
    path = images.root / same[0] if len(same) == 1 else images.find(given or file.stem, file.parent, f"{name!r}")
    return _scene(path, boxes)


def _table(file: pathlib.Path, images: _Images) -> Scenes:
    """The scenes of a CSV of a box a row; a row without a label and a box is an image without objects."""
    text, name = read_text(file), str(file)
    separator = max(",;\t", key=text.partition("\n")[0].count)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    header = [column.strip().lower() for column in rows[0]]
    columns = {
        "file": next((column for column in FILE if column in header), None),
        "label": next((column for column in LABEL if column in header), None),
    }
    corners = next((names for names in CORNERS if {*names} <= {*header}), None)
    if None in columns.values() or corners is None:
        raise ZooError(
            f"{name!r} must have the columns file, label, x0, y0, x1 and y1; it has {', '.join(header)!r:.80}"
        )
    found: dict[str, tuple[str, list[Box]]] = {}
    shares = True
    for number, values in enumerate(rows[1:], start=2):
        where = f"{name!r}: line {number}"
        if not values:
            continue
        if len(values) != len(header):
            raise ZooError(f"{where} has {len(values)} columns, not {len(header)}")
        row = dict(zip(header, values, strict=True))
        given = row.get("split", "").strip()
        split = split_of(given) if given else "train"
        if split is None:
            raise unknown(f"split in {where}", given, SPLITS)
        image = row[str(columns["file"])]
        was, boxes = found.setdefault(image, (split, []))
        if was != split:
            raise ZooError(f"{where}: the image {image!r} is in the splits {was} and {split}")
        label, sides = plain(row[str(columns["label"])]), [row[side].strip() for side in corners]
        if not label and not any(sides):
            continue
        if not label:
            raise ZooError(f"{where} has a box without a label")
        box = Box(checked(sides, where), label, where)
        shares &= max(box.corners) <= 1
        boxes.append(box)
    if shares and any(boxes for _, boxes in found.values()):
        raise ZooError(f"{name!r} has boxes in shares of the image, all of at most 1; they must be in pixels")
    scenes: Scenes = {}
    for image, (split, boxes) in found.items():
        scenes.setdefault(split, []).append(_scene(images.find(image, file.parent, f"{name!r}"), boxes))
    return {split: scenes[split] for split in SPLITS if split in scenes}
