"""python -m zoo: list, show, predict, generate, translate, forecast, convert."""

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import zoo
from zoo.errors import ZooError, exit_status

LINES = 64  # of standard input, translated together


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    return exit_status(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m zoo", description="List models and use trained ones.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list", help="registered models")
    command.add_argument("glob", nargs="?", default="*", help="a shell pattern, such as 'resnet*'")
    command.add_argument("--family", help="cnn, ...")
    command.set_defaults(run=lambda args: list_models(args.glob, args.family))
    command = commands.add_parser("show", help="one model: parameters, FLOPs, layers, paper")
    command.add_argument("name")
    command.set_defaults(run=lambda args: show(args.name))
    command = commands.add_parser("predict", help="classify image files or texts with a trained model")
    command.add_argument("run_folder", metavar="RUN", help="a run folder, or a model whose weights come with the zoo")
    command.add_argument("raws", nargs="+", metavar="IMAGE_OR_TEXT")
    command.add_argument("--top", type=int, default=3, help="classes to print for each")
    command.set_defaults(run=lambda args: predict(args.run_folder, args.raws, args.top))
    command = commands.add_parser("generate", help="generate text with a trained language model")
    command.add_argument("run_folder", metavar="RUN", help="a run folder")
    command.add_argument("--prompt", default="\n", help="the text to continue (default: a new line)")
    command.add_argument("--length", type=int, default=500, help="tokens to generate")
    command.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable token each time")
    command.add_argument("--top-k", type=int, help="draw from this many of the most probable tokens")
    command.add_argument("--top-p", type=float, help="draw from the smallest set of tokens with this total probability")
    command.add_argument("--min-p", type=float, help="draw from tokens with this share of the highest probability")
    command.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: repeat tokens less")
    command.add_argument("--stop", nargs="*", default=[], metavar="TEXT", help="end before the first of these strings")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=generate)
    command = commands.add_parser("translate", help="translate with a trained encoder-decoder")
    command.add_argument("run_folder", metavar="RUN", help="a run folder")
    command.add_argument("texts", nargs="*", metavar="TEXT", help="sources (default: the lines of standard input)")
    command.add_argument("--beam-size", type=int, default=5, help="number of beams; 1 is greedy decoding")
    command.add_argument("--num-best", type=int, default=1, help="targets to print for each source, with scores")
    command.add_argument("--length-penalty", type=float, default=0.6, help="0 prefers short targets, more longer ones")
    command.add_argument(
        "--coverage-penalty", type=float, default=0.0, help="penalty for source tokens without attention"
    )
    command.set_defaults(run=translate)
    command = commands.add_parser("forecast", help="predict the next rows of a table with a trained forecaster")
    command.add_argument("run_folder", metavar="RUN", help="a run folder")
    command.add_argument("table", metavar="TABLE", help="a CSV or NPZ file with the columns of the training data")
    command.set_defaults(run=lambda args: forecast(args.run_folder, args.table))
    command = commands.add_parser("convert", help="convert a torch state dict (.pth) to .safetensors")
    command.add_argument("source")
    command.add_argument("target")
    command.set_defaults(run=lambda args: convert(args.source, args.target))
    args = parser.parse_args(argv)
    args.run(args)


def list_models(glob: str, family: str | None) -> None:
    """Prints name, parameters, GFLOPs per example and input shape of every matching model."""
    names = zoo.list_models(glob, family)
    if not names:
        raise ZooError(f"no model matches {glob!r}; there are {', '.join(zoo.list_models())}")
    print(f"{'name':<20} {'parameters':>12} {'GFLOPs':>8}  input")
    for name in names:
        info = zoo.model_info(name)
        shape = "x".join(map(str, info.input_shape))
        print(f"{name:<20} {info.parameters:>12,} {info.flops / 1e9:>8.3f}  {shape}")


def show(name: str) -> None:
    """Prints a model's card and its layers."""
    import flax.linen as nn
    import jax

    info = zoo.model_info(name)
    model = info.constructor()
    print(f"{name}: {info.parameters:,} parameters, {info.flops / 1e9:.3f} GFLOPs an example, {info.family}")
    args, kwargs = info.example()
    for key, array in {"input": args[0], **kwargs}.items():
        print(f"{key}: {array.dtype} [batch, {', '.join(map(str, array.shape[1:]))}]")
    if info.paper:
        print(f"paper: {info.paper}")
    if info.pretrained:
        print("weights: " + ", ".join(f"{key} {value}" for key, value in info.pretrained.items()))
    print("fields: " + ", ".join(f"{key}={_plain(value)}" for key, value in info.fields.items()))
    shapes = (f"{key} [{', '.join(map(str, shape))}]" for key, shape in info.features.items())
    print("features: " + ", ".join(shapes))
    tabulate = nn.tabulate(model, jax.random.key(0), depth=2, console_kwargs={"width": 120, "force_terminal": False})
    args, kwargs = jax.tree.map(lambda array: jax.numpy.zeros(array.shape, array.dtype), (args, kwargs))
    print(tabulate(*args, **kwargs))


