"""The order of a run, from its settings to its result; nothing is computed here."""

import contextlib
import json
import math
import pathlib
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import zoo
from train import folder, processes
from train.checkpoint import Checkpoints, ever_saved
from train.config import Config, TextConfig
from train.data import Dataset, Split, load_dataset, train_batches
from train.data.text import check_packed
from train.evaluate import decoded, evaluate
from train.interrupt import Stop
from train.journal import Journal
from train.mesh import check_model
from train.optimizer import check_patterns, make_optimizer
from train.report import Phases, Report, Trace, draw_curves, write_text
from train.sharding import Layout, make_layout
from train.step import TrainState, finite, init_state, make_eval_step, make_train_step
from zoo.errors import ZooError
from zoo.inputs.image import ImageInputs
from zoo.partition import rules_of
from zoo.registry import abstract_variables
from zoo.run import Run, pretrained_file
from zoo.weights import load_weights
from zoo.weights.huggingface import folder as huggingface

CALIBRATION_IMAGES = 5000  # what a model's `calibrate` sees, where it has one
MOST_SKIPPED = 100  # steps in a row that were not finite, after which a run that skips them ends
STOPPED = "stopped, and the checkpoints before it kept; a lower optimizer.learning-rate, an optimizer.clip-norm"


def run(config: Config, seconds_before: float = 0.0) -> dict[str, Any]:
    """Trains as the settings say and returns what result.json holds: metrics by split, steps, seconds by phase.

    `seconds_before` is what was spent before the call, on imports. ZooError for a user's mistake; SystemExit
    (128 + signal) when a signal stopped the run, after a checkpoint.
    """
    phases = Phases(seconds_before)
    processes.start(config.distributed)
    config, workdir, found = folder.take(config)
    with Stop() as stop, memory_errors():
        with phases("data"):
            shape = zoo.model_info(config.model.name).input_shape
            dataset = load_dataset(config.data, shape, folder.stored_vocabulary(workdir))
            folder.check_data(workdir, dataset)
        with phases("setup"):
            trainer = Trainer(config, workdir, dataset, phases, found)
        with trainer:
            trainer.train(stop)
            return trainer.finish(stop)


