"""The HTTP/1.1 of uvicorn, with a limit to how long a client may take to say what it wants."""

import asyncio
import contextlib
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD = 20.0  # seconds for the first line and the headers of a request


class Connection(H11Protocol):
    """Closes a connection whose request's head has not arrived HEAD seconds after the connection or its first byte."""

    head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.head is not None:
            self.head.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        waits = self.conn.their_state is h11.IDLE
        if self.head is None and waits:
            self.head = self.loop.call_later(HEAD, self.transport.close)
        elif self.head is not None and not waits:
            self.head.cancel()
            self.head = None


def many_connections() -> None:
    """Raises this process's limit of open connections as far as the system lets it."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
