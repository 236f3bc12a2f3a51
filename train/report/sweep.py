"""The page of a sweep: the best settings as a command, importance, parallel coordinates, curves, all trials."""

import html
import pathlib
import shlex
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from train.records import write_text
from train.report.page import html_page, save
from zoo.errors import ZooError
from zoo.files import read_json

STATES = {TrialState.COMPLETE: "C0", TrialState.PRUNED: "C1", TrialState.FAIL: "C3", TrialState.RUNNING: "C7"}
CAPTIONS = {
    "importance": "Importance: how much of the variance of the complete trials' scores each setting explains (fANOVA).",
    "parallel": "Parallel coordinates: a line is a trial, and darker is better; pruned trials are dashed.",
    "curves": "Validation scores: pruned trials are dashed and end in a cross; the best trial is thick.",
}


def draw_sweep(folder: pathlib.Path, output: pathlib.Path | None = None) -> tuple[pathlib.Path, list[str]]:
    """The path of the page, in the sweep's folder by default, and the lines that say what was found. ZooError for a
    folder without a sweep."""
    about = read_json(folder / "sweep.json")
    output = output or folder / "report"
    output.mkdir(parents=True, exist_ok=True)
    study = _study(folder / about["storage"])
    trials = study.get_trials(deepcopy=False)
    best, lines = summary(folder, about, trials)
    pictures = {}
    for name, draw in (("importance", _importance), ("parallel", _parallel), ("curves", _curves)):
        if (figure := draw(study, list(about["space"]), trials)) is not None:
            pictures[name] = save(figure, output / f"{name}.png")
    intro = "".join(f"<p>{html.escape(line)}</p>" for line in lines[:-1]) + f"<pre>{html.escape(lines[-1])}</pre>"
    page = output / "report.html"
    title = f"Sweep of {about['recipe']}"
    write_text(page, html_page(title, intro, pictures, CAPTIONS, _table(list(about["space"]), trials, best)))
    return page, lines


def _study(path: pathlib.Path) -> optuna.Study:
    """The study of a storage, which is only read."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not path.is_file():
        raise ZooError(f"the sweep's storage {str(path)!r} is not there")
    storage = JournalStorage(JournalFileBackend(str(path)))
    name = storage.get_all_studies()[0].study_name
    return optuna.load_study(study_name=name, storage=storage)


def score_of(trial: FrozenTrial) -> float | None:
    """The best score of a trial's evaluations, also where it was pruned."""
    return max(trial.intermediate_values.values(), default=None)


def _value(trial: FrozenTrial) -> float:
    return -np.inf if trial.value is None else trial.value


def summary(folder: pathlib.Path, about: Any, trials: Sequence[FrozenTrial]) -> tuple[FrozenTrial | None, list[str]]:
    """The best complete trial, and lines: the counts, its score and folder, its settings as a command."""
    counts = {state: sum(trial.state == state for trial in trials) for state in STATES}
    listed = ", ".join(f"{number} {state.name.lower()}" for state, number in counts.items() if number)
    lines = [f"{len(trials)} trials: {listed or 'none'}"]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        return None, [*lines, "no trial is complete"]
    best = max(complete, key=_value)
    lines.append(f"best: trial {best.number}, validation score {best.value:.6g}, {folder}/trials/{best.number:04d}")
    flags = [*about["args"], *best.user_attrs.get("flags", []), "--workdir", f"{folder}-best"]
    return best, [*lines, shlex.join(["python", "-m", "train", about["recipe"], *flags])]


def _importance(study: optuna.Study, names: list[str], trials: Sequence[FrozenTrial]) -> Any:
    import matplotlib.pyplot as plt

    try:
        with warnings.catch_warnings(action="ignore"):
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # fewer than two trials are complete, or all have one score
        return None
    figure, axis = plt.subplots(figsize=(8, 1 + 0.5 * len(found)), layout="constrained")
    axis.barh(list(found)[::-1], list(found.values())[::-1])
    axis.set(xlabel="importance", xlim=(0, 1))
    return figure


