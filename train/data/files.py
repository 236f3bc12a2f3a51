"""Text files: what is in them, their lines, and the split that each file of a folder belongs to."""

import pathlib
import warnings
from collections.abc import Iterable, Sequence

from train.data.splits import split_of
from zoo.errors import ZooError

Parts = tuple[str, ...]  # of a path, relative to the folder that is read

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


def shown_files(folder: pathlib.Path) -> dict[Parts, pathlib.Path]:
    """The files under a folder that are not hidden, by the parts of their paths, in order."""
    files = {path.relative_to(folder).parts: path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {parts: path for parts, path in files.items() if not any(part.startswith(".") for part in parts)}


def split_names(files: Iterable[Parts], where: str) -> dict[Parts, str | None]:
    """The split of each file: that which the name of the file, or of a folder on the way to it, means.

    A folder has splits where one of its entries means train: of the others, those that mean no split are None. Where
    no folder has splits, all files are train's. ZooError where the outermost folder has another split but no train.
    """
    files = list(files)
    entries: dict[Parts, dict[str, str | None]] = {}
    for parts in files:
        for depth, name in enumerate(parts):
            entries.setdefault(parts[:depth], {})[name] = split_of(name)
    top = {split for split in entries.get((), {}).values() if split is not None}
    if top and "train" not in top:
        others = [name for name, split in entries[()].items() if split is not None]
        raise ZooError(f"{where} has no split train beside {', '.join(others[:5])}: name a file or a folder train")
    split = {folder for folder, names in entries.items() if "train" in names.values()}
    if not split:
        return dict.fromkeys(files, "train")

    def of(parts: Parts) -> str | None:
        for depth, name in enumerate(parts):
            if parts[:depth] in split and (found := split_of(name)) is not None:
                return found
        return None

    return {parts: of(parts) for parts in files}


def warn_left_out(paths: Sequence[pathlib.Path], why: str) -> None:
    """One warning that names files which are not read; none where there is none."""
    if paths:
        names = ", ".join(repr(str(path)) for path in paths[:5])
        more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
        warnings.warn(f"left out {names}{more}: {why}", stacklevel=3)
