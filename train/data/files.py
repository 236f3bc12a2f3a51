"""Text files: what is in them, their lines, and the split that each file of a folder belongs to."""

import pathlib
import re
import warnings
from collections.abc import Iterable, Sequence

from train.data.splits import split_of
from zoo.errors import ZooError

Parts = tuple[str, ...]  # of a path, relative to the folder that is read

HELD_OUT = re.compile(r"(?<![a-z])(validation|valid|val|dev|testing|test)(?![a-z])", re.IGNORECASE)
BOM = b"\xef\xbb\xbf"  # the mark with which some editors begin UTF-8
OTHER_BOMS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def read_text(path: pathlib.Path, newlines: str = "unix") -> str:
    """A file's text without a byte-order mark; `newlines` unix turns CRLF into LF, keep does not.

    ZooError where the file is missing, empty or not UTF-8.
    """
    if not path.is_file():
        raise ZooError(f"data.path {str(path)!r} is no file or folder")
    raw = path.read_bytes()
    start = len(BOM) if raw.startswith(BOM) else 0
    if not raw[start:].strip():
        raise ZooError(f"{str(path)!r} is empty")
    if other := next((name for mark, name in OTHER_BOMS.items() if raw.startswith(mark)), None):
        raise ZooError(f"{str(path)!r} is {other}, not UTF-8 text; save it as UTF-8")
    try:
        text = raw[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        place = start + error.start
        raise ZooError(f"{str(path)!r} is not UTF-8 text: byte {raw[place]:#04x} at {place:,}") from None
    if "\0" in text:
        raise ZooError(f"{str(path)!r} is not text: it has a zero byte at {raw.index(0):,}")
    return text.replace("\r\n", "\n") if newlines == "unix" else text


def read_lines(path: pathlib.Path) -> list[str]:
    """The lines of a file, which end with LF or CRLF, or with CR where there is no LF."""
    return lines_of(read_text(path))


def lines_of(text: str) -> list[str]:
    """The lines of a text without CRLF; a CR ends a line where there is no LF."""
    return (text if "\n" in text else text.replace("\r", "\n")).removesuffix("\n").split("\n")


def split_names(files: Iterable[Parts], where: str) -> dict[Parts, str | None]:
    """The split of each file: that which the name of the file, or of a folder on the way to it, means.

    The outermost folder has splits if one of its entries means train, a folder within if most of its entries mean
    splits, train and others. The entries that mean none are then None. Other files are train's, with a warning where
    their names have another split's. ZooError where the outermost folder has another split but no train.
    """
    files = list(files)
    entries: dict[Parts, dict[str, str | None]] = {}
    for parts in files:
        for depth, name in enumerate(parts):
            entries.setdefault(parts[:depth], {})[name] = split_of(name)
    top = entries.get((), {})
    if "train" not in top.values() and any(top.values()):
        others = [name for name, split in top.items() if split is not None]
        raise ZooError(f"{where} has no split train beside {', '.join(others[:5])}: name a file or a folder train")
    split = {folder for folder, names in entries.items() if _has_splits(names)}
    split |= {()} if "train" in top.values() else set()
    found: dict[Parts, str | None] = {}
    doubtful = []
    for parts in files:
        folder = next((parts[:depth] for depth in range(len(parts)) if parts[:depth] in split), None)
        found[parts] = "train" if folder is None else entries[folder][parts[len(folder)]]
        if folder is None and any(HELD_OUT.search(name) for name in parts):
            doubtful.append("/".join(parts))
    if doubtful:
        warnings.warn(
            f"of {where} training reads {listed(doubtful)} as well: names of splits are train, validation and test, or "
            "have them between dots",
            stacklevel=3,
        )
    return found


def _has_splits(names: dict[str, str | None]) -> bool:
    """Whether most of the entries of a folder mean splits, train and others."""
    splits = [split for split in names.values() if split is not None]
    return {"train"} < {*splits} and 2 * len(splits) > len(names)


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def warn_left_out(paths: Sequence[pathlib.Path], why: str) -> None:
    """One warning that names files which are not read; none where there is none."""
    if paths:
        warnings.warn(f"left out {listed([*map(str, paths)])}: {why}", stacklevel=3)