class Trainer:
    """A run's parts, put together: `with Trainer(...) as trainer: trainer.train(Stop())`.

    `found` is what the settings were held against (`folder.take`); ZooError where another run has changed it since.
    """

    def __init__(self, config: Config, workdir: pathlib.Path, dataset: Dataset, phases: Phases, found: Any = None):
        self.config, self.workdir, self.dataset, self.phases = config, workdir, dataset, phases
        model_args, model = make_model(config, dataset)
        rows, micro, rules = config.batch_size, config.optimizer.accumulate, rules_of(model)
        self.layout = layout = make_layout(config.parallel, rows, micro, config.mesh, rules)
        check_model(model, zoo.model_info(config.model.name).family, dataset.inputs.shape, layout.sizes)
        optimizer = make_optimizer(config.optimizer, config.steps, getattr(model, "embeddings", ()))
        begin = partial(initial_state, config, model, optimizer)
        self.batches = train_batches(dataset.train, config.batch_size, config.seed, layout.rows(config.batch_size))
        meta: dict[str, Any] = {"step": 0, "interval": {"steps": 0, "sums": {}}}
        resumes = ever_saved(workdir)
        if resumes:
            state = jax.eval_shape(begin, abstract_variables(model, *dataset.inputs.example()))
        else:
            state = layout.begin(begin, initial_variables(config, model, dataset, layout))
        processes.meet("run folder read")
        with contextlib.ExitStack() as opened:  # each is closed, whatever the others raise; from here on no mistakes
            self.journal = Journal(workdir, config.steps, config.log.stall, phases, found)
            opened.push(lambda _, error, __: self.journal.close(error))
            if processes.first():
                folder.describe(config, workdir, model_args, dataset)
            self.checkpoints = Checkpoints(workdir, config.keep)
            opened.callback(self.checkpoints.close)
            if resumes:
                clock, size = Clock(0), f"{megabytes(state):,.1f} MB"
                self.journal.beat(detail=f"restoring {size}")
                state, meta = self.checkpoints.restore(layout.template(state))
                self.journal.say(f"resumed at step {meta['step']}: {size} in {clock.seconds():.1f} s")
                self.journal.beat(step=meta["step"], detail="")
            self.state, self.step = layout.restored(state) if resumes else state, meta["step"]
            self.interval = Interval(layout, self.step, meta["interval"])
            self.model, axis = layout.adapt(model), layout.axis_name
            train_step = make_train_step(config, self.model, dataset.inputs, optimizer, axis)
            self.train_step = layout.compile_train(train_step, self.state)
            self.eval_step = layout.compile_eval(make_eval_step(config, self.model, dataset.inputs, axis))
            self.unevaluated = meta.get("unevaluated", False)
            self.report = Report(workdir, config, self.step, self.unevaluated)
            opened.callback(self.report.close)
            self._opened = opened.pop_all()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def train(self, stop: Stop, until: int | None = None) -> None:
        """Steps to `until` (the last by default), or until a signal, after which SystemExit.

        The order within a step: dispatch it; fetch the next batch while it runs; wait for the step before; read metrics
        (which ends a run gone to infinity) before anything is evaluated or saved; records before checkpoints.
        """
        config, layout, interval = self.config, self.layout, self.interval
        if self.unevaluated and self.dataset.validation is not None:
            self.checkpoints.set_score(self.step, self._validate(self.dataset.validation, stop))
            self.report.flush()
            self.unevaluated = False
        compiled: set[Any] = set()  # the shapes of the batches so far: texts come in a few widths
        trace = Trace(config.profile_steps(), self.workdir / "profile")
        coming = map(layout.put_batch, self.batches.from_step(self.step, until or config.steps))
        batch = next(coming, None)
        clock = Clock(self.step)
        while batch is not None:
            trace.before(self.step)
            shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
            compiles = shapes not in compiled
            with self.phases("compile" if compiles else "train"):
                begun = Clock(self.step)
                self.state, metrics = self.train_step(self.state, batch)
                self.step += 1
                self.journal.beat(step=self.step)
                stop.idle = False
                batch = next(coming, None)
                interval.add(metrics)
                if compiles:
                    jax.block_until_ready(metrics)
                    self.journal.say(f"compiled the step in {begun.seconds():.1f} s")
                    compiled.add(shapes)
                    clock = Clock(self.step)
            trace.after(self.step, metrics)
            last = self.step == config.steps
            logs = self.step % config.log.every == 0 or last
            evaluates = self.step % config.eval_every == 0 or last
            leaves = stop.reached()
            if logs or evaluates or leaves:
                with self.phases("train"):
                    interval.read()
                    stuck = interval.skipped_all(MOST_SKIPPED)
                    saves = evaluates or leaves or stuck
                    if saves:
                        self._check_finite()
                if logs:
                    self._log(clock.steps_per_second(self.step))
                if saves:
                    self._evaluate_and_save(evaluates, stop)
                if stuck:
                    self._give_up()
                if saves and stop.signal:  # one that came since it was asked for waits for the next step, which saves
                    self._leave(stop.signal)
                clock = Clock(self.step)

    def _check_finite(self) -> None:
        """ZooError for a state not worth saving, as after an update that is not finite, of a gradient that is."""
        if not finite((self.state.variables(), self.state.ema)):
            raise ZooError(f"the parameters are not finite at step {self.step}: {STOPPED} may help")

    def _give_up(self) -> None:
        with self.phases("checkpoint"):
            self.checkpoints.wait()
        raise ZooError(
            f"nothing was finite in the last {self.interval.steps} steps: stopped at step {self.step}, and saved; a "
            "lower optimizer.learning-rate or an optimizer.clip-norm may help"
        )

    def _log(self, steps_per_second: float) -> None:
        task, sums, steps = self.config.task, self.interval.sums, self.interval.steps
        skipped = sums.get("skipped", 0.0)
        if self.interval.skipped_all():
            self.journal.say(f"step {self.step}: nothing was finite in the last {steps} steps, which were skipped")
            return  # they are counted where a later step makes a line
        metrics = {**task.metrics(sums), "grad_norm": sums["grad_norm"] / (steps - skipped)}
        if skipped:
            metrics["skipped"] = skipped
        self.report.write(self.step, "train", metrics)
        shown = _shown({name: metrics[name] for name in ("loss", task.metric)})
        line = f"step {self.step}/{self.config.steps}  {shown}"
        if steps_per_second:  # no step was timed where the first one, which is compiled, is the only one
            rate = steps_per_second * sums["count"] / steps
            left = int((self.config.steps - self.step) / steps_per_second)
            line += f"  {rate:,.0f} {task.unit}/s  {left // 60}:{left % 60:02d} left"
            self.report.event(f"{task.unit}_per_second", rate, self.step)
            self.journal.beat(steps_per_second=steps_per_second)
        self.journal.progress(line)
        self.interval.clear()

    def _evaluate_and_save(self, evaluates: bool, stop: Stop) -> None:
        """A signal breaks an evaluation off, which may take longer than the time to leave; it is made up for later."""
        score, unevaluated = None, False
        if evaluates and self.dataset.validation is not None:
            try:
                score = self._validate(self.dataset.validation, stop)
            except BrokenOff:
                unevaluated = True
        with self.phases("checkpoint"):
            self.report.flush()
            extra = {"interval": self.interval.to_json(), "unevaluated": unevaluated}
            self.checkpoints.save(self.layout.stored(self.state), self.step, score, extra)

    def _validate(self, split: Split, stop: Stop) -> float | None:
        """Evaluates on validation data and records it; returns the score, if it is a number."""
        metrics = self.evaluate(self.state.eval_variables(), split, stop)
        self.report.write(self.step, "validation", metrics)
        self.journal.say(f"step {self.step}: validation {_shown(metrics)}")
        score = self.config.task.score(metrics)
        return score if math.isfinite(score) else None

    def evaluate(self, variables: Any, split: Split, stop: Stop | None = None) -> dict[str, float]:
        """The task's metrics of placed `variables` on a split, read in batches that the memory holds.

        BrokenOff where `stop` hears of a signal before its end.
        """

        def passing(done: int, total: int) -> None:
            if stop is not None and stop.reached():
                raise BrokenOff
            self.journal.passing(done, total)

        with self.phases("evaluate"):
            size, task = self.config.batch_size // self.config.optimizer.accumulate, self.config.task
            return evaluate(self.eval_step, self.layout, variables, split, size, task, self.model, passing)

    def _leave(self, number: int) -> None:
        with self.phases("checkpoint"):
            self.checkpoints.wait()
        name, workdir = signal.Signals(number).name, self.config.workdir
        self.journal.say(f"stopped by {name} at step {self.step}; saved. Go on with --resume --workdir {workdir}")
        raise SystemExit(128 + number)

    def finish(self, stop: Stop) -> dict[str, Any]:
        """Tests the best weights once, exports them, draws the curves; returns and writes the result."""
        config, dataset = self.config, self.dataset
        with self.phases("checkpoint"):
            self.checkpoints.wait()
            if stop.saved() and stop.signal:
                self._leave(stop.signal)
            last, ema = self.layout.stored(self.state.eval_variables()), self.state.ema is not None
            del self.state  # the best weights take the place of the optimizer's
            variables, best = self.checkpoints.restore_best(last, ema, self.step)
            placed = self.layout.restored(variables)
            del last, variables
        run = Run(self.model, self.layout.fetch(placed), dataset.inputs)
        metrics = {}
        for split, examples in (("validation", dataset.validation), ("test", dataset.test)):
            if examples is not None:
                metrics[split] = self.evaluate(placed, examples)
                with self.phases("evaluate"):
                    metrics[split] |= decoded(config.task, run, examples)
                counted = f"{examples.size:,} {getattr(examples, 'unit', config.task.unit)}"
                self.journal.say(f"best step {best}: {split} {_shown(metrics[split])} ({counted})")
        result: dict[str, Any] = {"data": dataset.name, "seed": config.seed, "steps": self.step, "best_step": best}
        result |= metrics
        if processes.first():
            self._leave_behind(result, metrics, run, ema)
        processes.meet("run finished")
        return result

    def _leave_behind(self, result: dict[str, Any], metrics: dict[str, Any], run: Run, ema: bool) -> None:
        """Exports the weights, draws the curves, writes the result, to which it adds the seconds."""
        with self.phases("report"):
            folder.export(self.workdir, run.variables, step=result["best_step"], ema=ema, metrics=metrics)
            words = folder.closing_words(self.workdir, self.config, self.dataset, run)
            self.report.flush()
            draw_curves(self.workdir, self.config.task.metric)
        result["seconds"] = self.phases.summary()
        write_text(self.workdir / "result.json", json.dumps(result, indent=2) + "\n")
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in result["seconds"].items())
        self.journal.say(f"seconds: {seconds}")
        self.journal.say(words)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turns a memory's end, a device's or the host's, into a line that says what takes less."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = (str(error).strip().splitlines() or ["out of memory"])[0][:200]
        raise ZooError(
            f"the memory does not suffice ({line}); a lower batch-size takes less, or a higher optimizer.accumulate, "
            "remat=full in a Transformer's model.args, --mesh fsdp=N on several devices"
        ) from None


