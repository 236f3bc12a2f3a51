"""The order of a run, from its settings to its result; nothing is computed here."""

import dataclasses
import json
import math
import pathlib
import platform
import signal
import threading
import time
import warnings
from collections import deque
from typing import Any

import flax
import jax
import numpy as np
import optax

import zoo
from train.checkpoint import Checkpoints
from train.config import Config, differences, from_json, to_json
from train.data import Batches, Dataset, load_dataset
from train.evaluate import evaluate
from train.optimizer import make_optimizer
from train.report import Phases, Report, draw_curves, write_text
from train.sharding import Layout, make_layout
from train.step import TrainState, init_state, make_eval_step, make_train_step
from zoo.errors import ZooError
from zoo.registry import abstract_variables
from zoo.run import read_config
from zoo.weights import load_weights, save_native

# What may differ from the folder's settings when a run is taken up again.
MAY_CHANGE = ("workdir", "steps", "parallel", "resume", "profile", "keep", "data.dir", "log.every", "log.tensorboard")


def run(config: Config, seconds_before: float = 0.0) -> dict[str, Any]:
    """Trains as the settings say and returns what result.json holds: metrics by split, steps, seconds by phase.

    `seconds_before` is what was spent before the call, on imports. ZooError for a user's mistake; SystemExit
    (128 + signal) when a signal stopped the run, after a checkpoint.
    """
    phases = Phases(seconds_before)
    config, workdir = take_folder(config)
    with phases("data"):
        dataset = load_dataset(config.data, zoo.model_info(config.model.name).input_shape)
    with phases("setup"):
        layout = make_layout(config.parallel, config.batch_size, config.optimizer.accumulate)
        model_args, model = make_model(config, dataset, layout)
        optimizer = make_optimizer(config.optimizer, config.steps)
        describe(config, workdir, model_args, dataset)
        checkpoints = Checkpoints(workdir, config.keep)
        state, meta = first_state(config, model, dataset, optimizer, checkpoints)
        if meta["step"] > config.steps:
            raise ZooError(f"{str(workdir)!r} is at step {meta['step']} already, beyond steps {config.steps}")
        report = Report(workdir, config, meta["step"])
    try:
        with Stop() as stop:
            axis = layout.axis_name
            train_step = layout.compile_train(make_train_step(config, model, dataset.inputs, optimizer, axis))
            eval_step = layout.compile_eval(make_eval_step(config, model, dataset.inputs, axis))
            trainer = Trainer(config, dataset, layout, train_step, eval_step, checkpoints, report, phases)
            state = trainer.train(layout.put_state(state), meta, stop)
            result = trainer.finish(state, workdir)
    finally:
        report.close()
        checkpoints.close()
    return result


