"""The names by which people call the splits of a data set."""

from collections.abc import Iterable

SPLITS = ("train", "validation", "test")
NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def split_of(name: str) -> str | None:
    """The split that a folder's or a file's name means, whatever its case; None for another name.

    A part between dots counts: `Train`, `valid.tsv`, `wiki.test.tokens`. A name with parts of two splits means none.
    """
    found = {NAMES[part] for part in name.lower().split(".") if part in NAMES}
    return found.pop() if len(found) == 1 else None


def are_splits(names: Iterable[str]) -> bool:
    """Whether all of these names, one of them train's, are splits: a folder called train is a class where its siblings
    are classes."""
    found = [split_of(name) for name in names]
    return "train" in found and None not in found
