"""Compares two files of results, and draws one."""

import csv
import dataclasses
import functools
import pathlib
import statistics

from tyro.conf import Positional

from benchmarks.pictures import mark
from benchmarks.suite import HOW, benchmarks
from benchmarks.timer import PACKAGES, quiet
from zoo.errors import ZooError

# columns that distinguish the rows of one command, besides the settings of the benchmarks
DISTINGUISHING = ("framework", "attention", "num_layers", "scan_layers", "way", "length")
NOT_IDENTIFYING = {*HOW, "output"} - {"seed"}  # a recipe's results belong to its seed
UNMEASURED = ("parameters", "flops", "training_flops", "rounds", "busy_others", "hugetlb", "commit", "python", "libtpu")
QUOTIENTS = ("ratio", "speedup", "overhead")  # columns in which 1 means equally fast
Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Compares the newest rows of two files of results, case by case."""

    first: Positional[str]  # a CSV in benchmarks/results, or like one
    second: Positional[str]  # another with the same columns: of another commit, machine or version


@dataclasses.dataclass(frozen=True)
class PlotConfig:
    """Draws the newest row of each case of a file of results, with its spread, into a PNG beside it."""

    file: Positional[str]  # a CSV in benchmarks/results, or like one


def run(config: CompareConfig) -> dict[str, float]:
    """Prints the values of every case and their ratios, second over first; returns the median ratio of each column."""
    first, second = (read(pathlib.Path(path)) for path in (config.first, config.second))
    shared = [key for key in first if key in second]
    if not shared:
        raise ZooError(f"{config.first!r} and {config.second!r} have no case in common")
    names = labels({key: first[key] for key in shared})
    ratios: dict[str, list[float]] = {}
    for key in shared:
        a, b = first[key], second[key]
        places = "" if a["machine"] == b["machine"] else f" ({a['machine']} and {b['machine']})"
        print(f"{names[key]}{places}")
        for column in measured(a):
            if column not in b or number(b[column]) is None or not number(a[column]):
                continue
            ratio = float(b[column]) / float(a[column])
            ratios.setdefault(column, []).append(ratio)
            print(f"    {column:<28} {a[column]:>10} {b[column]:>10}  x {ratio:.3f}{apart(a, b, column)}")
    medians = {column: statistics.median(found) for column, found in ratios.items()}
    print(f"second over first, median over {len(shared)} cases:")
    for column, median in medians.items():
        print(f"    {column:<28} x {median:.3f} ({min(ratios[column]):.3f} to {max(ratios[column]):.3f})")
    for path, rows, others in ((config.first, first, second), (config.second, second, first)):
        for key in [key for key in rows if key not in others]:
            print(f"only in {path}: {', '.join(f'{name} {value}' for name, value in key if value)}")
    return medians


def apart(a: Row, b: Row, column: str) -> str:
    """A remark where the spreads of both overlap; '' where they do not, or a spread is missing."""
    first, second = spread(a, column), spread(b, column)
    if first is None or second is None:
        return ""
    return "" if first[1] < second[0] or second[1] < first[0] else "  within the spread"


def read(path: pathlib.Path) -> dict[tuple, Row]:
    """The newest row of each case, by its identifying columns; rows of a machine without other work come first.

    ZooError if the file is not a file of results.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error):
        rows = []
    if not rows or "command" not in rows[0]:
        raise ZooError(f"{str(path)!r} is not a file of results: it has no rows with a column 'command'")
    names = [name for name in rows[0] if name in identifying()]
    return {tuple((name, row[name]) for name in names): row for row in sorted(rows, key=quiet)}  # the last one stays


@functools.cache
def identifying() -> frozenset[str]:
    """The columns that say what was measured, in contrast to results and circumstances."""
    fields = {field.name for _, (config, _) in benchmarks().items() for field in dataclasses.fields(config)}
    return frozenset({*fields, *DISTINGUISHING} - NOT_IDENTIFYING)


def measured(row: Row) -> list[str]:
    """The columns of results, without their percentiles."""
    return [
        name
        for name in row
        if name not in identifying()
        and not name.startswith("gflops")
        and name not in (*UNMEASURED, *PACKAGES)
        and not any(part in name for part in ("_p10", "_p90"))
        and number(row[name]) is not None
    ]


def spread(row: Row, column: str) -> tuple[float, float] | None:
    """The 10th and the 90th percentile of a column, from columns such as ours_p10_ms or ratio_p10; None if missing."""
    stem, _, unit = column.partition("_")
    forms = [f"{column}_{{}}", f"{stem}_{{}}_{unit}"] + ([f"{stem}_{{}}"] if unit.endswith("_per_s") else [])
    for form in forms:
        low, high = (number(row.get(form.format(p), "")) for p in ("p10", "p90"))
        if low is not None and high is not None:
            return low, high
    return None


def number(text: str) -> float | None:
    """The number in a cell; None for anything else, and for nan."""
    try:
        return float(text) if float(text) == float(text) else None
    except ValueError:
        return None


def labels(rows: dict[tuple, Row]) -> dict[tuple, str]:
    """A name for each case, from the settings in which the cases differ."""
    varied = {name for name, _ in next(iter(rows)) if len({row[name] for row in rows.values()}) > 1}
    return {
        key: ", ".join(f"{name} {value}".replace("_", " ") for name, value in key if name in varied and value)
        or ", ".join(value for _, value in key if value)
        for key in rows
    }


def plot(config: PlotConfig) -> pathlib.Path:
    """Draws ratios and speed-ups, or without any every result with a spread; returns the path of the PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path = pathlib.Path(config.file)
    rows = read(path)
    spreads = list(dict.fromkeys(name for row in rows.values() for name in measured(row) if spread(row, name)))
    columns = [name for name in spreads if name.startswith(QUOTIENTS)] or spreads
    if not columns:
        raise ZooError(f"{config.file!r} has no results with percentiles to draw")
    rows = {key: row for key, row in rows.items() if any(number(row[name]) is not None for name in columns)}
    names = labels(rows)
    keys = list(rows)[::-1]  # the first on top
    width = 0.065 * max(map(len, names.values()))  # inches of the longest name
    size = (width + 5 * len(columns), 1.4 + 0.35 * len(keys))
    figure, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, column in zip(axes[0], columns, strict=True):
        for place, key in enumerate(keys):
            value, between = number(rows[key][column]), spread(rows[key], column)
            if value is None or between is None:
                continue
            mark(axis, place, value, between, "tab:blue", 6)
            axis.annotate(f"{value:.3g}", (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        if column.startswith(QUOTIENTS):
            axis.axvline(1, color="black", linewidth=0.8, linestyle="--")
            axis.set_xlim(0, max(1.1, axis.get_xlim()[1]))
        axis.set_xlabel(column.replace("_", " "))
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(keys)), [names[key] for key in keys], fontsize=8)
    axes[0][0].set_ylim(-0.6, len(keys) - 0.2)
    places = sorted({f"{row['machine']}, JAX {row['jax']}" for row in rows.values()})
    dates = sorted(row["date"].split(" ")[0] for row in rows.values())
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    figure.suptitle(f"{path.stem}, {days}: {'; '.join(places)}", fontsize=9)
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    print(picture)
    return picture
