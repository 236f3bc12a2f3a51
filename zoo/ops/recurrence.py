"""Recurrent layers over time; the gradient of each weight is one matrix product.

A layer has two parts. The part independent of the state, `inputs` [T, B, G] = x @ kernel, is one matrix product over
all steps (`project`), or a look-up in the projected table if x is an embedding (`project_tokens`). The part that
depends on it, `recur`, is a scan of h @ recurrent_kernel + bias and elementwise operations. Time comes first, as in the
scan.

The scan's own gradient would accumulate the weight gradient in every step. Here the backward scan carries only the
gradient of the state and stores the gradients of `inputs`, from which one product over all steps follows. The gates of
a step are one `tanh` of one array, by sigmoid(x) = (1 + tanh(x / 2)) / 2, and the backward scan has its own transposed
copy of the recurrent kernel, which XLA's CPU product would otherwise transpose in every step. `recur_reference` is the
textbook scan that the tests compare with.

Gates are in PyTorch's order: LSTM i, f, g, o (Hochreiter and Schmidhuber 1997, with forget gates), GRU r, z, n (Cho et
al. 2014, by default in cuDNN's form: r multiplies after the product).
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.export import is_symbolic_dim

from zoo import partition
from zoo.ops.forward_mode import in_forward_mode
from zoo.ops.precision import at_least_float32

Cell = Literal["lstm", "gru", "rnn"]
State = tuple[jax.Array, ...]  # h [B, H] in the dtype of the inputs; for an LSTM also c [B, H] in float32 or more

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
ONE_HOT_ROWS = 512  # up to this size a table's gradient is a product with one-hot tokens, except on CPU


def zero_state(
    cell: Cell,
    batch_size: int,
    hidden_size: int,
    dtype: jax.typing.DTypeLike = jnp.float32,
    projection_size: int | None = None,
) -> State:
    """The state before the first step; h is `projection_size` wide where there is a projection."""
    h = jnp.zeros((batch_size, projection_size or hidden_size), dtype)
    return (h, jnp.zeros((batch_size, hidden_size), at_least_float32(dtype))) if cell == "lstm" else (h,)


def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[T, B, F] times kernel [F, G]: `inputs` [T, B, G], all steps in one matrix product."""
    return x @ kernel if in_forward_mode() else _project(x, kernel)


@jax.custom_vjp
def _project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _project_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _project(x, kernel), (x, kernel)


def _project_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return gradient @ kernel.T, _kernel_gradient(x, gradient, kernel)  # JAX's own rule copies the gradient transposed


_project.defvjp(_project_forward, _project_backward)


def _kernel_gradient(x: jax.Array, by_product: jax.Array, kernel: jax.Array) -> jax.Array:
    """The kernel gradient of x [..., F] @ kernel [F, G], over all steps and rows at once."""
    return _summed_products(_as_rows(x), _as_rows(by_product)).astype(kernel.dtype)


def _as_rows(x: jax.Array) -> jax.Array:
    """[..., F] to [N, F]; unchanged on a mesh, since merging sharded axes needs a gather."""
    return x if partition.in_use() else x.reshape(-1, x.shape[-1])


def _summed_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """[..., F] and [..., G] to [F, G] in float32 or more, summed over all other axes."""
    axes = tuple(range(a.ndim - 1))
    return lax.dot_general(a, b, ((axes, axes), ((), ())), preferred_element_type=at_least_float32(a, b))


def project_tokens(table: jax.Array, tokens: jax.Array, kernel: jax.Array) -> jax.Array:
    """`project(table[tokens], kernel)` for embeddings [V, F] and tokens [T, B], with the smaller product.

    If there are more tokens than rows, the table is projected and its rows are looked up.
    """
    if not is_symbolic_dim(tokens.size) and table.shape[0] <= tokens.size:
        return take_rows(table @ kernel, tokens)
    return project(take_rows(table, tokens), kernel)


def take_rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """table [V, F] at tokens [...]: [..., F].

    The gradient of a small table is a matrix product on platforms where scatters are slow or sum in varying order; on
    CPU, where the product takes five times as long, it is a scatter.
    """
    return (_looked_up if in_forward_mode() else _take_rows)(table, tokens)


def _looked_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take(table, tokens, axis=0, mode="clip")


_take_rows = jax.custom_vjp(_looked_up)


