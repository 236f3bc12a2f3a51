"""`forward`: how a task applies the model inside a step."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from zoo.inputs import Inputs


class Forward:
    """Applies the model with the step's parameters, collections and dropout keys, any number of times.

    `model` and `inputs` are the run's; `step` is the number of updates so far, int32 [], or None in evaluation. With a
    dropout `key`, as in training, `collections` follows the updates that the model makes, such as batch statistics.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, variables: Any, step: Any = None, key: jax.Array | None = None
    ):
        self.model, self.inputs, self.step = model, inputs, step
        self.collections = {name: value for name, value in variables.items() if name != "params"}
        self._params, self._key, self._calls = variables["params"], key, 0

    def __call__(
        self, *args: Any, variables: Any = None, method: Any = None, mutable: Sequence[str] = (), **kwargs: Any
    ) -> Any:
        """`model.apply(variables, *args, method=method, **kwargs)`, with the step's own variables by default.

        With `mutable`, such as ["features"], the result is (outputs, those collections), as of Flax's `apply`.
        """
        own = {"params": self._params, **self.collections} if variables is None else variables
        updates = list(self.collections) if self._key is not None and variables is None else []
        if self._key is None and not mutable:
            return self.model.apply(own, *args, method=method, **kwargs)
        rngs = {} if self._key is None else {"dropout": self._next_key()}
        wanted = [*updates, *mutable]
        out, changed = self.model.apply(own, *args, rngs=rngs, mutable=wanted, method=method, **kwargs)
        self.collections |= {name: changed[name] for name in updates if name in changed}
        return (out, {name: changed[name] for name in mutable if name in changed}) if mutable else out

    def _next_key(self) -> jax.Array:
        """The step's dropout key for the first call, others for those after it."""
        assert self._key is not None
        self._calls += 1
        return self._key if self._calls == 1 else jax.random.fold_in(self._key, self._calls - 1)
