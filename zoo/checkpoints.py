"""Reading checkpoints: their folders by step, their metadata, and their arrays, verified by digest.

A checkpoint is `checkpoints/STEP/`, with the Orbax items `model`, `ema`, `optimizer` and `meta`: metrics and a digest
of every array. Nothing here writes one.
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
    """A checkpoint that cannot be read back as it was written; the message says why, in a line."""


def step_folders(checkpoints: pathlib.Path) -> dict[int, pathlib.Path]:
    """Finished checkpoints by step (Orbax renames a folder when it is whole)."""
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    return {int(path.name): path for path in sorted(found) if _STEP.fullmatch(path.name) and path.is_dir()}


def meta_file(checkpoint: pathlib.Path) -> pathlib.Path:
    """Where Orbax's JSON handler writes the item `meta`; read without it, which knows no bounds."""
    return checkpoint / "meta" / "metadata"


def read_meta(checkpoint: pathlib.Path) -> dict[str, Any]:
    """The item `meta`: `score` (higher is better, or None), `digests` by item and path."""
    try:
        meta = read_json(meta_file(checkpoint))
        if not isinstance(meta["digests"]["model"], dict) or not all(
            isinstance(d, dict) for d in meta["digests"].values()
        ):
            raise TypeError("no digests")
        if not isinstance(meta.get("score"), float | int | None):
            raise TypeError("its score is no number")
        return meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpoint(f"its meta is unreadable ({first_line(error)})") from None


def read_arrays(checkpoint: pathlib.Path, item: str, template: Any, meta: Mapping[str, Any]) -> Any:
    """An item in the structure of `template`, as `restored` reads it, and every digest checked."""
    arrays = restored(checkpoint, item, template, meta)
    check_digests(item, arrays, meta)
    return arrays


def restored(checkpoint: pathlib.Path, item: str, template: Any, meta: Mapping[str, Any]) -> Any:
    """An item in the structure of `template`: NumPy arrays, but where it names a sharding, where they lie then.

    Of several processes each reads by itself. BrokenCheckpoint where it cannot be read, ZooError where the checkpoint
    is of another model.
    """
    import orbax.checkpoint as ocp

    quiet_orbax()
    template_leaves, expected = named_leaves(template), meta["digests"].get(item, {})
    strangers = set(template_leaves) ^ set(expected)
    if strangers:
        raise ZooError(f"{str(checkpoint)!r} is of another model: {item} differs in {min(strangers)}")

    def wish(leaf: Any) -> ocp.RestoreArgs:
        if getattr(leaf, "sharding", None) is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype)

    wanted = jax.tree.map(wish, template)
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
                raise ValueError(f"it holds {numbers:,} numbers, the model {most:,}")
            arrays = reader.restore(path, args=ocp.args.PyTreeRestore(item=template, restore_args=wanted))
    except Exception as error:
        raise BrokenCheckpoint(f"its {item} is unreadable ({first_line(error)})") from None
    for name, leaf in named_leaves(arrays).items():
        if np.shape(leaf) != template_leaves[name].shape:
            shapes = f"{np.shape(leaf)}, not {template_leaves[name].shape}"
            raise ZooError(f"{str(checkpoint)!r} is of another model: {name} is {shapes}")
    return arrays


def check_digests(item: str, arrays: Any, meta: Mapping[str, Any]) -> None:
    """BrokenCheckpoint unless every digest agrees (Orbax casts to another dtype in silence; the digest then differs).
    Of arrays that several processes hold, all must ask."""
    found = digests(arrays)
    changed = [name for name, digest in meta["digests"][item].items() if found[name] != digest]
    if changed:
        raise BrokenCheckpoint(f"its {item} is not what was saved, first in {changed[0]}")


@functools.cache
def quiet_orbax() -> None:
    """Keeps Orbax's pages of tracebacks off the terminal, from here on; what matters is raised.

    When one read or write of several fails, that one is raised. The others are left unawaited, and Python complains of
    each when it collects it, at any later time.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    shown = logging.Formatter().format  # with the traceback; tensors stored as Orbax stores them are OCDBT's
    logging.getLogger("asyncio").addFilter(lambda record: not re.search("orbax|OCDBT", shown(record)))
    before = sys.unraisablehook

    def hook(args: Any) -> None:
        code = getattr(args.object, "cr_code", None)  # a coroutine's
        closed = isinstance(args.exc_value, RuntimeError) and str(args.exc_value) == "Event loop is closed"
        if not closed and (code is None or "orbax" not in code.co_filename):
            before(args)

    sys.unraisablehook = hook
