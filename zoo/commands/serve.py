"""python -m zoo serve: language models over HTTP."""

import argparse
import os
import pathlib
from typing import Any

import zoo
from zoo.errors import ZooError

KEY = "FLAXZOO_API_KEY"
KEEP_ALIVE = 60  # seconds; clients close idle connections earlier, so that no request meets one that is closing


def add(commands: Any) -> None:
    command = commands.add_parser(
        "serve",
        help="serve language models over HTTP, by OpenAI's protocol",
        description="A model's name is the last part of its folder's or file's. SIGTERM ends the server after the "
        f"answers that are under way. With the environment variable {KEY} set, clients must send it as their API key.",
    )
    command.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or published language models")
    command.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: this machine alone)")
    command.add_argument("--port", type=int, default=8000)
    command.add_argument("--slots", type=int, default=8, help="requests that a model answers at once")
    command.add_argument("--queue", type=int, default=64, help="requests that may wait; others get status 429")
    command.add_argument("--context", type=int, default=2048, help="the most tokens of a prompt with its answer")
    command.set_defaults(run=serve)


def serve(args: argparse.Namespace) -> None:
    """Serves until SIGINT or SIGTERM; every program is compiled before the port opens."""
    if not 0 < args.port < 65536:
        raise ZooError(f"--port must be from 1 to 65535, not {args.port}")
    if args.queue < 0:
        raise ZooError(f"--queue must be at least 0, not {args.queue}")
    try:
        import uvicorn

        from zoo.serve.app import make_app
    except ImportError as error:
        raise ZooError(f"{error}; the server needs: pip install 'flaxzoo[serve]'") from None
    models = {}
    for folder in args.runs:
        name = pathlib.Path(folder).name
        if name in models:
            raise ZooError(f"two models have the name {name!r}: rename a folder")
        models[name] = served(zoo.load(folder), args.slots, args.queue, args.context)
    app = make_app(models, os.environ.get(KEY))
    print(f"serving {', '.join(models)} at http://{args.host}:{args.port}/v1", flush=True)
    timeouts: Any = {"timeout_keep_alive": KEEP_ALIVE, "timeout_graceful_shutdown": 600}
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", **timeouts)


def served(run: Any, slots: int, waiting: int, context: int) -> Any:
    """A loaded language model with its thread, compiled. ZooError for another model."""
    from zoo.decode import Slots
    from zoo.serve.app import Served
    from zoo.serve.worker import Worker

    inputs = run.inputs
    if not hasattr(run.model, "init_state") or not hasattr(inputs, "gaps"):
        raise ZooError(f"{type(run.model).__name__} is not a language model, and others are not served yet")
    banned = (*inputs.gaps, *range(inputs.vocab_size, run.model.vocab_size))
    made = Slots(run.model, run.variables, slots=slots, context=context, banned=banned)
    made.compile()
    return Served(inputs, Worker(made, waiting))
