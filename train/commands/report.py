"""python -m train report RUN: what a model learned and where it errs, or what a sweep found, as a page that opens
offline."""

import pathlib

import matplotlib
import tyro

import zoo
from train import recipes
from train.config import read_settings
from train.report.page import Options
from zoo.errors import ZooError
from zoo.run import read_config


def report_command(args: list[str]) -> None:
    """Runs `python -m train report RUN ...` and prints the page's path."""
    print(draw_report(tyro.cli(Options, args=args, prog="python -m train report")))


def draw_report(options: Options) -> pathlib.Path:
    """Draws the pictures and the page of a run; returns the page's path. ZooError for what is not a run."""
    matplotlib.use("Agg")
    if (options.folder() / "sweep.json").is_file():
        return _draw_sweep(options)
    if options.recipe is not None:
        recipes.load_recipe(options.recipe)
    settings = read_settings(read_config(options.folder()).get("config"))
    run = zoo.load(options.folder())
    dataset = settings.data.load(run.inputs.shape, run.inputs)
    return settings.task.report(run, dataset, options)


def _draw_sweep(options: Options) -> pathlib.Path:
    try:
        from train.report.sweep import draw_sweep
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ZooError("the report of a sweep needs the extra: pip install 'flaxzoo[sweep]'") from None
    return draw_sweep(options.folder(), options.make_output())[0]
