"""JSON that others wrote: read with bounds, since whoever shares a folder also writes what is in it."""

import json
import pathlib
from typing import Any

MOST_BYTES = 2**28
MOST_LEVELS = 64


def read_json(path: pathlib.Path) -> Any:
    """What a JSON file holds; ValueError where it is none, is larger than MOST_BYTES or nested beyond MOST_LEVELS."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes, more than {MOST_BYTES:,}")
    return parse_json(path.read_text("utf-8"))


def parse_json(text: str) -> Any:
    """The same of a text."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested beyond {MOST_LEVELS} levels") from None
    level = [data]
    for _ in range(MOST_LEVELS):
        containers = [
            item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)
        ]
        level = [item for container in containers for item in container]
    if level:
        raise ValueError(f"it is nested beyond {MOST_LEVELS} levels")
    return data