def _take_rows_forward(table: jax.Array, tokens: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _take_rows(table, tokens), (tokens, jnp.empty((table.shape[0], 0), table.dtype))


def _take_rows_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    tokens, like = saved
    other = one_hot_gradient if len(like) <= ONE_HOT_ROWS else scatter_gradient
    by_table = lax.platform_dependent(
        tokens,
        gradient,
        cpu=functools.partial(scatter_gradient, len(like)),
        default=functools.partial(other, len(like)),
    )
    return by_table.astype(like.dtype), None


_take_rows.defvjp(_take_rows_forward, _take_rows_backward)


def scatter_gradient(size: int, tokens: jax.Array, rows: jax.Array) -> jax.Array:
    """The gradient of a table of `size` rows, [size, F] in float32 or more: each token's sum of rows [..., F]."""
    flat = _as_rows(rows)
    return jnp.zeros((size, rows.shape[-1]), at_least_float32(rows)).at[tokens.reshape(flat.shape[:-1])].add(flat)


def one_hot_gradient(size: int, tokens: jax.Array, rows: jax.Array) -> jax.Array:
    """`scatter_gradient` as a matrix product. Axes are not merged: a sharded one would be gathered first."""
    return _summed_products(jax.nn.one_hot(tokens, size, dtype=rows.dtype), rows)


def recur(
    cell: Cell,
    inputs: jax.Array,
    recurrent_kernel: jax.Array,
    state: State,
    lengths: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    reverse: bool = False,
    reset_after: bool = True,
    projection: jax.Array | None = None,
) -> tuple[jax.Array, State]:
    """Runs a layer over `inputs` [T, B, G] from `state`: the outputs h [T, B, H] and the state after the last step.

    `recurrent_kernel` is [H, G]; `bias` [G] is added to h @ recurrent_kernel, where a GRU's reset gate multiplies its
    last third. Row b has `lengths[b]` steps (with `reverse`, from the last of them to the first); its outputs beyond
    are zero, whatever its inputs there are, NaN too. Differentiable in reverse mode; forwards inside
    `zoo.forward_mode()`. A GRU with its reset gate before the product (`reset_after`) and an LSTM whose h is multiplied
    by `projection` [H, P] (Sak et al. 2014) run as `recur_reference`, without the fast gradient.
    """
    if inputs.shape[0] == 0:  # without steps there is nothing to index
        return jnp.zeros((0, *state[0].shape), state[0].dtype), state
    if in_forward_mode() or not reset_after or projection is not None:
        run = functools.partial(recur_reference, cell, bias=bias, reverse=reverse, reset_after=reset_after)
        return run(inputs, recurrent_kernel, state, lengths, projection=projection)[:2]
    if bias is None:
        bias = jnp.zeros((inputs.shape[-1],), recurrent_kernel.dtype)
    present = None if lengths is None else (jnp.arange(inputs.shape[0])[:, None] < lengths)[..., None]
    carried, state = _recur(cell, reverse, inputs, recurrent_kernel, bias, state, present)
    return (carried if present is None else jnp.where(present, carried, 0)), state


def recur_reference(
    cell: Cell,
    inputs: jax.Array,
    recurrent_kernel: jax.Array,
    state: State,
    lengths: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    reverse: bool = False,
    reset_after: bool = True,
    projection: jax.Array | None = None,
) -> tuple[jax.Array, State, dict[str, jax.Array]]:
    """`recur` as a plain scan of the textbook cell, and its intermediate values, [T, B, H] in float32 or more by name:
    the gates, and an LSTM's `cell`."""
    present = jnp.ones((*inputs.shape[:2], 1), bool)
    if lengths is not None:
        present = (jnp.arange(inputs.shape[0])[:, None] < lengths)[..., None]
        inputs = jnp.where(present, inputs, 0)

    def step(state: State, item: tuple[jax.Array, jax.Array]) -> tuple[State, tuple[jax.Array, dict[str, jax.Array]]]:
        x, present = item
        if reset_after:
            product = _product(state[0], recurrent_kernel)
            product = product if bias is None else product + bias.astype(product.dtype)
            new, found = textbook_cell(cell, x.astype(product.dtype), product, state)
        else:
            new, found = reset_before_cell(x, recurrent_kernel, bias, state)
        if projection is not None:
            new = (_product(new[0].astype(projection.dtype), projection), *new[1:])
        new = tuple(jnp.where(present, now.astype(was.dtype), was) for now, was in zip(new, state, strict=True))
        return new, (jnp.where(present, new[0], 0), found)

    state, (outputs, found) = lax.scan(step, state, (inputs, present), reverse=reverse)
    return outputs, state, found


def textbook_cell(cell: Cell, x: jax.Array, product: jax.Array, state: State) -> tuple[State, dict[str, jax.Array]]:
    """One step in float32 or more, from x [B, G] and h @ recurrent_kernel [B, G]: the new state, and the gates by
    name."""
    if cell == "rnn":
        return (jnp.tanh(x + product),), {}
    if cell == "gru":
        r, z, n = (np.s_[..., i * x.shape[-1] // 3 : (i + 1) * x.shape[-1] // 3] for i in range(3))
        reset, update = jax.nn.sigmoid(x[r] + product[r]), jax.nn.sigmoid(x[z] + product[z])
        candidate = jnp.tanh(x[n] + reset * product[n])
        return ((1 - update) * candidate + update * state[0],), {"reset_gate": reset, "update_gate": update}
    i, f, g, o = jnp.split(x + product, 4, axis=-1)
    i, f, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o)
    c = f * state[1] + i * jnp.tanh(g)
    return (o * jnp.tanh(c), c), {"input_gate": i, "forget_gate": f, "output_gate": o, "cell": c}


def reset_before_cell(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, state: State
) -> tuple[State, dict[str, jax.Array]]:
    """`textbook_cell` of the GRU as in Cho et al. 2014 (ONNX's `linear_before_reset` 0): its reset gate multiplies h
    before the product."""
    x = x.astype(at_least_float32(x, kernel)) + (0 if bias is None else bias)
    two = 2 * state[0].shape[-1]
    gates = jax.nn.sigmoid(x[..., :two] + _product(state[0], kernel[:, :two]))
    reset, update = jnp.split(gates, 2, axis=-1)
    candidate = jnp.tanh(x[..., two:] + _product((reset * state[0]).astype(kernel.dtype), kernel[:, two:]))
    return ((1 - update) * candidate + update * state[0],), {"reset_gate": reset, "update_gate": update}


def _product(h: jax.Array, kernel: jax.Array) -> jax.Array:
    """h @ kernel in float32 or more."""
    return jnp.matmul(h, kernel, preferred_element_type=at_least_float32(h, kernel))


# The fast cells. `gates` [B, G] is the tanh of all gates at once, of half the pre-activation for the sigmoid gates.
# For a GRU, `extra` [B, H] is the candidate's part of h @ recurrent_kernel.


def _cell_forward(
    cell: Cell, x: jax.Array, product: jax.Array, state: State
) -> tuple[State, jax.Array, jax.Array | None]:
    """One step in float32 or more: the new state, and what the gradient needs: gates and extra."""
    if cell == "rnn":
        h = jnp.tanh(x + product)
        return (h,), h, None
    size = state[0].shape[-1]
    if cell == "gru":
        gates = jnp.tanh(0.5 * (x[:, : 2 * size] + product[:, : 2 * size]))
        r, z = _sigmoid(gates[:, :size]), _sigmoid(gates[:, size:])
        extra = product[:, 2 * size :]
        candidate = jnp.tanh(x[:, 2 * size :] + r * extra)
        h = candidate + z * (state[0] - candidate)
        return (h,), jnp.concatenate([gates, candidate], axis=-1), extra
    gates = jnp.tanh(_per_gate(size, 0.5, 0.5, 1, 0.5) * (x + product))
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = _sigmoid(f) * state[1] + _sigmoid(i) * g
    return (_sigmoid(o) * jnp.tanh(c), c), gates, None


def _cell_backward(
    cell: Cell, gates: jax.Array, extra: jax.Array | None, before: State, by_state: State
) -> tuple[jax.Array, jax.Array | None, State]:
    """From the gradient of the new state: the gradients of x; of `extra` for a GRU, where the product's differs from
    x's; and of the previous state, without the part of h through the product."""
    by_h = by_state[0]
    if cell == "rnn":
        return by_h * (1 - gates * gates), None, (jnp.zeros_like(by_h),)
    size = by_h.shape[-1]
    if extra is not None:
        r, z, candidate = jnp.split(gates, 3, axis=-1)
        by_candidate = by_h * (1 - _sigmoid(z)) * (1 - candidate * candidate)
        by_r = by_candidate * extra * 0.25 * (1 - r * r)
        by_z = by_h * (before[0] - candidate) * 0.25 * (1 - z * z)
        by_x = jnp.concatenate([by_r, by_z, by_candidate], axis=-1)
        return by_x, by_candidate * _sigmoid(r), (by_h * _sigmoid(z),)
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    tanh_c = jnp.tanh(_sigmoid(f) * before[1] + _sigmoid(i) * g)
    by_c = by_state[1] + by_h * _sigmoid(o) * (1 - tanh_c * tanh_c)
    by_x = jnp.concatenate([by_c * g, by_c * before[1], by_c * _sigmoid(i), by_h * tanh_c], axis=-1)
    by_x = by_x * _per_gate(size, 0.25, 0.25, 1, 0.25) * (1 - gates * gates)
    return by_x, None, (jnp.zeros_like(by_h), by_c * _sigmoid(f))


def _by_product(by_x: jax.Array, by_extra: jax.Array | None) -> jax.Array:
    """The gradient of h @ recurrent_kernel."""
    if by_extra is None:
        return by_x
    return jnp.concatenate([by_x[..., : -by_extra.shape[-1]], by_extra], axis=-1)


def _sigmoid(half_tanh: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * half_tanh


def _per_gate(size: int, *factors: float) -> np.ndarray:
    return np.repeat(np.array(factors, np.float32), size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recur(
    cell: Cell,
    reverse: bool,
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    state: State,
    present: jax.Array | None,
) -> tuple[jax.Array, State]:
    """The states h after every step [T, B, H] and the final state."""
    (carried, *_), final = _forward(cell, reverse, inputs, kernel, bias, state, present)
    return carried, final


def _forward(cell, reverse, inputs, kernel, bias, state, present):
    """h after every step, the gates [T, B, G], extra and c before every step; and the final state.

    The gates overwrite the inputs, so that no second array of their size is needed.
    """
    dtype = at_least_float32(inputs, kernel)

    def step(carry, item):
        state, gates = carry
        t, present = item
        x = lax.dynamic_index_in_dim(gates, t, keepdims=False).astype(dtype)
        product = _product(state[0], kernel) + bias.astype(dtype)
        new, act, extra = _cell_forward(cell, x, product, state)
        new = tuple(now.astype(was.dtype) for now, was in zip(new, state, strict=True))
        if present is not None:
            new = tuple(jnp.where(present, now, was) for now, was in zip(new, state, strict=True))
        gates = lax.dynamic_update_index_in_dim(gates, act.astype(gates.dtype), t, 0)
        extra = None if extra is None else extra.astype(gates.dtype)
        return (new, gates), (new[0], extra, state[1:])

    items = (jnp.arange(inputs.shape[0]), present)
    (final, gates), (carried, extra, cells) = lax.scan(step, (state, inputs), items, reverse=reverse)
    return (carried, gates, extra, cells), final


def _recur_forward(cell, reverse, inputs, kernel, bias, state, present):
    kept, final = _forward(cell, reverse, inputs, kernel, bias, state, present)
    return (kept[0], final), (kernel, bias, state, present, *kept)


def _recur_backward(cell, reverse, saved, by_results):
    kernel, bias, state, present, carried, gates, extra, cells = saved
    by_carried, by_final = by_results
    ends = (carried[1:], state[0][None]) if reverse else (state[0][None], carried[:-1])
    before = jnp.concatenate(ends)  # h before every step
    dtype = at_least_float32(gates, kernel)
    transposed = kernel.T  # once, outside the loop

    def read(kept, t):
        return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, t, keepdims=False), kept)

    def step(carry, item):
        by_state, kept, now = carry
        t, by_output, h, cells, present = item
        act, more = jax.tree.map(lambda a: a.astype(dtype), now)
        by_state = (by_state[0] + by_output.astype(dtype), *by_state[1:])
        by_x, by_extra, by_before = _cell_backward(cell, act, more, (h, *cells), by_state)
        by_x, by_extra = jax.tree.map(
            lambda a: (a if present is None else jnp.where(present, a, 0)).astype(gates.dtype), (by_x, by_extra)
        )
        by_h = by_before[0] + _product(_by_product(by_x, by_extra), transposed)
        by_before = (by_h, *by_before[1:])
        if present is not None:
            by_before = tuple(jnp.where(present, new, old) for new, old in zip(by_before, by_state, strict=True))
        # Gradients overwrite their arrays. They are read after writing, or XLA copies the whole array in every step.
        kept = jax.tree.map(lambda a, new: lax.dynamic_update_index_in_dim(a, new, t, 0), kept, (by_x, by_extra))
        return (by_before, kept, read(kept, t + 1 if reverse else t - 1)), None

    by_final = tuple(leaf.astype(dtype) for leaf in by_final)
    items = (jnp.arange(gates.shape[0]), by_carried, before, cells, present)
    carry = (by_final, (gates, extra), read((gates, extra), 0 if reverse else gates.shape[0] - 1))
    (by_state, (by_inputs, by_extra), _), _ = lax.scan(step, carry, items, reverse=not reverse)
    by_products = _by_product(by_inputs, by_extra)
    by_kernel = _kernel_gradient(before, by_products, kernel)
    by_bias = jnp.sum(by_products, axis=(0, 1), dtype=dtype).astype(bias.dtype)
    by_state = tuple(by.astype(leaf.dtype) for by, leaf in zip(by_state, state, strict=True))
    return by_inputs, by_kernel, by_bias, by_state, None


_recur.defvjp(_recur_forward, _recur_backward)
