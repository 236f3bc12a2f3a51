"""python -m zoo: list, show, predict, generate, translate, convert."""

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import zoo
from zoo.errors import ZooError, exit_status

LINES = 64  # of standard input that are translated together


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit status."""
    return exit_status(lambda: _run(argv))


def _run(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m zoo", description="Models, and what they say.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list", help="registered models")
    command.add_argument("glob", nargs="?", default="*", help="a shell pattern, such as 'resnet*'")
    command.add_argument("--family", help="cnn, ...")
    command.set_defaults(run=lambda args: list_models(args.glob, args.family))
    command = commands.add_parser("show", help="one model: parameters, FLOPs, layers, paper")
    command.add_argument("name")
    command.set_defaults(run=lambda args: show(args.name))
    command = commands.add_parser("predict", help="classify image files, or texts, with a trained model")
    command.add_argument("run_folder", metavar="RUN", help="a run folder, or a model whose weights come with the zoo")
    command.add_argument("raws", nargs="+", metavar="IMAGE_OR_TEXT")
    command.add_argument("--top", type=int, default=3, help="classes to print of each")
    command.set_defaults(run=lambda args: predict(args.run_folder, args.raws, args.top))
    command = commands.add_parser("generate", help="text from a trained language model, as it comes")
    command.add_argument("run_folder", metavar="RUN", help="a run folder")
    command.add_argument("--prompt", default="\n", help="the text to go on from (default: a new line)")
    command.add_argument("--length", type=int, default=500, help="tokens")
    command.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable token each time")
    command.add_argument("--top-k", type=int, help="draw from so many of the most probable tokens")
    command.add_argument("--top-p", type=float, help="draw from the fewest tokens that have this probability together")
    command.add_argument("--min-p", type=float, help="draw from tokens of this share of the first one's probability")
    command.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: tokens come back more rarely")
    command.add_argument("--stop", nargs="*", default=[], metavar="TEXT", help="end before the first of these")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=generate)
    command = commands.add_parser("translate", help="from a source to a target with a trained encoder-decoder")
    command.add_argument("run_folder", metavar="RUN", help="a run folder")
    command.add_argument("texts", nargs="*", metavar="TEXT", help="sources (default: the lines of standard input)")
    command.add_argument("--beam-size", type=int, default=5, help="beginnings kept at each token; 1 is greedy")
    command.add_argument("--num-best", type=int, default=1, help="targets to print of each, with their scores")
    command.add_argument("--length-penalty", type=float, default=0.6, help="exponent of the length; 0: short ones win")
    command.add_argument("--coverage-penalty", type=float, default=0.0, help="weight of leaving parts of a source out")
    command.set_defaults(run=translate)
    command = commands.add_parser("convert", help="a torch state dict (.pth) to .safetensors")
    command.add_argument("source")
    command.add_argument("target")
    command.set_defaults(run=lambda args: convert(args.source, args.target))
    args = parser.parse_args(argv)
    args.run(args)


def list_models(glob: str, family: str | None) -> None:
    """Prints name, parameters, GFLOPs an example and input shape of every model that matches."""
    names = zoo.list_models(glob, family)
    if not names:
        raise ZooError(f"no model matches {glob!r}; there are {', '.join(zoo.list_models())}")
    print(f"{'name':<20} {'parameters':>12} {'GFLOPs':>8}  input")
    for name in names:
        info = zoo.model_info(name)
        shape = "x".join(map(str, info.input_shape))
        print(f"{name:<20} {info.parameters:>12,} {info.flops / 1e9:>8.3f}  {shape}")


def show(name: str) -> None:
    """Prints what is known of a model and its layers."""
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
    """Prints the most probable classes of each image file, or each text. Unreadable files are an error before any is
    classified."""
    import jax
    import numpy as np

    if top < 1:
        raise ZooError(f"--top must be at least 1, not {top}")
    model, variables, inputs = zoo.load(folder)
    if getattr(model, "output", None) == "tokens" and not inputs.labels:
        return fill(model, variables, inputs, raws, top)
    if not inputs.labels:
        reads = hasattr(model, "encode")
        what, verb = ("an encoder-decoder", "translate") if reads else ("a language model", "generate")
        raise ZooError(f"{folder!r} has no classes: it is {what} (python -m zoo {verb} {folder})")
    args, kwargs = inputs.arguments(inputs.batch(raws))
    logits = np.asarray(model.apply(variables, *args, **kwargs), np.float32)
    probabilities = np.asarray(jax.nn.softmax(logits))
    for raw, row in zip(raws, probabilities, strict=True):
        best = np.argsort(-row)[:top]
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
            raise ZooError(f"{raw!r} has no [MASK], the token to tell")
        for place in places:
            best = np.argsort(-rows[place])[:top]
            print(f"{raw}: " + ", ".join(f"{inputs.decode([token])} {rows[place, token]:.1%}" for token in best))


def generate(args: argparse.Namespace) -> None:
    """Prints the prompt and what follows it, piece by piece."""
    from zoo.decode import stream

    run = zoo.load(args.run_folder)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed")
    pieces = stream(run, args.prompt, args.length, **{name: getattr(args, name) for name in names})
    first = next(pieces)  # what is wrong with the arguments is known before anything is printed
    print(args.prompt, end="")
    for piece in itertools.chain([first], pieces):
        print(piece, end="", flush=True)
    print()


def translate(args: argparse.Namespace) -> None:
    """Prints the best target of each source, a line each; or several, the score before each."""
    from zoo.decode import translate

    run = zoo.load(args.run_folder)
    names = ("beam_size", "num_best", "length_penalty", "coverage_penalty")
    options = {name: getattr(args, name) for name in names}
    lines = iter(args.texts) if args.texts else _lines(sys.stdin)
    while texts := list(itertools.islice(lines, LINES)):
        for said in translate(run, texts, **options):
            for text, score in said:
                print(text if args.num_best == 1 else f"{score:.3f}\t{text}", flush=True)


def _lines(file: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            raise ZooError(f"line {number} of standard input is empty: there is nothing to translate")
        yield line.rstrip("\r\n")


def convert(source: str, target: str) -> None:
    """Converts a `.pth` file and says what was written."""
    from zoo.weights import convert_torch

    print(f"{target}: {convert_torch(source, target)} tensors")


def _plain(value: object) -> str:
    return getattr(value, "__name__", None) or str(value)


if __name__ == "__main__":
    sys.exit(main())
