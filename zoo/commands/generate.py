"""python -m zoo generate: text from a language model."""

import argparse
import itertools
from typing import Any

import zoo
from zoo.errors import ZooError

NAMES = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram", "min_length"),
    *("stop", "seed"),
)


def add(commands: Any) -> None:
    command = commands.add_parser("generate", help="generate text with a trained language model")
    command.add_argument("run_folder", metavar="RUN", help="a run folder")
    command.add_argument("--prompt", help="the text to continue (default: a new line, if the vocabulary has one)")
    command.add_argument("--length", type=int, default=500, help="the most tokens to generate")
    command.add_argument("--num-samples", type=int, default=1, help="texts to generate, each with its log probability")
    command.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable token each time")
    command.add_argument("--top-k", type=int, help="draw from this many of the most probable tokens")
    command.add_argument("--top-p", type=float, help="draw from the smallest set of tokens with this total probability")
    command.add_argument("--min-p", type=float, help="draw from tokens with this share of the highest probability")
    command.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: repeat tokens less")
    command.add_argument("--no-repeat-ngram", type=int, metavar="N", help="repeat no N tokens in a row")
    command.add_argument("--min-length", type=int, default=0, help="tokens to generate before the text may end")
    command.add_argument("--stop", nargs="*", default=[], metavar="TEXT", help="end before the first of these strings")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=generate)


def generate(args: argparse.Namespace) -> None:
    """Prints the prompt and the generated text, piece by piece; several texts one after another, under headings."""
    from zoo.decode import generate_samples, stream

    if args.num_samples < 1:
        raise ZooError(f"num-samples must be at least 1, not {args.num_samples}")
    run = zoo.load(args.run_folder)
    options = {name: getattr(args, name) for name in NAMES}
    if args.num_samples > 1:
        found = generate_samples(run, args.prompt, args.num_samples, args.length, **options)
        for number, sample in enumerate(found, start=1):
            print(f"--- sample {number}, log probability {sample.log_probabilities.sum():.3f}")
            print(prompt_text(run.inputs, args.prompt) + sample.text)
        return
    pieces = stream(run, args.prompt, args.length, **options)
    first = next(pieces)  # errors in the arguments come before any output
    print(prompt_text(run.inputs, args.prompt), end="")
    for piece in itertools.chain([first], pieces):
        print(piece, end="", flush=True)
    print()


def prompt_text(inputs: Any, prompt: str | None) -> str:
    """The prompt as the model reads it (the tokenizer may lower-case it), without special tokens before it."""
    prompt = inputs.first_prompt if prompt is None else prompt
    read = inputs.decode(inputs.prompt(prompt))
    return prompt if read.endswith(prompt) else read
