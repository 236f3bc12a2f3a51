"""Being asked to leave: SIGTERM and SIGINT as a request that the loop reads; among several processes, a preemption."""

import os
import signal
import sys
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """`with Stop() as stop:` `stop.signal` is the number of the first signal, or None; a second one acts at once.

    So does the first one while there is nothing to save (`idle`). A thread reads the signals, since Python runs no
    handler while its main thread compiles or waits for a device.

    Several processes must stop at the same step. There SIGTERM is left to JAX's preemption service, and `reached` asks
    it, as Orbax's `reached_preemption` does; SIGINT ends the process.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.idle = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
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

    def reached(self, step: int) -> bool:
        """Whether to leave after this step; every process must ask after every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _listen(self, reader: int) -> None:
        while byte := os.read(reader, 1):
            if byte[0] not in SIGNALS:
                continue
            if self.signal is not None or self.idle:
                why = "nothing to save" if self.idle else "asked twice, nothing saved"
                print(f"stopped by {signal.Signals(byte[0]).name}: {why}", file=sys.stderr, flush=True)
                os._exit(128 + byte[0])
            self.signal = byte[0]
        os.close(reader)
