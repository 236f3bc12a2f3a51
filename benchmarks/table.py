"""README's tables of figures, made of rows of results.

A case's figures are those of a row, in the file that its benchmark appends to, whose columns have the case's settings:
the newest, but first of those with all that is quoted, of at least the case's rounds, measured while others left the
machine alone, and of the run with the most peers. Where a case has no row, the tables say "not measured". The picture
beside them is of the same rows.
"""

import collections
import csv
import dataclasses
import functools
import pathlib
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import cases, pictures, suite
from benchmarks.cases import RATIO, Case, kinds
from benchmarks.steps import OURS
from benchmarks.timer import RESULTS, cell, quiet
from zoo.errors import ZooError

README, PICTURE = RESULTS.parents[1] / "README.md", RESULTS / "ratios.png"
BEGIN, END = "<!-- made by python -m benchmarks readme -->", "<!-- until here -->"
MISSING = "not measured"
LONGEST = 60  # characters of a command that stands in a table; a longer one stands below it
PEERS = {"torch": "PyTorch's", "torch compile": "`torch.compile`'s", "flax": "Flax's layers'"}  # with a column each
OTHERS = ("transformers", "keras")


@functools.cache
def settings(command: str) -> tuple[pathlib.Path, dict[str, str], int]:
    """The file that a command appends to; its settings as that file's columns have them, but for those that say how
    often and with what seed it measures; and how often that is."""
    import tyro

    name, *flags = shlex.split(command)
    config: Any = tyro.cli(suite.benchmarks()[name].config, args=flags, prog=name)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    path, rounds = pathlib.Path(values.pop("output")), values.get("rounds", 0)
    return path, {k: cell(v) for k, v in values.items() if k not in suite.HOW and not isinstance(v, tuple)}, rounds


def newest(case: Case, quoted: Iterable[str] = ()) -> dict[str, Any] | None:
    """The case's row, numbers as such; None where there is none. `quoted` are the columns that it should have."""
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
    """What the rows of one run share: a ratio belongs beside its seconds."""
    return tuple((name, str(row[name])) for name in ("date", "command") if name in row)


class Missing(str):
    """A figure that a row does not have."""

    def __format__(self, spec: str) -> str:
        return "-"


def _number(text: str) -> float | str:
    try:
        return float(text) if float(text) == float(text) else Missing()
    except ValueError:
        return text or Missing()


def measured(kind: str, flags: str) -> dict[str, dict[str, Any]]:
    """The newest run of a step or a forward pass: ours and its peers by name, {} where there is none."""
    case = Case(f"{kind} {flags}", {"framework": OURS})
    ours = newest(case)
    if ours is None:
        return {}
    peers = {name: newest(case._replace(where={"framework": name, **dict(run_of(ours))})) for name in (*PEERS, *OTHERS)}
    return {OURS: ours, **{name: row for name, row in peers.items() if row is not None}}


def steps() -> tuple[list[str], list[Any], list[str]]:
    """The table of steps and forward passes, the rows that it quotes, and the commands that are not measured."""
    titles = ["a step, a forward pass", "ours, ms", "rounds", "compiled in", "takes, of memory; PyTorch's"]
    titles += [f"ours / {of}" for of in PEERS.values()] + ["ours / others'"]
    lines, missing = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"], []
    used: list[Any] = []
    for what, flags, also in cases.STEPS:
        for kind in kinds(also):
            found = measured(kind, flags)
            label = what if kind == "train-step" else "forward"
            if not found:
                lines.append(f"| {label} | {MISSING}" + " |" * (len(titles) - 1))
                missing.append(f"{kind} {flags}")
                continue
            ours = found[OURS]
            cells = [label, "{ms:,.1f}", "{rounds:.0f}", "{compile_seconds:.1f} s"]
            cells = [cell.format(**ours) for cell in cells]
            taken = [f"{row['taken_mb']:,.0f}" for row in (ours, found.get("torch")) if row]
            cells.append("; ".join(taken) + " MB")
            cells += [RATIO.format(found[name]) if name in found else "" for name in PEERS]
            cells.append("; ".join(f"{name} {RATIO.format(found[name])}" for name in OTHERS if name in found))
            lines.append(f"| {' | '.join(cells)} |")
            used += found.values()
    return lines, used, missing


