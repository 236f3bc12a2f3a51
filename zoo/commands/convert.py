"""python -m zoo convert: a torch state dict as .safetensors."""

from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("convert", help="convert a torch state dict (.pth) to .safetensors")
    command.add_argument("source")
    command.add_argument("target")
    command.set_defaults(run=lambda args: convert(args.source, args.target))


def convert(source: str, target: str) -> None:
    """Converts a `.pth` file and prints the number of tensors."""
    from zoo.weights import convert_torch

    print(f"{target}: {convert_torch(source, target)} tensors")