def predict(folder: str, raws: list[str], top: int = 3) -> None:
    """Prints the most probable classes of each image file or text. An unreadable file is an error before anything is
    predicted."""
    import jax
    import numpy as np

    if top < 1:
        raise ZooError(f"--top must be at least 1, not {top}")
    model, variables, inputs = zoo.load(folder)
    if getattr(model, "output", None) == "tokens" and not inputs.labels:
        return fill(model, variables, inputs, raws, top)
    if not inputs.labels:
        others = {"pair": ("an encoder-decoder", "translate"), "series": ("a forecaster", "forecast")}
        what, verb = others.get(inputs.kind, ("a language model", "generate"))
        raise ZooError(f"{folder!r} has no classes: it is {what} (python -m zoo {verb} {folder})")
    args, kwargs = inputs.arguments(inputs.batch(raws))
    logits = np.asarray(model.apply(variables, *args, **kwargs), np.float32)
    exclusive = getattr(inputs, "exclusive", True)
    probabilities = np.asarray(jax.nn.softmax(logits) if exclusive else jax.nn.sigmoid(logits))
    for raw, row in zip(raws, probabilities, strict=True):
        best = np.argsort(-row)[:top] if exclusive else np.flatnonzero(row > 0.5)
        print(f"{raw}: " + ", ".join(f"{inputs.labels[i]} {row[i]:.1%}" for i in best))


def fill(model: Any, variables: Any, inputs: Any, raws: list[str], top: int) -> None:
    """Prints the most probable tokens at each [MASK] of the texts."""
    import jax
    import numpy as np

    batch = inputs.batch(raws)
    args, kwargs = inputs.arguments(batch)
    probabilities = np.asarray(jax.nn.softmax(model.apply(variables, *args, **kwargs).astype(np.float32)))
    for raw, tokens, rows in zip(raws, batch["tokens"], probabilities, strict=True):
        places = np.flatnonzero(tokens == inputs.mask)
        if not len(places):
            raise ZooError(f"{raw!r} has no [MASK] to predict")
        for place in places:
            best = np.argsort(-rows[place])[:top]
            print(f"{raw}: " + ", ".join(f"{inputs.decode([token])} {rows[place, token]:.1%}" for token in best))


def generate(args: argparse.Namespace) -> None:
    """Prints the prompt and the generated text, piece by piece."""
    from zoo.decode import stream

    run = zoo.load(args.run_folder)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed")
    pieces = stream(run, args.prompt, args.length, **{name: getattr(args, name) for name in names})
    first = next(pieces)  # errors in the arguments come before any output
    print(args.prompt, end="")
    for piece in itertools.chain([first], pieces):
        print(piece, end="", flush=True)
    print()


def translate(args: argparse.Namespace) -> None:
    """Prints the best target of each source, one per line; with --num-best several, each after its score."""
    from zoo.decode import translate

    run = zoo.load(args.run_folder)
    names = ("beam_size", "num_best", "length_penalty", "coverage_penalty")
    options = {name: getattr(args, name) for name in names}
    lines = iter(args.texts) if args.texts else _lines(sys.stdin)
    while texts := list(itertools.islice(lines, LINES)):
        for targets in translate(run, texts, **options):
            for text, score in targets:
                print(text if args.num_best == 1 else f"{score:.3f}\t{text}", flush=True)


def forecast(folder: str, table: str) -> None:
    """Prints the targets of the rows after a table's last one, as many as the model's horizon, as CSV."""
    from zoo.inputs import SeriesInputs

    model, variables, inputs = zoo.load(folder)
    if not isinstance(inputs, SeriesInputs):
        raise ZooError(f"{folder!r} forecasts no series: it takes {inputs.kind}s")
    args, kwargs = inputs.arguments(inputs.batch([table]))
    predictions: Any = model.apply(variables, *args, **kwargs)
    rows = inputs.decode(predictions[0, -inputs.horizon :])
    if len(rows) < inputs.horizon:
        raise ZooError(f"{table!r} has {len(rows)} rows; a forecast needs at least {inputs.horizon}")
    print(",".join(inputs.targets))
    for row in rows:
        print(",".join(f"{value:.6g}" for value in row))


def _lines(file: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            raise ZooError(f"line {number} of standard input is empty; every line must have a text to translate")
        yield line.rstrip("\r\n")


def convert(source: str, target: str) -> None:
    """Converts a `.pth` file and prints the number of tensors."""
    from zoo.weights import convert_torch

    print(f"{target}: {convert_torch(source, target)} tensors")


def _plain(value: object) -> str:
    return getattr(value, "__name__", None) or str(value)


if __name__ == "__main__":
    sys.exit(main())
