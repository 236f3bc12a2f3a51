"""The tables of results in the docs, made from the files in benchmarks/results.

A case quotes one row of the file that its benchmark appends to: a row with the case's settings. Of several the newest
is quoted, but rows with all quoted columns come first, then rows of enough rounds, then rows of a machine without other
work, then rows of the run with the most peers. A case without a row is "not measured". The picture shows the same rows.
"""

import collections
import csv
import dataclasses
import functools
import pathlib
import re
import shlex
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from benchmarks import cases, pictures
from benchmarks.cases import RATIO, Case, kinds
from benchmarks.steps import OURS
from benchmarks.suite import HOW, benchmarks
from benchmarks.timer import RESULTS, cell, quiet

PICTURE = RESULTS / "ratios.png"
MISSING = "not measured"
LONGEST = 60  # characters of a command inside a table; longer ones are listed below it
PEERS = {"torch": "PyTorch", "torch compile": "`torch.compile`", "flax": "Flax's layers"}  # one column each
OTHERS = ("transformers", "keras")


class Table(NamedTuple):
    """A table in Markdown, the rows of results that it quotes, and the commands of the cases without a row."""

    lines: list[str]
    rows: list[dict[str, Any]]
    missing: list[str]


@functools.cache
def settings(command: str) -> tuple[pathlib.Path, dict[str, str], int]:
    """The file that a command appends to, its settings as columns of that file (without those in `HOW`), its rounds."""
    import tyro

    name, *flags = shlex.split(command)
    config: Any = tyro.cli(benchmarks()[name].config, args=flags, prog=name)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    path, rounds = pathlib.Path(values.pop("output")), values.get("rounds", 0)
    return path, {k: cell(v) for k, v in values.items() if k not in HOW and not isinstance(v, tuple)}, rounds


def newest(case: Case, quoted: Iterable[str] = ()) -> dict[str, Any] | None:
    """The row that a case quotes, numbers as floats; None if there is none. `quoted` names columns it should have."""
    path, wanted, rounds = settings(case.command)
    if not path.is_file():
        return None
    wanted = {**wanted, **case.where}
    with path.open(newline="") as file:
        everything = list(csv.DictReader(file))
    rows = [row for row in everything if all(row[k] == v for k, v in wanted.items() if k in row)]
    if not rows:
        return None

    runs = collections.Counter(map(run_of, everything))

    def worth(row: dict[str, str]) -> tuple[bool, bool, bool, int]:
        enough = int(row.get("rounds") or rounds) >= rounds
        return all(row[name] for name in quoted), enough, quiet(row), runs[run_of(row)]

    return {name: _number(text) for name, text in max(rows[::-1], key=worth).items()}