class Trainer:
    """The loop over steps and what ends it."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        layout: Layout,
        train_step: Any,
        eval_step: Any,
        checkpoints: Checkpoints,
        report: Report,
        phases: Phases,
    ):
        self.config, self.dataset, self.layout = config, dataset, layout
        self.train_step, self.eval_step = train_step, eval_step
        self.checkpoints, self.report, self.phases = checkpoints, report, phases

    def train(self, state: TrainState, meta: dict[str, Any], stop: "Stop") -> TrainState:
        """Steps until the last, or until a signal.

        The order within a step: dispatch it; fetch the next batch while it runs; wait for the step before; read
        metrics (which ends a run gone to infinity) before anything is evaluated or saved; records before checkpoints.
        """
        config, layout = self.config, self.layout
        step = first = meta["step"]
        interval = Interval(layout, step, meta["interval"])
        batches = Batches(
            self.dataset.train, config.batch_size, config.seed, jax.process_index(), jax.process_count()
        ).from_step(step, config.steps)
        profile = config.profile_steps()
        batch = layout.put_batch(next(batches)) if step < config.steps else None
        clock, timed = time.perf_counter(), step
        while step < config.steps:
            if profile and step == profile[0]:
                jax.profiler.start_trace(str(self.report.path.parent / "profile"))
            with self.phases("compile" if step == first else "train"):
                state, metrics = self.train_step(state, batch)
                step += 1
                batch = layout.put_batch(next(batches)) if step < config.steps else None
                interval.add(metrics)
                if step == first + 1:
                    jax.block_until_ready(metrics)
                    clock, timed = time.perf_counter(), step
            if profile and step == profile[1]:
                jax.block_until_ready(metrics)
                jax.profiler.stop_trace()
            evaluates = step % config.eval_every == 0 or step == config.steps
            if step % config.log.every == 0 or evaluates or stop.signal:
                with self.phases("train"):
                    sums = interval.read()
                if step % config.log.every == 0 or step == config.steps:
                    self._log(step, sums, interval, (step - timed) / max(time.perf_counter() - clock, 1e-9))
                if evaluates or stop.signal:
                    self._evaluate_and_save(state, step, evaluates, interval)
                if stop.signal:
                    self._stopped(step, stop.signal)
                clock, timed = time.perf_counter(), step
        return state

    def _log(self, step: int, sums: dict[str, float], interval: "Interval", steps_per_second: float) -> None:
        metrics = {**self.config.task.metrics(sums), "grad_norm": sums["grad_norm"] / interval.steps}
        rate = steps_per_second * self.config.batch_size
        self.report.write(step, "train", metrics)
        self.report.event("examples_per_second", rate, step)
        self.report.progress(step, metrics, rate)
        interval.clear()

    def _evaluate_and_save(self, state: TrainState, step: int, evaluates: bool, interval: "Interval") -> None:
        task, score = self.config.task, None
        if evaluates and self.dataset.validation is not None:
            with self.phases("evaluate"):
                metrics = self._evaluate(state.eval_variables(), self.dataset.validation)
            self.report.write(step, "validation", metrics)
            self.report.say(f"step {step}: validation " + _shown(metrics))
            value = metrics[task.metric] if task.higher_is_better else -metrics[task.metric]
            score = value if math.isfinite(value) else None
        with self.phases("checkpoint"):
            self.report.flush()
            if step not in self.checkpoints.steps():
                extra = {"interval": {"steps": interval.steps, "sums": dict(interval.sums)}}  # written later
                self.checkpoints.save(self.layout.fetch(state), step, score, extra)

    def _evaluate(self, variables: Any, split: Any) -> dict[str, float]:
        return evaluate(self.eval_step, self.layout, variables, split, self.config.batch_size, self.config.task)

    def _stopped(self, step: int, number: int) -> None:
        self.checkpoints.wait()
        name = signal.Signals(number).name
        self.report.say(f"stopped by {name} at step {step}; saved. Go on with --resume --workdir {self.config.workdir}")
        raise SystemExit(128 + number)

    def finish(self, state: TrainState, workdir: pathlib.Path) -> dict[str, Any]:
        """Tests the best weights once, exports them, draws the curves; returns and writes the result."""
        config, layout = self.config, self.layout
        with self.phases("checkpoint"):
            self.checkpoints.wait()
            host = layout.fetch(state)
            best = self.checkpoints.best()
            if best is not None and best != config.steps:
                restored = self.checkpoints.restore(host, best)
                host, best = (restored[0], best) if restored else (host, config.steps)
        best = config.steps if best is None else best
        variables = host.eval_variables()
        result: dict[str, Any] = {"data": self.dataset.name, "seed": config.seed, "steps": config.steps, "best_step": best}
        for split in ("validation", "test"):
            examples = getattr(self.dataset, split)
            if examples is not None:
                with self.phases("evaluate"):
                    result[split] = self._evaluate(layout.put_state(variables), examples)
                self.report.say(f"best step {best}: {split} {_shown(result[split])} ({examples.size:,} examples)")
        with self.phases("report"):
            stored = {key: value for key, value in read_config(workdir).items() if key in ("model", "inputs")}
            metrics = {split: result[split] for split in ("validation", "test") if split in result}
            (workdir / "export").mkdir(exist_ok=True)
            save_native(variables, workdir / "export" / "model.safetensors", overwrite=True)
            about = {**stored, "step": best, "ema": state.ema is not None, "metrics": metrics}
            write_text(workdir / "export" / "config.json", json.dumps(about, indent=2) + "\n")
            write_example(workdir, self.dataset)
            self.report.flush()
            draw_curves(workdir, config.task.metric)
        result["seconds"] = self.phases.summary()
        write_text(workdir / "result.json", json.dumps(result, indent=2) + "\n")
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in result["seconds"].items())
        self.report.say(f"seconds: {seconds}")
        self.report.say(f"use it: python -m zoo predict {config.workdir} {config.workdir}/example.png")
        return result


class Interval:
    """Sums of metrics since the last log line, kept through a checkpoint so that a resumed run logs the same."""

    def __init__(self, layout: Layout, step: int, stored: dict[str, Any]):
        self.layout, self.step = layout, step
        self.steps, self.sums = stored["steps"], dict(stored["sums"])
        self._unread: deque[Any] = deque()

    def add(self, metrics: Any) -> None:
        """Keeps a step's metrics on the device, and waits where too many steps are in flight."""
        self._unread.append(metrics)
        if len(self._unread) >= self.layout.bounded:
            jax.block_until_ready(self._unread[-self.layout.bounded])

    def read(self) -> dict[str, float]:
        """The sums with all steps so far; ZooError at the first step whose loss or gradient is not finite."""
        for metrics in map(self.layout.fetch, self._unread):
            self.step += 1
            for name, value in metrics.items():
                if not math.isfinite(value):
                    raise ZooError(
                        f"{name} is {float(value)} at step {self.step}: stopped, and the checkpoints before it kept; "
                        "a lower optimizer.learning-rate or optimizer.clip-norm may help"
                    )
                self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self.steps += 1
        self._unread.clear()
        return self.sums

    def clear(self) -> None:
        self.steps, self.sums = 0, {}


