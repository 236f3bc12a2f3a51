"""The thread that runs one language model's requests, and what it sends back."""

import queue
import threading
from collections.abc import Callable
from typing import Any

from zoo.decode import Drawn, Request, Slots
from zoo.errors import ZooError

Emit = Callable[[Drawn | Exception], None]  # called from the thread: each new token, or the error that ended a request


class Full(Exception):
    """As many requests wait as may."""


class Worker:
    """Runs `slots` in a thread; beside those in a slot at most `most_waiting` requests wait."""

    def __init__(self, slots: Slots, most_waiting: int):
        self.slots, self.most = slots, most_waiting + len(slots.slots)
        self.commands: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
        self.emits: dict[Request, Emit] = {}
        self.pending: set[Request] = set()  # of the caller's thread
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, request: Request, emit: Emit) -> None:
        """Starts a request, whose end the caller tells by `release`. Full if as many wait as may."""
        if len(self.pending) >= self.most:
            raise Full(f"{len(self.pending)} requests run or wait, which is the most")
        self.pending.add(request)
        self.commands.put(("add", request, emit))

    def release(self, request: Request) -> None:
        """Ends a request, whether it is finished or not; its slot is free within a step."""
        self.pending.discard(request)
        self.commands.put(("cancel", request, None))

    def _run(self) -> None:
        while True:
            try:
                while not (self.slots.busy and self.commands.empty()):
                    self._obey(*self.commands.get())
                for drawn in self.slots.step():
                    if emit := self.emits.get(drawn.request):
                        emit(drawn)
            except Exception as error:  # as out of memory: what runs is lost, the server lives on
                for emit in self.emits.values():
                    emit(error)
                self.emits.clear()
                self.slots.waiting.clear()
                self.slots.reset()

    def _obey(self, command: str, request: Request, emit: Any) -> None:
        if command == "cancel":
            self.slots.cancel(request)
            self.emits.pop(request, None)
            return
        try:
            self.slots.add(request)
        except ZooError as error:
            emit(error)
        else:
            self.emits[request] = emit
