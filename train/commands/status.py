"""python -m train status RUN: the state of a run, from any shell; the folder is only read."""

import pathlib
import time
from typing import Any

from train.journal import lives
from train.records import read_rows, shown
from zoo.checkpoints import BrokenCheckpoint, read_meta, step_folders
from zoo.errors import ZooError
from zoo.files import read_json
from zoo.registry import fits
from zoo.run import read_config

STATUS: dict[str, Any] = {
    "activity": str,
    "host": str,
    "pid": int,
    "silence": float,
    "step": float,
    "steps": float,
    "steps_per_second": float | None,
    "time": float,
}


def status(folder: pathlib.Path) -> str:
    """Some lines: whether the run lives and what it does, its step, rate and time left, last metrics and checkpoint.

    ZooError where the folder is no run's.
    """
    read_config(folder)
    lines = [f"{folder}: {_state(folder, about := _about(folder), alive := lives(folder))}"]
    if about:
        lines.append(_place(about, alive))
    lines += [f"{row.pop('split')} at step {row.pop('step')}: {shown(row)}" for row in _last_rows(folder)]
    lines.append(_checkpoints(folder))
    if not alive and about.get("activity") != "finished":
        lines.append(f"resume with: python -m train RECIPE --resume --workdir {folder}")
    return "\n".join(lines)


def _state(folder: pathlib.Path, about: dict[str, Any], alive: bool) -> str:
    if not about:
        return "at work" if alive else "not at work, and it left no status"
    where = f"process {about['pid']} on {about['host']}"
    ago = _duration(time.time() - about["time"])
    if alive:
        quiet = f"; nothing done for {_duration(about['silence'])}" if about["silence"] > 10 else ""
        return f"alive ({where}), {about['activity']}{quiet}"
    if about["activity"].startswith(("finished", "ended")):
        return f"{about['activity']} {ago} ago"
    return f"dead: {where} was {about['activity']} at its last sign of life, {ago} ago"


def _place(about: dict[str, Any], alive: bool) -> str:
    step, steps, rate = about["step"], about["steps"], about["steps_per_second"]
    line = f"step {step} of {steps} ({step / max(steps, 1):.0%})"
    if rate:
        line += f", {rate:.3g} steps/s"
        line += f", {_duration((steps - step) / rate)} left" if alive else ""
    return line


def _last_rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The last line of metrics.jsonl of each split."""
    path = folder / "metrics.jsonl"
    rows = {row["split"]: row for _, row in read_rows(path)} if path.is_file() else {}
    return [{"split": row.pop("split"), "step": row.pop("step"), **row} for row in rows.values()]


def _checkpoints(folder: pathlib.Path) -> str:
    found, scores = step_folders(folder / "checkpoints"), {}
    if not found:
        return "no checkpoint yet"
    for step, path in found.items():
        try:
            scores[step] = read_meta(path)["score"]
        except (BrokenCheckpoint, KeyError):  # an unreadable checkpoint has no score to show
            continue
    last = max(found)
    scored = [step for step, score in scores.items() if score is not None]
    best = f"; the best is of step {max(scored, key=lambda step: (scores[step], step))}" if scored else ""
    return f"last checkpoint: step {last}, {_duration(time.time() - found[last].stat().st_mtime)} ago{best}"


def _about(folder: pathlib.Path) -> dict[str, Any]:
    """The contents of status.json; empty where it is not a run's."""
    try:
        about = read_json(folder / "status.json")
        return about if all(fits(about[name], kind) for name, kind in STATUS.items()) else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(min(max(seconds, 0.0), 1e9)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def status_command(args: list[str]) -> None:
    """Prints the status of every folder that is given."""
    if not args or args[0] in ("-h", "--help"):
        raise ZooError("give a run folder: python -m train status RUN ...")
    for arg in args:
        print(status(pathlib.Path(arg).expanduser()))
