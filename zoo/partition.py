"""Partitioning of arrays over the mesh in use (`jax.set_mesh`, or the trainer's); without a mesh nothing happens.

Axes by name: `data` and `fsdp` split the rows of a batch; `fsdp` also splits every large array (fully sharded data
parallel, Rajbhandari et al. 2020, ZeRO 3); `tensor` splits heads, hidden features and vocabulary (Shoeybi et al. 2019);
`context` splits the sequence. A dimension that an axis does not divide is replicated over it.
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

# (pattern of a parameter's path, mesh axes of its last dimensions); the first match counts. A model's class has them in
# `partition_rules`. Parameters that no rule names are split over fsdp where they are large, and replicated otherwise.
Rules = tuple[tuple[str, tuple[str | None, ...]], ...]


def rules_of(model: Any) -> Rules:
    """The partition rules of a model's class; none where it has no such attribute."""
    return getattr(model, "partition_rules", ())


def specs(tree: Any, sizes: Mapping[str, int], rules: Rules) -> Any:
    """A PartitionSpec for every array of a tree (or its shape), on a mesh of these sizes. Patterns match the end of a
    path, so that a parameter's momentum and average are partitioned as the parameter is."""

    def of(path: Any, leaf: Any) -> PartitionSpec:
        return _spec("/" + jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, sizes, rules)

    return jax.tree_util.tree_map_with_path(of, tree)


def _spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int], rules: Rules) -> PartitionSpec:
    """The first rule for the path; then, in a large array, fsdp on the largest free dimension that it divides."""
    axes: list[str | None] = [None] * len(shape)
    rule = next((rule for pattern, rule in rules if fnmatch.fnmatchcase(path, pattern)), ())
    for i, axis in enumerate(reversed(rule[-len(shape) :]), 1):
        if axis is not None and sizes.get(axis, 1) > 1 and shape[-i] % sizes[axis] == 0:
            axes[-i] = axis
    if sizes.get(FSDP, 1) > 1 and math.prod(shape) > LARGE:
        layers = int(f"/{STACKED}/" in path)  # a scan slices the first dimension
        free = [i for i in range(layers, len(shape)) if axes[i] is None and shape[i] % sizes[FSDP] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = FSDP
    return PartitionSpec(*axes)


def in_use() -> dict[str, int]:
    """Axes of the mesh in use, with their sizes, without those that `shard_map` maps over already."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto}


def axes_of(kind: str, size: int) -> tuple[str, ...] | None:
    """Axes in use that shard a dimension of `size` of a kind: "rows", "context" or "tensor"; None where none does."""
    found = {
        name: ways
        for name, ways in in_use().items()
        if (name == kind if kind != "rows" else name not in (CONTEXT, TENSOR))
    }
    ways = math.prod(found.values())
    return tuple(found) if ways > 1 and size % ways == 0 else None


def lying(x: jax.Array, *kinds: str) -> jax.Array:
    """x with its leading axes sharded by kind, the rest replicated."""
    axes = [axes_of(kind, size) for kind, size in zip(kinds, x.shape, strict=False)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes)) if any(axes) else x


def by_device(run: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """`run` as a function that each device of the mesh in use calls on its own shards."""
    axes = set(in_use())
    if not axes:
        return run
    return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False)


def gathered(variables: Any, rules: Rules) -> Any:
    """Variables, or a part of them, all-gathered over fsdp for a pass. A scanned stack's are unchanged: it
    gathers them layer by layer."""
    sizes = in_use()
    if sizes.get(FSDP, 1) == 1:
        return variables
    stored, wide = specs(variables, sizes, rules), specs(variables, {**sizes, FSDP: 1}, rules)

    def gather(path: Any, leaf: jax.Array, stored: PartitionSpec, wide: PartitionSpec) -> jax.Array:
        if stored == wide or any(key.key == STACKED for key in path):
            return leaf
        return checkpoint_name(_gather(stored, wide, leaf), "gathered")

    return jax.tree_util.tree_map_with_path(gather, variables, stored, wide)


def over_shards(loss: Callable, rules: Rules) -> Callable:
    """A loss of gathered parameters as a loss of sharded ones. Parameters are gathered in the forward pass and again in
    the backward pass, and not kept between the two."""
    if in_use().get(FSDP, 1) == 1:
        return loss
    policy = jax.checkpoint_policies.save_anything_except_these_names("gathered")
    return jax.checkpoint(lambda params: loss(gathered(params, rules)), policy=policy)  # type: ignore[attr-defined]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(stored: PartitionSpec, wide: PartitionSpec, leaf: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, wide)


def _scattered(stored: PartitionSpec, wide: PartitionSpec, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    # Summed, then sharded (XLA fuses the two). Sharded at once, XLA would gather what the gradient is computed from.
    gradient = jax.lax.with_sharding_constraint(gradient, wide)
    return (jax.lax.with_sharding_constraint(gradient, stored),)


_gather.defvjp(lambda stored, wide, leaf: (_gather(stored, wide, leaf), None), _scattered)
