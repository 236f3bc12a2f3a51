"""Stacks of recurrent layers, as in torch.nn.LSTM, GRU and RNN: `lstm`, `gru`, `rnn`.

LSTM: Hochreiter and Schmidhuber 1997 with the forget gates of Gers et al. 2000, and the projection of Sak et al. 2014
(arXiv:1402.1128). GRU: Cho et al. 2014, with the reset gate after the product (the form of cuDNN and PyTorch) or, as in
the paper, before it. There is one bias per gate where PyTorch has two, except for the candidate of a GRU with the reset
gate after the product, which multiplies one of them. The bias of forget gates starts at one (Jozefowicz et al.
2015); recurrent kernels start orthogonal.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.errors import ZooError
from zoo.features import sow
from zoo.ops.precision import at_least_float32
from zoo.ops.recurrence import GATES, Cell, State, project, project_tokens, recur, recur_reference, zero_state
from zoo.registry import register
from zoo.sequence import check_lengths, check_series, check_state


class Rows(NamedTuple):
    """An input as a table [V, F] and tokens [B, T] that index it, so that a layer can project the table instead."""

    table: jax.Array
    tokens: jax.Array


class Weights(NamedTuple):
    """Weights of one layer in one direction, as `zoo.ops.recurrence` takes them."""

    kernel: jax.Array  # [F, G]
    recurrent_kernel: jax.Array  # [H, G]
    bias: jax.Array  # [G]
    candidate_bias: jax.Array | None = None  # [H], of a GRU's candidate, not multiplied by the reset gate
    projection: jax.Array | None = None  # [H, P], of an LSTM's h


def projected(x: jax.Array | Rows, kernel: jax.Array, candidate_bias: jax.Array | None = None) -> jax.Array:
    """x [..., F], or Rows, times kernel [F, G], plus the bias of a GRU's candidate: [..., G]."""
    if isinstance(x, Rows):
        inputs = project_tokens(x.table.astype(kernel.dtype), x.tokens, kernel)
    else:
        inputs = project(x.astype(kernel.dtype), kernel)
    if candidate_bias is None:
        return inputs
    return inputs + jnp.pad(candidate_bias, (inputs.shape[-1] - len(candidate_bias), 0))


class RecurrentLayer(nn.Module):
    """One layer in one direction over [T, B, F] or time-first Rows: outputs [T, B, H] and the final state.

    Features: the gates and, for an LSTM, `cell`, each [B, T, H].
    """

    cell: Cell
    hidden_size: int
    reverse: bool
    weight_dropout_rate: float
    forget_bias: float
    dtype: Any
    param_dtype: Any
    reset_after: bool = True
    projection_size: int | None = None

    def __call__(
        self, x: jax.Array | Rows, state: State, lengths: jax.Array | None, train: bool
    ) -> tuple[jax.Array, State]:
        width = x.table.shape[-1] if isinstance(x, Rows) else x.shape[-1]
        kernel, recurrent, bias, candidate, projection = self.weights(width, train)
        inputs = projected(x, kernel, candidate)
        options: dict[str, Any] = {"bias": bias, "reverse": self.reverse}
        options |= {"reset_after": self.reset_after, "projection": projection}
        if not self.is_mutable_collection("features") or self.is_initializing():
            return recur(self.cell, inputs, recurrent, state, lengths, **options)
        outputs, state, found = recur_reference(self.cell, inputs, recurrent, state, lengths, **options)
        for name, value in found.items():
            sow(self, name, jnp.moveaxis(value, 0, 1))
        return outputs, state

    @nn.compact
    def weights(self, width: int, train: bool) -> Weights:
        """The parameters for inputs of a width, in the compute dtype."""
        size, gates, out = self.hidden_size, GATES[self.cell], self.projection_size or self.hidden_size
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (width, gates * size), self.param_dtype)
        recurrent = self.param("recurrent_kernel", orthogonal_gates(gates), (out, gates * size), self.param_dtype)
        bias = self.param("bias", gate_bias(self.cell, self.forget_bias), (gates * size,), self.param_dtype)
        # Weight drop (Merity et al. 2018): the same connections are dropped in every step.
        recurrent = nn.Dropout(self.weight_dropout_rate, deterministic=not train)(recurrent)
        candidate = projection = None
        if self.cell == "gru" and self.reset_after:
            candidate = self.param("candidate_bias", nn.initializers.zeros_init(), (size,), self.param_dtype)
        if self.projection_size:
            projection = self.param("projection", nn.initializers.lecun_normal(), (size, out), self.param_dtype)
        weights = Weights(kernel, recurrent, bias, candidate, projection)
        return jax.tree.map(lambda leaf: leaf.astype(self.dtype), weights)


