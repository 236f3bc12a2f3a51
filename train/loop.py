"""The order of a run, from its settings to its result; nothing is computed here."""

import contextlib
import json
import math
import pathlib
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from train import processes, run_folder
from train.checkpoint import Checkpoints, ever_saved
from train.config import Config
from train.data.source import Dataset
from train.first_weights import load_data
from train.interrupt import Stop
from train.journal import Journal
from train.optimizer import make_schedule
from train.records import STOPPED, Interval, Judge, Patience, Records, shown, write_text
from train.report.page import Options, draw_curves
from train.setup import Parts, megabytes, score
from train.step import finite
from train.timing import Clock, Phases, Trace
from zoo.errors import ZooError, first_line
from zoo.run import Run

MOST_SKIPPED = 100  # steps in a row that were not finite, after which a run that skips them ends


def run(
    config: Config, seconds_before: float = 0.0, recipe: str | None = None, judge: Judge | None = None
) -> dict[str, Any]:
    """Trains as the settings say and returns what result.json holds: metrics by split, steps, seconds by phase.

    `seconds_before` is what was spent before the call, on imports. `recipe` is the recipe's name or file, which the
    folder records. A run with a `judge`, which may end it early, does not read the test data. ZooError for a user's
    mistake; SystemExit (128 + signal) when a signal stopped the run, after a checkpoint.
    """
    phases = Phases(seconds_before)
    processes.start(config.distributed)
    config, workdir, found = run_folder.take(config)
    with Stop() as stop, memory_errors():
        with phases("data"):
            dataset = load_data(config, run_folder.stored_inputs(workdir), **run_folder.replaced(workdir))
            run_folder.check_data(workdir, dataset)
            config = run_folder.with_steps(config, workdir, dataset)
        with phases("setup"):
            trainer = Trainer(config, workdir, dataset, phases, found, recipe, judge)
        with trainer:
            trainer.train(stop)
            return trainer.finish(stop)


