"""Dynamic batching: rows of many requests in one pass of a model."""

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from zoo.errors import ZooError
from zoo.serve.worker import Full

Item = tuple[Any, concurrent.futures.Future]


class Batcher:
    """Calls `run` in a thread with the rows that wait, at most `most_rows` at once; beside those of requests that are
    under way at most `most_waiting` rows wait. A row that no client waits for any more is left out."""

    def __init__(self, run: Callable[[list[Any]], Sequence[Any]], most_rows: int, most_waiting: int):
        self.run, self.most_rows, self.most_waiting = run, most_rows, most_waiting
        self.rows: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.pending: set[concurrent.futures.Future] = set()  # of the caller's thread
        threading.Thread(target=self._run, daemon=True).start()

    async def __call__(self, rows: Sequence[Any]) -> list[Any]:
        """What `run` returns for each row. Full if as many wait as may; what `run` raises."""
        if len(self.pending) >= self.most_waiting + self.most_rows:
            raise Full(f"{len(self.pending)} rows run or wait, which is the most")
        futures = [concurrent.futures.Future[Any]() for _ in rows]
        self.pending.update(futures)
        for item in zip(rows, futures, strict=True):
            self.rows.put(item)
        try:
            return await asyncio.gather(*map(asyncio.wrap_future, futures))
        finally:
            for future in futures:
                future.cancel()
            self.pending.difference_update(futures)

    def _run(self) -> None:
        while True:
            items = [self.rows.get()]
            while len(items) < self.most_rows and not self.rows.empty():
                items.append(self.rows.get())
            self._answer([item for item in items if item[1].set_running_or_notify_cancel()])

    def _answer(self, items: list[Item]) -> None:
        try:
            found = self.run([row for row, _ in items]) if items else []
            for (_, future), one in zip(items, found, strict=True):
                future.set_result(one)
        except ZooError as error:  # of one row: the others are answered
            for item in items if len(items) > 1 else ():
                self._answer([item])
            if len(items) == 1:
                items[0][1].set_exception(error)
        except Exception as error:  # as out of memory: the server lives on
            for _, future in items:
                future.set_exception(error)
