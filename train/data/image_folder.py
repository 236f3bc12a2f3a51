"""A folder of class folders: photos/cat/1.jpg, photos/dog/2.png, ...

Folders named train, validation (val, valid, dev) and test at the top, in any case, are splits, each with class folders
of its own; otherwise all is train. A class folder is read with all folders inside it. Files are ordered by a hash of
their path, so that any part of them is a mixture of the classes.
"""

import collections
import hashlib
import os
import unicodedata
from collections.abc import Collection
from pathlib import PurePath
from typing import Any

import numpy as np

from train.data.image_source import Found
from train.data.labels import plain
from train.data.pictures import StoredPictures, headers_of
from train.data.splits import are_splits, split_of
from zoo.errors import ZooError
from zoo.inputs.image_file import SUFFIXES
from zoo.inputs.walk import Tree, walk

Headers = dict[PurePath, Any]  # of image files, by path
Parts = dict[str, dict[PurePath, str]]  # of each split the files and their labels


def load(path: str, known: Collection[str] = (), replaced: Collection[str] = ()) -> Found:
    """The pictures of each split, and the labels: the names of train's class folders, sorted.

    With `known` labels the splits may have others each, and a single one. `replaced` files, which a resumed run could
    not read, keep their places, also where they are gone.
    """
    tree = walk(path)
    headers, unread, others = _images(tree, replaced)
    below = _wrapping(headers, known)
    where = str(tree.root / below)
    images = [file for file in headers if file.is_relative_to(below)]
    depth = len(below.parts)  # of the folders that are splits or classes
    found, notes = _splits(images, depth, where)
    if found is None:
        parts: Parts = {"train": {file: _class(file, depth) for file in images if len(file.parts) > depth + 1}}
    else:
        notes += _empty_splits(tree, found, below)
        parts, depth = found, depth + 1
    notes += _empty_classes(tree, headers, depth)
    labels = _labels(parts, where, bool(known))
    splits = {name: _pictures(tree, files, labels, headers, depth) for name, files in parts.items()}
    notes.insert(0, _summary(tree, splits, labels, others, len(headers) - sum(map(len, splits.values()))))
    name, needs = tree.root.name or tree.root.resolve().name, "two folders of images, one a class"
    return Found(name, splits, tuple(labels), tuple(notes), unread, needs=needs)


def _images(tree: Tree, replaced: Collection[str]) -> tuple[Headers, dict[str, str], list[PurePath]]:
    """The image files with their headers; those that cannot be read, and why; and the files that are none."""
    images: Headers = {PurePath(name): None for name in replaced}
    unread, others = {}, []
    for file, header in zip(tree.files, headers_of(tree.root / file for file in tree.files), strict=True):
        if not isinstance(header, ZooError):
            images[file] = header
        elif file not in images and file.suffix.lower() in SUFFIXES:
            unread[str(file)] = str(header)
        elif file not in images:
            others.append(file)
    return images, unread, others


def _wrapping(images: Headers, known: Collection[str]) -> PurePath:
    """The folder that holds all others, where it is neither a split nor a class: photos/photos/cat/1.jpg."""
    below, files = PurePath(), [file.parts for file in images]
    while files and all(len(parts) > 2 for parts in files) and len({parts[0] for parts in files}) == 1:
        top = files[0][0]
        if split_of(top) or plain(top) in {*map(plain, known)}:
            break
        below, files = below / top, [parts[1:] for parts in files]
    return below


def _splits(images: list[PurePath], depth: int, where: str) -> tuple[Parts | None, list[str]]:
    """The files of each split and their classes, and notes; None where the folders are classes."""
    tops: dict[str, list[PurePath]] = collections.defaultdict(list)
    for file in images:
        if len(file.parts) > depth + 1:
            tops[file.parts[depth]].append(file)
    named = {top: split for top in tops if (split := split_of(top))}
    nested = all(len(file.parts) > depth + 2 for top in named for file in tops[top])
    if not are_splits(tops) and not (named and nested and (len({*named.values()}) > 1 or len(named) == len(tops))):
        _check_classes(tops, depth, where, named)
        return None, []
    if "train" not in named.values():
        raise ZooError(f"{where!r} has folders of images {', '.join(sorted(tops))}, but none named train")
    parts: Parts = {}
    for top, split in named.items():
        files = [file for file in tops[top] if len(file.parts) > depth + 2]
        parts.setdefault(split, {}).update({file: _class(file, depth + 1) for file in files})
    passed = sorted({*tops} - {*named})
    notes = [f"{where} has splits, so that these folders are passed over: {', '.join(passed)}"] if passed else []
    return parts, notes


