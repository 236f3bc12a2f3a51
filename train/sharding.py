"""How arrays lie on devices, and the three ways to compile a step: jit, mesh, pmap.

`jit` is one device; `mesh` is the same jit over arrays that a mesh holds, the batch split along its axes `data` and
`fsdp`, the state as the rules of `zoo.partition` say; `pmap` is a frozen mode for those who still use it:
data-parallel, one process.
"""

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
    """jit and mesh: global arrays; the layouts differ only in their shardings."""

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
        """Steps that may be in flight. Several virtual CPU devices deadlock in their collectives with more than one."""
        return 1 if len(self.devices) > 1 and self.devices[0].platform == "cpu" else 2

    def adapt(self, model: nn.Module) -> nn.Module:
        """The model as this layout's step applies it."""
        return model

    def shardings(self, tree: Any) -> Any:
        """Where arrays, or their shapes, lie."""
        if self.mode == "jit":
            return jax.tree.map(lambda _: self.replicated, tree)
        if isinstance(tree, TrainState) and tree.carry is not None:
            rest = self.shardings(tree.replace(carry=None))  # type: ignore[attr-defined]
            return rest.replace(carry=jax.tree.map(lambda _: self.split, tree.carry))
        return jax.tree.map(partial(NamedSharding, self.mesh), specs(tree, self.sizes, self.rules))

    def put_state(self, state: Any) -> Any:
        """Plain global arrays, host or device, to the layout. Always copies: the step donates what it is given."""
        return jax.tree.map(_placed, state, self.shardings(state))

    def draw(self, init: Callable, *args: Any) -> Any:
        """What `init(*args)` makes, on the layout from the first: no device holds more than its part."""
        return jax.jit(init, out_shardings=self.shardings(jax.eval_shape(init, *args)))(*args)

    def begin(self, init: Callable[[Any], TrainState], variables: Any) -> TrainState:
        """The state that `init` makes of variables that were drawn, and are donated, or are NumPy arrays."""
        place = lambda leaf, to: leaf if isinstance(leaf, jax.Array) else _placed(leaf, to)  # noqa: E731
        variables = jax.tree.map(place, variables, self.shardings(variables))
        shardings = self.shardings(jax.eval_shape(init, variables))
        return jax.jit(init, out_shardings=shardings, donate_argnums=0)(variables)

    def put_carry(self, carry: Any) -> Any:
        """A global carry, which every process has, split along the batch."""
        return jax.tree.map(lambda leaf: _placed(leaf, self.split), carry)

    def template(self, state: Any) -> Any:
        """What a checkpoint is read by, of a state's shapes: with the places where its arrays go."""
        place = lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to)  # noqa: E731
        return jax.tree.map(place, state, self.shardings(state))

    def stored(self, state: Any) -> Any:
        """A state of global arrays, as checkpoints hold it, of a placed one."""
        return state

    def restored(self, state: Any) -> Any:
        """The inverse, of a state that was read by `template`."""
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
        """Plain global NumPy arrays of what this layout placed or a step returned, copied."""
        return jax.tree.map(host_array, tree)

    def seeing_mesh(self, step: Callable) -> Callable:
        """The step under this layout's mesh, over which models split their sequences and heads."""
        if self.mode == "jit":
            return step

        def run(*args: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return step(*args)

        return run

    def compile_train(self, step: Callable, state: Any) -> Any:
        """The step compiled for a state such as this, placed or its shapes, and its first argument donated."""
        shardings = self.shardings(state), self.replicated
        return jax.jit(self.seeing_mesh(step), donate_argnums=0, out_shardings=shardings)

    def compile_eval(self, step: Callable) -> Any:
        """The step compiled: (variables, carry, batch) to (sums, carry)."""
        return jax.jit(self.seeing_mesh(step), out_shardings=(self.replicated, self.split))


class PmapLayout(Layout):
    """pmap: every array of the state has a leading axis of devices, every array of the batch is cut along one."""

    axis_name = AXIS

    def __init__(self, batch_size: int, accumulate: int):
        if jax.process_count() > 1:
            raise ZooError("parallel pmap runs in one process; use mesh for several")
        super().__init__("pmap", batch_size)
        # Under another name of the axis than the mapped one's the second step would compile again.
        self.split = NamedSharding(Mesh(np.array(self.devices), (AXIS,)), PartitionSpec(AXIS))
        if batch_size // len(self.devices) % accumulate:
            raise ZooError(
                f"parallel pmap: {batch_size // len(self.devices)} examples a device are not divisible by "
                f"optimizer.accumulate {accumulate}; use mesh"
            )

    def adapt(self, model: nn.Module) -> nn.Module:
        """With the name of the mapped axis, where it has batch statistics to average over it."""
        return model.clone(axis_name=AXIS) if hasattr(model, "axis_name") else model

    def put_state(self, state: Any) -> Any:
        n = len(self.devices)
        return jax.tree.map(lambda x: jax.device_put(np.array([np.asarray(x)] * n), self.split), state)

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
        n = len(self.devices)
        return jax.tree.map(lambda x: jax.device_put(x.reshape(n, -1, *x.shape[1:]), self.split), batch)

    def fetch(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: np.array(leaf.addressable_shards[0].data)[0], tree)

    def compile_train(self, step: Callable, state: Any) -> Any:
        return jax.pmap(step, axis_name=AXIS, donate_argnums=0)

    def compile_eval(self, step: Callable) -> Any:
        return jax.pmap(step, axis_name=AXIS)


def _placed(leaf: Any, to: Any) -> jax.Array:
    """A copy of a global array, which every process has, where a sharding says."""
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
