"""The task protocol: what is learned, as one frozen dataclass of settings with a few hooks.

A step calls `prepare`, `loss` (whose gradient it takes) and `after`, in this order, inside one compiled program. All
three are pure functions of their arguments and of the task's settings.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import numpy as np

from train.data.source import Dataset, Split
from train.forward import Forward
from train.settings import Registered
from zoo.errors import ZooError
from zoo.inputs import Inputs
from zoo.run import Run

if TYPE_CHECKING:
    from train.evaluate import Evaluation
    from train.step import TrainState

Batch = Mapping[str, jax.Array]


@flax.struct.dataclass
class Extra:
    """A task's own state beside the model's. Each field is a tree of arrays, or None, sharded as its name says.

    `carry`: the batch on axis 0. `loss` hands it on to the next batch, as a recurrent state; it is cut into
    micro-batches with the batch. `rows`: any number of rows on axis 0, split over devices like the batch (environments,
    a replay buffer); `prepare` and `after` may change them. `params`: laid out like parameters of the same paths
    (target networks, teachers that follow the model, counters). `constants`: what `Task.constants` returned; never
    saved.
    """

    carry: Any = None
    rows: Any = None
    params: Any = None
    constants: Any = None


@dataclasses.dataclass(frozen=True)
class Loss:
    """What `Task.loss` returns. Gradients are those of `total`, divided by `count`, over the global batch."""

    total: jax.Array  # the loss, summed over what is counted, float32 []
    count: jax.Array  # how many examples, or tokens, or the sum of their weights, float32 []
    # what `metrics` needs, arrays of any shape that add up over batches; where `count` is a sum of weights, also the
    # number of `Task.unit`, by that name
    sums: Mapping[str, jax.Array]
    carry: Any = None  # the new `Extra.carry`, where there is one


@dataclasses.dataclass(frozen=True)
class Task(Registered):
    """The base of all tasks. Only `loss` has no default."""

    package: ClassVar[str] = "train.tasks"
    metric: ClassVar[str] = "loss"  # drawn beside the loss
    unit: ClassVar[str] = "examples"  # what is counted
    model_args: ClassVar[dict[str, Any]] = {}  # fields of the model that follow from the task
    needs: ClassVar[tuple[str, ...]] = ()  # arrays that every example must have

    @property
    def mixes_examples(self) -> bool:
        """Whether `prepare` needs the whole batch at once, which pmap does not give it."""
        return False

    def check_model(self, model: type[nn.Module]) -> None:
        """ZooError for a model that cannot learn the task."""

    def check_data(self, dataset: Dataset) -> None:
        """ZooError for data that do not go with the task."""
        arrays = dataset.train.read(np.zeros(1, int))
        if missing := [name for name in self.needs if name not in arrays]:
            has = ", ".join(sorted(arrays))
            raise ZooError(
                f"task {type(self).__name__} needs {' and '.join(missing)} of every example; {dataset.name} has {has}"
            )

    def constants(self, dataset: Dataset) -> Any:
        """NumPy arrays that follow from the settings and the data alone, such as a teacher's weights.

        They are made again when a run resumes, and not saved. Evaluation has none.
        """
        return None

    def carry(self, model: nn.Module, batch_size: int) -> Any:
        """`Extra.carry` before the first batch, as of a recurrent model: zeros, in training and in evaluation."""
        return None

    def begin(self, model: nn.Module, variables: Any, inputs: Inputs, batch_size: int, key: jax.Array) -> Extra:
        """`rows` and `params` before the first step; a pure function, compiled with the rest of the initial state."""
        return Extra()

    def prepare(self, forward: Forward, state: "TrainState", batch: Batch, key: jax.Array) -> tuple[Batch, Extra]:
        """What happens before the gradient and without one: augmentation, noise, acting in an environment.

        It has the whole batch, before it is cut into micro-batches (under pmap, a device's part of it). Its `forward`
        applies the model in evaluation mode unless `train=True`.
        """
        return batch, state.extra

    def loss(self, forward: Forward, batch: Batch, extra: Extra, key: jax.Array, train: bool) -> Loss:
        """The loss of a batch and the sums that `metrics` needs.

        An example counts with its `weight`, which is 0 for the padding of the last batch of an evaluation. In
        evaluation `extra` has only a fresh `carry`, the key is a constant, and `batch["row"]` is the example's number
        in the split, so that metrics depend on the exported weights alone.
        """
        raise TypeError(f"task {type(self).__name__} has no loss")

    def after(self, old: "TrainState", new: "TrainState") -> Extra:
        """The task's state after an update, such as a target network that follows the parameters."""
        return new.extra

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Metrics by name, of sums over steps or over a split."""
        return {"loss": sums["loss"] / sums["count"]}

    def evaluate(self, evaluation: "Evaluation", split: Split) -> dict[str, float]:
        """The metrics of a split."""
        return self.metrics(evaluation.sums(split))

    def about(self, dataset: Dataset) -> dict[str, Any]:
        """What a finished run's result.json says of the metrics besides their values."""
        return {}

    def score(self, metrics: Mapping[str, float]) -> float:
        """What the best checkpoint maximises."""
        return -metrics["loss"]

    def report(self, run: Run, dataset: Dataset, options: Any) -> pathlib.Path:
        """Draws what a person looks at and returns the page's path; `options` is a `train.report.page.Options`."""
        raise ZooError(f"task {type(self).__name__} has no report")

    def example(self, run: Run, dataset: Dataset, workdir: pathlib.Path) -> str:
        """What is printed when a run ends: samples, and how to use the model."""
        return f"load it: zoo.load({str(workdir)!r})"
