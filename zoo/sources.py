"""Public weights by the names of our models: `sources.csv`, one row a repository of the Hugging Face Hub.

The figures are their authors' or timm's own (`results/results-imagenet.csv` of its repository), not measured here.
"""

import csv
import functools
import pathlib
from typing import NamedTuple

TABLE = pathlib.Path(__file__).parent / "sources.csv"


class Source(NamedTuple):
    """A repository with weights of a model."""

    repository: str  # ORG/NAME
    license: str  # SPDX identifier, or the name that the repository gives
    metric: str  # what `value` is, such as "ImageNet-1k top-1 %"; empty where none is published
    value: float | None
    input_size: int  # pixels per side, or the most tokens


def sources_of(name: str) -> tuple[Source, ...]:
    """The public weights of a registered model, the default first."""
    return _table().get(name, ())


@functools.cache
def _table() -> dict[str, tuple[Source, ...]]:
    found: dict[str, tuple[Source, ...]] = {}
    with TABLE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            value = float(row["value"]) if row["value"] else None
            source = Source(row["repository"], row["license"], row["metric"], value, int(row["input_size"]))
            found[row["name"]] = (*found.get(row["name"], ()), source)
    return found
