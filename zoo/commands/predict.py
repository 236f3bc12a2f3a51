"""python -m zoo predict: the classes of images and texts, or the tokens of a text at its [MASK]; with a CLIP, of images
by descriptions of the classes."""

import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import zoo
from zoo.commands.detect import detect
from zoo.commands.segment import segment
from zoo.errors import ZooError
from zoo.inputs.image_file import SUFFIXES, is_image
from zoo.inputs.walk import walk
from zoo.predictor import Predictor, fills
from zoo.zero_shot import TEMPLATE

PIECE = 32  # images or texts at a time, so that memory does not grow with their number


def add(commands: Any) -> None:
    command = commands.add_parser(
        "predict",
        help="classify image files or texts with a trained model",
        description="Prints a line for each image or text as soon as it is predicted. For one that cannot be read there"
        " is a line on standard error instead; the others are predicted all the same, and the exit status is 2.",
    )
    command.add_argument("run_folder", metavar="RUN", help="a run folder, or a model whose weights come with the zoo")
    command.add_argument(
        "raws", nargs="+", metavar="IMAGE_OR_TEXT", help="image files, or folders of them; or texts, each one argument"
    )
    command.add_argument(
        "--top-k", type=int, help="labels of each (default: 3, or all that hold of a multi-label model)"
    )
    command.add_argument(
        "--json", action="store_true", help="a JSON object a line: file or text, labels, probabilities"
    )
    command.add_argument("--labels", nargs="+", default=[], help="the classes that a CLIP tells apart: cat dog")
    command.add_argument(
        "--template", default=TEMPLATE, help=f"the description of a class, {{}} being its label (default: {TEMPLATE!r})"
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace pictures of masks and boxes that are there already"
    )
    command.add_argument("--threshold", type=float, help="the least score of an object, 0 to 1 (default: 0.5)")
    command.set_defaults(
        run=lambda args: predict(
            args.run_folder,
            args.raws,
            args.top_k,
            args.json,
            args.labels,
            args.template,
            args.overwrite,
            args.threshold,
        )
    )


def predict(
    folder: str,
    raws: list[str],
    top_k: int | None = None,
    as_json: bool = False,
    labels: Sequence[str] = (),
    template: str = TEMPLATE,
    overwrite: bool = False,
    threshold: float | None = None,
) -> int:
    """Prints the most probable classes of each image file or text; the exit status, 2 where one cannot be read. A CLIP
    predicts `labels`, which each stand for the {} of the template. A segmenter writes masks, a detector
    pictures with the objects whose score is at least the `threshold`; `overwrite` replaces those that exist."""
    if top_k is not None and top_k < 1:
        raise ZooError(f"--top-k must be at least 1, not {top_k}")
    run = zoo.load(folder)
    if run.inputs.kind == "image-text" and not labels:
        raise ZooError(
            f"{folder!r} compares images with descriptions: name the classes with --labels, as --labels cat dog"
        )
    if threshold is not None and run.inputs.kind != "detection":
        raise ZooError(f"--threshold is for detectors; {folder!r} is none")
    if run.inputs.kind in ("segmentation", "detection"):
        if top_k is not None or labels:
            raise ZooError("--top-k and --labels are for classes of whole images; this run has classes of their parts")
        files = itertools.chain.from_iterable(map(_files, raws))
        if run.inputs.kind == "segmentation":
            return segment(run, files, as_json, overwrite)
        return detect(run, files, 0.5 if threshold is None else threshold, as_json, overwrite)
    if labels:
        run = zoo.zero_shot(run, labels, template)
    if not run.inputs.labels and not fills(run):
        pairs = "an encoder-decoder", "translate"
        others = {"pair": pairs, "text-to-text": pairs, "series": ("a forecaster", "forecast")}
        what, verb = others.get(run.inputs.kind, ("a language model", "generate"))
        raise ZooError(f"{folder!r} has no classes: it is {what} (python -m zoo {verb} {folder})")
    images, predictor, status = run.inputs.kind == "image", None, 0
    wanted = itertools.chain.from_iterable(map(_files, raws)) if images else iter(raws)
    while piece := list(itertools.islice(wanted, PIECE)):
        predictor = predictor or Predictor(run, [len(piece)])  # to which a shorter last piece is filled up
        for raw, found in _each(predictor, piece, top_k):
            if isinstance(found, ZooError):
                status = 2
                print(f"error: {found}", file=sys.stderr, flush=True)
            elif as_json:
                best = [{"label": label, "probability": round(value, 6)} for label, value in found]
                print(json.dumps({"file" if images else "text": raw, "labels": best}), flush=True)
            else:
                name = raw.encode("utf-8", "backslashreplace").decode()  # a file's may be no UTF-8
                print(f"{name}: " + ", ".join(f"{label} {value:.1%}" for label, value in found), flush=True)
    return status


def _each(predictor: Predictor, piece: list[str], top_k: int | None) -> Iterator[tuple[str, Any]]:
    """The labels of each, of a text with several [MASK] those of each; a ZooError where one cannot be read."""
    try:
        for raw, rows in zip(piece, predictor(piece), strict=True):
            yield from ((raw, predictor.best(row, top_k)) for row in rows)
    except ZooError as error:
        if len(piece) == 1:
            yield piece[0], error
        else:
            middle = len(piece) // 2
            for half in (piece[:middle], piece[middle:]):
                yield from _each(predictor, half, top_k)


def _files(raw: str) -> Iterator[str]:
    """A file, or the images in a folder: what has an image's ending or begins like one."""
    if not pathlib.Path(raw).expanduser().is_dir():
        yield raw
        return
    tree, found = walk(raw, "the folder"), False
    for file in tree.files:
        path = str(tree.root / file)
        if file.suffix.lower() in SUFFIXES or is_image(path):
            found = True
            yield path
    if not found:
        yield raw  # which is an error, of one line
