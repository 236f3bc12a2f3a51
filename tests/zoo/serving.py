"""A server in a thread."""

import contextlib
import threading
import time

import uvicorn

from zoo.commands.serve import KEEP_ALIVE
from zoo.serve.app import make_app
from zoo.serve.connection import Connection
from zoo.serve.models import Bounds, served


@contextlib.contextmanager
def serving(runs, key=None, limits=None, **bounds):
    """The address of a server of some runs by name, and the served models."""
    models = {name: served(run, Bounds(**bounds)) for name, run in runs.items()}
    options = {"http": Connection, "port": 0, "log_level": "error", "timeout_keep_alive": KEEP_ALIVE}
    server = uvicorn.Server(uvicorn.Config(make_app(models, key, limits), **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", models
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def until(condition, seconds=20):
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        time.sleep(0.02)
    return False
