"""How arrays are laid out on devices, and the three ways to compile a step: jit, mesh, pmap.

`jit` is one device. `mesh` is the same jit over sharded arrays: the batch along the axes `data` and `fsdp`, the state
by the rules of `zoo.partition`. `pmap` is a frozen mode for those who still use it: data-parallel, one process.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from train.mesh import mesh_sizes
from train.step import TrainState
from zoo.arrays import host_array
from zoo.errors import ZooError
from zoo.partition import AXES, DATA, FSDP, Rules, specs

AXIS = "data"
ROWS = PartitionSpec((DATA, FSDP))


class Layout:
    """jit and mesh: global arrays that differ only in their shardings."""

    axis_name: str | None = None

    def __init__(self, mode: str, batch_size: int, mesh: str | None = None, rules: Rules = ()):
        self.rules = rules
        devices = jax.devices()[:1] if mode == "jit" else jax.devices()
        self.mode, self.devices = mode, devices
        self.sizes = mesh_sizes(mesh, len(devices))
        ways = self.sizes[DATA] * self.sizes[FSDP]
        if batch_size % ways:
            below = batch_size // ways * ways
            near = " or ".join(str(size) for size in (below, below + ways) if size)
            raise ZooError(f"batch-size {batch_size} does not divide among {ways} devices; {near} does")
        if mode == "jit":
            self.replicated: Any = SingleDeviceSharding(devices[0])
            self.split: Any = self.replicated
        else:
            shape, kinds = tuple(self.sizes.values()), (AxisType.Auto,) * len(AXES)
            self.mesh = jax.make_mesh(shape, AXES, kinds, devices=devices)
            self.replicated = NamedSharding(self.mesh, PartitionSpec())
            self.split = NamedSharding(self.mesh, ROWS)

    @property
    def bounded(self) -> int:
        """The most steps in flight. Virtual CPU devices deadlock in their collectives with more than one."""
        return 1 if len(self.devices) > 1 and self.devices[0].platform == "cpu" else 2

    def adapt(self, model: nn.Module) -> nn.Module:
        """The model for this layout's step."""
        return model

    def shardings(self, tree: Any) -> Any:
        """The shardings of arrays, or of their shapes."""
        if self.mode == "jit":
            return jax.tree.map(lambda _: self.replicated, tree)
        rest, rows = without_rows(tree)
        if rows:
            return with_rows(self.shardings(rest), jax.tree.map(lambda _: self.split, rows))
        return jax.tree.map(partial(NamedSharding, self.mesh), specs(tree, self.sizes, self.rules))

    def put_state(self, state: Any) -> Any:
        """Places plain global arrays of host or device. Always copies, since the step donates its state."""
        return jax.tree.map(_placed, state, self.shardings(state))

    def draw(self, init: Callable, *args: Any) -> Any:
        """The result of `init(*args)`, sharded from the start: no device holds more than its part."""
        return jax.jit(init, out_shardings=self.shardings(jax.eval_shape(init, *args)))(*args)

    def begin(self, init: Callable[[Any], TrainState], variables: Any) -> TrainState:
        """The placed state that `init` makes of variables: drawn ones, which are donated, or NumPy arrays."""
        place = lambda leaf, to: leaf if isinstance(leaf, jax.Array) else _placed(leaf, to)  # noqa: E731
        variables = jax.tree.map(place, variables, self.shardings(variables))
        shardings = self.shardings(jax.eval_shape(init, variables))
        return jax.jit(init, out_shardings=shardings, donate_argnums=0)(variables)

    def put_rows(self, tree: Any) -> Any:
        """Global arrays that every process has, split along axis 0."""
        return jax.tree.map(lambda leaf: _placed(leaf, self.split), tree)

    def template(self, state: Any) -> Any:
        """The template for restoring a checkpoint: the shapes of a state with their shardings."""
        place = lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to)  # noqa: E731
        return jax.tree.map(place, state, self.shardings(state))

    def stored(self, state: Any) -> Any:
        """A placed state as global arrays, the form of checkpoints."""
        return state

    def restored(self, state: Any) -> Any:
        """The inverse of `stored`, for a state that was restored by `template`."""
        return state

    def rows(self, batch_size: int) -> np.ndarray:
        """The rows of a batch that this process's devices hold."""
        rows, places = np.arange(batch_size), self.split.addressable_devices_indices_map((batch_size,))
        return np.unique(np.concatenate([rows[index] for index in places.values()]))

    def put_batch(self, batch: dict[str, np.ndarray]) -> Any:
        """This process's `rows` of a batch to the devices."""
        if self.mode == "jit":
            return jax.device_put(batch, self.split)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.split, x), batch)

    def fetch(self, tree: Any) -> Any:
        """Global NumPy arrays, copied, of a tree that this layout placed or a step returned."""
        return jax.tree.map(host_array, tree)

    def seeing_mesh(self, step: Callable) -> Callable:
        """The step under this layout's mesh, along which models split sequences and heads."""
        if self.mode == "jit":
            return step

        def run(*args: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return step(*args)

        return run

    def compile_train(self, step: Callable, state: Any) -> Any:
        """The step compiled for states like this one (placed, or shapes), with its state donated."""
        shardings = self.shardings(state), self.replicated
        return jax.jit(self.seeing_mesh(step), donate_argnums=0, out_shardings=shardings)

    def compile_eval(self, step: Callable) -> Any:
        """The step compiled: (variables, carry, batch) to (sums, carry)."""
        return jax.jit(self.seeing_mesh(step), out_shardings=(self.replicated, self.split))

    def compile_rows(self, step: Callable) -> Any:
        """The step compiled: (variables, batch) to arrays with the batch on axis 0, for `fetch_rows`."""
        return jax.jit(self.seeing_mesh(step), out_shardings=self.replicated)

    def fetch_rows(self, tree: Any) -> Any:
        """The global arrays that a `compile_rows` step returned, as NumPy arrays."""
        return self.fetch(tree)


class PmapLayout(Layout):
    """pmap: every array of state and batch has a leading axis of devices."""

    axis_name = AXIS

    def __init__(self, batch_size: int, accumulate: int):
        if jax.process_count() > 1:
            raise ZooError("parallel pmap runs in one process; use mesh for several")
        super().__init__("pmap", batch_size)
        # With another name than the mapped axis the second step would compile again.
        self.split = NamedSharding(Mesh(np.array(self.devices), (AXIS,)), PartitionSpec(AXIS))
        if batch_size // len(self.devices) % accumulate:
            raise ZooError(
                f"parallel pmap: {batch_size // len(self.devices)} examples a device are not divisible by "
                f"optimizer.accumulate {accumulate}; use mesh"
            )

    def adapt(self, model: nn.Module) -> nn.Module:
        """With the name of the mapped axis, where there are batch statistics to average over it."""
        return model.clone(axis_name=AXIS) if hasattr(model, "axis_name") else model

    def put_state(self, state: Any) -> Any:
        rest, rows = without_rows(state)
        n = len(self.devices)
        rest = jax.tree.map(lambda x: jax.device_put(np.array([np.asarray(x)] * n), self.split), rest)
        return with_rows(rest, self.put_rows(rows)) if rows else rest

    def put_rows(self, tree: Any) -> Any:
        n = len(self.devices)
        cut = lambda x: np.array(x).reshape(n, -1, *np.shape(x)[1:])  # noqa: E731
        return jax.tree.map(lambda x: jax.device_put(cut(x), self.split), tree)

    def draw(self, init: Callable, *args: Any) -> Any:
        return jax.jit(init)(*args)

    def begin(self, init: Callable[[Any], TrainState], variables: Any) -> TrainState:
        return self.put_state(init(variables))

    def template(self, state: Any) -> Any:
        return state

    def stored(self, state: Any) -> Any:
        return self.fetch(state)

    def restored(self, state: Any) -> Any:
        return self.put_state(state)

    def rows(self, batch_size: int) -> np.ndarray:
        return np.arange(batch_size)

    def put_batch(self, batch: dict[str, np.ndarray]) -> Any:
        return self.put_rows(batch)

    def fetch(self, tree: Any) -> Any:
        rest, rows = without_rows(tree)
        rest = jax.tree.map(lambda leaf: np.array(leaf.addressable_shards[0].data)[0], rest)
        return with_rows(rest, self.fetch_rows(rows)) if rows else rest

    def compile_rows(self, step: Callable) -> Any:
        return jax.pmap(step, axis_name=AXIS)

    def fetch_rows(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: np.array(leaf).reshape(-1, *leaf.shape[2:]), tree)

    def compile_train(self, step: Callable, state: Any) -> Any:
        return jax.pmap(step, axis_name=AXIS, donate_argnums=0)

    def compile_eval(self, step: Callable) -> Any:
        return jax.pmap(step, axis_name=AXIS)


def without_rows(tree: Any) -> tuple[Any, dict[str, Any]]:
    """A state without the arrays that are split along their axis 0, and those, by the field of `Extra`."""
    if not isinstance(tree, TrainState):
        return tree, {}
    rows = {name: value for name in ("carry", "rows") if (value := getattr(tree.extra, name)) is not None}
    return with_rows(tree, dict.fromkeys(rows)), rows


def with_rows(state: TrainState, rows: dict[str, Any]) -> TrainState:
    """The inverse of `without_rows`."""
    return dataclasses.replace(state, extra=dataclasses.replace(state.extra, **rows))


def _placed(leaf: Any, to: Any) -> jax.Array:
    """A copy of a global array that every process has, with a sharding."""
    array = np.array(leaf)
    if to.is_fully_replicated and to.is_fully_addressable:
        return jax.device_put(array, to)
    return jax.make_array_from_callback(array.shape, to, lambda index: array[index])


def make_layout(parallel: str, batch_size: int, accumulate: int, mesh: str | None = None, rules: Rules = ()) -> Layout:
    """The layout of a mode; "auto" is jit on one device and mesh on several, or where a mesh is given. ZooError where
    devices do not divide."""
    if parallel == "auto":
        parallel = "jit" if jax.device_count() == 1 and mesh is None else "mesh"
    if parallel == "jit" and jax.process_count() > 1:
        raise ZooError("parallel jit runs in one process; use mesh for several")
    if parallel == "pmap":
        return PmapLayout(batch_size, accumulate)
    layout = Layout(parallel, batch_size, mesh, rules)
    ways = layout.sizes[DATA] * layout.sizes[FSDP]
    if batch_size // accumulate % ways:
        raise ZooError(
            f"micro-batches of {batch_size // accumulate} do not divide among {ways} devices; change "
            "batch-size or optimizer.accumulate"
        )
    return layout
