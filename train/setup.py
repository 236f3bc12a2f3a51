"""From settings to the parts of a run: model, first weights, first state, compiled step; and what is best."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

import zoo
from train.config import Config, ModelConfig
from train.data.source import Dataset
from train.evaluate import Evaluator
from train.first_weights import model_fields, of_backbone, origin, with_backbone
from train.mesh import check_model
from train.optimizer import check_patterns, make_optimizer
from train.sharding import Layout, make_layout
from train.step import TrainState, init_state, make_train_step
from train.tasks.task import Task
from zoo.errors import ZooError, unknown
from zoo.partition import rules_of
from zoo.registry import abstract_variables

CALIBRATION_EXAMPLES = 5000  # what a model's `calibrate` sees, where it has one
BEGIN = 2**31 - 2  # folded into the seed's key for a task's own state


def make_model(config: Config, dataset: Dataset) -> tuple[dict[str, Any], nn.Module]:
    """The model's arguments as the run folder keeps them, and the module; classes and vocabulary are the data's.

    ZooError where model, task and data do not go together.
    """
    info, inputs = zoo.model_info(config.model.name), dataset.inputs
    takes, gets = (np.dtype(dtype).kind for dtype in (info.input_dtype, inputs.example()[0][0].dtype))
    if takes != gets:
        kinds = {"f": "numbers, such as images", "i": "tokens of a text"}
        raise ZooError(f"{config.model.name} takes {kinds[takes]}; the data are {kinds[gets]}")
    config.task.check_model(info.module_class)
    config.task.check_data(dataset)
    config.data.check_model(info.module_class)
    follow, fields = inputs.model_args(), model_fields(config)
    if "num_classes" in follow:
        fields.pop("output", None)
    padded = inputs.kind == "text"  # a table of embeddings may have more rows than the vocabulary has tokens
    if padded and fields.get("vocab_size", 0) < follow["vocab_size"]:
        fields.pop("vocab_size", None)
    args = {**follow, **fields, **config.model.args, **config.task.model_args}
    for field in ("max_length", "image_size"):
        if field in info.fields:
            args.setdefault(field, inputs.shape[0])
    if inputs.kind == "text" and (args.get("max_length") or inputs.shape[0]) < inputs.shape[0]:
        raise ZooError(f"data.context {inputs.shape[0]} is more than the model's max_length of {args['max_length']}")
    for name, value in follow.items():
        if name == "source_vocab_size" and name not in info.fields:
            raise ZooError(f"{config.model.name} has one vocabulary for both sides: set data.shared-vocabulary")
        fits = args[name] >= value if padded and name == "vocab_size" else args[name] == value
        if not fits and name not in config.task.model_args:
            what = name.replace("num_", "").replace("vocab_size", "tokens in its vocabulary")
            raise ZooError(f"model.args {name}={args[name]}, but {dataset.name} has {value} {what}")
    if "axis_name" in args:
        raise ZooError("model.args axis_name is set by --parallel pmap alone")
    return args, zoo.create_model(config.model.name, **args)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is made of, but for its state."""

    config: Config
    dataset: Dataset
    layout: Layout
    model_args: dict[str, Any]  # as the run folder keeps them
    model: nn.Module
    optimizer: optax.GradientTransformation

    @classmethod
    def of(cls, config: Config, dataset: Dataset) -> "Parts":
        """ZooError where settings, data, model and devices do not go together."""
        if dataset.validation is None and (config.best is not None or config.patience is not None):
            raise ZooError(f"best and patience need validation data, which {dataset.name} does not have")
        model_args, model = make_model(config, dataset)
        rows, micro, rules = config.batch_size, config.optimizer.accumulate, rules_of(model)
        layout = make_layout(config.parallel, rows, micro, config.mesh, rules)
        check_model(model, zoo.model_info(config.model.name).family, dataset.inputs.shape, layout.sizes)
        embeddings = getattr(model, "embeddings", ())
        optimizer = make_optimizer(config.optimizer, config.steps, seed=config.seed, embeddings=embeddings)
        return cls(config, dataset, layout, model_args, model, optimizer)

    def batches(self) -> Any:
        """The training batches, of which this process reads its devices' rows."""
        size = self.config.batch_size
        return self.dataset.train.batches(size, self.config.seed, self.layout.rows(size))

    def begin(self, variables: Any) -> TrainState:
        """The state before the first step, without constants; a pure function of the variables."""
        config, settings = self.config, self.config.optimizer
        check_patterns(settings, variables["params"])
        if any(leaf.dtype == np.float16 for leaf in jax.tree.leaves(variables["params"])):
            raise ZooError(
                "parameters in float16 lose small updates, and an optimizer's squares are 0 in it: leave param_dtype "
                "float32; model.args dtype=float16 with optimizer.loss-scale computes in float16"
            )
        key = jax.random.fold_in(jax.random.key(config.seed), BEGIN)
        extra = config.task.begin(self.model, variables, self.dataset.inputs, config.batch_size, key)
        extra = dataclasses.replace(extra, carry=config.task.carry(self.model, config.batch_size))
        return init_state(variables, self.optimizer, settings.ema is not None, extra, settings.loss_scale)

    def first_state(self) -> TrainState:
        """The placed state before the first step, without constants."""
        config = self.config
        variables = initial_variables(config.model, config.seed, self.model, self.dataset, self.layout)
        return self.layout.begin(self.begin, variables)

    def abstract_state(self) -> TrainState:
        """The shapes of the same."""
        return jax.eval_shape(self.begin, abstract_variables(self.model, *self.dataset.inputs.example()))

    def with_constants(self, state: TrainState) -> TrainState:
        """A placed state with the task's constants."""
        constants = self.layout.put_state(self.config.task.constants(self.dataset))
        return dataclasses.replace(state, extra=dataclasses.replace(state.extra, constants=constants))

    def train_step(self, state: TrainState) -> Any:
        """The step, compiled for states such as this when it is first called."""
        config, layout = self.config, self.layout
        model, inputs = layout.adapt(self.model), self.dataset.inputs
        step = make_train_step(
            config.task, model, inputs, self.optimizer, config.optimizer, config.seed, layout.axis_name
        )
        return layout.compile_train(step, state)

    def evaluator(self) -> Evaluator:
        size = self.config.batch_size // self.config.optimizer.accumulate
        return Evaluator(self.config.task, self.model, self.dataset.inputs, self.layout, size)


