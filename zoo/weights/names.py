"""Names of tensors in a file: each once, without the prefixes of wrappers, renamed where the user asks for it."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from zoo.errors import ZooError

Path = tuple[str, ...]
# What torch.compile, FullyShardedDataParallel and activation checkpointing put before the name of a wrapped module.
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_COUNTERS = ("num_batches_tracked", "n_averaged")  # of BatchNorm's steps, of AveragedModel's updates


def by_name(named: Iterable[tuple[str, tuple[Path, Any]]]) -> dict[str, tuple[Path, Any]]:
    """Leaves with their paths by name; ZooError where two have the same name, since a file would lose one of them."""
    found: dict[str, tuple[Path, Any]] = {}
    for name, (path, leaf) in named:
        if name in found:
            both = f"{'/'.join(found[name][0])} and {'/'.join(path)}"
            raise ZooError(f"{both} would both be the tensor {name!r} in the file; use zoo.weights.save_native")
        found[name] = path, leaf
    return found


def is_counter(name: str) -> bool:
    """Whether a tensor only counts torch's steps and has no place in a model."""
    return name.rpartition(".")[2] in _COUNTERS


def unwrapped(name: str) -> str:
    """A name without the parts that torch's wrappers of modules add."""
    return _WRAPPERS.sub("", name)


def shared_prefix(names: Iterable[str]) -> list[str]:
    """The parts, between dots, with which all names begin; every name has at least one part more."""
    shared = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def without_prefix(tensors: Mapping[str, Any], fits: Callable[[str], bool]) -> dict[str, Any]:
    """The tensors without the prefix that all names share (`module.`, `model.net.`), if more names fit without it."""
    plain = {unwrapped(name): tensor for name, tensor in tensors.items() if not is_counter(name)}
    shared = shared_prefix(plain)
    starts = [sum(len(part) + 1 for part in shared[:depth]) for depth in range(len(shared) + 1)]
    best = max(starts, key=lambda start: sum(fits(name[start:]) for name in plain))  # the first of equal ones
    return {name[best:]: tensor for name, tensor in plain.items()}


def renamed(tensors: Mapping[str, Any], rename: Mapping[str, str | None]) -> dict[str, Any]:
    """Tensors whose names are changed by `re.sub(pattern, replacement, name)`, pattern by pattern in order; None drops
    those in which the pattern is found.

    ZooError for a pattern that is no regular expression or is in no name, and where two tensors get the same name.
    """
    found = dict(tensors)
    for pattern, replacement in rename.items():
        try:
            matching = [name for name in found if re.search(pattern, name)]
            changed = {name: None if replacement is None else re.sub(pattern, replacement, name) for name in matching}
        except re.error as error:
            raise ZooError(f"rename: {pattern!r} to {replacement!r} is no regular expression: {error}") from None
        if not matching:
            raise ZooError(f"rename: no tensor has {pattern!r} in its name; there are {', '.join(list(found)[:8])}")
        kept: dict[str, Any] = {}
        for name, tensor in found.items():
            new = changed.get(name, name)
            if new in kept:
                raise ZooError(f"rename: {pattern!r} gives two tensors the name {new!r}")
            if new is not None:
                kept[new] = tensor
        found = kept
    return found
