"""Dialogues: JSON lines in OpenAI's form, `{"messages": [{"role": "user", "content": "Hi"}, ...]}`, in packed rows."""

import dataclasses
import inspect
import itertools
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from train.data.files import BOM, split_names, warn_left_out
from train.data.source import Arrays, ArraySplit, Dataset, Source
from train.settings import at_least
from zoo.errors import ZooError
from zoo.files import parse_json
from zoo.inputs import Inputs
from zoo.inputs.dialogue import Dialogue, encode_dialogue, with_template
from zoo.inputs.text import TextInputs
from zoo.inputs.walk import walk

MOST_LINE = 2**24  # bytes of a conversation
MOST_TOKENS = 2**28  # of all conversations, which stay in memory
MOST_MESSAGES = 1024  # of a conversation; each answer is found by rendering what precedes it
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
NAMED = 3  # damaged lines of a file that a message names

Messages = list[dict[str, Any]]


class Turn(NamedTuple):
    """The tokens of a first answer int32 [n] and of all that precedes it."""

    prompt: np.ndarray
    answer: np.ndarray


@dataclasses.dataclass(frozen=True)
class DialogueSplit(ArraySplit):
    """Rows of conversations: `tokens` [n, T], `answers` bool [n, T], and `segments` [n, T], which number the row's
    conversations; padding has a number of its own."""

    conversations: int

    @property
    def described(self) -> str:
        return f"{self.conversations:,} conversations"

    def read(self, indices: np.ndarray) -> Arrays:
        """`tokens`, `targets` and `segments` int32 [n, T], and the `weight` float32 of targets, 1 in an answer."""
        tokens, answers, segments = (self.arrays[name][indices] for name in ("tokens", "answers", "segments"))
        targets, weight = np.zeros(tokens.shape, np.int32), np.zeros(tokens.shape, np.float32)
        targets[:, :-1] = tokens[:, 1:]
        weight[:, :-1] = answers[:, 1:] & (segments[:, 1:] == segments[:, :-1])
        found = {"tokens": tokens.astype(np.int32), "targets": targets, "weight": weight}
        return {**found, "segments": segments.astype(np.int32)}

    def turns(self, number: int) -> list[Turn]:
        """The first answers of the first conversations."""
        found = []
        for row in range(min(number, self.size)):
            tokens, answers, segments = (self.arrays[name][row] for name in ("tokens", "answers", "segments"))
            for segment in range(int(segments.max()) + 1):
                of, wanted = tokens[segments == segment].astype(np.int32), answers[segments == segment]
                begin = int(np.argmax(wanted))
                if wanted.any():
                    end = begin + int(np.argmin(np.append(wanted[begin:], False)))
                    found.append(Turn(of[:begin], of[begin:end]))
        return found[:number]