class Trainer:
    """A run's parts, put together: `with Trainer(...) as trainer: trainer.train(Stop())`.

    `found` is the folder's state that the settings were compared with (`run_folder.take`); ZooError where another run
    has changed it since.
    """

    def __init__(
        self,
        config: Config,
        workdir: pathlib.Path,
        dataset: Dataset,
        phases: Phases,
        found: Any = None,
        recipe: str | None = None,
        judge: Judge | None = None,
    ):
        self.config, self.workdir, self.dataset, self.phases, self.judge = config, workdir, dataset, phases, judge
        parts = Parts.of(config, dataset)
        self.layout, self.model, self.batches = parts.layout, parts.model, parts.batches()
        meta: dict[str, Any] = {"step": 0, "interval": {"steps": 0, "sums": {}}, "patience": {"best": None, "worse": 0}}
        resumes = ever_saved(workdir)
        state = parts.abstract_state() if resumes else parts.with_constants(parts.first_state())
        processes.meet("run folder read")
        with contextlib.ExitStack() as opened:  # each is closed, whatever the others raise; from here on no mistakes
            self.journal = Journal(workdir, config.steps, config.log.stall, phases, found)
            opened.push(lambda _, error, __: self.journal.close(error))
            for note in dataset.notes:
                self.journal.say(note)
            if processes.first():
                run_folder.describe(config, workdir, parts.model_args, dataset, recipe)
            if dataset.unreadable is not None:
                dataset.unreadable.keep_in(workdir)
            self.checkpoints = Checkpoints(workdir, config.keep)
            opened.callback(self.checkpoints.close)
            if resumes:
                clock, size = Clock(), f"{megabytes(state):,.1f} MB"
                self.journal.beat(detail=f"restoring {size}")
                state, meta = self.checkpoints.restore(parts.layout.template(state))
                state = parts.with_constants(parts.layout.restored(state))
                self.journal.say(f"resumed at step {meta['step']}: {size} in {clock.seconds():.1f} s")
                self.journal.beat(step=meta["step"], detail="")
            self.state, self.step, self.unevaluated = state, meta["step"], meta.get("unevaluated", False)
            self.interval = Interval(self.layout.fetch, self.layout.bounded, self.step, meta["interval"])
            self.patience = Patience(config.patience, meta["patience"])
            self.schedule = make_schedule(config.optimizer, config.steps)
            self.ends = math.inf if config.hours is None else phases.begun + 3600 * config.hours
            self.train_step, self.evaluator = parts.train_step(state), parts.evaluator()
            self.records = Records(workdir, config.log.tensorboard, self.step, self.unevaluated, config.log.wandb)
            opened.push(lambda _, error, __: self.records.close(error))
            self._opened = opened.pop_all()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def train(self, stop: Stop, until: int | None = None) -> None:
        """Steps to `until` (the last by default), until patience, the judge or the hours end it, or until a signal,
        after which SystemExit.

        The order within a step: dispatch it; fetch the next batch while it runs; wait for the step before; read metrics
        (which ends a run that diverged) before anything is evaluated or saved; records before checkpoints.
        """
        config, layout, interval = self.config, self.layout, self.interval
        self._evaluate_interrupted(stop)
        compiled: set[Any] = set()  # the shapes of the batches so far: texts come in a few widths
        trace = Trace(config.profile_steps(), self.workdir / "profile")
        end = self.step if self._ended() else until or config.steps
        coming = map(layout.put_batch, self.batches.from_step(self.step, end))
        batch = next(coming, None)
        clock = Clock(self.step)
        while batch is not None and not self._ended():
            trace.before(self.step)
            shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
            compiles = shapes not in compiled
            with self.phases("compile" if compiles else "train"):
                begun = Clock()
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
            over = self._hours_over()
            last = self.step == config.steps or over
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
                if saves and stop.signal:  # one that came after `leaves` was asked waits for the next step, which saves
                    self._leave(stop.signal)
                if over:
                    more = f"--resume --workdir {config.workdir} continues it"
                    self.journal.say(f"the {config.hours:g} hours are over at step {self.step}; {more}")
                    return
                clock = Clock(self.step)

    def _evaluate_interrupted(self, stop: Stop) -> None:
        """Makes the evaluation that a signal interrupted before the run was resumed."""
        if self.unevaluated and self.dataset.validation is not None:
            found = self._validate(self.dataset.validation, stop)
            self.checkpoints.set_score(self.step, found, self._extra(unevaluated=False))
            self.records.flush()
            self.unevaluated = False

    def _ended(self) -> bool:
        """Whether an evaluation has ended the run before its last step."""
        return self.patience.ended or (self.judge is not None and self.judge.ended(self.step))

    def _hours_over(self) -> bool:
        """Whether the run has had its hours; several processes ask one another at each line of the log."""
        if self.config.hours is None or (jax.process_count() > 1 and self.step % self.config.log.every):
            return False
        return processes.any_says(time.perf_counter() > self.ends)

    def _progress(self) -> dict[str, float]:
        """Training examples seen (of texts, windows), and epochs."""
        seen = self.step * self.config.batch_size
        return {"epoch": round(seen / self.dataset.train.rows_per_epoch, 6), "examples": seen}

    def _check_finite(self) -> None:
        """ZooError for a state not worth saving, as after an update that is not finite though its gradient is."""
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
            return  # they are counted in a later line
        metrics = {**task.metrics(sums), "grad_norm": sums["grad_norm"] / (steps - skipped)}
        if skipped:
            metrics["skipped"] = skipped
        rate = float(self.schedule(self.step - 1))
        self.records.write(self.step, "train", {**metrics, **self._progress(), "learning_rate": rate})
        both = {name: metrics[name] for name in dict.fromkeys(("loss", task.metric)) if name in metrics}
        line = f"step {self.step}/{self.config.steps}  {shown(both)}"
        if steps_per_second:  # no step was timed where the first one, which is compiled, is the only one
            rate = steps_per_second * sums.get(task.unit, sums["count"]) / steps
            left = int((self.config.steps - self.step) / steps_per_second)
            line += f"  {rate:,.0f} {task.unit}/s  {left // 60}:{left % 60:02d} left"
            self.records.events({f"{task.unit}_per_second": rate}, self.step)
            self.journal.beat(steps_per_second=steps_per_second)
        self.journal.progress(line)
        self.interval.clear()

    def _evaluate_and_save(self, evaluates: bool, stop: Stop) -> None:
        """A signal interrupts an evaluation, which may outlast the grace period; the resumed run evaluates first."""
        found, unevaluated = None, False
        if evaluates and self.dataset.validation is not None:
            try:
                found = self._validate(self.dataset.validation, stop)
            except Interrupted:
                unevaluated = True
        with self.phases("checkpoint"):
            self.records.flush()
            self.checkpoints.save(self.layout.stored(self.state), self.step, found, self._extra(unevaluated))

    def _extra(self, unevaluated: bool) -> dict[str, Any]:
        """What a checkpoint keeps besides the state."""
        about = {"interval": self.interval.to_json(), "patience": self.patience.to_json()}
        return {**about, "unevaluated": unevaluated}

    def _validate(self, split: Any, stop: Stop) -> float | None:
        """Evaluates on validation data and records it; returns the score, if it is a number."""
        metrics = self.evaluate(self.state.eval_variables(), split, stop)
        self.records.write(self.step, "validation", {**metrics, **self._progress()})
        self.journal.say(f"step {self.step}: validation {shown(metrics)}")
        found = score(self.config.best, self.config.task, metrics)
        self.patience.add(found)
        if self.judge is not None:
            self.judge.add(self.step, found, last=self.step >= self.config.steps)
        if self.patience.ended:
            self.journal.say(f"stopping early: no better score in the last {self.patience.worse} evaluations")
        return found

    def evaluate(self, variables: Any, split: Any, stop: Stop | None = None, final: bool = False) -> dict[str, float]:
        """The task's metrics of placed `variables` on a split; Interrupted at a signal, where there is a `stop`."""

        def passing(done: int, total: int) -> None:
            if stop is not None and stop.reached():
                raise Interrupted
            self.journal.passing(done, total)

        with self.phases("evaluate"):
            return self.evaluator(variables, split, final, passing)

    def _leave(self, number: int) -> None:
        with self.phases("checkpoint"):
            self.checkpoints.wait()
        name, workdir = signal.Signals(number).name, self.config.workdir
        self.journal.say(f"stopped by {name} at step {self.step}; saved. Resume with --resume --workdir {workdir}")
        raise SystemExit(128 + number)

    def finish(self, stop: Stop) -> dict[str, Any]:
        """Exports the best weights, tests them once, writes and returns the result; then a picture and an example."""
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
        about = {"step": best, "ema": ema}
        if processes.first():
            with self.phases("report"):
                run_folder.export(self.workdir, run.variables, **about, metrics={})
        metrics, failure = {}, None
        for name in ("validation", "test") if self.judge is None else ("validation",):
            if getattr(dataset, name) is not None:
                try:
                    metrics[name] = self._test(name, placed, best)
                except Exception as error:
                    failure = error
        result: dict[str, Any] = {"data": dataset.name, "seed": config.seed, "steps": self.step, "best_step": best}
        result |= metrics | config.task.about(dataset)
        if processes.first():
            run_folder.describe_export(self.workdir, **about, metrics=metrics)
            self._leave_behind(result, run)
        if failure is not None:
            raise failure
        processes.meet("run finished")
        return result

    def _test(self, name: str, placed: Any, best: int) -> dict[str, float]:
        """The metrics of the best weights on a split; those that training has where the final ones fail, as a decoder
        may."""
        split = getattr(self.dataset, name)
        try:
            metrics = self.evaluate(placed, split, final=True)
        except Exception as error:
            self._warn(f"the final evaluation on {name} failed; its metrics are those of training", error)
            metrics = self.evaluate(placed, split)
        self.journal.say(f"best step {best}: {name} {shown(metrics)} ({split.described})")
        return metrics

    def _warn(self, what: str, error: Exception) -> None:
        """One line on the terminal, the traceback in train.log."""
        self.journal.note("".join(traceback.format_exception(error)))
        warnings.warn(f"{what}: {type(error).__name__}: {first_line(error)}", stacklevel=3)

    def _leave_behind(self, result: dict[str, Any], run: Run) -> None:
        """Writes the result; then draws the curves and gives an example, whose failure costs nothing else."""
        self._write(result)
        example, curves = "", None
        try:
            with self.phases("report"):
                self.records.flush()
                curves = draw_curves(self.workdir, self.config.task.metric)
                example = self.config.task.example(run, self.dataset, pathlib.Path(self.config.workdir))
        except Exception as error:
            self._warn("the run is complete, but its curves or its example failed", error)
        self._write(result)
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in result["seconds"].items())
        self.journal.say(f"seconds: {seconds}")
        if example:
            self.journal.say(example)
        if curves is not None and self.records.tracks:
            self._track_pictures(curves, run)

    def _track_pictures(self, curves: pathlib.Path, run: Run) -> None:
        """Sends the curves to W&B, and the pictures of the report, which a trial of a sweep does not have."""
        pictures = {"curves": curves}
        if self.judge is None:
            try:
                page = self.config.task.report(run, self.dataset, Options(str(self.workdir)))
                pictures |= {f"report/{path.stem}": path for path in sorted(page.parent.glob("*.png"))}
            except Exception as error:
                self._warn("the run is complete, but its report failed", error)
        self.records.pictures(pictures)

    def _write(self, result: dict[str, Any]) -> None:
        """Writes result.json, with the seconds so far."""
        result["seconds"] = self.phases.summary()
        write_text(self.workdir / "result.json", json.dumps(result, indent=2) + "\n")


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turns the end of memory, a device's or the host's, into one line that says what needs less."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = (str(error).strip().splitlines() or ["out of memory"])[0][:200]
        raise ZooError(
            f"out of memory ({line}); a lower batch-size or a higher optimizer.accumulate needs less, as do remat=full "
            "in a Transformer's model.args and --mesh fsdp=N on several devices"
        ) from None


class Interrupted(Exception):
    """An evaluation that a signal ended."""