def figures() -> tuple[list[str], list[Any], list[str]]:
    """The same of LINES; long commands stand below."""
    lines, used, missing = ["| what | figure | command |", "|---|---|---|"], [], []
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
    return [*lines, "", *(f"{n}. `{command}`" for command, n in notes.items())], used, missing


def tpus() -> tuple[list[str], list[Any], list[str]]:
    """The same of TPUS."""
    titles = ["compiled for TPUs by `tpu`", "chips, mesh", "MB a chip", "least ms a step, by", "largest batch"]
    titles += ["Flax's layers: MB a chip", "least ms a step, by"]
    lines, used, missing = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"], [], []
    for recipe, case in cases.TPUS:
        ours, theirs = (
            newest(case._replace(where={**case.where, "framework": framework}), ("largest_batch",))
            for framework in (OURS, "flax.linen")
        )
        if ours is None:
            lines.append(f"| `{recipe}` | {MISSING}" + " |" * (len(titles) - 1))
            missing.append(case.command)
            continue
        cells = [f"`{recipe}`, batch {ours['batch_size']:,.0f}", f"{ours['topology']}, `{ours['mesh']}`"]
        for row in filter(None, (ours, theirs)):
            cells.append(f"{row['peak_mb']:,.0f}" + ("" if row["fits"] == "True" else ", more than it has"))
            cells.append(f"{row['roofline_ms']:.4g}, {row['bound']}")
            cells += [f"{row['largest_batch']:,.0f}"] if row is ours else []
            used.append(row)
        lines.append(f"| {' | '.join(cells)}" + " |" * (1 + len(titles) - len(cells)))
    return lines, used, missing


def markdown() -> str:
    """The tables, and where and with what they were measured."""
    parts = steps(), figures(), tpus()
    used = [row for _, rows, _ in parts for row in rows]
    shown = f"![our seconds over theirs]({PICTURE.relative_to(README.parent)})\n\n"
    return shown + "\n".join(line for lines, _, _ in parts for line in (*lines, "")) + "\n".join(["", *_places(used)])


def _places(rows: list[Any]) -> list[str]:
    """A line for each machine and set of versions that something was timed on."""
    keys = ("machine", "python", "jax", "flax", "torch")
    found: dict[tuple, list[float]] = {}
    for row in rows:
        rates = [value for name, value in row.items() if name.startswith("gflops") and isinstance(value, float)]
        found.setdefault(tuple(row[key] for key in keys), []).extend(rates)
    return [
        f"- {machine}, {min(rates):.0f} to {max(rates):.0f} GFLOP/s of float32 matrix product; Python {python}, JAX "
        f"{jax}, Flax {flax}" + (f", PyTorch {torch}" if torch else "")
        for (machine, python, jax, flax, torch), rates in sorted(found.items())
        if rates
    ]


def drawn() -> list[list[Any]]:
    """What the picture shows: kind, what was timed, peer, and the ratio with its percentiles."""
    return [
        [kind, plain(what), name, *(row[f"ratio{part}"] for part in ("", "_p10", "_p90"))]
        for what, flags, also in cases.STEPS
        for kind in kinds(also)
        for name, row in measured(kind, flags).items()
        if name != OURS
    ]


def plain(what: str) -> str:
    """A table's words without its marks."""
    return what.replace("`", "")


@dataclasses.dataclass(frozen=True)
class ReadmeConfig:
    """Writes the tables of figures in README.md and the picture anew, from the rows in benchmarks/results."""

    path: str = str(README)  # the file, which has the marks between which the table lies


def write(config: ReadmeConfig) -> None:
    """Replaces what lies between the marks, draws the picture, prints what is not measured; ZooError without marks."""
    path = pathlib.Path(config.path)
    path.write_text(replaced(path.read_text(), config.path))
    pictures.ratios(PICTURE, drawn(), [plain(what) for what, _, _ in cases.STEPS], [*PEERS, *OTHERS])
    for command in dict.fromkeys(command for part in (steps(), figures(), tpus()) for command in part[2]):
        print(f"{MISSING}: python -m benchmarks {command}")


def replaced(text: str, name: str = "README.md") -> str:
    """The text with the table between its marks made anew."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ZooError(f"{name!r} must have the marks {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{markdown()}\n\n{END}{rest.split(END)[1]}"