class BrokenOff(Exception):
    """An evaluation that a signal ended."""


class Interval:
    """Sums of metrics since the last log line, kept through a checkpoint so that a resumed run logs the same."""

    def __init__(self, layout: Layout, step: int, stored: dict[str, Any]):
        self.layout, self.step = layout, step
        self.steps, self.sums = stored["steps"], dict(stored["sums"])
        self._unread: list[Any] = []

    def add(self, metrics: Any) -> None:
        """Keeps a step's metrics on the device, and waits where too many steps are in flight."""
        self._unread.append(metrics)
        if len(self._unread) >= self.layout.bounded:
            jax.block_until_ready(self._unread[-self.layout.bounded])

    def read(self) -> None:
        """Adds up all steps so far; ZooError at the first step whose loss or gradient is not finite."""
        for metrics in map(self.layout.fetch, self._unread):
            self.step += 1
            self.steps += 1
            for name, value in metrics.items():
                if not math.isfinite(value):
                    where = f"{name} is {float(value)} at step {self.step}"
                    raise ZooError(f"{where}: {STOPPED} or optimizer.nonfinite skip may help")
                self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self._unread.clear()

    def skipped_all(self, least: int = 1) -> bool:
        """Whether there were `least` steps, and all were skipped."""
        return self.steps >= least and self.sums.get("skipped", 0.0) == self.steps

    def clear(self) -> None:
        self.steps, self.sums = 0, {}

    def to_json(self) -> dict[str, Any]:
        return {"steps": self.steps, "sums": dict(self.sums)}


