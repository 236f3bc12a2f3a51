"""python -m train report RUN: what a model learned and where it errs, as a page that opens offline."""

import pathlib

import matplotlib
import tyro

import zoo
from train import recipes
from train.config import read_settings
from train.report.page import Options
from zoo.run import read_config


def report_command(args: list[str]) -> None:
    """Runs `python -m train report RUN ...` and prints the page's path."""
    print(draw_report(tyro.cli(Options, args=args, prog="python -m train report")))


def draw_report(options: Options) -> pathlib.Path:
    """Draws the pictures and the page of a run; returns the page's path. ZooError for what is not a run."""
    matplotlib.use("Agg")
    if options.recipe is not None:
        recipes.load_recipe(options.recipe)
    settings = read_settings(read_config(options.folder()).get("config"))
    run = zoo.load(options.folder())
    dataset = settings.data.load(run.inputs.shape, run.inputs)
    return settings.task.report(run, dataset, options)
