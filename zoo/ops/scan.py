"""A scan over steps that multiply by weights, each weight's gradient formed in one product after it.

`zoo.ops.recurrence` has this for a layer whose inputs are all known. A decoder that attends to a source is not one:
what it reads next depends on what it held before. Its step is written out, asks `times(name, x)` for its products, and
here the backward scan leaves the gradients by them behind, where that of `lax.scan` adds to every weight's once a step.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Times = Callable[[str, jax.Array], jax.Array]  # x [B, F] by the named kernel: float32 [B, G]
Step = Callable[[Times, Any, Any, Any], tuple[Any, Any]]  # times, carry, item, shared -> carry, output


def times(kernels: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """x [B, F] by a kernel [F, G], or by one of each row's own, [B, F, G]: float32 [B, G]."""
    kernel = kernels[name]
    rows = "bf,fg->bg" if kernel.ndim == 2 else "bf,bfg->bg"
    return jnp.einsum(rows, x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan(step: Step, unroll: int, kernels: dict[str, jax.Array], carry: Any, items: Any, shared: Any) -> Any:
    """`lax.scan` of `step(times, carry, item, shared)` over `items` [T, ...]: the last carry and the outputs [T, ...].

    `shared` are further arrays that every step reads. Nothing that has a gradient may be read in any other way. Leaves
    of the carry have the batch on axis 0; a step takes each product once. Differentiable in reverse mode.
    """
    return _scan(step, unroll, kernels, None, carry, items, shared)[0]


def _scan(step, unroll, kernels, slots, carry, items, shared):
    """The results of `scan`, and what each kernel multiplied, [T, B, F] by name. `slots` [T, B, G] by name are added to
    the products: the gradient by a slot is that by the product."""

    def body(carry, item):
        item, slots = item
        read = {}

        def product(name, x):
            read[name] = x.astype(kernels[name].dtype)
            y = times(kernels, name, x)
            return y if slots is None else y + slots[name]

        carry, output = step(product, carry, item, shared)
        return carry, (output, read)

    carry, (outputs, read) = lax.scan(body, carry, (items, slots), unroll=unroll)
    return (carry, outputs), read


def _forward(step, unroll, kernels, carry, items, shared):
    shape = (len(jax.tree.leaves(items)[0]), len(jax.tree.leaves(carry)[0]))
    slots = {name: jnp.zeros((*shape, kernel.shape[-1]), jnp.float32) for name, kernel in kernels.items()}
    run = functools.partial(_scan, step, unroll, kernels)
    results, pull, read = jax.vjp(run, slots, carry, items, shared, has_aux=True)
    return results, (pull, read, kernels)


def _backward(step, unroll, saved, by_results):
    pull, read, kernels = saved
    by_slots, *rest = pull(by_results)
    return {name: _kernel_gradient(read[name], by_slots[name], kernels[name]) for name in kernels}, *rest


def _kernel_gradient(x: jax.Array, by_product: jax.Array, kernel: jax.Array) -> jax.Array:
    """Over all steps [T, B, F] and [T, B, G], and of a kernel that all rows share, over the rows."""
    steps = "tbf,tbg->fg" if kernel.ndim == 2 else "tbf,tbg->bfg"
    by_product = by_product.astype(x.dtype)
    return jnp.einsum(steps, x, by_product, preferred_element_type=jnp.float32).astype(kernel.dtype)


scan.defvjp(_forward, _backward)
