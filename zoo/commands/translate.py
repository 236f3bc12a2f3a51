"""python -m zoo translate: targets from an encoder-decoder, translations or summaries."""

import argparse
import itertools
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import zoo
from zoo.errors import ZooError

LINES = 64  # of standard input, translated together


def add(commands: Any) -> None:
    command = commands.add_parser("translate", help="translate or summarise with an encoder-decoder")
    command.add_argument("run_folder", metavar="RUN", help="a run folder, or a published encoder-decoder")
    command.add_argument(
        "texts",
        nargs="*",
        metavar="TEXT",
        help="sources (default: the lines of standard input; the target of one that cannot be translated is empty)",
    )
    command.add_argument(
        "--beam-size", type=int, help="number of beams; 1 is greedy decoding (default: 5, or a published model's own)"
    )
    command.add_argument("--num-best", type=int, default=1, help="targets to print for each source, with scores")
    command.add_argument(
        "--length-penalty",
        type=float,
        help="0 prefers short targets, more longer ones (default: 0.6, or a published model's own)",
    )
    command.add_argument(
        "--coverage-penalty", type=float, default=0.0, help="penalty for source tokens without attention"
    )
    command.set_defaults(run=translate)


def translate(args: argparse.Namespace) -> None:
    """Prints the best target of each source, one per line; with --num-best several, each after its score.

    A line of standard input that is empty or too long has an empty line for each target, and a warning with its number.
    """
    from zoo.decode import translate

    run = zoo.load(args.run_folder)
    names = ("beam_size", "num_best", "length_penalty", "coverage_penalty")
    options = {name: value for name in names if (value := getattr(args, name)) is not None}
    translate(run, [], **options)  # whatever the lines are, the model must be one that translates
    lines = iter(args.texts) if args.texts else _lines(sys.stdin, run.inputs)
    while texts := list(itertools.islice(lines, LINES)):
        found = iter(translate(run, [text for text in texts if text is not None], **options))
        for text in texts:
            targets = [("", 0.0)] * args.num_best if text is None else next(found)
            for target, score in targets:
                target = " ".join(target.splitlines())
                print(target if args.num_best == 1 or text is None else f"{score:.3f}\t{target}", flush=True)


def _lines(file: Any, inputs: Any) -> Iterator[str | None]:
    """The lines of a file; None, with a warning, for one that is empty or too long. What is not UTF-8 is replaced."""
    binary: Iterable[bytes | str] = getattr(file, "buffer", file)
    for number, line in enumerate(binary, start=1):
        text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
        text = text.rstrip("\r\n").removeprefix("\ufeff" if number == 1 else "")
        if isinstance(line, bytes) and "\ufffd" in text and "\ufffd".encode() not in line:
            warnings.warn(f"line {number} of standard input is not UTF-8; its bytes become U+FFFD", stacklevel=2)
        try:
            inputs.encode(text)
        except ZooError as error:
            warnings.warn(f"line {number} of standard input: {error}", stacklevel=2)
            yield None
        else:
            yield text
