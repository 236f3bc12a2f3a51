"""Signals as a request to stop that the loop polls, in one process or in several.

Schedulers send several: GNU timeout SIGTERM to its child and at once to the child's group; Slurm, when it preempts,
SIGTERM at the beginning and at the end of the grace time, before SIGKILL, and SIGUSR1 or SIGUSR2 ahead of time where a
job asks for it (`--signal`, submitit); Grid Engine with -notify the same two; LSF SIGINT, ten seconds later SIGTERM;
Kubernetes one SIGTERM. None of these may end a run before it has saved.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

from train import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
AGAIN = 1.0  # seconds after the first signal from which a second one of the same kind counts


class Stop:
    """`with Stop() as stop:` `stop.signal` is the number of the first signal, or None. The same signal again, a second
    later or more, exits at once.

    So does the first one while there is nothing to save (`idle`). A thread reads the signals, since Python runs no
    handler while its main thread compiles or waits for a device.

    Several processes must stop at the same place. The first signal of any of them is passed on to JAX's preemption
    service, which Orbax's `reached_preemption` polls too; `reached` then sets `stop.signal` in all of them.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.idle = True
        self._asked: int | None = None  # the first signal that this process got
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}
        self._preempted: Any = None  # JAX's own handler of SIGTERM
        self._questions = 0

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            if jax.distributed.is_initialized():
                self._preempted = _handler(signal.SIGTERM)
            self._before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._writer)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reached(self) -> bool:
        """Whether to stop. Several processes must ask at the same places; they get the same answer."""
        if jax.distributed.is_initialized() and self.signal is None:
            self._questions += 1
            if multihost_utils.reached_preemption_sync_point(self._questions):
                self.signal = self._asked or signal.SIGTERM
        return self.signal is not None

    def saved(self) -> bool:
        """Declares that all is saved: a signal now exits at once. Returns whether any process got one before."""
        self.idle = True
        if processes.any_says(self._asked is not None):
            self.signal = self._asked or signal.SIGTERM
        return self.signal is not None

    def _listen(self, reader: int) -> None:
        while byte := os.read(reader, 1):
            number = byte[0]
            if number not in SIGNALS:
                continue
            again = number == self._asked and time.monotonic() - self._asked_at >= AGAIN
            if self._asked is not None and not again:
                continue
            if again or self.idle:
                why = "nothing to save" if self.idle else "asked twice, nothing saved"
                print(f"stopped by {signal.Signals(number).name}: {why}", file=sys.stderr, flush=True)
                os._exit(128 + number)
            self._asked, self._asked_at = number, time.monotonic()
            if self._preempted is None:
                self.signal = number
            else:
                self._preempted(signal.SIGTERM)
        os.close(reader)


def _handler(number: int) -> Any:
    """The C handler of a signal as a callable; Python knows only of its own handlers."""
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    address = libc.signal(number, None)
    libc.signal(number, address)
    return ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
