"""python -m zoo: list, show, predict, generate, chat, serve, translate, forecast, convert, export, push."""

import argparse
import sys

from zoo.commands import chat, convert, export, forecast, generate, models, predict, push, serve, translate
from zoo.errors import exit_status


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    return exit_status(lambda: _run(argv))


def _run(argv: list[str] | None) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m zoo", description="List models and use trained ones.")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (models, predict, generate, chat, serve, translate, forecast, convert, export, push):
        module.add(commands)
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