def initial_variables(settings: ModelConfig, seed: int, model: nn.Module, dataset: Dataset, layout: Layout) -> Any:
    """The variables before the first step, for `layout.begin`: drawn from the seed, or those of `model.weights`."""
    found = None if settings.weights is None else origin(settings)
    if found is not None and not of_backbone(settings, found):
        mesh = layout.mesh if layout.mode == "mesh" else None
        return found.variables(model, dataset.inputs.shape, mesh=mesh)
    args, kwargs = jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), dataset.inputs.example())
    variables = layout.draw(partial(model.init, **kwargs), jax.random.key(seed), *args)
    if hasattr(model, "calibrate"):
        batch = dataset.train.read(np.arange(min(CALIBRATION_EXAMPLES, dataset.train.size)))
        args, _ = dataset.inputs.arguments(batch)
        variables = model.calibrate(variables, *args)
    return variables if found is None else with_backbone(variables, found)


def score(best: str | None, task: Task, metrics: Mapping[str, float]) -> float | None:
    """What the best checkpoint maximises: the metric `best`, `-name` for its negative, or the task's score; None where
    it is not finite. ZooError for a metric that is not there."""
    if best is None:
        value = task.score(metrics)
    else:
        name = best.removeprefix("-")
        if name not in metrics:
            raise unknown("metric in best", name, metrics)
        value = -metrics[name] if best.startswith("-") else metrics[name]
    return value if math.isfinite(value) else None


def megabytes(tree: Any) -> float:
    """The size of a tree's arrays, or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e6
