"""Search of a recipe's settings with Optuna: workers ask one storage for trials, each of which is a run.

Every worker claims trials under a lock: first one whose worker has died, which is resumed in its folder with its
values, then a new one, until the storage holds as many as were asked for. A trial's folder is locked while it runs; the
kernel drops the lock of a process that is killed.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from train.config import Config, read_settings
from train.first_weights import load_data
from train.interrupt import Stop
from train.loop import run
from train.records import write_text
from train.run_folder import MAY_CHANGE, check_within
from train.settings import differences, to_json
from train.space import Space, Value, check_space, flags_of, with_values
from zoo.checkpoints import step_folders
from zoo.errors import ZooError, first_line

STUDY = "sweep"  # a storage holds one
MOST_DEATHS = 3  # of workers in a row at one step of a trial, as where the system ends what takes too much memory
ALIKE = {*MAY_CHANGE} - {"steps", "epochs", "hours", "patience", "optimizer.nonfinite"}  # of no effect on a score


@dataclasses.dataclass(frozen=True)
class Search:
    """How a sweep searches; the storage keeps it, and every worker must have the same."""

    space: dict[str, str]  # as it was written, by setting
    sampler: Literal["tpe", "random", "grid"]
    pruner: Literal["none", "median", "hyperband"]
    seed: int


class KernelLock:
    """The lock of the storage, which goes with its process. Optuna's own outlive theirs."""

    def __init__(self, storage: pathlib.Path):
        self.storage, self.path = storage, storage.with_name(f".{storage.name}.lock")

    def acquire(self) -> bool:
        """Locks, and cuts off the part of a line that a process wrote before it was killed."""
        self._file = self.path.open("a")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with self.storage.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                file.truncate(self.storage.read_bytes().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._file.close()


class Grid(optuna.samplers.GridSampler):
    def after_trial(self, *_: Any) -> None:
        """Optuna's ends `Study.optimize` here, which a sweep does not use."""


def open_storage(path: pathlib.Path) -> JournalStorage:
    """ZooError for a file that is no journal of Optuna's."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if path.is_file():
        with path.open("rb") as file:
            if (start := file.read(1)) not in (b"", b"{"):
                raise ZooError(f"storage {str(path)!r} is no journal of a sweep: it begins with {start!r}")
    try:
        lock: Any = KernelLock(path)
        return JournalStorage(JournalFileBackend(str(path), lock))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ZooError(f"storage {str(path)!r} is no journal of a sweep: {first_line(error)}") from None


class Judge:
    """Reports a run's scores to Optuna and prunes; what it decided is in the storage, for a run that resumes."""

    def __init__(self, trial: optuna.Trial):
        self.trial = trial

    def add(self, step: int, score: float | None, last: bool) -> None:
        known = self.trial.storage.get_trial(self.trial._trial_id)
        if score is None:
            return
        if step not in known.intermediate_values:
            self.trial.report(score, step)
        if not last and "pruned" not in known.user_attrs and self.trial.should_prune():
            self.trial.set_user_attr("pruned", step)

    def ended(self, step: int) -> bool:
        pruned = self.pruned()
        return pruned is not None and step >= pruned

    def pruned(self) -> int | None:
        """The step at which the trial was pruned."""
        return self.trial.user_attrs.get("pruned")


class Sweep:
    """A sweep of `recipe` with the settings `base`, whose workdir is the sweep's folder; `args` gave the settings.

    ZooError where the space, the settings and the storage do not go together; the storage is left as it was.
    """

    def __init__(
        self, recipe: str, base: Config, args: list[str], space: Space, search: Search, storage: pathlib.Path | None
    ):
        base = read_settings(json.loads(json.dumps(to_json(base))))  # as a folder holds them
        base.check()
        if base.distributed is not None or base.resume:
            raise ZooError("a sweep's trials are of one process each, and resume by themselves: leave the flag out")
        check_space(space, base)
        self.recipe, self.base, self.space, self.search = recipe, base, space, search
        self.grid = {name: values.grid(name) for name, values in space.items()} if search.sampler == "grid" else {}
        self.folder = pathlib.Path(base.workdir).expanduser().absolute()
        self.storage = (storage or self.folder / "sweep.journal").expanduser().absolute()
        if (self.folder / "config.json").exists():
            raise ZooError(f"workdir {base.workdir!r} is a run's; a sweep needs a folder of its own")
        if not self.storage.parent.is_dir() and storage is not None:
            raise ZooError(f"storage {str(storage)!r}: there is no folder {str(self.storage.parent)!r}")
        self.folder.mkdir(parents=True, exist_ok=True)
        check_within(self.folder)
        opened = open_storage(self.storage)
        with self.locked():
            self._study(opened, args, make=False)
        if load_data(base, None).validation is None:
            raise ZooError(f"a sweep compares runs on validation data, which {base.data.label} does not have")
        with self.locked():
            self.study = self._study(opened, args, make=True)

    def _study(self, storage: JournalStorage, args: list[str], make: bool) -> Any:
        """The study of the storage, which is compared with what was asked for; made where there is none, if `make`."""
        about = {"recipe": self.recipe, "search": dataclasses.asdict(self.search), "base": to_json(self.base)}
        about["folder"] = os.path.relpath(self.folder, self.storage.parent)
        found = {study.study_name: study for study in storage.get_all_studies()}
        if found and STUDY not in found:
            raise ZooError(f"storage {str(self.storage)!r} holds another study, {next(iter(found))!r}")
        known = found[STUDY].user_attrs if STUDY in found else {}
        if known:
            self._compare(known, about)
        if not make:
            return None
        create: Any = optuna.create_study
        study = create(
            study_name=STUDY, storage=storage, direction="maximize", pruner=self._pruner(), load_if_exists=True
        )
        for name, value in about.items():
            if name not in known:
                study.set_user_attr(name, value)
        about = {"recipe": self.recipe, "args": args, "space": self.search.space}
        about["storage"] = os.path.relpath(self.storage, self.folder)
        write_text(self.folder / "sweep.json", json.dumps(about, indent=2) + "\n")
        return study

    def _compare(self, known: dict[str, Any], about: dict[str, Any]) -> None:
        """ZooError where the storage is of another recipe, folder, search or settings."""
        where = f"storage {str(self.storage)!r}"
        for name in ("recipe", "folder", "search"):
            if name in known and known[name] != about[name]:
                raise ZooError(f"{where} is of another {name}: {known[name]}, not {about[name]}")
        if "base" in known:
            changed = differences(read_settings(known["base"]), self.base)
            listed = [f"{name} was {was!r}, not {now!r}" for name, (was, now) in changed.items() if name not in ALIKE]
            if listed:
                raise ZooError(f"{where} is of other settings: {'; '.join(listed)}")

    def _pruner(self) -> Any:
        if self.search.pruner == "none":
            return optuna.pruners.NopPruner()
        if self.search.pruner == "median":
            return optuna.pruners.MedianPruner()
        steps = self.base.steps if self.base.epochs is None and "steps" not in self.space else "auto"
        return optuna.pruners.HyperbandPruner(min_resource=self.base.eval_every, max_resource=steps)

    def _sampler(self, number: int) -> Any:
        """The sampler of one trial: a worker that comes later draws what an undisturbed one would have drawn."""
        if self.search.sampler == "grid":
            return Grid(self.grid, seed=self.search.seed)
        seed = int(np.random.SeedSequence([self.search.seed, number]).generate_state(1)[0])
        if self.search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One worker at a time."""
        with (self.folder / ".claim").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def trial_folder(self, number: int) -> pathlib.Path:
        return self.folder / "trials" / f"{number:04d}"

    def _lock(self, number: int) -> Any:
        """The locked file of a trial that no worker has, or None."""
        folder = self.trial_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def claim(self, most: int) -> tuple[optuna.Trial, Any] | None:
        """A trial whose worker has died, or a new one while there are fewer than `most`; with its lock."""
        with self.locked():
            trials = self.study.get_trials(deepcopy=False)
            for known in trials:
                if known.state == TrialState.RUNNING and (lock := self._lock(known.number)) is not None:
                    self.study.sampler = self._sampler(known.number)
                    return self._suggested(optuna.Trial(self.study, known._trial_id)), lock
            if self.grid:
                most = min(most, int(np.prod([len(values) for values in self.grid.values()])))
            if len(trials) >= most:
                return None
            self.study.sampler = self._sampler(len(trials))
            trial = self.study.ask()
            return self._suggested(trial), self._lock(trial.number)

    def _suggested(self, trial: optuna.Trial) -> optuna.Trial:
        for name, values in self.space.items():
            values.suggest(trial, name)
        trial.set_user_attr("flags", flags_of(self.base, trial.params))  # of the report's command
        return trial

    def work(self, trials: int) -> None:
        """Claims and runs trials until the storage has `trials` of them; SystemExit after a signal."""
        with Stop():
            while (claimed := self.claim(trials)) is not None:
                trial, lock = claimed
                with lock:
                    self.run_trial(trial)
                jax.clear_caches()  # what a trial compiled is of its settings

    def config_of(self, number: int, values: dict[str, Value]) -> Config:
        """The settings of a trial."""
        folder = pathlib.Path(self.base.workdir, "trials", f"{number:04d}")
        return dataclasses.replace(with_values(self.base, values), workdir=str(folder), resume=True)

    def run_trial(self, trial: optuna.Trial) -> None:
        """One run, and its score or the reason why it has none; SystemExit after a signal."""
        listed = " ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in trial.params.items()
        )
        print(f"trial {trial.number}: {listed}", flush=True)
        step = max(step_folders(self.trial_folder(trial.number) / "checkpoints"), default=0)
        starts = [*trial.user_attrs.get("starts", []), step]
        if starts[-MOST_DEATHS - 1 :] == [step] * (MOST_DEATHS + 1):
            return self._fail(trial, f"its worker died {MOST_DEATHS} times at step {step}, perhaps out of memory")
        trial.set_user_attr("starts", starts)
        judge = Judge(trial)
        try:
            run(self.config_of(trial.number, trial.params), recipe=self.recipe, judge=judge)
        except OSError:  # of the machine, not of the trial
            raise
        except Exception as error:
            kind = "" if isinstance(error, ZooError) else f"{type(error).__name__}: "
            return self._fail(trial, kind + first_line(error))
        scores = trial.storage.get_trial(trial._trial_id).intermediate_values.values()
        if not scores:
            self._fail(trial, "no evaluation gave a finite score")
        elif (pruned := judge.pruned()) is not None:
            self.study.tell(trial, state=TrialState.PRUNED)
            print(f"trial {trial.number}: pruned at step {pruned}, score {max(scores):.6g}", flush=True)
        else:
            self.study.tell(trial, max(scores))
            print(f"trial {trial.number}: score {max(scores):.6g}", flush=True)

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.FAIL)
        warnings.warn(f"trial {trial.number} failed: {reason}", stacklevel=3)