class Clock:
    """Steps a second since it was made."""

    def __init__(self, step: int):
        self.step, self.start = step, time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def steps_per_second(self, step: int) -> float:
        return (step - self.step) / max(self.seconds(), 1e-9)


def make_model(config: Config, dataset: Dataset) -> tuple[dict[str, Any], nn.Module]:
    """The model's arguments as the run folder keeps them, and the module; classes and vocabulary are the data's."""
    info, inputs = zoo.model_info(config.model.name), dataset.inputs
    takes, gets = (np.dtype(dtype).kind for dtype in (info.input_dtype, inputs.example()[0][0].dtype))
    if takes != gets:
        kinds = {"f": "numbers, such as images", "i": "tokens of a text"}
        raise ZooError(f"{config.model.name} takes {kinds[takes]}; the data are {kinds[gets]}")
    config.task.check_model(info.module_class)
    if isinstance(config.data, TextConfig):
        check_packed(config.data, info.module_class)
    if "source_vocab_size" in inputs.model_args() and "source_vocab_size" not in info.fields:
        raise ZooError(f"{config.model.name} has one vocabulary for both sides: set data.shared-vocabulary")
    args = {**inputs.model_args(), **config.model.args, **config.task.model_args}
    if config.model.weights is not None and pathlib.Path(config.model.weights).is_dir():
        name, fields = huggingface.read_config(config.model.weights)
        if zoo.model_info(name).module_class is not info.module_class:
            raise ZooError(f"model.weights {config.model.weights!r} are of {name}, not of {config.model.name}")
        args = {**fields, **args}
    if "max_length" in info.fields:
        args.setdefault("max_length", inputs.shape[0])
    if "image_size" in info.fields:
        args.setdefault("image_size", inputs.shape[0])
    for name, value in inputs.model_args().items():
        if args[name] != value:
            what = name.replace("num_", "").replace("vocab_size", "tokens in its vocabulary")
            raise ZooError(f"model.args {name}={args[name]}, but {dataset.name} has {value} {what}")
    if "axis_name" in args:
        raise ZooError("model.args axis_name is set by --parallel pmap alone")
    return args, zoo.create_model(config.model.name, **args)


def initial_variables(config: Config, model: nn.Module, dataset: Dataset, layout: Layout) -> Any:
    """The variables before the first step, drawn or those of the file that the settings name, for `layout.begin`."""
    weights = config.model.weights
    if weights is not None:
        path = pretrained_file(config.model.name) if weights == "pretrained" else pathlib.Path(weights)
        path = huggingface.weights_file(weights) if path.is_dir() else path
        return load_weights(model, path, dataset.inputs.shape)
    args, kwargs = jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), dataset.inputs.example())
    variables = layout.draw(partial(model.init, **kwargs), jax.random.key(config.seed), *args)
    if hasattr(model, "calibrate") and isinstance(dataset.inputs, ImageInputs):
        images = dataset.train.read(np.arange(min(CALIBRATION_IMAGES, dataset.train.size)))["image"]
        variables = model.calibrate(variables, dataset.inputs.normalize(images))
    return variables


def initial_state(config: Config, model: nn.Module, optimizer: Any, variables: Any) -> TrainState:
    """The state before the first step, of such variables; a pure function of them."""
    check_patterns(config.optimizer, variables["params"])
    if any(leaf.dtype == np.float16 for leaf in jax.tree.leaves(variables["params"])):
        raise ZooError(
            "parameters in float16 lose small updates, and an optimizer's squares are 0 in it: leave param_dtype "
            "float32; model.args dtype=float16 with optimizer.loss-scale computes in float16"
        )
    carry = config.task.initial_carry(model, config.batch_size)
    return init_state(variables, optimizer, config.optimizer.ema is not None, carry, config.optimizer.loss_scale)


def megabytes(tree: Any) -> float:
    """What the arrays of a tree, or their shapes, take."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e6


def _shown(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