def _check_classes(tops: dict[str, list[PurePath]], depth: int, where: str, named: Collection[str]) -> None:
    """ZooError where it is not clear that the folders are classes: where each of them holds splits, and where one with
    a split's name holds the same folders as another, or is the only one with folders inside."""
    inside = {
        top: {file.parts[depth + 1] for file in files if len(file.parts) > depth + 2} for top, files in tops.items()
    }
    if len(inside) > 1 and all(map(are_splits, inside.values())):
        raise ZooError(f"{where!r} has splits inside its class folders; put them at the top, the classes inside them")
    for top in named:
        if alike := sorted(other for other in inside if other != top and len(inside[top] & inside[other]) > 1):
            raise ZooError(
                f"{where!r} has {top} and {', '.join(alike)} with the same folders inside: splits are called train, "
                "validation (or val, valid, dev) and test"
            )
        others = sorted(other for other in inside if other not in named)
        alone = len(inside[top]) > 1 and all(len(file.parts) > depth + 2 for file in tops[top])
        if alone and others and not any(inside[other] for other in others):
            raise ZooError(
                f"{where!r} has folders inside {top}, but none inside {', '.join(others[:5])}: move these away if "
                f"{top} is a split, or its images out of their folders if it is a class"
            )


def _empty_splits(tree: Tree, parts: Parts, below: PurePath) -> list[str]:
    """A note about an empty test; ZooError for another empty split."""
    notes = []
    for folder in tree.folders:
        split = split_of(folder.name) if folder.parent == below else None
        if split and not parts.get(split):
            if split != "test":
                raise ZooError(f"{str(tree.root / folder)!r} has no images: fill it with class folders, or remove it")
            notes.append(f"there is no split test: the folder {str(folder)!r} has no images")
            parts.pop(split, None)
    return notes


def _empty_classes(tree: Tree, headers: Headers, depth: int) -> list[str]:
    """A note about class folders without images, which are no classes."""
    filled = {file.parts[: depth + 1] for file in headers if len(file.parts) > depth + 1}
    empty = [str(folder) for folder in tree.folders if len(folder.parts) == depth + 1 and folder.parts not in filled]
    return [f"folders without images, which are no classes: {', '.join(map(repr, empty[:5]))}"] if empty else []


def _labels(parts: Parts, where: str, known: bool) -> list[str]:
    labels = sorted({*parts["train"].values()})
    if known:
        return sorted({label for files in parts.values() for label in files.values()})
    for split, files in parts.items():
        if unexpected := sorted({*files.values()} - {*labels}):
            raise ZooError(f"{where!r}: {split} has classes that train does not have: {', '.join(unexpected)}")
    return labels


def _pictures(
    tree: Tree, files: dict[PurePath, str], labels: list[str], headers: Headers, depth: int
) -> StoredPictures:
    """The files of a split, whose classes are the parts `depth` of their paths, in the order of `_place`."""
    ordered = sorted(files, key=lambda file: _place(file.parts[depth:]))
    numbers = {label: number for number, label in enumerate(labels)}
    targets = np.array([numbers[files[file]] for file in ordered], np.int32)
    present = [headers[file] for file in ordered if headers[file] is not None]
    return StoredPictures([tree.root / file for file in ordered], targets, [str(file) for file in ordered], present)


def _place(parts: tuple[str, ...]) -> bytes:
    """A digest of a path by which files are ordered, the same for a name in either Unicode composition."""
    return hashlib.sha256(os.fsencode(unicodedata.normalize("NFC", "/".join(parts)))).digest()


def _class(file: PurePath, depth: int) -> str:
    """The name of a class folder, with a mark in place of bytes that are not UTF-8."""
    return plain(os.fsencode(file.parts[depth]).decode("utf-8", "replace"))


def _summary(
    tree: Tree, splits: dict[str, StoredPictures], labels: list[str], others: list[PurePath], loose: int
) -> str:
    counts = ", ".join(f"{name} {len(pictures):,}" for name, pictures in splits.items())
    passed = [f"hidden: {tree.hidden}"] if tree.hidden else []
    if others:
        passed.append(f"no images: {len(others)}, such as {str(others[0])!r}")
    if loose:
        passed.append(f"in no class folder: {loose}")
    return (
        f"{str(tree.root)!r}: images of {len(labels)} classes, {counts}; passed over: {', '.join(passed) or 'nothing'}"
    )
