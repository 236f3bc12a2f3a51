"""The setting `mesh`, `data=2,fsdp=2,tensor=2`: the sizes of a mesh's axes, and which models it goes with."""

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import jax

from train import processes
from zoo.errors import ZooError
from zoo.partition import AXES, CONTEXT, DATA, TENSOR


def parse_mesh(text: str) -> dict[str, int]:
    """Sizes by axis; ZooError for another form."""
    sizes: dict[str, int] = {}
    for item in text.split(","):
        name, _, size = item.partition("=")
        if name not in AXES or name in sizes or not (re.fullmatch(r"\d{1,9}", size) and int(size)):
            raise ZooError(f"mesh gives sizes to {', '.join(AXES)}, such as data=2,fsdp=4; {item!r:.80} does not")
        sizes[name] = int(size)
    return sizes


def mesh_sizes(text: str | None, devices: int) -> dict[str, int]:
    """The sizes of all axes for so many devices; `data`, if not named, takes what the others leave."""
    named = {} if text is None else parse_mesh(text)
    others = math.prod(size for name, size in named.items() if name != DATA)
    sizes = {**dict.fromkeys(AXES, 1), DATA: max(devices // others, 1), **named}
    if math.prod(sizes.values()) != devices:
        there = f"there {'is' if devices == 1 else 'are'} {devices}"
        raise ZooError(f"mesh {text} is one of {math.prod(sizes.values())} devices; {there}; --mesh None names none")
    return sizes


def check_parallel(text: str, parallel: str) -> None:
    """ZooError for a mode without a mesh."""
    if parallel in ("jit", "pmap"):
        raise ZooError(f"mesh {text} goes with parallel mesh, not {parallel}; --mesh None names none")


def where_it_fits(text: str | None, parallel: str) -> str | None:
    """The mesh of the run so far; None, with a warning, where it does not fit the devices or the mode."""
    if text is None:
        return None
    try:
        check_parallel(text, parallel)
        mesh_sizes(text, jax.device_count())
    except ZooError:
        if processes.first():
            where = f"parallel {parallel}, devices: {jax.device_count()}"
            warnings.warn(f"the run's mesh {text} is left out: it does not fit ({where})", stacklevel=2)
        return None
    return text


def check_model(model: Any, family: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> None:
    """ZooError where `tensor` does not divide the model, or `context` its sequence for inputs of a shape.

    Shorter batches of texts that `context` does not divide are replicated along it.
    """
    for axis in (TENSOR, CONTEXT):
        if sizes[axis] > 1 and family != "transformer":
            raise ZooError(f"mesh {axis}={sizes[axis]} is for Transformers; {type(model).__name__} takes data and fsdp")
    tokens = shape[0]
    if len(shape) == 3 and family == "transformer":
        tokens = (model.image_size // model.patch_size) ** 2 + int(model.pooling == "token")
    if tokens % sizes[CONTEXT]:
        raise ZooError(f"mesh context={sizes[CONTEXT]} does not divide a sequence of {tokens} tokens")
    if sizes[TENSOR] > 1:
        fields = {name: getattr(model, name, None) for name in ("num_heads", "num_kv_heads", "mlp_size")}
        for name, size in {**fields, **getattr(model, "settled", {})}.items():
            if name in fields and size is not None and size % sizes[TENSOR]:
                raise ZooError(f"mesh tensor={sizes[TENSOR]} does not divide the model's {name}, {size}")