def _parallel(study: optuna.Study, names: list[str], trials: Sequence[FrozenTrial]) -> Any:
    """One axis a setting, scaled to its range in the space, and one for the score."""
    import matplotlib.pyplot as plt

    shown = [trial for trial in trials if score_of(trial) is not None and set(names) <= set(trial.params)]
    if not shown:
        return None
    scores = np.array([score_of(trial) for trial in shown], float)
    places = _scaled(scores, scores.min(), scores.max())
    colours = plt.get_cmap("viridis_r")(np.argsort(np.argsort(scores)) / max(len(shown) - 1, 1))
    figure, axis = plt.subplots(figsize=(2.2 * (len(names) + 1) + 1, 4.5), layout="constrained")
    for trial, place, colour in zip(shown, places, colours, strict=True):
        heights = [_height(trial, name) for name in names] + [place]
        axis.plot(heights, color=colour, linestyle="--" if trial.state == TrialState.PRUNED else "-", alpha=0.8)
    labels = [_ends(shown[0].distributions[name]) for name in names] + [(f"{scores.min():.4g}", f"{scores.max():.4g}")]
    for place, (low, high) in enumerate(labels):
        axis.axvline(place, color="0.6", linewidth=0.8)
        axis.text(place, -0.04, low, ha="center", va="top")
        axis.text(place, 1.04, high, ha="center", va="bottom")
    axis.set(xticks=range(len(names) + 1), xticklabels=[*names, "score"], yticks=[], ylim=(-0.15, 1.15))
    return figure


def _height(trial: FrozenTrial, name: str) -> float:
    distribution: Any = trial.distributions[name]
    value = distribution.to_internal_repr(trial.params[name])
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return value / max(len(distribution.choices) - 1, 1)
    low, high = distribution.low, distribution.high
    return float(_scaled(*(np.log([value, low, high]) if distribution.log else (value, low, high))))


def _scaled(values: Any, low: float, high: float) -> Any:
    return (values - low) / (high - low) if high > low else 0 * values + 0.5


def _ends(distribution: Any) -> tuple[str, str]:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return str(distribution.choices[0]), str(distribution.choices[-1])
    return f"{distribution.low:.4g}", f"{distribution.high:.4g}"


def _curves(study: optuna.Study, names: list[str], trials: Sequence[FrozenTrial]) -> Any:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = max(complete, key=_value, default=None)
    for trial in trials:
        steps = sorted(trial.intermediate_values)
        scores = [trial.intermediate_values[step] for step in steps]
        pruned, colour, width = trial.state == TrialState.PRUNED, STATES[trial.state], 2.5 if trial is best else 0.8
        axis.plot(steps, scores, "--" if pruned else "-", color=colour, linewidth=width, marker=".", markersize=3)
        if pruned and steps:
            axis.plot(steps[-1], scores[-1], "x", color=colour)
    for state, colour in STATES.items():
        if any(trial.state == state for trial in trials):
            axis.plot([], [], color=colour, label=state.name.lower())
    axis.set(xlabel="step", ylabel="validation score")
    axis.grid(alpha=0.3)
    if trials:
        axis.legend()
    return figure


def _table(names: list[str], trials: Sequence[FrozenTrial], best: FrozenTrial | None) -> str:
    """All trials, the best first."""
    rows = [["trial", "state", "score", "steps", *names, "reason"]]
    order = sorted(trials, key=lambda trial: (trial is not best, -(score_of(trial) or -np.inf), trial.number))
    for trial in order:
        score, values = score_of(trial), (trial.params.get(name, "") for name in names)
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        about = [str(trial.number), trial.state.name.lower(), "" if score is None else f"{score:.6g}"]
        rows.append([*about, str(trial.last_step or 0), *cells, trial.user_attrs.get("reason", "")])
    lines = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join(["<table cellpadding='4'>", *lines, "</table>"])
