"""A folder of class folders: photos/cat/1.jpg, photos/dog/2.png, ...

Folders named train, validation (or val) and test at the top are splits, each with class folders of its own; otherwise
all is train. Files are ordered by a hash of their path, so that any part of them is a mixture of the classes.
"""

import hashlib
import pathlib
from typing import Any

import numpy as np

from train.data.source import IN_MEMORY_BYTES, Arrays, ArraySplit, LazySplit
from zoo.errors import ZooError
from zoo.inputs.image import fit, open_image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


def load(path: str, size: tuple[int, int]) -> tuple[str, dict[str, Any], list[str]]:
    """Name, splits, labels (the class folders' names, sorted); images become RGB of `size` (height, width)."""
    root = pathlib.Path(path)
    if not root.is_dir():
        raise ZooError(f"data.path {path!r} is not a folder")
    parts = {SPLITS[child.name]: child for child in sorted(root.iterdir()) if child.is_dir() and child.name in SPLITS}
    if "train" not in parts:
        parts = {"train": root}
    labels = sorted(child.name for child in parts["train"].iterdir() if child.is_dir() and _images(child))
    if len(labels) < 2:
        raise ZooError(f"{str(parts['train'])!r} needs at least two folders of images, one a class; it has {labels}")
    return root.name, {name: _split(part, labels, size) for name, part in parts.items()}, labels


def _split(folder: pathlib.Path, labels: list[str], size: tuple[int, int]) -> ArraySplit | LazySplit:
    unexpected = {child.name for child in folder.iterdir() if child.is_dir() and _images(child)} - set(labels)
    if unexpected:
        raise ZooError(f"{str(folder)!r} has classes that train does not have: {', '.join(sorted(unexpected))}")
    found = [(file, label) for label, name in enumerate(labels) for file in _images(folder / name)]
    found.sort(key=lambda item: hashlib.sha256(item[0].relative_to(folder).as_posix().encode()).digest())

    def decode(indices: list[int]) -> Arrays:
        images = np.stack([fit(open_image(found[i][0], 3), size) for i in indices])
        return {"image": images, "label": np.array([found[i][1] for i in indices], np.int32)}

    if len(found) * size[0] * size[1] * 3 < IN_MEMORY_BYTES:
        return ArraySplit(decode(list(range(len(found)))))
    return LazySplit(len(found), decode)


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
