"""python -m zoo: list, show, predict, convert."""

import argparse
import sys
import warnings

import zoo
from zoo.errors import ZooError


def main(argv: list[str] | None = None) -> int:
    """Runs one command; 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m zoo", description="Models, and what they say of images.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list", help="registered models")
    command.add_argument("glob", nargs="?", default="*", help="a shell pattern, such as 'resnet*'")
    command.add_argument("--family", help="cnn, ...")
    command.set_defaults(run=lambda args: list_models(args.glob, args.family))
    command = commands.add_parser("show", help="one model: parameters, FLOPs, layers, paper")
    command.add_argument("name")
    command.set_defaults(run=lambda args: show(args.name))
    command = commands.add_parser("predict", help="classify image files with a trained model")
    command.add_argument("run_folder", metavar="RUN", help="a run folder, or a model whose weights come with the zoo")
    command.add_argument("images", nargs="+", metavar="IMAGE")
    command.add_argument("--top", type=int, default=3, help="classes to print per image")
    command.set_defaults(run=lambda args: predict(args.run_folder, args.images, args.top))
    command = commands.add_parser("convert", help="a torch state dict (.pth) to .safetensors")
    command.add_argument("source")
    command.add_argument("target")
    command.set_defaults(run=lambda args: convert(args.source, args.target))
    args = parser.parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            args.run(args)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    return 0


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
    print(f"input: {info.input_dtype} [batch, {', '.join(map(str, info.input_shape))}]")
    if info.paper:
        print(f"paper: {info.paper}")
    if info.pretrained:
        print("weights: " + ", ".join(f"{key} {value}" for key, value in info.pretrained.items()))
    print("fields: " + ", ".join(f"{key}={_plain(value)}" for key, value in info.fields.items()))
    shapes = (f"{key} [{', '.join(map(str, shape))}]" for key, shape in info.features.items())
    print("features: " + ", ".join(shapes))
    tabulate = nn.tabulate(model, jax.random.key(0), depth=2, console_kwargs={"width": 120, "force_terminal": False})
    print(tabulate(jax.numpy.zeros(info.example().shape, info.input_dtype)))


def predict(folder: str, images: list[str], top: int = 3) -> None:
    """Prints the most probable classes of each image file. Unreadable files are an error before any is classified."""
    import jax
    import numpy as np

    if top < 1:
        raise ZooError(f"--top must be at least 1, not {top}")
    model, variables, inputs = zoo.load(folder)
    batch = np.stack([inputs.encode(image) for image in images])
    logits = np.asarray(model.apply(variables, batch), np.float32)
    probabilities = np.asarray(jax.nn.softmax(logits))
    for image, row in zip(images, probabilities, strict=True):
        best = np.argsort(-row)[:top]
        print(f"{image}: " + ", ".join(f"{inputs.labels[i]} {row[i]:.1%}" for i in best))


def convert(source: str, target: str) -> None:
    """Converts a `.pth` file and says what was written."""
    from zoo.weights import convert_torch

    print(f"{target}: {convert_torch(source, target)} tensors")


def _plain(value: object) -> str:
    return getattr(value, "__name__", None) or str(value)


if __name__ == "__main__":
    sys.exit(main())
