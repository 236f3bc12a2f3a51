"""Folders of images and masks: images/ and masks/ with the same names, alone or in folders of splits."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from train.data.splits import SPLITS, split_of
from zoo.errors import ZooError, first_line
from zoo.inputs.image_file import header
from zoo.inputs.walk import walk

LIST = "classes.txt"
MODES = ("P", "L", "1", "I", "I;16")  # of Pillow: a whole number a pixel


@dataclasses.dataclass(frozen=True)
class Mask:
    """The mask of an image: one file of a palette's numbers or of grey values, or one file a class."""

    paths: Mapping[str, pathlib.Path]  # by class; of a single file by ""
    classes: tuple[str, ...] = ()  # those with a file, for some image

    @property
    def name(self) -> str:
        return repr(str(next(iter(self.paths.values()))))

    def values(self) -> np.ndarray:
        """Whole numbers int32 [h, w]; of one file a class i + 1 where that of class i is not 0, and 0 elsewhere."""
        if "" in self.paths:
            return mask_values(self.paths[""])
        found = np.zeros(mask_values(next(iter(self.paths.values()))).shape, np.int32)
        for number, name in enumerate(self.classes, start=1):
            if (path := self.paths.get(name)) is not None:
                inside = mask_values(path) != 0
                if inside.shape != found.shape:
                    raise ZooError(f"{str(path)!r} has {sides(inside)} pixels, another class's mask {sides(found)}")
                if (found[inside] > 0).any():
                    raise ZooError(f"{str(path)!r} has pixels that another class's mask has too; a pixel has one class")
                found[inside] = number
        return found


def sides(array: np.ndarray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"


def mask_values(path: pathlib.Path) -> np.ndarray:
    """The numbers of a palette's or a grey image's pixels, int32 [h, w]; ZooError for one of colours or fractions."""
    from PIL import Image

    header(path)  # which is an error of one line for a file that is no image, or too large
    with Image.open(path) as image:
        if image.mode not in MODES:
            raise ZooError(f"{str(path)!r} is a mask of colours ({image.mode}); save it with a palette, or grey")
        try:
            return np.asarray(image).astype(np.int32)
        except Exception as error:  # each of Pillow's decoders has its own for damaged data
            raise ZooError(f"{str(path)!r} is not a readable mask: {first_line(error)}") from None


def find(path: str) -> tuple[str, dict[str, list[tuple[pathlib.Path, Mask]]], list[str] | None]:
    """The folder's name; by split its images with their masks; and the names of the values 0, 1, ...: those of the file
    classes.txt, or the background and those of one file a class. None where values have no names.

    ZooError for a folder without images/ and masks/, an image without a mask, and an empty list of classes.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise ZooError(f"data.path {path!r} is not a folder of images and masks")
    folders = {"train": root}
    if not (root / "images").is_dir():
        below = [folder for folder in sorted(root.iterdir()) if (folder / "images").is_dir()]
        folders = {split: folder for folder in below if (split := split_of(folder.name))}
    if "train" not in folders:
        raise ZooError(f"{path!r} needs the folders images and masks, in itself or in each of {', '.join(SPLITS)}")
    splits = {split: _pairs(folder) for split, folder in folders.items()}
    kinds = {name for pairs in splits.values() for _, mask in pairs for name in mask.paths}
    classes, names = tuple(sorted(kinds - {""})), _listed(root / LIST)
    if classes and ("" in kinds or names is not None):
        other = LIST if names is not None else "masks that are a single file"
        raise ZooError(f"{path!r} has folders of masks, one a class ({classes[0]}, ...), and {other}; use one form")
    if classes:
        splits = {
            split: [(image, dataclasses.replace(mask, classes=classes)) for image, mask in pairs]
            for split, pairs in splits.items()
        }
        names = ["background", *classes]
    return root.name or root.resolve().name, splits, names


def _listed(path: pathlib.Path) -> list[str] | None:
    if not path.is_file():
        return None
    names = [line.strip() for line in path.read_text("utf-8", errors="replace").splitlines()]
    if not names or not all(names) or len({*names}) < len(names):
        raise ZooError(f"{str(path)!r} must name the classes, each once and on a line, that of value 0 first")
    return names


def _pairs(folder: pathlib.Path) -> list[tuple[pathlib.Path, Mask]]:
    """The images of a folder, sorted, each with its mask."""
    masks: dict[str, dict[str, pathlib.Path]] = {}
    if (folder / "masks").is_dir():
        tree = walk(folder / "masks")
        for file in tree.files:
            masks.setdefault(file.stem, {})[file.parts[0] if len(file.parts) > 1 else ""] = tree.root / file
    tree, pairs = walk(folder / "images"), []
    for file in tree.files:
        if file.stem not in masks:
            raise ZooError(f"{str(tree.root / file)!r} has no mask {str(folder / 'masks' / file.stem)!r}, .png or such")
        pairs.append((tree.root / file, Mask(masks[file.stem])))
    if not pairs:
        raise ZooError(f"{str(folder / 'images')!r} has no images")
    return pairs
