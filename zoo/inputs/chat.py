"""Chat templates: a conversation as the text that a model was trained on, by the Jinja template that its makers wrote.

Templates are code of others: they run in Jinja's sandbox, which gives them no attribute that leads out of it, and with
bounds on loops, on products of strings and on the result.
"""

import datetime
import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from zoo.errors import ZooError, first_line

MOST_STEPS = 10**5  # of all ranges together
MOST_LENGTH = 2**22  # characters of the result, and of a product of strings
OPEN, CLOSE = "\ufdd0", "\ufdd1"  # mark an answer while it is rendered; Unicode has them for use within a program
_MARKS = re.compile(f"[{OPEN}{CLOSE}]")


class Marked(NamedTuple):
    """A text, and where the answers in it begin and end."""

    text: str
    spans: list[tuple[int, int]]


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    prompt: bool,
    begin: str = "",
    end: str = "",
    day: datetime.date | None = None,
) -> str:
    """The text of `messages`, each with `role` and `content`; with `prompt` it ends where the answer begins.

    `begin` and `end` are the tokens that the template calls `bos_token` and `eos_token`, `day` is what it takes for
    today, by default the date. ZooError for messages of another form, and for a template that is not valid, refuses the
    messages, or asks for what it may not have.
    """
    return _rendered(template, messages, prompt, begin, end, day, {})


def render_marked(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    begin: str = "",
    end: str = "",
    day: datetime.date | None = None,
) -> Marked:
    """The text of whole `messages`, and the parts of it that the template marks by {% generation %} as answers."""
    for text in (template, *(str(message.get("content")) for message in messages)):
        if OPEN in text or CLOSE in text:
            raise ZooError(f"the messages have U+{ord(OPEN):X} or U+{ord(CLOSE):X}, which are no characters")
    marks = {"generation_opens": OPEN, "generation_closes": CLOSE}
    text = _rendered(template, messages, False, begin, end, day, marks)
    pieces, found = _MARKS.split(text), "".join(_MARKS.findall(text))
    if found != (OPEN + CLOSE) * (len(found) // 2):  # a block within another, or one that a break leaves
        raise ZooError("the chat template cannot be used: its {% generation %} blocks are not one after another")
    ends = [*itertools.accumulate(map(len, pieces))]
    return Marked("".join(pieces), [(ends[i - 1], ends[i]) for i in range(1, len(pieces), 2)])


def _rendered(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    prompt: bool,
    begin: str,
    end: str,
    day: datetime.date | None,
    marks: Mapping[str, str],
) -> str:
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ZooError(f"a message must be {{'role': ..., 'content': ...}}, not {message!r:.80}")
    names = {"messages": list(messages), "add_generation_prompt": prompt, "bos_token": begin, "eos_token": end, **marks}
    today = datetime.datetime.now() if day is None else datetime.datetime(day.year, day.month, day.day)
    try:
        pieces, size = [], 0
        for piece in _compiled(template).generate(**names, range=_ranges(), strftime_now=today.strftime):
            pieces.append(piece)
            size += len(piece)
            if size > MOST_LENGTH:
                raise ValueError(f"its result has more than {MOST_LENGTH:,} characters")
        return "".join(pieces)
    except ZooError:
        raise
    except (Exception, RecursionError) as error:  # whatever the code in the template raises
        raise ZooError(f"the chat template cannot be used: {first_line(error)}") from None


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ZooError("chat templates need jinja2: pip install 'flaxzoo[text]'") from None

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sized = [value for value in (left, right) if hasattr(value, "__len__")]
            counts = [value for value in (left, right) if isinstance(value, int)]
            if operator == "**" or (sized and counts and len(sized[0]) * counts[0] > MOST_LENGTH):
                raise jinja2.exceptions.SecurityError(f"a {operator} of such size is not allowed")
            return super().call_binop(context, operator, left, right)

    class Generation(Extension):
        """{% generation %}, which marks the answers for training; its content stays, between the marks, if any."""

        tags = {"generation"}  # noqa: RUF012 - as its base class has it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            opens, closes = (
                jinja2.nodes.Output([jinja2.nodes.Name(name, "load")])
                for name in ("generation_opens", "generation_closes")
            )
            return [opens, *body, closes]

    def refuse(message: str) -> None:
        raise ZooError(f"the chat template refuses the messages: {message}")

    def as_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    sandbox.filters["tojson"] = as_json
    sandbox.globals["raise_exception"] = refuse
    return sandbox.from_string(template)


def _ranges() -> Any:
    """A `range` whose ranges have MOST_STEPS numbers in all."""
    left = MOST_STEPS

    def bounded(*args: int) -> range:
        nonlocal left
        found = range(*args)
        left -= len(found)
        if left < 0:
            raise ValueError(f"its loops have more than {MOST_STEPS:,} steps")
        return found

    return bounded
