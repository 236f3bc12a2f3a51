"""Images as NumPy arrays: an .npz of images and labels, or an .npy of images beside a labels.npy."""

import math
import pathlib
import re
from collections.abc import Collection
from typing import Any

import numpy as np

from train.data.image_source import Found
from train.data.labels import plain
from train.data.pictures import StoredPictures
from train.data.source import IN_MEMORY_BYTES
from train.data.splits import SPLITS, split_of
from zoo.errors import ZooError, first_line

IMAGES, LABELS = {"x", "image", "images", "data"}, {"y", "label", "labels", "target", "targets"}
SUFFIXES = (".npy", ".npz")


def load(path: str, known: Collection[str] = ()) -> Found:
    """The pictures of each split, and the labels, which are the values that train's have, sorted.

    In an .npz the arrays are x_train and y_train, train_images and train_labels, or images and labels where all is
    train; those of the other splits are named likewise. Images are [n, h, w] or [n, h, w, 1 to 4], of any number type;
    labels [n] are whole numbers or strings, where -1 means none.
    """
    file = pathlib.Path(path).expanduser()
    arrays = _single(file) if file.suffix.lower() == ".npy" else _named(file)
    pairs, notes = {}, []
    for split in SPLITS:
        given = arrays.get(split, {})
        if len(given) == 1:
            (kind,) = given
            raise ZooError(f"{str(file)!r} has {kind} of the split {split} alone: images and labels are needed")
        if given:
            images, note = _images(given["images"], f"{file.name}, split {split}")
            pairs[split] = images, _labels(given["labels"], f"{file.name}, split {split}")
            notes += note
            if len(images) != len(pairs[split][1]):
                raise ZooError(
                    f"{str(file)!r}: the split {split} has {len(images)} images, but {len(pairs[split][1])} labels"
                )
    if "train" not in pairs:
        raise ZooError(f"{str(file)!r} has no arrays of the split train, such as x_train and y_train")
    notes.insert(
        0,
        f"{str(file)!r}: "
        + ", ".join(f"{split} {images.shape} {images.dtype}" for split, (images, _) in pairs.items()),
    )
    values = {split: {*labels} - {-1, ""} for split, (_, labels) in pairs.items()}
    every = set().union(*values.values())
    if len({*map(type, every)}) > 1:
        raise ZooError(f"{str(file)!r} has labels that are numbers in one split and strings in another")
    if (unexpected := sorted(every - values["train"])) and not known:
        raise ZooError(f"{str(file)!r} has labels that train does not have: {', '.join(map(str, unexpected[:8]))}")
    ordered = sorted(every)
    numbers = {value: number for number, value in enumerate(ordered)} | {-1: -1, "": -1}
    splits = {
        split: StoredPictures(images, np.array([numbers[value] for value in labels], np.int32))
        for split, (images, labels) in pairs.items()
        if len(images)
    }
    notes += [f"{file.name} has an empty split {split}, left out" for split in pairs if split not in splits]
    return Found(file.stem, splits, tuple(map(str, ordered)), tuple(notes), sorted_by_class=True)


def _single(file: pathlib.Path) -> dict[str, dict[str, Any]]:
    beside = file.with_name("labels.npy")
    if not beside.is_file() or beside == file:
        raise ZooError(
            f"{str(file)!r} needs its labels [n] in {str(beside)!r}, or both in an .npz: x_train and y_train"
        )
    return {"train": {"images": _loaded(file), "labels": _loaded(beside)}}


def _named(file: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The arrays of an .npz by split and kind."""
    found: dict[str, dict[str, Any]] = {}
    with _loaded(file) as archive:
        size = sum(member.file_size for member in archive.zip.infolist())  # uncompressed
        if size > 4 * IN_MEMORY_BYTES:
            raise ZooError(f"{str(file)!r} has {size:,} bytes, more than {4 * IN_MEMORY_BYTES:,}: save an .npy instead")
        for name in archive.files:
            parts = re.split(r"[^a-z0-9]+", name.lower())
            kinds = ["images" if part in IMAGES else "labels" for part in parts if part in IMAGES | LABELS]
            rest = [part for part in parts if part not in IMAGES | LABELS]
            split = "train" if not rest else split_of(rest[0]) if len(rest) == 1 else None
            if len(kinds) != 1 or split is None:
                continue
            if kinds[0] in found.setdefault(split, {}):
                raise ZooError(f"{str(file)!r} has two arrays of {kinds[0]} of the split {split}, one of them {name}")
            try:
                found[split][kinds[0]] = archive[name]
            except Exception as error:  # objects, or a damaged archive
                raise ZooError(f"{str(file)!r}: {name} is no array of numbers: {first_line(error)}") from None
        if not found:
            has = ", ".join(archive.files[:8])
            raise ZooError(
                f"{str(file)!r} needs arrays such as x_train and y_train, or images and labels; it has {has}"
            )
    return found


def _loaded(file: pathlib.Path) -> Any:
    """An array, read from its file as it is used, or an archive of arrays; nothing in it is run."""
    if not file.is_file():
        raise ZooError(f"data.path {str(file)!r} is no file or folder")
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # objects, or no NumPy file
        raise ZooError(f"{str(file)!r} is no file of NumPy arrays: {first_line(error)}") from None
    if isinstance(found, np.ndarray) != (file.suffix.lower() == ".npy"):
        raise ZooError(f"{str(file)!r} does not hold what its name says: .npy is an array, .npz an archive of arrays")
    return found


def _images(images: np.ndarray, name: str) -> tuple[np.ndarray, list[str]]:
    """Images [n, h, w] or [n, h, w, c], channels last, and notes."""
    notes = []
    if images.ndim == 4 and images.shape[-1] > 4 and images.shape[1] in (1, 3, 4):
        images = np.moveaxis(images, 1, -1)
        notes = [f"{name}: the channels come first, and are moved to the end"]
    shaped = images.ndim == 3 or (images.ndim == 4 and 1 <= images.shape[-1] <= 4)
    if not shaped or images.dtype.kind not in "buif" or not math.prod(images.shape[1:]):
        raise ZooError(
            f"{name}: images must be numbers [n, h, w] or [n, h, w, 1 to 4], not {images.dtype} {images.shape}"
        )
    return images, notes


def _labels(labels: np.ndarray, name: str) -> list[Any]:
    """Labels [n] as whole numbers or as strings."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ZooError(f"{name}: labels must be [n], one an image, not {labels.shape}")
    if labels.dtype.kind in "SU":
        return [plain(label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)) for label in labels]
    if labels.dtype.kind not in "bui" and not (labels.dtype.kind == "f" and (labels == np.rint(labels)).all()):
        raise ZooError(f"{name}: labels must be whole numbers or strings, not {labels.dtype}")
    return [max(int(label), -1) for label in labels]
