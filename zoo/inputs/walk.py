"""The files under a folder, as every source reads them."""

import dataclasses
import os
import pathlib

from zoo.errors import ZooError

LEFT_BY_SYSTEMS = {"__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "$recycle.bin", "@eadir"}


@dataclasses.dataclass(frozen=True)
class Tree:
    """What lies under `root`: paths relative to it, sorted."""

    root: pathlib.Path
    files: list[pathlib.PurePath]  # regular files, and links that lead nowhere
    folders: list[pathlib.PurePath]
    hidden: int  # files and folders passed over


def hidden(name: str) -> bool:
    """Whether a file or folder is no data: its name begins with a dot, or a system has left it there."""
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def walk(path: str | os.PathLike, setting: str = "data.path") -> Tree:
    """The tree under a folder, in which ~ is the user's. Links are followed, but not into a folder that holds them.

    ZooError, with the name of the `setting`, where the path is no folder.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise ZooError(f"{setting} {str(path)!r} is not a folder")
    tree, passed = Tree(root, [], [], 0), 0
    waiting = [(root, {_identity(root)})]
    while waiting:
        folder, holders = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                relative = pathlib.PurePath(entry.path).relative_to(root)
                if hidden(entry.name):
                    passed += 1
                elif entry.is_dir():
                    if (identity := _identity(entry.path)) not in holders:
                        tree.folders.append(relative)
                        waiting.append((pathlib.Path(entry.path), {*holders, identity}))
                elif entry.is_file() or not os.path.exists(entry.path):
                    tree.files.append(relative)
    return dataclasses.replace(tree, files=sorted(tree.files), folders=sorted(tree.folders), hidden=passed)


def _identity(folder: str | os.PathLike) -> tuple[int, int]:
    about = os.stat(folder)
    return about.st_dev, about.st_ino
