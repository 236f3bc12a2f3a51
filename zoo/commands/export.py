"""python -m zoo export: a trained model as programs that run with JAX alone."""

import argparse
import pathlib
from typing import Any, get_args

import zoo
from zoo import export as exporting


def add(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="write a model as programs that run with JAX alone",
        description="Writes programs of jax.export for any number of rows, their weights, and a run.py that needs JAX "
        "but no zoo. Batch normalisation is folded into the kernels.",
    )
    command.add_argument("run_folder", metavar="RUN", help="a run folder, or a model with public weights")
    command.add_argument("folder", metavar="OUT", help="the folder to write; it must be new or empty")
    command.add_argument(
        "--platforms",
        nargs="+",
        choices=exporting.PLATFORMS,
        default=exporting.DEFAULT_PLATFORMS,
        help=f"default: {' '.join(exporting.DEFAULT_PLATFORMS)}",
    )
    command.add_argument(
        "--weights",
        choices=get_args(exporting.Place),
        help="weights inside the program, or in weights.safetensors (default: inside one program of up to 64 MB)",
    )
    command.add_argument(
        "--weights-dtype",
        choices=get_args(exporting.WeightsDtype),
        default="float32",
        help="how weights are stored: int8 is per output channel (default: %(default)s, which keeps the model's)",
    )
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="the computation's dtype")
    command.add_argument(
        "--preprocess", action="store_true", help="resize and normalise inside the program: images of any size"
    )
    command.add_argument("--max-length", type=int, help="tokens of a decoder's cache (default: at most 1024)")
    command.add_argument("--onnx", action="store_true", help="write forward.onnx too, checked with onnxruntime")
    command.set_defaults(run=export)


def export(args: argparse.Namespace) -> None:
    """Writes the folder and prints its files with their sizes."""
    exporting.check_folder(pathlib.Path(args.folder))
    names = ("platforms", "weights", "weights_dtype", "dtype", "preprocess", "max_length", "onnx")
    files = exporting.export(zoo.load(args.run_folder), args.folder, **{name: getattr(args, name) for name in names})
    for path in files:
        print(f"{path}: {path.stat().st_size:,} bytes")
