"""Hidden activations on request: `model.apply(variables, x, mutable=["features"])`."""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax

from zoo.errors import ZooError

_taken: contextvars.ContextVar["dict[str, jax.Array | None] | None"] = contextvars.ContextVar("taken", default=None)
_added: contextvars.ContextVar[tuple[str, jax.Array] | None] = contextvars.ContextVar("added", default=None)


def sow(module: nn.Module, name: str, value: jax.Array) -> jax.Array:
    """Stores `value` as `name` in the collection `features` (not during init) and returns it. Inside `take` it stores
    nothing: the caller may, under a name of its own."""
    added = _added.get()
    if added is not None and added[0] == name:
        value = value + added[1]
    taken = _taken.get()
    if taken is None and not module.is_initializing():
        module.sow("features", name, value, init_fn=lambda: None, reduce_fn=lambda _, new: new)
    if taken is not None and name in taken:
        taken[name] = value
        if all(found is not None for found in taken.values()):
            raise _Complete
    return value


class _Complete(Exception):
    """All features that are wanted have been computed."""


def take(module: nn.Module, names: Sequence[str], *args: Any, **kwargs: Any) -> list[jax.Array]:
    """The features `names` of a submodule, such as stage1 of a backbone, of `module(*args, **kwargs)`.

    The submodule is applied no further than to the last of them: the layers behind it get no variables. ZooError where
    it does not have them.
    """
    taken: dict[str, jax.Array | None] = dict.fromkeys(names)
    token = _taken.set(taken)
    try:
        module(*args, **kwargs)
    except _Complete:
        return [value for value in taken.values() if value is not None]
    finally:
        _taken.reset(token)
    missing = [name for name, value in taken.items() if value is None]
    raise ZooError(f"{type(module).__name__} has no features {', '.join(missing)}")


@contextlib.contextmanager
def adding(name: str, delta: jax.Array) -> Iterator[None]:
    """Inside this context the feature `name` is the computed value plus `delta`. At delta = 0, the gradient with
    respect to `delta` is the gradient with respect to the feature."""
    token = _added.set((name, delta))
    try:
        yield
    finally:
        _added.reset(token)
