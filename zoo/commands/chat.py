"""python -m zoo chat: a conversation with a language model."""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import zoo
from zoo.errors import ZooError

HELP = "/reset forgets the conversation, /save FILE adds it to a file of JSON lines, /quit ends; Ctrl-C stops an answer"
NAMES = ("length", "context", "temperature", "top_k", "top_p", "min_p", "seed")


def add(commands: Any) -> None:
    command = commands.add_parser("chat", help="talk with a language model that has a chat template", epilog=HELP)
    command.add_argument("run_folder", metavar="RUN", help="a run folder, or a published model for dialogue")
    command.add_argument("--system", help="the system's message, before the conversation")
    command.add_argument("--length", type=int, default=512, help="the most tokens of an answer")
    command.add_argument("--context", type=int, default=2048, help="the most tokens of a conversation")
    command.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable token each time")
    command.add_argument("--top-k", type=int, help="draw from this many of the most probable tokens")
    command.add_argument("--top-p", type=float, help="draw from the smallest set of tokens with this total probability")
    command.add_argument("--min-p", type=float, help="draw from tokens with this share of the highest probability")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=chat)


def chat(args: argparse.Namespace) -> None:
    """Answers each line of standard input; without a terminal it prints the answers alone."""
    from zoo.decode import Conversation

    conversation = Conversation(zoo.load(args.run_folder), args.system, **{name: getattr(args, name) for name in NAMES})
    if sys.stdin.isatty():
        print(HELP)
    for line in _lines():
        try:
            if line.startswith("/"):
                if line == "/quit":
                    return
                _command(conversation, line)
            elif line.strip():
                _answer(conversation, line)
        except (ZooError, OSError) as error:  # the conversation goes on
            print(f"error: {error}", file=sys.stderr, flush=True)


def _lines() -> Iterator[str]:
    """The lines that are typed, until the input ends or Ctrl-C is pressed at the prompt."""
    terminal = sys.stdin.isatty()
    if terminal:
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - it gives `input` its editing and history
    while True:
        try:
            yield input("> " if terminal else "")
        except (EOFError, KeyboardInterrupt):
            if terminal:
                print()
            return


def _command(conversation: Any, line: str) -> None:
    name, _, rest = line.partition(" ")
    if name == "/reset":
        conversation.reset()
        print("(the conversation is forgotten)", flush=True)
    elif name == "/save" and rest.strip():
        path = pathlib.Path(rest.strip()).expanduser()
        with path.open("a", encoding="utf-8") as file:  # what the file has stays
            file.write(json.dumps({"messages": conversation.messages}, ensure_ascii=False) + "\n")
        print(f"({len(conversation.messages)} messages are a line of {path})", flush=True)
    else:
        raise ZooError(f"unknown command {line!r}; {HELP}")


def _answer(conversation: Any, line: str) -> None:
    if dropped := conversation.make_room(line):
        print(
            f"(the context of {conversation.slots.context} tokens is full: {dropped} messages are dropped)", flush=True
        )
    answer = conversation.ask(line)
    try:
        for piece in answer:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        answer.close()
        print(" (stopped)", end="")
    print(flush=True)
    if conversation.reason == "length":
        print(f"(the answer is cut at {conversation.length} tokens or the end of the context)", flush=True)
