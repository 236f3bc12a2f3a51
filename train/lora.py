"""Low-rank (LoRA) updates of kernels (Hu et al. 2022), as an optimizer.

W = W0 + (alpha / rank) A B. A and B are the optimizer's state: A [in, rank] begins random, B [rank, out] zero. Their
gradients follow from W's, G: G B' and A' G, each times alpha / rank. The change of the product is applied to W, so that
models, checkpoints and exports know nothing of it: the weights are always the merged ones.
"""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zoo.arrays import named_leaves


class LoraState(NamedTuple):
    """Per kernel [..., in, out], by path: `down` A [..., in, rank] and `up` B [..., rank, out]; and the inner state."""

    down: dict[str, jax.Array]
    up: dict[str, jax.Array]
    inner: Any


def lora(inner: optax.GradientTransformation, rank: int, alpha: float, seed: int) -> optax.GradientTransformation:
    """`inner` over the factors A and B of every kernel. All leaves have two axes or more, the last two [in, out].

    `seed` draws A, for each kernel by its path.
    """
    scale = alpha / rank

    def init(params: Any) -> LoraState:
        down, up = {}, {}
        for path, leaf in named_leaves(params).items():
            *stack, rows, columns = leaf.shape
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
            down[path] = jax.random.normal(key, (*stack, rows, rank), leaf.dtype) / jnp.sqrt(rows).astype(leaf.dtype)
            up[path] = jnp.zeros((*stack, rank, columns), leaf.dtype)
        return LoraState(down, up, inner.init((down, up)))

    def update(gradients: Any, state: LoraState, params: Any = None) -> tuple[Any, LoraState]:
        found = named_leaves(gradients)
        of_down = {path: scale * g @ jnp.swapaxes(state.up[path], -1, -2) for path, g in found.items()}
        of_up = {path: scale * jnp.swapaxes(state.down[path], -1, -2) @ g for path, g in found.items()}
        changes, within = inner.update((of_down, of_up), state.inner, (state.down, state.up))
        down, up = optax.apply_updates((state.down, state.up), changes)
        moved = {path: scale * (down[path] @ up[path] - state.down[path] @ state.up[path]) for path in found}
        treedef = jax.tree.structure(gradients)
        return jax.tree.unflatten(treedef, list(moved.values())), LoraState(down, up, within)

    return optax.GradientTransformation(init, update)