class Recurrent(nn.Module):
    """Sequences [B, T, F], or Rows, to outputs [B, T, hidden_size], or `projection_size` wide, twice that if
    bidirectional.

    Row b has `lengths[b]` steps; outputs beyond are zero. With a state (`init_state(B)`, or one returned before) the
    result is `(outputs, state)`, else outputs. Dropout is between layers; with `variational` all steps share one mask
    (Gal and Ghahramani 2016). Features: layer0/cell, layer0/input_gate, layer0/forget_gate, layer0/output_gate of an
    LSTM, layer0/reset_gate, layer0/update_gate of a GRU, layer0_reverse/..., layer1/..., each [B, T, H]; output.

    Differentiable forwards (`jax.jvp`, `jax.hessian`) inside `zoo.forward_mode()`.
    """

    cell: Cell = "lstm"
    hidden_size: int = 512
    num_layers: int = 1
    last_size: int | None = None  # of the last layer, where it differs
    bidirectional: bool = False
    dropout_rate: float = 0.0  # between layers
    variational: bool = False  # one dropout mask for all steps
    weight_dropout_rate: float = 0.0  # of recurrent kernels
    forget_bias: float = 1.0  # initial bias of the LSTM's forget gates
    reset_after: bool = True  # a GRU's reset gate multiplies after the product, and not before it as in the paper
    projection_size: int | None = None  # of an LSTM's h, torch's proj_size; default: no projection
    dtype: Any = jnp.float32  # of the computation; an LSTM's c and the sums are float32, or float64 as it is
    param_dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(
        self, x: jax.Array | Rows, state: Any = None, lengths: jax.Array | None = None, train: bool = False
    ) -> Any:
        for field, cell, given in (
            ("reset_after=False", "gru", not self.reset_after),
            ("projection_size", "lstm", self.projection_size),
        ):
            if given and self.cell != cell:
                raise ZooError(f"{field} is for the cell {cell!r}, not {self.cell!r}")
        if not isinstance(x, Rows):
            check_series(self, x)
        rows, steps = x.tokens.shape if isinstance(x, Rows) else x.shape[:2]
        check_lengths(self, rows, steps, lengths)
        if state is not None:
            check_state(self, state, lambda: self.init_state(rows))
        old = self.init_state(rows) if state is None else state
        # Time comes first from here on; for Rows this transposes only integers.
        x = Rows(x.table, x.tokens.T) if isinstance(x, Rows) else jnp.moveaxis(x, 0, 1)
        if lengths is not None and not isinstance(x, Rows):  # padding of NaN would reach the kernel's gradient
            x = jnp.where((jnp.arange(steps)[:, None] < lengths)[..., None], x, 0)
        new = {}
        for i, size in enumerate(self.sizes):
            if i:
                shared = (0,) if self.variational else ()
                x = nn.Dropout(self.dropout_rate, broadcast_dims=shared, deterministic=not train)(x)
            outputs = []
            for name in self.directions(i):
                layer = RecurrentLayer(
                    cell=self.cell,
                    hidden_size=size,
                    reverse=name.endswith("_reverse"),
                    weight_dropout_rate=self.weight_dropout_rate,
                    forget_bias=self.forget_bias,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    reset_after=self.reset_after,
                    projection_size=self.projection_size,
                    name=name,
                )
                output, new[name] = layer(x, old[name], lengths, train)
                outputs.append(output)
            x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
        x = sow(self, "output", jnp.moveaxis(x, 0, 1))  # type: ignore[arg-type]
        return x if state is None else (x, new)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Hidden size by layer."""
        return (self.hidden_size,) * (self.num_layers - 1) + (self.last_size or self.hidden_size,)

    def directions(self, layer: int) -> list[str]:
        """The names of a layer's directions (one or two) in parameters, features and states."""
        return [f"layer{layer}", f"layer{layer}_reverse"][: 1 + self.bidirectional]

    def init_state(self, batch_size: int, max_length: int = 0) -> dict[str, State]:
        """Zeros; the size of a recurrent state does not depend on the length."""
        return {
            name: zero_state(self.cell, batch_size, size, self.dtype, self.projection_size)
            for i, size in enumerate(self.sizes)
            for name in self.directions(i)
        }


def orthogonal_gates(gates: int) -> nn.initializers.Initializer:
    """[P, gates * H] of one orthogonal matrix [P, H] a gate."""
    orthogonal = nn.initializers.orthogonal()

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        one = shape[0], shape[1] // gates
        drawn = [orthogonal(k, one, at_least_float32(dtype)) for k in jax.random.split(key, gates)]
        return jnp.concatenate(drawn, axis=1).astype(dtype)

    return init


def gate_bias(cell: Cell, forget_bias: float) -> nn.initializers.Initializer:
    """Zeros but for the LSTM's forget gates."""

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        size, zeros = shape[0] // GATES[cell], jnp.zeros(shape, dtype)
        return zeros.at[size : 2 * size].set(forget_bias) if cell == "lstm" else zeros

    return init


_PAPERS = {
    "lstm": "Hochreiter and Schmidhuber 1997",
    "gru": "Cho et al. 2014, arXiv:1406.1078",
    "rnn": "Elman 1990",
}

for _cell in ("lstm", "gru", "rnn"):
    register(_cell, family="lstm", input_shape=(50, 128), paper=_PAPERS[_cell])(
        functools.partial(Recurrent, cell=_cell)  # type: ignore[arg-type]
    )
