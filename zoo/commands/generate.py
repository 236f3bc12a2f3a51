"""python -m zoo generate: text from a language model."""

import argparse
import itertools
from typing import Any

import zoo


def add(commands: Any) -> None:
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