@dataclasses.dataclass(frozen=True)
class DialogueData(Source):
    """Conversations, rendered by the chat template of the weights that training starts from."""

    # a file of JSON lines, or a folder of such files (.jsonl), which are splits where they are named after splits
    path: str | None = None
    context: int = 512  # tokens of a row; a longer conversation loses its end
    packed: bool = True  # conversations share rows, but see nothing of one another
    validation_fraction: float = 0.1  # the last conversations, which validate where no file does

    def check(self) -> None:
        at_least("data.context", self.context, 2)
        if not 0 <= self.validation_fraction < 1:
            raise ZooError(f"data.validation-fraction must be in [0, 1), not {self.validation_fraction}")

    def check_model(self, model: type[nn.Module]) -> None:
        if self.packed and "segments" not in inspect.signature(model.__call__).parameters:
            raise ZooError(
                f"{model.__name__} takes no segments, so it cannot keep conversations apart; set data.packed false"
            )

    def load(self, model_shape: tuple[int, ...], inputs: Inputs | None = None) -> Dataset:
        """Lines that are no conversation with an answer are left out, with a warning for each file; ZooError for a file
        that has no other line."""
        if self.path is None:
            raise ZooError("data.path must be a file of JSON lines with dialogues, or a folder of such files")
        if inputs is None:
            raise ZooError(
                "dialogues need model.weights with a tokenizer and a chat template, as a Hugging Face folder"
            )
        known = with_template(self.inputs_of_kind(inputs, "text"))
        path = pathlib.Path(self.path).expanduser()
        found: dict[str, list[Dialogue]] = {"train": [], "validation": [], "test": []}
        for file, split in dialogue_files(path):
            found[split] += read_dialogues(file, known)
            if (total := sum(len(dialogue.tokens) for part in found.values() for dialogue in part)) > MOST_TOKENS:
                raise ZooError(f"{str(path)!r} has {total:,} tokens, more than {MOST_TOKENS:,}; train on a part of it")
        if not found["validation"] and (held := int(len(found["train"]) * self.validation_fraction)):
            found["train"], found["validation"] = found["train"][:-held], found["train"][-held:]
        splits = {name: self._split(name, part, known) for name, part in found.items() if part}
        if splits["train"] is None:
            raise ZooError(f"no answer in {str(path)!r} begins within data.context {self.context} tokens")
        learned = sum(int(dialogue.answers.sum()) for dialogue in found["train"])
        whole = sum(len(dialogue.tokens) for dialogue in found["train"])
        note = (
            f"of {whole:,} tokens of {len(found['train']):,} conversations {learned:,} are answers, which are learned"
        )
        parts = splits["train"], splits.get("validation"), splits.get("test")
        return Dataset(path.resolve().name, *parts, known, (note,))

    def _split(self, name: str, dialogues: list[Dialogue], inputs: TextInputs) -> DialogueSplit | None:
        """The rows of conversations, cut to the length of a row; None where no answer is left."""
        cut = [Dialogue(tokens[: self.context], answers[: self.context]) for tokens, answers in dialogues]
        kept = [dialogue for dialogue in cut if dialogue.answers[1:].any()]
        if long := sum(len(dialogue.tokens) > self.context for dialogue in dialogues):
            what = (
                f"of {len(cut):,} conversations to {name} {long:,} are longer than data.context {self.context} tokens"
            )
            lost = f"{len(cut) - len(kept):,} of them have no answer left and are left out"
            warnings.warn(f"{what} and lose their ends; {lost}", stacklevel=3)
        if not kept:
            return None
        lengths = [len(dialogue.tokens) for dialogue in kept]
        places = first_fit(lengths, self.context) if self.packed else [(row, 0) for row in range(len(kept))]
        return DialogueSplit(filled(kept, places, self.context), len(kept))