class Stop:
    """SIGTERM and SIGINT become a request to save and leave; a second one takes effect at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number


def take_folder(config: Config) -> tuple[Config, pathlib.Path]:
    """The settings to run with and the run folder: the folder's own settings where a run is taken up again.

    ZooError for a folder that is not empty without `resume`, that is no run's, or whose settings differ.
    """
    config = from_json(json.loads(json.dumps(to_json(config))))  # as a folder holds them: lists, no tuples
    config.check()
    workdir = pathlib.Path(config.workdir).expanduser().absolute()
    if workdir.exists() and not workdir.is_dir():
        raise ZooError(f"workdir {config.workdir!r} is a file")
    if not workdir.exists() or not any(path.name[0] != "." for path in workdir.iterdir()):
        return with_decay_steps(config, config), workdir
    if not config.resume:
        raise ZooError(f"workdir {config.workdir!r} is not empty: --resume goes on there, --workdir DIR elsewhere")
    stored = from_json(read_config(workdir).get("config"))
    config = with_decay_steps(config, stored)
    changed = {name: pair for name, pair in differences(stored, config).items() if name not in MAY_CHANGE}
    if changed:
        listed = "; ".join(f"{name} was {was!r}, not {now!r}" for name, (was, now) in changed.items())
        raise ZooError(f"on resume only {', '.join(MAY_CHANGE)} may change: {listed}")
    end = config.optimizer.decay_steps
    if config.optimizer.schedule != "constant" and end and config.steps > max(end, stored.steps):
        warnings.warn(f"the learning rate is 0 after step {end}, where its schedule ends", stacklevel=2)
    return config, workdir


def with_decay_steps(config: Config, source: Config) -> Config:
    """The settings with the end of the schedule written down, so that a later change of `steps` does not move it."""
    if config.optimizer.decay_steps is not None:
        return config
    end = source.optimizer.decay_steps or source.steps
    return dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, decay_steps=end)
    )


def make_model(config: Config, dataset: Dataset, layout: Layout) -> tuple[dict[str, Any], Any]:
    """The model's arguments as the run folder keeps them, and the module, its classes those of the data."""
    classes = len(dataset.inputs.labels)
    args = {"num_classes": classes, **config.model.args}
    if args["num_classes"] != classes:
        raise ZooError(f"model.args num_classes={args['num_classes']}, but {dataset.name} has {classes} classes")
    if "axis_name" in args:
        raise ZooError("model.args axis_name is set by --parallel pmap alone")
    model = zoo.create_model(config.model.name, **args)
    if layout.axis_name and hasattr(model, "axis_name"):
        model = model.clone(axis_name=layout.axis_name)
    return args, model


def describe(config: Config, workdir: pathlib.Path, model_args: dict[str, Any], dataset: Dataset) -> None:
    """Writes config.json: what anyone needs to load or to resume the run."""
    versions = {"python": platform.python_version(), "flaxzoo": zoo.__version__}
    versions |= {module.__name__: module.__version__ for module in (jax, flax, optax, np)}
    about = {
        "model": {"name": config.model.name, "args": model_args},
        "inputs": dataset.inputs.to_json(),
        "config": to_json(config),
        "versions": versions,
    }
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / "config.json", json.dumps(about, indent=2) + "\n")


def first_state(
    config: Config, model: Any, dataset: Dataset, optimizer: Any, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint's state and meta, or the initial ones; host or device arrays, not yet placed."""
    example, ema = dataset.inputs.example(), config.optimizer.ema is not None
    plain = model.clone(axis_name=None) if hasattr(model, "axis_name") else model  # init maps no axis
    if checkpoints.steps() or any(checkpoints.folder.glob("*.broken*")):
        variables = abstract_variables(plain, example)
        template = jax.eval_shape(lambda v: init_state(v, optimizer, ema), variables)
        restored = checkpoints.restore(template)
        if restored is not None:
            print(f"resumed at step {restored[1]['step']}", flush=True)
            return restored
    if config.model.weights is not None:
        variables = load_weights(plain, config.model.weights, dataset.inputs.shape)
    else:
        key = jax.random.key(config.seed)
        variables = jax.jit(plain.init)(key, np.zeros(example.shape, example.dtype))
    return init_state(variables, optimizer, ema), {"step": 0, "interval": {"steps": 0, "sums": {}}}


def write_example(workdir: pathlib.Path, dataset: Dataset) -> None:
    """example.png: the first held-out image, for the command that a run ends with."""
    from PIL import Image

    split = dataset.test or dataset.validation or dataset.train
    image = split.read(np.arange(1))["image"][0]
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(workdir / "example.png")


def _shown(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
