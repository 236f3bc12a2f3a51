"""JSON from other people, read within bounds of memory: whoever shares a folder also writes its files."""

import json
import pathlib
import stat
from typing import Any

MOST_BYTES = 2**26  # a tokenizer with 262,000 tokens has half of that
MOST_VALUES = 2**22  # up to 100 bytes each in memory for 3 in the file; the same tokenizer has half of that
MOST_LEVELS = 64


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file. ValueError if it is not JSON, has more than MOST_BYTES or MOST_VALUES, or is nested
    deeper than MOST_LEVELS."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):  # reading a device never ends, opening a pipe may block
        raise ValueError("it is not a regular file")
    if about.st_size > MOST_BYTES:
        raise ValueError(f"it has {about.st_size:,} bytes, more than {MOST_BYTES:,}")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)  # the reported size may be wrong
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return parse_json(content.decode("utf-8"))


def parse_json(text: str) -> Any:
    """`read_json` for a string."""
    values = sum(map(text.count, ",[{"))  # an upper bound: those inside strings count too
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
