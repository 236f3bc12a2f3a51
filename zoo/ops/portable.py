"""The plainest form of a computation, for programs that other platforms and other readers run."""

import contextlib
import contextvars
from collections.abc import Iterator

_on = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """What is traced inside chooses nothing by platform, and has no operation erf: older versions of JAX do not read it
    in a program that a newer one exported. The same values but for rounding; gradients may be slower."""
    token = _on.set(True)
    try:
        yield
    finally:
        _on.reset(token)


def is_portable() -> bool:
    return _on.get()
