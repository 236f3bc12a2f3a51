"""python -m zoo convert: torch's or Keras's weights as .safetensors."""

from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser("convert", help="convert torch's or Keras's weights to .safetensors")
    command.add_argument(
        "source",
        help="a state dict, or a checkpoint with one, as torch.save writes it (.pth, .pt, .bin, .ckpt); or a model as "
        "Keras saves it (.keras, .h5)",
    )
    command.add_argument("target", help="the .safetensors file to write")
    command.set_defaults(run=lambda args: convert(args.source, args.target))


def convert(source: str, target: str) -> None:
    """Converts a file and prints the number of tensors written."""
    from zoo.weights import convert_torch

    print(f"{target}: {convert_torch(source, target)} tensors")
