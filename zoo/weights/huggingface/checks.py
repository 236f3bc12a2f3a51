"""What a config.json may say, read with care: any value of it may be missing or of another kind."""

import json
from collections.abc import Mapping
from typing import Any

from zoo.errors import ZooError


def count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A size of the config; ZooError where it is none, or is left out or null and has no default."""
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ZooError(f"{key} must be an integer of at least 1, not {value!r}")
    return value


def only(config: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    """ZooError for a setting other than the one that ours have; what is left out is taken to be that."""
    for key, value in right.items():
        if config.get(key, value) != value:
            raise ZooError(f"{key} must be {json.dumps(value)}, not {json.dumps(config[key])}")


def activation(name: Any, known: Mapping[str, str]) -> str:
    """Our name of an activation."""
    if str(name) not in known:
        raise ZooError(f"unknown activation {name!r}; there are {', '.join(known)}")
    return known[name]


def named(ours: str, known: Mapping[str, str]) -> str:
    """Hugging Face's name of an activation; the first one where it has none, which is then complained of."""
    return next((theirs for theirs, own in known.items() if own == ours), next(iter(known)))
