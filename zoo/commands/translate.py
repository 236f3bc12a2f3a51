"""python -m zoo translate: targets from an encoder-decoder."""

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import zoo
from zoo.errors import ZooError

LINES = 64  # of standard input, translated together


def add(commands: Any) -> None:
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


def _lines(file: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            raise ZooError(f"line {number} of standard input is empty; every line must have a text to translate")
        yield line.rstrip("\r\n")
