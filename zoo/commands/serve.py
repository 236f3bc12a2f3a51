"""python -m zoo serve: models over HTTP."""

import argparse
import os
import pathlib
import socket
from typing import Any

import zoo
from zoo.errors import ZooError

KEY = "FLAXZOO_API_KEY"
KEEP_ALIVE = 60  # seconds; clients close idle connections earlier, so that no request meets one that is closing


def add(commands: Any) -> None:
    command = commands.add_parser(
        "serve",
        help="serve models over HTTP, language models by OpenAI's protocol",
        description="A model's name is the last part of its folder's or file's. SIGTERM ends the server after the "
        f"answers that are under way. With the environment variable {KEY} set, clients must send it as their API key.",
    )
    command.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or published models")
    command.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: this machine alone)")
    command.add_argument("--port", type=int, default=8000)
    command.add_argument("--slots", type=int, default=8, help="requests that a language model answers at once")
    command.add_argument("--batch", type=int, default=32, help="images or texts in one pass of another model")
    command.add_argument(
        "--queue", type=int, default=64, help="requests of a model that may wait; others get status 429"
    )
    command.add_argument("--context", type=int, default=2048, help="the most tokens of a prompt with its answer")
    command.set_defaults(run=serve)


def serve(args: argparse.Namespace) -> None:
    """Serves until SIGINT or SIGTERM; every program is compiled before the port opens."""
    if not 0 < args.port < 65536:
        raise ZooError(f"--port must be from 1 to 65535, not {args.port}")
    for name, least in (("queue", 0), ("batch", 1)):
        if getattr(args, name) < least:
            raise ZooError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    try:
        import uvicorn

        from zoo.serve.app import make_app
        from zoo.serve.connection import Connection, many_connections
        from zoo.serve.models import Bounds, served
    except ImportError as error:
        raise ZooError(f"{error}; the server needs: pip install 'flaxzoo[serve]'") from None
    bound = _bound(args.host, args.port)
    models, bounds = {}, Bounds(args.slots, args.batch, args.queue, args.context)
    for folder in args.runs:
        name = pathlib.Path(folder).name
        if name in models:
            raise ZooError(f"two models have the name {name!r}: rename a folder")
        models[name] = served(zoo.load(folder), bounds)
    app = make_app(models, os.environ.get(KEY))
    print(f"serving {', '.join(models)} at http://{args.host}:{args.port}", flush=True)
    many_connections()
    options: Any = {"http": Connection, "timeout_keep_alive": KEEP_ALIVE, "timeout_graceful_shutdown": 600}
    uvicorn.Server(uvicorn.Config(app, log_level="warning", **options)).run(sockets=[bound])


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has its address and does not listen yet. ZooError for an address that cannot be had."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise ZooError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from None
    return found
