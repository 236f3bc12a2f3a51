"""Forward-mode differentiation of functions that have a rule of their own for reverse mode."""

import contextlib
import contextvars
from collections.abc import Iterator

_on = contextvars.ContextVar("forward_mode", default=False)


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """Inside this context models can be differentiated forwards: `jax.jvp`, `jacfwd`, `hessian`, `linearize`.

        with zoo.forward_mode():
            value, tangent = jax.jvp(loss, (params,), (direction,))

    Elsewhere embeddings of tokens, recurrent layers and attention in blocks have a faster rule for reverse mode alone,
    for which JAX raises TypeError: "can't apply forward-mode ... (jvp) to a custom_vjp function". Here they are plain
    JAX: the same values, and gradients in reverse mode too; but attention holds its whole matrix of scores. A function
    under `jax.jit` must be traced inside the context.
    """
    token = _on.set(True)
    try:
        yield
    finally:
        _on.reset(token)


def in_forward_mode() -> bool:
    return _on.get()
