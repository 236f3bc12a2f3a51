"""One HTML page with pictures, and the learning curves that every page begins with."""

import base64
import dataclasses
import html
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import tyro

from train.records import read_rows, write_text
from zoo.run import read_config

CURVES = "curves"


@dataclasses.dataclass(frozen=True)
class Options:
    """Draws what a trained model learned and where it errs."""

    run: tyro.conf.Positional[str]  # a run folder
    images: list[str] = dataclasses.field(default_factory=list)  # image files to explain; default: some of the split
    split: Literal["test", "validation", "train"] = "test"  # the split whose mistakes are shown
    output: str | None = None  # where the pictures and report.html are written; default: RUN/report
    number: int = 24  # mistakes shown
    # cells of a recurrent language model to colour held-out text by, as layer0:12; default: those that correlate most
    # with properties of the text
    cells: list[str] = dataclasses.field(default_factory=list)
    recipe: str | None = None  # a recipe file that defines the run's own task, source or model

    def folder(self) -> pathlib.Path:
        return pathlib.Path(self.run).expanduser()

    def make_output(self) -> pathlib.Path:
        """The folder of the page, which exists then."""
        output = pathlib.Path(self.output).expanduser() if self.output else self.folder() / "report"
        output.mkdir(parents=True, exist_ok=True)
        return output


def write_page(
    options: Options, summary: str, pictures: Mapping[str, pathlib.Path], captions: Mapping[str, str], more: str = ""
) -> pathlib.Path:
    """report.html with the pictures embedded, and `more` HTML: it needs no other file and no network."""
    folder = options.folder()
    model = read_config(folder)["model"]
    about = f"{model['name']} {json.dumps(model['args'])} on {summary}."
    path = options.make_output() / "report.html"
    write_text(path, html_page(folder.name, f"<p>{html.escape(about)}</p>", pictures, captions, more))
    return path


def html_page(
    title: str, intro: str, pictures: Mapping[str, pathlib.Path], captions: Mapping[str, str], more: str = ""
) -> str:
    """The HTML of a page: title, `intro` HTML, embedded pictures with their captions, `more` HTML."""
    parts = [
        "<!doctype html><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title>",
        "<style>body{font:15px/1.5 sans-serif;max-width:64em;margin:2em auto;padding:0 1em}img{max-width:100%}</style>",
        f"<h1>{html.escape(title)}</h1>",
        intro,
    ]
    for name, picture in pictures.items():
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f"<p>{captions[name]}</p><img alt='{name}' src='data:image/png;base64,{data}'>")
    return "\n".join([*parts, more]) + "\n"


def draw_curves(workdir: pathlib.Path, metric: str, path: pathlib.Path | None = None) -> pathlib.Path:
    """A picture, curves.png by default: loss and the task's metric by step, one line per split."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for _, row in read_rows(workdir / "metrics.jsonl")]
    names = dict.fromkeys(("loss", metric))
    figure, row = plt.subplots(1, len(names), figsize=(5 * len(names), 4), layout="constrained", squeeze=False)
    axes = row[0]
    for axis, name in zip(axes, names, strict=True):
        for split in dict.fromkeys(row["split"] for row in rows):
            points = [(row["step"], row[name]) for row in rows if row["split"] == split and name in row]
            marker = "o" if len(points) == 1 else None
            if points:
                axis.plot(*zip(*points, strict=True), label=f"{split} {points[-1][1]:.4f}", marker=marker)
        axis.set(xlabel="step", ylabel=name)
        axis.grid(alpha=0.3)
        axis.legend(title="last value")
    if min((row.get("loss", 0) for row in rows), default=0) > 0:
        axes[0].set_yscale("log")
    path = path or workdir / "curves.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    """Writes a figure and closes it."""
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
