"""One recipe a file: a docstring with command, data, result and time, and a function `config()`."""

import importlib
import importlib.util
import pathlib
import re
import sys
from types import ModuleType

from zoo.errors import ZooError, unknown

FOLDER = pathlib.Path(__file__).parent
COLUMNS = ("Data", "Result", "Time")  # lines of a recipe's docstring


def recipe_files() -> dict[str, pathlib.Path]:
    """Recipes by name: cifar10_resnet20.py is cifar10-resnet20."""
    return {path.stem.replace("_", "-"): path for path in sorted(FOLDER.glob("*.py")) if path.stem != "__init__"}


def load_recipe(name: str, commands: tuple[str, ...] = ()) -> ModuleType:
    """The module of a recipe: a name of `python -m train list`, or the path of a .py file.

    `commands` are names that may have been meant instead. A file is imported under its stem, as `import` from its
    folder would, so that the task, source and model that it defines are registered once.
    """
    files = recipe_files()
    if name in files:
        return importlib.import_module(f"train.recipes.{files[name].stem}")
    path = pathlib.Path(name).expanduser()
    if path.suffix != ".py":
        raise unknown("recipe", name, [*files, *commands])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ZooError(f"no recipe file {name!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def describe(name: str) -> dict[str, str]:
    """A recipe's data, result and time, from its docstring."""
    text = load_recipe(name).__doc__ or ""
    return {column: found[1] if (found := re.search(rf"^ *{column}: (.*)$", text, re.M)) else "" for column in COLUMNS}


def table() -> str:
    """All recipes, one a line: name, data, result, time on two CPU cores."""
    rows: list[tuple[str, ...]] = [("recipe", "data", "result", "time on two cores")]
    rows += [(name, *describe(name).values()) for name in recipe_files()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
