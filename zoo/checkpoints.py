"""Reading checkpoints: folders by step, metadata, and arrays verified by digest.

A checkpoint is `checkpoints/STEP/` with the Orbax items `model`, `ema`, `optimizer` and `meta`, which holds metrics and
a digest of every array. This module only reads.
"""

import functools
import logging
import math
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from zoo.arrays import digests, named_leaves
from zoo.errors import ZooError, first_line
from zoo.files import read_json

_STEP = re.compile(r"0|[1-9][0-9]{0,17}")


class BrokenCheckpoint(Exception):
    """A checkpoint that does not hold what was saved; the message says why, in one line."""


def step_folders(checkpoints: pathlib.Path) -> dict[int, pathlib.Path]:
    """Finished checkpoints by step (Orbax renames a folder when it is complete)."""
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return {int(path.name): path for path in sorted(found) if _STEP.fullmatch(path.name) and path.is_dir()}


def meta_file(checkpoint: pathlib.Path) -> pathlib.Path:
    """The file of the item `meta`, as Orbax's JSON handler writes it. It is read without Orbax, to bound memory."""
    return checkpoint / "meta" / "metadata"


def read_meta(checkpoint: pathlib.Path) -> dict[str, Any]:
    """The item `meta`: `score` (higher is better, or None) and `digests`, by item and path. BrokenCheckpoint if it is
    unreadable."""
    try:
        meta = read_json(meta_file(checkpoint))
        if not isinstance(meta["digests"]["model"], dict) or not all(
            isinstance(d, dict) for d in meta["digests"].values()
        ):
            raise TypeError("it has no digests")
        if not isinstance(meta.get("score"), float | int | None):
            raise TypeError("its score is not a number")
        return meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpoint(f"its meta is unreadable ({first_line(error)})") from None


def read_arrays(checkpoint: pathlib.Path, item: str, template: Any, meta: Mapping[str, Any]) -> Any:
    """An item, as `restored` reads it, with every digest verified."""
    arrays = restored(checkpoint, item, template, meta)
    check_digests(item, arrays, meta)
    return arrays


def restored(checkpoint: pathlib.Path, item: str, template: Any, meta: Mapping[str, Any]) -> Any:
    """An item in the structure of `template`: NumPy arrays, or arrays with the sharding that a leaf of the template
    names.

    Each process reads independently. BrokenCheckpoint if the item cannot be read, ZooError if it belongs to another
    model.
    """
    import orbax.checkpoint as ocp

    quiet_orbax()
    template_leaves, expected = named_leaves(template), meta["digests"].get(item, {})
    differing = set(template_leaves) ^ set(expected)
    if differing:
        raise ZooError(f"{str(checkpoint)!r} is of another model: {item} differs in {min(differing)}")

    def restore_args(leaf: Any) -> ocp.RestoreArgs:
        if getattr(leaf, "sharding", None) is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype)

    wanted = jax.tree.map(restore_args, template)
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), multiprocessing_options=alone) as reader:
            path = (checkpoint / item).absolute()
            if (about := reader.metadata(path).item_metadata) is None:
                raise ValueError("a file is damaged or missing")
            stored = jax.tree.leaves(about.tree)
            numbers = sum(math.prod(array.shape) for array in stored if getattr(array, "shape", None))
            if numbers > 2 * (most := sum(math.prod(leaf.shape) for leaf in template_leaves.values())) + 1:
                raise ValueError(f"it holds {numbers:,} numbers, the model has {most:,}")
            arrays = reader.restore(path, args=ocp.args.PyTreeRestore(item=template, restore_args=wanted))
    except Exception as error:
        raise BrokenCheckpoint(f"its {item} is unreadable ({first_line(error)})") from None
    for name, leaf in named_leaves(arrays).items():
        if np.shape(leaf) != template_leaves[name].shape:
            shapes = f"{np.shape(leaf)}, not {template_leaves[name].shape}"
            raise ZooError(f"{str(checkpoint)!r} is of another model: {name} is {shapes}")
    return arrays


def check_digests(item: str, arrays: Any, meta: Mapping[str, Any]) -> None:
    """BrokenCheckpoint unless every digest matches (Orbax casts to another dtype silently; the digest then differs).
    For arrays that span processes, every process must call this."""
    found = digests(arrays)
    changed = [name for name, digest in meta["digests"][item].items() if found[name] != digest]
    if changed:
        raise BrokenCheckpoint(f"its {item} is not what was saved, first in {changed[0]}")


@functools.cache
def quiet_orbax() -> None:
    """Silences Orbax's tracebacks in the terminal from here on; the errors that matter are raised.

    If several concurrent reads or writes fail, one error is raised. The others are never awaited, and Python reports
    each one whenever it is garbage-collected.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    shown = logging.Formatter().format  # with the traceback; OCDBT is Orbax's storage format
    logging.getLogger("asyncio").addFilter(lambda record: not re.search("orbax|OCDBT", shown(record)))
    before = sys.unraisablehook

    def hook(args: Any) -> None:
        code = getattr(args.object, "cr_code", None)  # of a coroutine
        closed = isinstance(args.exc_value, RuntimeError) and str(args.exc_value) == "Event loop is closed"
        if not closed and (code is None or "orbax" not in code.co_filename):
            before(args)

    sys.unraisablehook = hook