def dialogue_files(path: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    """The files of a path, each with its split; a folder's files that are not .jsonl are left out with a warning."""
    if path.is_file():
        return [(path, "train")]
    if not path.is_dir():
        raise ZooError(f"data.path {str(path)!r} is no file or folder")
    files = {file.parts: path / file for file in walk(path).files}
    lines = {parts: file for parts, file in files.items() if file.suffix == ".jsonl"}
    if not lines:
        raise ZooError(f"{str(path)!r} has no file .jsonl")
    found = split_names(lines, repr(str(path)))
    warn_left_out([files[parts] for parts in files if parts not in lines], "no .jsonl")
    warn_left_out([lines[parts] for parts, split in found.items() if split is None], "in no split")
    return [(lines[parts], split) for parts, split in found.items() if split is not None]


def read_dialogues(path: pathlib.Path, inputs: TextInputs) -> list[Dialogue]:
    """The conversations of a file, one a line. Others are left out with one warning; ZooError where all are."""
    dtype: Any = np.uint16 if inputs.vocab_size <= 1 << 16 else np.int32
    found, wrong, total = [], [], 0
    for number, line in lines_of(path):
        try:
            dialogue = encode_dialogue(inputs, messages_of(line))
            total += len(dialogue.tokens)
            found.append(Dialogue(dialogue.tokens.astype(dtype), dialogue.answers))
        except ZooError as error:
            wrong.append(f"line {number}: {error}")
        if total > MOST_TOKENS:
            raise ZooError(f"{str(path)!r} has more than {MOST_TOKENS:,} tokens; train on a part of it")
    named = "; ".join(wrong[:NAMED]) + (f"; and {len(wrong) - NAMED:,} more" if len(wrong) > NAMED else "")
    if not found:
        why = f" has no conversation to learn from: {named}" if wrong else " is empty"
        raise ZooError(f"{str(path)!r}{why}")
    if wrong:
        what = f"of {len(wrong) + len(found):,} conversations in {str(path)!r} {len(wrong):,} are left out"
        warnings.warn(f"{what}: {named}", stacklevel=3)
    return found


def lines_of(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1; of one beyond MOST_LINE bytes the first."""
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = part = file.readline(MOST_LINE + 1)
            while part and not part.endswith(b"\n"):
                part = file.readline(MOST_LINE)
            if not line:
                return
            line = line.removeprefix(BOM) if number == 1 else line
            if line.strip():
                yield number, line


def messages_of(line: bytes) -> Messages:
    """The messages of a line; ZooError where it is no conversation in OpenAI's form."""
    if len(line) > MOST_LINE:
        raise ZooError(f"more than {MOST_LINE:,} bytes")
    try:
        data = parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ZooError(f"not UTF-8 text: byte {line[error.start]:#04x} at {error.start:,}") from None
    except ValueError as error:
        raise ZooError(f"no JSON: {error}") from None
    messages = data.get("messages") if isinstance(data, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ZooError(f'a conversation must be {{"messages": [...]}} with at least one message, not {data!r:.60}')
    if len(messages) > MOST_MESSAGES:
        raise ZooError(f"{len(messages):,} messages, more than {MOST_MESSAGES:,}")
    return [_message(number, message) for number, message in enumerate(messages, start=1)]


def _message(number: int, message: Any) -> dict[str, Any]:
    """A message whose content is a string; ZooError where it has no role or no text."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ZooError(f'message {number} must be {{"role": "user", "content": "..."}}, not {message!r:.60}')
    if message["role"] not in ROLES:
        raise ZooError(f"the role of message {number} must be one of {', '.join(ROLES)}, not {message['role']!r:.60}")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ZooError(f"the content of message {number} must be text, not {content!r:.60}")
    if message["role"] == "assistant" and not content.strip():
        raise ZooError(f"message {number}, of the assistant, is empty")
    return {**message, "content": content}


def first_fit(lengths: Sequence[int], size: int) -> list[tuple[int, int]]:
    """The row and the place in it of each of some lengths, one after another in the first row that has room."""
    free, rows, places = np.zeros(len(lengths), int), 0, []
    for length in lengths:
        row = int(np.argmax(free[:rows] >= length)) if rows else 0
        if row == rows or free[row] < length:
            row, rows = rows, rows + 1
            free[row] = size
        places.append((row, size - int(free[row])))
        free[row] -= length
    return places


def filled(dialogues: Sequence[Dialogue], places: Sequence[tuple[int, int]], size: int) -> Arrays:
    """The arrays of `DialogueSplit`, with each conversation at its place in a row."""
    rows = max(row for row, _ in places) + 1
    held = np.bincount([row for row, _ in places], minlength=rows)
    tokens = np.zeros((rows, size), dialogues[0].tokens.dtype)
    answers, next_number = np.zeros((rows, size), bool), np.zeros(rows, int)
    segments = np.repeat(held[:, None], size, axis=1).astype(np.min_scalar_type(int(held.max())))
    for dialogue, (row, begin) in zip(dialogues, places, strict=True):
        end = begin + len(dialogue.tokens)
        tokens[row, begin:end], answers[row, begin:end] = dialogue
        segments[row, begin:end] = next_number[row]
        next_number[row] += 1
    return {"tokens": tokens, "answers": answers, "segments": segments}
