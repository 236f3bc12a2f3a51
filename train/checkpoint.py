"""Checkpoints of a run, the only file of train that knows Orbax. Their form is described in zoo/checkpoints.py.

Saving is asynchronous and atomic (Orbax renames a folder when it is complete). Every array has a digest, which is
checked on restore, since Orbax restores a flipped bit without an error. A broken newest checkpoint is set aside with a
warning, and the one before it is restored.
"""

import contextlib
import json
import pathlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import orbax.checkpoint as ocp

from train import processes
from train.records import numbers, write_text
from train.step import TrainState
from zoo import checkpoints as run_folder
from zoo.arrays import digests
from zoo.errors import ZooError
from zoo.registry import fits

T = TypeVar("T")


class _LatestAndBest:
    """Orbax's preservation policy: the newest `keep` and the best score; of equal scores the later step."""

    def __init__(self, keep: int, scores: dict[int, float]):
        self.keep, self.scores = keep, scores

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.keep :], best_step(self.scores, steps)}
        return [step in kept for step in steps]


def ever_saved(workdir: pathlib.Path) -> bool:
    """Whether the folder has a checkpoint, intact or broken."""
    return any(path.name.split(".broken")[0].isdecimal() for path in workdir.glob("checkpoints/*"))


def best_step(scores: dict[int, float], steps: list[int]) -> int | None:
    """The step of the highest score, the later one of equals; None where none has a score."""
    scored = [step for step in steps if step in scores]
    return max(scored, key=lambda step: (scores[step], step)) if scored else None


class Checkpoints:
    """The checkpoints of one run folder; close it, or the last save is lost."""

    def __init__(self, workdir: pathlib.Path, keep: int):
        run_folder.quiet_orbax()
        self.folder = (workdir / "checkpoints").absolute()
        self.scores: dict[int, float] = {}
        for step, path in run_folder.step_folders(self.folder).items():
            meta, why = _together(partial(run_folder.read_meta, path))
            if meta is None:
                self._set_aside(step, why)
            elif meta["score"] is not None:
                self.scores[step] = meta["score"]
        processes.meet("broken checkpoints set aside")
        policy = _LatestAndBest(keep, self.scores)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        return sorted(run_folder.step_folders(self.folder))

    def save(self, state: TrainState, step: int, score: float | None, extra: dict[str, Any]) -> None:
        """Begins to save global arrays, of which each process writes its own part; returns before they are on disk.
        `score` is finite or None."""
        items = state.items()
        meta = {"step": step, "score": score, **extra}
        meta["digests"] = {name: digests(item) for name, item in items.items()}
        if score is not None:
            self.scores[step] = score
        saves = {name: ocp.args.PyTreeSave(item) for name, item in items.items()}
        with self._disk_errors():
            done = self._manager.save(step, args=ocp.args.Composite(**saves, meta=ocp.args.JsonSave(meta)))
        if not done:
            raise ZooError(f"step {step} was not saved: {str(self.folder)!r} has a checkpoint of it already")

    def set_score(self, step: int, score: float | None, extra: dict[str, Any]) -> None:
        """Gives a checkpoint on disk, which was saved before it was evaluated, its score, and replaces `extra`."""
        if score is not None:
            self.scores[step] = score
        path = run_folder.meta_file(self.folder / str(step))
        if processes.first():
            write_text(path, json.dumps({**json.loads(path.read_text()), "score": score, **extra}))

    def wait(self) -> None:
        """Returns when what was saved is on disk; ZooError where it could not be written."""
        with self._disk_errors():
            self._manager.wait_until_finished()

    def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest intact checkpoint, its arrays placed as in the template, and its meta.

        Broken ones are set aside with a warning. ZooError where every one is broken: a run does not restart silently.
        """
        for step in reversed(self.steps()):
            found, why = self._try(template, step)
            if found is not None:
                return found
            self._set_aside(step, why)
            processes.meet(f"checkpoint {step} set aside")
            self._manager.reload()
        raise ZooError(f"every checkpoint in {str(self.folder)!r} is broken; start again in another workdir")

    def restore_best(self, last: Any, ema: bool, step: int) -> tuple[Any, int]:
        """The variables of the best score, averaged ones where `ema`, and their step; `last`, of `step`, where they are
        the best or the best checkpoint is broken."""
        best = best_step(self.scores, self.steps())
        if best is None or best == step:
            return last, step
        item = "ema" if ema else "model"
        found, why = self._read({item: last}, best)
        if found is not None:
            return found[0][item], best
        self._set_aside(best, why)
        return last, step

    def _try(self, template: TrainState, step: int) -> tuple[tuple[TrainState, dict[str, Any]] | None, str]:
        """A checkpoint's state and meta, or None and the reason."""
        found, why = self._read(template.items(), step)
        if found is None:
            return None, why
        read, meta = found
        return (template.with_items(read), meta), why

    def _read(self, items: dict[str, Any], step: int) -> tuple[tuple[dict[str, Any], dict[str, Any]] | None, str]:
        """Some items of a checkpoint in the structure of templates, and its meta; or None and the reason.

        Each process reads what its devices hold; before all digest the arrays together, they ask whether all have them.
        """
        path = self.folder / str(step)

        def read() -> tuple[dict[str, Any], dict[str, Any]]:
            meta = run_folder.read_meta(path)
            interval, patience = meta.get("interval"), meta.setdefault("patience", {"best": None, "worse": 0})
            counts = isinstance(interval, dict) and fits(interval.get("steps"), int) and numbers(interval.get("sums"))
            if not (meta.get("step") == step and counts and fits(patience, dict[str, float | None])):
                raise run_folder.BrokenCheckpoint("its meta is not of this step, or has no sums of metrics")
            return {name: run_folder.restored(path, name, item, meta) for name, item in items.items()}, meta

        found, why = _together(read)
        if found is None:
            return None, why
        arrays, meta = found

        def intact() -> bool:
            for name in items:
                run_folder.check_digests(name, arrays[name], meta)
            return True

        whole, why = _together(intact)
        return (found if whole else None), why

    def close(self) -> None:
        """Waits for saves under way and ends Orbax's threads."""
        with self._disk_errors():
            self._manager.close()

    def _set_aside(self, step: int, why: str) -> None:
        self.scores.pop(step, None)
        if not processes.first():
            return
        path, n = self.folder / str(step), 0
        while (aside := self.folder / f"{step}.broken{n or ''}").exists():
            n += 1
        path.rename(aside)
        warnings.warn(f"checkpoint {step} is broken ({why}); set aside as {aside.name}", stacklevel=3)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turns errors of Orbax's threads into one line that names the newest intact checkpoint."""
        try:
            yield
        except Exception as error:
            steps = self.steps()
            intact = f"the checkpoint of step {steps[-1]} is intact" if steps else "there is no earlier checkpoint"
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ZooError(f"could not save a checkpoint in {str(self.folder)!r} ({line}); {intact}") from None


def _together(read: Callable[[], T]) -> tuple[T | None, str]:
    """The value if every process could read it, else None and the reason. All must call."""
    found, why = None, "another process cannot read it"
    try:
        found = read()
    except run_folder.BrokenCheckpoint as error:
        why = str(error)
    return (None if processes.any_says(found is None) else found), why
