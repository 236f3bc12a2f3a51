"""A conversation with a language model, by the chat template of its makers."""

from collections.abc import Iterator
from typing import Any

from zoo.decode.sampling import Sampling
from zoo.decode.slots import Request, Slots
from zoo.decode.text import Pieces
from zoo.errors import ZooError
from zoo.run import Run


class Conversation:
    """The messages so far, and a model that has read them: an answer reads only what is new.

    `length` is the most tokens of an answer, `sampling` has no `end`, which the tokenizer knows. Answer i is drawn with
    seed + i. ZooError for a model without a chat template.
    """

    def __init__(
        self,
        run: Run,
        system: str | None = None,
        *,
        length: int = 512,
        context: int = 2048,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int = 0,
    ):
        inputs: Any = run.inputs
        self.inputs = inputs
        if not getattr(inputs, "chat_template", ""):
            raise ZooError("the model has no chat template: it is not one for dialogue")
        if length < 1:
            raise ZooError(f"the number of tokens to generate must be at least 1, not {length}")
        vocabulary = run.model.vocab_size  # type: ignore[attr-defined]
        banned = (*inputs.gaps, *range(inputs.vocab_size, vocabulary))
        self.slots = Slots(run.model, run.variables, slots=1, context=context, banned=banned)
        self.sampling = Sampling(temperature, top_k, top_p, min_p, end=inputs.end)
        self.length, self.seed, self.first = length, seed, seed
        self.system = [] if system is None else [{"role": "system", "content": system}]
        self.messages = [*self.system]
        self.reason: str | None = None  # why the last answer ended, as `Request.reason`

    def reset(self) -> None:
        """Forgets all but the system's message."""
        self.messages, self.seed = [*self.system], self.first

    def ask(self, text: str) -> Iterator[str]:
        """The answer in pieces. An answer that is left before its end, as by an exception, stays as far as it came.

        ZooError for a message too long for the context; it is not kept.
        """
        before = [*self.messages]
        self.messages.append({"role": "user", "content": text})
        try:
            request = self._begun()
        except ZooError:
            self.messages = before
            raise
        return self._answer(request)

    def make_room(self, text: str) -> int:
        """Drops the oldest turns until a message of the user and an answer have room; how many messages it dropped."""
        dropped, first = 0, len(self.system)
        while len(self.messages) > first and self._room({"role": "user", "content": text}) < 0:
            turn = self.messages[first : first + 2]
            del self.messages[first : first + len(turn)]
            dropped += len(turn)
        return dropped

    def _room(self, message: dict[str, str]) -> int:
        """The context's tokens that are left beside the messages, one more, and an answer."""
        tokens = self.inputs.chat([*self.messages, message])
        return self.slots.context - len(tokens) - min(self.length, self.slots.context // 4)

    def _begun(self) -> Request:
        prompt = self.inputs.chat(self.messages)
        request = Request(prompt, self.length, self.sampling, self.seed)
        self.slots.add(request)
        self.seed += 1
        return request

    def _answer(self, request: Request) -> Iterator[str]:
        pieces, said = Pieces(self.inputs, request.prompt), ""
        try:
            while request.reason is None:
                tokens = [drawn.token for drawn in self.slots.step() if drawn.token != self.sampling.end]
                if tokens and (piece := pieces.add(tokens)):
                    said += piece
                    yield piece
            if rest := pieces.finish():
                said += rest
                yield rest
        finally:
            self.slots.cancel(request)
            self.reason = request.reason
            self.messages.append({"role": "assistant", "content": said})
