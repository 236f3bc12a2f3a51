"""JSON that others wrote: read with bounds, since whoever shares a folder also writes what is in it."""

import json
import pathlib
import stat
from typing import Any

MOST_BYTES = 2**26  # a tokenizer of 262,000 tokens has half of it
MOST_VALUES = 2**22  # which take 100 bytes each in memory, though 3 in the file; that tokenizer has half of them
MOST_LEVELS = 64


def read_json(path: pathlib.Path) -> Any:
    """What a JSON file holds; ValueError where it is none, is larger than MOST_BYTES, has more than MOST_VALUES or is
    nested beyond MOST_LEVELS."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):  # a device has no end, a pipe no beginning
        raise ValueError("it is no regular file")
    if about.st_size > MOST_BYTES:
        raise ValueError(f"it has {about.st_size:,} bytes, more than {MOST_BYTES:,}")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)  # whatever size it says it has
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return parse_json(content.decode("utf-8"))


def parse_json(text: str) -> Any:
    """The same of a text."""
    values = sum(map(text.count, ",[{"))  # at least as many, those within strings among them
    if values > MOST_VALUES:
        raise ValueError(f"it has {values:,} values, more than {MOST_VALUES:,}")
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
