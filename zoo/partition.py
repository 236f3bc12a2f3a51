"""How a model's arrays lie on the mesh in use (`jax.set_mesh`, or the trainer's); where there is none, nothing happens.

The axes by name: `data` and `fsdp` split the rows of a batch, `fsdp` every large array too (fully sharded data
parallel, Rajbhandari et al. 2020, ZeRO 3), `tensor` heads, hidden features and vocabulary (Shoeybi et al. 2019),
`context` the sequence. What an axis does not divide lies there whole.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec

DATA, FSDP, CONTEXT, TENSOR = AXES = "data", "fsdp", "context", "tensor"
LARGE = 2**16  # elements above which fsdp splits an array
STACKED = "stacked"  # the module of a scanned stack's parameters [num_layers, ...]

# The axes of an array's last axes, by pattern of its path; the first that matches holds. Transformers have rules; the
# other families, and all that no rule names, have what holds everywhere: large arrays over fsdp, small ones whole.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # Of a pair of products the first gives each device its own heads or features, the second sums over them.
    ("*/query/kernel", (None, TENSOR)),
    ("*/key/kernel", (None, TENSOR)),
    ("*/value/kernel", (None, TENSOR)),
    ("*/out/kernel", (TENSOR, None)),
    ("*/gate/kernel", (None, TENSOR)),
    ("*/up/kernel", (None, TENSOR)),
    ("*/down/kernel", (TENSOR, None)),
    ("*/query/bias", (TENSOR,)),
    ("*/key/bias", (TENSOR,)),
    ("*/value/bias", (TENSOR,)),
    ("*/gate/bias", (TENSOR,)),
    ("*/up/bias", (TENSOR,)),
    ("*embedding", (TENSOR, None)),  # [vocab_size, hidden_size], a tied head's kernel too
    ("*/head/kernel", (None, TENSOR)),
)


def specs(tree: Any, sizes: Mapping[str, int]) -> Any:
    """How arrays, or their shapes, lie on a mesh of such sizes. A path that ends in a parameter's, as its momentum's
    and its average's do, lies as the parameter."""

    def of(path: Any, leaf: Any) -> PartitionSpec:
        return _spec("/" + jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, sizes)

    return jax.tree_util.tree_map_with_path(of, tree)


def _spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """By the first rule for the path; of a large array fsdp has the largest axis that is free and that it divides."""
    axes: list[str | None] = [None] * len(shape)
    rule = next((rule for pattern, rule in RULES if fnmatch.fnmatchcase(path, pattern)), ())
    for i, axis in enumerate(reversed(rule[-len(shape) :]), 1):
        if axis is not None and sizes.get(axis, 1) > 1 and shape[-i] % sizes[axis] == 0:
            axes[-i] = axis
    if sizes.get(FSDP, 1) > 1 and math.prod(shape) > LARGE:
        layers = int(f"/{STACKED}/" in path)  # a scan takes them one by one
        free = [i for i in range(layers, len(shape)) if axes[i] is None and shape[i] % sizes[FSDP] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = FSDP
    return PartitionSpec(*axes)


def in_use() -> dict[str, int]:
    """The axes of the mesh in use, with their sizes, but for those that are mapped over already."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto}


def axes_of(kind: str, size: int) -> tuple[str, ...] | None:
    """The axes in use over which `size` "rows", or those of "context" or "tensor", are split; None where none are."""
    found = {
        name: ways
        for name, ways in in_use().items()
        if (name == kind if kind != "rows" else name not in (CONTEXT, TENSOR))
    }
    ways = math.prod(found.values())
    return tuple(found) if ways > 1 and size % ways == 0 else None


def lying(x: jax.Array, *kinds: str) -> jax.Array:
    """x, its first axes split as `kinds` say, the others whole."""
    axes = [axes_of(kind, size) for kind, size in zip(kinds, x.shape, strict=False)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes)) if any(axes) else x


def by_device(run: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """A function that each device of the mesh in use calls on its own part of the arrays."""
    axes = set(in_use())
    if not axes:
        return run
    return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False)


def gathered(variables: Any) -> Any:
    """Variables, or a part of them, as a pass reads them: whole but for `tensor`. Those of a scanned stack are left,
    which gathers them layer by layer."""
    sizes = in_use()
    if sizes.get(FSDP, 1) == 1:
        return variables
    stored, wide = specs(variables, sizes), specs(variables, {**sizes, FSDP: 1})

    def gather(path: Any, leaf: jax.Array, stored: PartitionSpec, wide: PartitionSpec) -> jax.Array:
        if stored == wide or any(key.key == STACKED for key in path):
            return leaf
        return checkpoint_name(_gather(stored, wide, leaf), "gathered")

    return jax.tree_util.tree_map_with_path(gather, variables, stored, wide)


def over_shards(loss: Callable) -> Callable:
    """A function of whole parameters as one of their shards, which are gathered for it and once more for its gradient:
    none that is gathered is kept between the two."""
    if in_use().get(FSDP, 1) == 1:
        return loss
    policy = jax.checkpoint_policies.save_anything_except_these_names("gathered")
    return jax.checkpoint(lambda params: loss(gathered(params)), policy=policy)  # type: ignore[attr-defined]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(stored: PartitionSpec, wide: PartitionSpec, leaf: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, wide)


def _scattered(stored: PartitionSpec, wide: PartitionSpec, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    # Summed, then cut (XLA makes one of the two): cut at once, it would gather what the gradient is computed from.
    gradient = jax.lax.with_sharding_constraint(gradient, wide)
    return (jax.lax.with_sharding_constraint(gradient, stored),)


_gather.defvjp(lambda stored, wide, leaf: (_gather(stored, wide, leaf), None), _scattered)
