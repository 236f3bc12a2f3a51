"""python -m train sweep RECIPE: the best settings of a recipe within a space, by many runs on one storage."""

import dataclasses
import itertools
import pathlib
from typing import Any, Literal

import matplotlib
import tyro

from train.config import Config, recipe_config
from train.first_weights import without_defaults
from train.space import parse_space
from zoo.errors import ZooError

PROG = "python -m train sweep RECIPE"


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Searches settings of a recipe on validation data; any setting of the recipe may be given too, for all trials."""

    # name=log:LOW:HIGH, linear:LOW:HIGH, int:LOW:HIGH or choice:A,B,C, names as those of the recipe's flags:
    # optimizer.learning-rate=log:1e-4:1e-1 model.args.width=choice:16,32
    space: list[str]
    trials: int = 30  # finished trials in the storage, over all workers
    storage: str | None = None  # Optuna's journal, which workers share; default: sweep.journal in the sweep's folder
    sampler: Literal["tpe", "random", "grid"] = "tpe"  # grid needs choice or int
    pruner: Literal["none", "median", "hyperband"] = "median"  # ends trials at evaluations on validation data
    sampler_seed: int = 0  # of the values that are tried; --seed is the runs' own


def sweep_command(args: list[str], commands: tuple[str, ...] = ()) -> None:
    """Runs `python -m train sweep RECIPE ...`; prints the best settings and the report's page."""
    if not args or args[0] in ("-h", "--help"):
        tyro.cli(SweepOptions, args=["--help"], prog=PROG)
    name, *flags = args
    if name.startswith("-"):
        raise ZooError(f"a sweep begins with a recipe, python -m train sweep cnn, not with {name!r}")
    default = recipe_config(name, commands)[1]
    options, rest = tyro.cli(SweepOptions, args=flags, prog=PROG, return_unknown_args=True)
    settings: dict[str, Any] = {"prog": f"python -m train sweep {name}", "config": (tyro.conf.AvoidSubcommands,)}
    default = dataclasses.replace(default, workdir=f"{default.workdir}-sweep")
    base = without_defaults(tyro.cli(Config, args=rest, default=default, **settings), default)
    _search(name, base, _without_workdir(rest), options)


def _search(recipe: str, base: Config, flags: list[str], options: SweepOptions) -> None:
    """Works on the sweep until it has its trials, and draws its page; `flags` gave the settings `base`."""
    if options.trials < 1:
        raise ZooError(f"trials must be at least 1, not {options.trials}")
    if options.storage is not None and "://" in options.storage:
        raise ZooError(f"storage must be the path of a file, a journal of Optuna's, not {options.storage!r:.160}")
    try:
        from train.report.sweep import draw_sweep
        from train.sweep import Search, Sweep
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ZooError("a sweep needs the extra: pip install 'flaxzoo[sweep]'") from None
    space = parse_space(options.space)
    texts = dict(zip(space, (item.partition("=")[2] for item in options.space), strict=True))
    search = Search(texts, options.sampler, options.pruner, options.sampler_seed)
    storage = None if options.storage is None else pathlib.Path(options.storage)
    sweep = Sweep(recipe, base, flags, space, search, storage)
    sweep.work(options.trials)
    matplotlib.use("Agg")
    page, lines = draw_sweep(sweep.folder)
    print("\n".join([*lines, str(page)]))


def _without_workdir(args: list[str]) -> list[str]:
    """The flags of the report's command, which names a folder of its own."""
    kept: list[str] = []
    for before, arg in itertools.pairwise(["", *args]):
        if "--workdir" not in (before, arg.partition("=")[0]):
            kept.append(arg)
    return kept
