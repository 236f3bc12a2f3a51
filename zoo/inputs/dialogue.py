"""Dialogues to train on: a conversation's tokens by the chat template, and which of them the assistant writes.

An answer goes from where `TextInputs.chat` ends the prompt to the token that ends the turn, included. It is found in
the rendered text, since templates trim messages: between the marks of {% generation %} where the template has them,
else by rendering the messages before the answer and those up to it, each of which must be the beginning of the whole.
"""

import dataclasses
import datetime
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from zoo.errors import ZooError
from zoo.inputs.chat import Marked, render, render_marked
from zoo.inputs.text import TextInputs

OPENS, CLOSES = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

DAY = datetime.date(2024, 7, 26)  # of templates that ask for today, so that tokens do not change overnight; Llama 3.2's

Messages = Sequence[Mapping[str, Any]]


class Dialogue(NamedTuple):
    """The tokens of a conversation up to the end of its last answer, int32 [n], and the answers' ones, bool [n]."""

    tokens: np.ndarray
    answers: np.ndarray


def with_template(inputs: TextInputs) -> TextInputs:
    """The inputs, with ChatML where they have no chat template but its two tokens; ZooError where they have neither."""
    if inputs.chat_template:
        return inputs
    library = inputs.tokenizer not in ("char", "byte")
    if not (library and all(len(inputs.encode_rendered(token)) == 1 for token in (OPENS, CLOSES))):
        raise ZooError(
            f"the model has no chat template, and no tokens {OPENS} and {CLOSES} for ChatML: take a model for "
            "dialogue, or put a chat_template.jinja beside its tokenizer.json and tokenizer_config.json"
        )
    return dataclasses.replace(inputs, chat_template=CHATML, end_token=CLOSES)


def encode_dialogue(inputs: TextInputs, messages: Messages) -> Dialogue:
    """The tokens of messages of `role` and `content`, and the answers among them: those of the role assistant, but for
    messages with a `weight` of 0 (OpenAI's, for answers that are not to be learned).

    What precedes an answer has the tokens that it has by itself: none crosses into the answer. ZooError for messages
    without such an answer, that the template refuses, or whose answers cannot be told from the rest.
    """
    text, spans = find_answers(inputs, messages)
    if not spans:
        raise ZooError("no message of the assistant to learn")
    cuts = [place for span in spans for place in span]
    text = text[: cuts[-1]]
    tokens = inputs.encode_rendered(text)
    parts = [inputs.encode_rendered(text[:cut]) for cut in cuts[:-1]]
    places = [*map(len, parts), len(tokens)]
    if not all(np.array_equal(tokens[: len(part)], part) for part in parts):  # a token crosses a cut
        pieces = [inputs.encode_rendered(text[a:b]) for a, b in itertools.pairwise((0, *cuts))]
        apart = np.concatenate(pieces)
        if inputs.decode(apart) != inputs.decode(tokens):
            raise ZooError("the tokens of an answer depend on the text before it")
        tokens, places = apart, np.cumsum([*map(len, pieces)]).tolist()
    answers = np.zeros(len(tokens), bool)
    for begin, end in zip(places[::2], places[1::2], strict=True):
        answers[begin:end] = True
    return Dialogue(tokens, answers)


def find_answers(inputs: TextInputs, messages: Messages) -> Marked:
    """The rendered messages, and where in the text the answers to learn are."""
    template, around = inputs.chat_template, (inputs.begin_token, inputs.end_token, DAY)
    learned = [message.get("weight", 1) != 0 for message in messages if message.get("role") == "assistant"]
    plain = [{name: value for name, value in message.items() if name != "weight"} for message in messages]
    text, spans = render_marked(template, plain, *around)
    if not spans:
        spans = [
            _between(text, template, plain, place, around)
            for place, message in enumerate(plain)
            if message["role"] == "assistant"
        ]
    if len(spans) != len(learned) and not all(learned):
        raise ZooError(f"the chat template marks {len(spans)} of {len(learned)} answers, so that weights have no place")
    if not all(learned):
        spans = [span for span, wanted in zip(spans, learned, strict=True) if wanted]
    return Marked(text, [(begin, end) for begin, end in spans if end > begin])


def _between(text: str, template: str, messages: Messages, place: int, around: tuple[Any, ...]) -> tuple[int, int]:
    """Where in the text of all messages the answer `messages[place]` is; ZooError where it cannot be told."""
    before = render(template, messages[:place], True, *around)
    upto = render(template, messages[: place + 1], False, *around)
    if not (text.startswith(upto) and upto.startswith(before)):
        raise ZooError(f"the chat template renders message {place + 1} in another way with other messages around it")
    turn = upto[len(before) :]
    ended = turn.rstrip()
    if ended.endswith(str(messages[place].get("content")).strip()):  # only space ends the turn, so that it is the end
        ended = turn
    return len(before), len(before) + len(ended)
