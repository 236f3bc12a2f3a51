"""The generated parts of the docs in Markdown: settings, models, recipes, the API, the results of the benchmarks."""

import ast
import dataclasses
import inspect
import io
import pathlib
import re
import tokenize
import typing
from collections.abc import Callable, Iterator
from typing import Any

import train
import zoo
from benchmarks import onnx, parity, serving, table

ROOT = pathlib.Path(__file__).parents[1]
FAMILIES = {"cnn": "CNN", "lstm": "LSTM", "seq2seq": "Seq2Seq", "transformer": "Transformer"}


def settings() -> str:
    """Every setting of `python -m train`: flag, type, default and comment."""
    parts = ["### Settings of a run\n", *_table(train.Config, "--", nested=("model", "data", "task"))]
    parts += ["\n### Settings of the model\n", *_table(train.ModelConfig, "--model.")]
    for title, field in (("Sources", "data"), ("Tasks", "task")):
        parts.append(f"\n### {title}\n\nA recipe chooses one; its settings are flags under `--{field}.`.\n")
        for kind in kinds(field):
            rows = _table(kind, f"--{field}.")
            parts += [f"\n#### {kind.__name__}\n", _first_paragraph(kind), *(["", *rows] if len(rows) > 2 else [])]
    return "\n".join(parts)


def kinds(field: str) -> list[type]:
    """The classes of settings that a field of `train.Config` may hold: those that `train` exports."""
    hint = typing.get_type_hints(train.Config)[field]
    exported = [getattr(train, name) for name in train.__all__]
    members = {c for c in exported if isinstance(c, type) and issubclass(c, hint)} - {hint}
    return sorted(members, key=lambda kind: kind.__name__)


def _table(kind: type, prefix: str, nested: tuple[str, ...] = ()) -> list[str]:
    """Rows of a dataclass of settings; dataclasses inside it follow under their own prefix, but not those `nested`."""
    rows = ["| flag | meaning | type | default |", "|---|---|---|---|"]
    return rows + list(_rows(kind, prefix, nested))


def _rows(kind: type, prefix: str, nested: tuple[str, ...]) -> Iterator[str]:
    hints, comments = typing.get_type_hints(kind), comments_of(kind)
    inner = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if field.name in nested:
            continue
        if dataclasses.is_dataclass(hint):
            inner.append((hint, f"{prefix}{_dashed(field.name)}."))
            continue
        cells = comments.get(field.name, ""), _type(hint), _default(field)
        yield f"| `{prefix}{_dashed(field.name)}` | {' | '.join(map(_cell, cells))} |"
    for hint, longer in inner:
        yield from _rows(hint, longer, ())


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _type(hint: Any) -> str:
    """A type for a reader: `float`, `a, b or c`, `int or None`, `NAME=VALUE ...`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "None"
    if origin is typing.Literal:
        return " or ".join(map(str, args)) if len(args) < 3 else ", ".join(map(str, args[:-1])) + f" or {args[-1]}"
    if origin in (list, tuple):
        return f"{_type(args[0])} ..."
    if origin is dict:
        return "NAME=VALUE ..."
    if args:
        return " or ".join(map(_type, args))
    return getattr(hint, "__name__", str(hint))


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value: Any = field.default_factory()
    elif field.default is dataclasses.MISSING:
        return "the recipe's"
    else:
        value = field.default
    if isinstance(value, dict | list | tuple):
        pairs = [f"{key}={item}" for key, item in value.items()] if isinstance(value, dict) else map(str, value)
        value = " ".join(pairs)
    return f"`{value}`" if value not in ("", None) else "" if value == "" else "None"


def comments_of(kind: type) -> dict[str, str]:
    """The comments of a dataclass's fields, also of its bases: at the end of the line, or in the lines above it."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base) and "__annotations__" in vars(base):
            found |= _comments(inspect.cleandoc(inspect.getsource(base)))
    return found


def _comments(source: str) -> dict[str, str]:
    comments = {
        token.start[0]: (token.start[1], token.string.lstrip("# "))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in typing.cast(ast.ClassDef, ast.parse(source).body[0]).body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if end := comments.get(node.end_lineno or 0):
            found[node.target.id] = end[1]
            continue
        above, number = [], node.lineno - 1
        while number in comments and comments[number][0] == node.col_offset:  # a line that is all comment
            above.insert(0, comments[number][1])
            number -= 1
        if above:
            found[node.target.id] = " ".join(above)
    return found


def _first_paragraph(kind: type) -> str:
    """The first paragraph of a docstring; '' for the one that a dataclass makes itself."""
    text = inspect.cleandoc(kind.__doc__ or "")
    return "" if text.startswith(f"{kind.__name__}(") else text.split("\n\n")[0]


def models() -> str:
    """A table of the registered models for each family."""
    parts = []
    for family in FAMILIES:
        titles = ["model", "million parameters", "GFLOPs", "input", "paper"]
        parts += [f"\n## {FAMILIES[family]}\n", *table.heading(titles)]
        for name in zoo.list_models(family=family):
            info = zoo.model_info(name)
            shape = "x".join(map(str, info.input_shape))
            counts = f"{info.parameters / 1e6:,.2f} | {info.flops / 1e9:,.3f}"
            parts.append(f"| `{name}` | {counts} | {shape} | {_cell(info.paper)} |")
    return "\n".join(parts)


def sources() -> str:
    """A table of public weights by model, and how far drawn weights of that form are from the reference library's."""
    parts = [*table.heading(["model", "repository", "licence", "input", "figure", "difference", "from"])]
    measured = {(row["name"], row["repository"]): row for row in parity.read()}
    for name in zoo.list_models():
        for found in zoo.model_info(name).sources:
            figure = "" if found.value is None else f"{found.metric} {found.value:g}"
            row = measured.get((name, found.repository), {"difference": "", "reference": ""})
            about = f"| `{name}` | `{found.repository}` | {found.license} | {found.input_size} | {figure} "
            parts.append(f"{about}| {row['difference']} | {row['reference']} |")
    return "\n".join(parts)


def recipes() -> str:
    """A section for each recipe: the docstring of its file."""
    parts = []
    for path in sorted((ROOT / "train/recipes").glob("*.py")):
        if path.stem == "__init__":
            continue
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        parts.append(f"\n## {_dashed(path.stem)}\n\n" + "\n".join(map(_recipe_line, text.splitlines())))
    return "\n".join(parts)


def _recipe_line(line: str) -> str:
    """A line of a recipe's docstring in Markdown: commands as code, `Data: ...` and the like as items of a list."""
    line = line.strip()
    if line.startswith("python -m"):
        return f"    {line}"
    return re.sub(r"^(Data|Result|Time): ", r"- \1: ", line)


def api(module: Any) -> Callable[[], str]:
    """What a package exports, for mkdocstrings."""
    return lambda: "\n\n".join(f"::: {module.__name__}.{name}" for name in module.__all__)


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text()


def results(made: Callable[[], table.Table]) -> Callable[[], str]:
    """A table of `benchmarks.table`."""
    return lambda: "\n".join(made().lines)


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings,
    "models": models,
    "sources": sources,
    "recipes": recipes,
    "api zoo": api(zoo),
    "api train": api(train),
    "changelog": changelog,
    "steps": results(table.steps),
    "figures": results(table.figures),
    "recipes results": results(table.qualities),
    "onnx": onnx.table,
    "serving": serving.table,
    "tpus": results(table.tpus),
    "tpu costs": results(table.costs),
    "places": lambda: "\n".join(table.places()),
}