def run_of(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What identifies the run that a row belongs to: a ratio is quoted beside the seconds of the same run."""
    return tuple((name, str(row[name])) for name in ("date", "command") if name in row)


class Missing(str):
    """A value that a row does not have; any format gives a dash."""

    def __format__(self, spec: str) -> str:
        return "-"


def _number(text: str) -> float | str:
    try:
        return float(text) if float(text) == float(text) else Missing()
    except ValueError:
        return text or Missing()


def measured(kind: str, flags: str) -> dict[str, dict[str, Any]]:
    """The quoted run of a step or a forward pass: rows of ours and of its peers by name; {} if there is none."""
    case = Case(f"{kind} {flags}", {"framework": OURS})
    ours = newest(case)
    if ours is None:
        return {}
    peers = {name: newest(case._replace(where={"framework": name, **dict(run_of(ours))})) for name in (*PEERS, *OTHERS)}
    return {OURS: ours, **{name: row for name, row in peers.items() if row is not None}}


def steps() -> Table:
    """Training steps and forward passes beside their peers."""
    titles = ["model", "pass", "ours, ms", *(f"ours / {of}" for of in PEERS.values()), "ours / others"]
    titles += ["peak memory, MB: ours; PyTorch", "compile time, s", "rounds"]
    lines, missing = heading(titles), []
    used: list[dict[str, Any]] = []
    for what, flags, also in cases.STEPS:
        for kind in kinds(also):
            found = measured(kind, flags)
            cells = [what, "step" if kind == "train-step" else kind]
            if not found:
                lines.append(line([*cells, MISSING], len(titles)))
                missing.append(f"{kind} {flags}")
                continue
            ours = found[OURS]
            cells += [f"{ours['ms']:,.1f}", *(RATIO.format(found[name]) if name in found else "" for name in PEERS)]
            cells.append("; ".join(f"{name} {RATIO.format(found[name])}" for name in OTHERS if name in found))
            cells.append("; ".join(f"{row['taken_mb']:,.0f}" for row in (ours, found.get("torch")) if row))
            cells += [f"{ours['compile_seconds']:.1f}", f"{ours['rounds']:.0f}"]
            lines.append(line(cells, len(titles)))
            used += found.values()
    return Table(lines, used, missing)


def figures() -> Table:
    """Everything else that is measured: LINES of `benchmarks.cases`; long commands are listed below."""
    lines, used, missing = heading(["what", "result", "command"]), [], []
    notes: dict[str, int] = {}
    for what, text, all_cases in cases.LINES:
        quoted = [
            {name for at, name in re.findall(r"\{(\d+)\[(\w+)", text) if int(at) == i} for i in range(len(all_cases))
        ]
        rows = [newest(case, columns) for case, columns in zip(all_cases, quoted, strict=True)]
        commands = list(dict.fromkeys(case.command for case in all_cases))
        shown = [
            f"`{command}`" if len(command) <= LONGEST else f"({notes.setdefault(command, len(notes) + 1)})"
            for command in commands
        ]
        missing += [case.command for case, row in zip(all_cases, rows, strict=True) if row is None]
        lines.append(f"| {what} | {text.format(*rows) if all(rows) else MISSING} | {', '.join(shown)} |")
        used += [row for row in rows if row is not None and all(rows)]
    return Table([*lines, "", *(f"{n}. `{command}`" for command, n in notes.items())], used, missing)


def tpus() -> Table:
    """Recipes compiled for TPUs: TPUS of `benchmarks.cases`."""
    titles = ["recipe", "chips, mesh", "MB per chip", "least ms per step, bound", "largest batch"]
    titles += ["Flax's layers: MB per chip", "least ms per step, bound"]
    lines, used, missing = heading(titles), [], []
    for recipe, case in cases.TPUS:
        ours, theirs = (
            newest(case._replace(where={**case.where, "framework": framework}), ("largest_batch",))
            for framework in (OURS, "flax.linen")
        )
        if ours is None:
            lines.append(line([f"`{recipe}`", MISSING], len(titles)))
            missing.append(case.command)
            continue
        cells = [f"`{recipe}`, batch {ours['batch_size']:,.0f}", f"{ours['topology']}, `{ours['mesh']}`"]
        for row in filter(None, (ours, theirs)):
            cells.append(f"{row['peak_mb']:,.0f}" + ("" if row["fits"] == "True" else ", too much"))
            cells.append(f"{row['roofline_ms']:.4g}, {row['bound']}")
            cells += [f"{row['largest_batch']:,.0f}"] if row is ours else []
            used.append(row)
        lines.append(line(cells, len(titles)))
    return Table(lines, used, missing)


def costs() -> Table:
    """What a whole recipe costs at least on TPUs; chip-hours are the roofline's time of all its steps on all chips."""
    from train.recipes import load_recipe

    titles = ["recipe", "slice", "mesh", "MB per chip", "least ms per step, bound", "all-gathered MB per step"]
    lines, used = heading([*titles, "least chip-hours"]), []
    for recipe, case in cases.TPUS:
        row = newest(case._replace(where={**case.where, "framework": OURS}))
        if row is None or recipe not in cases.COSTLY:
            continue
        gathered = re.search(r"all-gather ([\d.]+) MB", str(row["collectives"]))
        hours = row["roofline_ms"] * load_recipe(recipe).config().steps * row["chips"] / 3.6e6
        cells = [f"`{recipe}`", row["topology"], f"`{row['mesh']}`", f"{row['peak_mb']:,.0f}"]
        cells += [f"{row['roofline_ms']:.3g}, {row['bound']}", f"{float(gathered[1]):,.0f}" if gathered else "none"]
        lines.append(line([*cells, f"{hours:.3g}"], len(titles) + 1))
        used.append(row)
    return Table(lines, used, [])


def qualities() -> Table:
    """The test results of recipes: QUALITY of `benchmarks.cases`, means over the newest row of each seed."""
    titles = ["recipe", "result", "seeds", "seconds", "nominal minutes"]
    lines, used, missing = heading(titles), [], []
    for recipe in cases.QUALITY:
        rows = quality_rows(recipe)
        if not rows:
            lines.append(line([f"`{recipe}`", MISSING], len(titles)))
            missing.append(f"quality {recipe}")
            continue
        seconds = sorted(row["seconds"] for row in rows)
        shown = f"{seconds[0]:,.0f}" + (f" to {seconds[-1]:,.0f}" if len(seconds) > 1 else "")
        minutes = statistics.mean(row["nominal_minutes"] for row in rows)
        seeds = ", ".join(sorted(f"{row['seed']:.0f}" for row in rows))
        lines.append(line([f"`{recipe}`", quality(recipe, rows), seeds, shown, f"{minutes:.1f}"], len(titles)))
        used += rows
    return Table(lines, used, missing)


def quality_rows(recipe: str) -> list[dict[str, Any]]:
    """The newest row of each seed of a recipe in quality.csv, numbers as floats."""
    with (RESULTS / "quality.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["recipe"], row["framework"]) == (recipe, OURS)]
    return [{k: _number(v) for k, v in row.items()} for row in {row["seed"]: row for row in rows}.values()]


def quality(recipe: str, rows: list[dict[str, Any]]) -> str:
    """The result of a recipe in words, from the means of `rows`; shares are percentages."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    means = {k: statistics.mean(v) for k, v in columns.items() if all(isinstance(value, float) for value in v)}
    means |= {k: 100 * mean for k, mean in means.items() if k.endswith(("accuracy", "match", "_rate"))}
    means |= {"wrong": 100 - means["exact_match"]} if "exact_match" in means else {}
    return cases.QUALITY[recipe].format(**means)


def places() -> list[str]:
    """A line for each machine and set of versions that a quoted row was measured on."""
    keys = ("machine", "python", "jax", "flax", "torch")
    found: dict[tuple, list[float]] = {}
    for row in (row for table in (steps(), figures(), tpus()) for row in table.rows):
        rates = [value for name, value in row.items() if name.startswith("gflops") and isinstance(value, float)]
        found.setdefault(tuple(row[key] for key in keys), []).extend(rates)
    return [
        f"- {machine}, {min(rates):.0f} to {max(rates):.0f} GFLOP/s of float32 matrix product; Python {python}, JAX "
        f"{jax}, Flax {flax}" + (f", PyTorch {torch}" if torch else "")
        for (machine, python, jax, flax, torch), rates in sorted(found.items())
        if rates
    ]


def heading(titles: list[str]) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def line(cells: list[str], columns: int) -> str:
    """A row of a table with empty cells up to `columns`."""
    return "| " + " | ".join(cells + [""] * (columns - len(cells))) + " |"


def drawn() -> list[list[Any]]:
    """What the picture shows: kind, model, peer, and the ratio with its percentiles."""
    return [
        [kind, plain(what), name, *(row[f"ratio{part}"] for part in ("", "_p10", "_p90"))]
        for what, flags, also in cases.STEPS
        for kind in kinds(also)
        for name, row in measured(kind, flags).items()
        if name != OURS
    ]


def plain(what: str) -> str:
    """A label of a table without Markdown."""
    return what.replace("`", "")


@dataclasses.dataclass(frozen=True)
class DocsConfig:
    """Draws the picture of ratios in README and docs, and lists the cases without results."""

    picture: str = str(PICTURE)  # the PNG to write


def draw(config: DocsConfig) -> None:
    """Draws the picture; prints the commands of the cases that are not measured. The docs build makes the tables."""
    pictures.ratios(
        pathlib.Path(config.picture), drawn(), [plain(what) for what, _, _ in cases.STEPS], [*PEERS, *OTHERS]
    )
    print(config.picture)
    tables = steps(), figures(), tpus(), qualities()
    for command in dict.fromkeys(command for table in tables for command in table.missing):
        print(f"{MISSING}: python -m benchmarks {command}")
