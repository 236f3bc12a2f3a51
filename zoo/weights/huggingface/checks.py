"""Validation of a config.json, in which any value may be missing or have another type."""

import json
from collections.abc import Mapping
from typing import Any

from zoo.errors import ZooError


def count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A size in the config. ZooError if it is invalid, or missing (or null) without a default."""
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ZooError(f"{key} must be an integer of at least 1, not {value!r}")
    return value


def only(config: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    """ZooError for a setting that our models do not support; a missing one has the supported value."""
    for key, value in right.items():
        if config.get(key, value) != value:
            raise ZooError(f"{key} must be {json.dumps(value)}, not {json.dumps(config[key])}")


def activation(name: Any, known: Mapping[str, str]) -> str:
    """Our name of an activation."""
    if str(name) not in known:
        raise ZooError(f"unknown activation {name!r}; there are {', '.join(known)}")
    return known[name]


def named(ours: str, known: Mapping[str, str]) -> str:
    """Hugging Face's name of an activation; the first one if it has none, which `save_pretrained` then reports."""
    return next((theirs for theirs, own in known.items() if own == ours), next(iter(known)))
