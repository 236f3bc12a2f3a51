"""Loads a server with clients: tokens or images per second, and how long a client waits, beside a plainer server.

Each server is a process of its own. They are loaded in turn (A B B A), so that one stands still while the other works.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import http.client
import io
import itertools
import json
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tyro.conf import Positional

import zoo
from benchmarks.timer import RESULTS, append_row, circumstances, matmul_gflops, percentiles_of
from train.settings import at_least
from zoo.errors import ZooError
from zoo.run import located

START = 600.0  # seconds at most until a server answers


@dataclasses.dataclass(frozen=True)
class ServingConfig:
    """Loads a server with clients: tokens or images per second, and how long they wait, beside a plainer server."""

    model: Positional[str]  # a language model or an image classifier, as zoo.load takes it; a GGUF file, a folder
    clients: tuple[int, ...] = (1, 8, 32)  # at once
    requests: int = 1  # of each client, one after the other
    tokens: int = 32  # of each answer of a language model
    slots: int = 8  # of our server
    batch: int = 32  # images in one pass of our server; the other takes one
    rounds: int = 3
    output: str = str(RESULTS / "serving.csv")  # the CSV to append to


class Load(NamedTuple):
    """What clients got: tokens or images, and the seconds until the first and between the others."""

    total: int
    seconds: float
    first: list[float]
    between: list[float]

    @property
    def rate(self) -> float:
        return self.total / self.seconds


def run(config: ServingConfig) -> list[dict[str, Any]]:
    """Loads two servers in turn, prints and appends a row for each number of clients; returns them."""
    for name in ("requests", "tokens", "slots", "batch", "rounds"):
        at_least(name, getattr(config, name), 1)
    if not config.clients or min(config.clients) < 1:
        raise ZooError(f"--clients must be numbers of at least 1, not {config.clients}")
    loaded = zoo.load(config.model)
    images = loaded.inputs.kind == "image"
    common = ["-m", "zoo", "serve", config.model, "--queue", str(max(config.clients))]
    ours = [*common, "--batch", str(config.batch), "--slots", str(config.slots), "--context", "512"]
    other = [*common, "--batch", "1"] if images else ["-m", "benchmarks.serving_peer", str(located(config.model))]
    bodies = image_bodies(loaded.inputs.shape) if images else chat_bodies(config.tokens)
    rows = []
    with serving(ours) as first, serving(other) as second:
        servers = {"ours": first, "other": second}
        for clients in config.clients:
            rows.append(_row(servers, clients, images, bodies, config))
            append_row(pathlib.Path(config.output), rows[-1])
    return rows


def _row(
    servers: dict[str, str], clients: int, images: bool, bodies: Callable[[int], Any], config: ServingConfig
) -> dict[str, Any]:
    """Loads both servers in turn after a round that is not counted."""
    loads: dict[str, list[Load]] = {name: [] for name in servers}
    rates = [matmul_gflops()]
    for round in range(config.rounds + 1):
        for name in list(servers)[:: -1 if round % 2 else 1]:
            given = [bodies(i + 1000 * round) for i in range(clients * config.requests)]
            found = load(servers[name], clients, given, images)
            if round:
                loads[name].append(found)
    rates.append(matmul_gflops())
    ours, other = ([one.rate for one in loads[name]] for name in servers)
    low, ratio, high = percentiles_of(np.divide(ours, other))
    row: dict[str, Any] = {"model": pathlib.Path(config.model).name, "clients": clients, "requests": config.requests}
    row |= {"unit": "images" if images else "tokens", "tokens": "" if images else config.tokens}
    row |= {"slots": "" if images else config.slots, "batch": config.batch if images else "", "rounds": config.rounds}
    for name, own in loads.items():
        row[f"{name}_per_s"] = percentiles_of([one.rate for one in own])[1]
        for kind in ("first", "between"):
            values = [1e3 * value for one in own for value in getattr(one, kind)]
            for share in (50, 99):
                row[f"{name}_{kind}_p{share}_ms"] = float(np.percentile(values, share)) if values else ""
    row |= {"ratio": ratio, "ratio_p10": low, "ratio_p90": high}
    row |= {"gflops_before": rates[0], "gflops_after": rates[1], **circumstances()}
    said = ", ".join(f"{name} {row[f'{name}_per_s']:.1f} {row['unit']}/s" for name in loads)
    print(f"{row['model']}, {clients} clients: {said}; {ratio:.2f} times ({low:.2f} to {high:.2f})", flush=True)
    return row


def table(path: pathlib.Path = RESULTS / "serving.csv") -> str:
    """The newest row of each model and number of clients, in Markdown."""
    with path.open(newline="") as file:
        rows = {(row["model"], int(row["clients"])): row for row in csv.DictReader(file)}
    lines = [
        "| model | clients | a second | other, a second | times | first, ms | other | between, ms | other |",
        "|---" * 9 + "|",
    ]
    for (model, clients), row in sorted(rows.items()):
        rates = (f"{float(row[f'{name}_per_s']):.1f} {row['unit']}" for name in ("ours", "other"))
        low, ratio, high = (f"{float(row[name]):.2f}" for name in ("ratio_p10", "ratio", "ratio_p90"))
        kinds = ("first", "between")
        waits = (_shares(row, f"{name}_{kind}") for kind in kinds for name in ("ours", "other"))
        lines.append(
            f"| `{model}` | {clients} | {' | '.join(rates)} | {ratio} ({low} to {high}) | {' | '.join(waits)} |"
        )
    return "\n".join(lines)


def _shares(row: dict[str, str], name: str) -> str:
    """Median and 99th percentile."""
    values = [row[f"{name}_p{share}_ms"] for share in (50, 99)]
    return " / ".join(f"{float(value):,.0f}" for value in values) if all(values) else ""


def load(address: str, clients: int, bodies: Sequence[Any], images: bool) -> Load:
    """Shares the requests out to clients, each of which sends its own one after the other."""

    def ask(client: int) -> tuple[int, list[float], list[float]]:
        count = 0
        first: list[float] = []
        between: list[float] = []
        session = http.client.HTTPConnection(address.removeprefix("http://"), timeout=600)
        for body in bodies[client::clients]:
            begun = time.perf_counter()
            times, new = _classified(session, body) if images else _streamed(session, body)
            count += new
            first.append(times[0] - begun)
            between += np.diff(times).tolist()
        session.close()
        return count, first, between

    begun = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(ask, range(clients)))
    seconds = time.perf_counter() - begun
    counts, first, between = zip(*found, strict=True)
    return Load(sum(counts), seconds, [*itertools.chain(*first)], [*itertools.chain(*between)])


def _classified(session: http.client.HTTPConnection, body: bytes) -> tuple[list[float], int]:
    """The time at which an answer came, and the number of its images."""
    session.request("POST", "/predict", body, {"content-type": "image/png"})
    found = session.getresponse()
    content = found.read()
    if found.status != 200:
        raise ZooError(f"a server answered {found.status}: {content[:200]!r}")
    return [time.perf_counter()], 1


def _streamed(session: http.client.HTTPConnection, body: Any) -> tuple[list[float], int]:
    """The times at which pieces of an answer came, and the number of its tokens."""
    times, count = [], 0
    session.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    found = session.getresponse()
    if found.status != 200:
        raise ZooError(f"a server answered {found.status}: {found.read()[:200]!r}")
    for line in found:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event["choices"] and event["choices"][0]["delta"].get("content"):
            times.append(time.perf_counter())
        count = (event.get("usage") or {}).get("completion_tokens", count)
    return times, count


def chat_bodies(tokens: int) -> Callable[[int], Any]:
    """Bodies of chats, each with a question of its own, answered greedily."""
    options = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "max_tokens": tokens}

    def body(number: int) -> Any:
        question = f"Tell me {number % 97 + 2} facts about the sea, and {number} about the sky."
        return {"messages": [{"role": "user", "content": question}], **options}

    return body


def image_bodies(shape: tuple[int, ...]) -> Callable[[int], Any]:
    """PNGs of noise, each another one."""
    from PIL import Image

    def body(number: int) -> Any:
        pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "PNG")
        return file.getvalue()

    return body


@contextlib.contextmanager
def serving(command: list[str]) -> Iterator[str]:
    """The address of a server in a process of its own, once it answers. ZooError if it ends before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    port_flag = [str(port)] if "benchmarks.serving_peer" in command else ["--port", str(port)]
    process = subprocess.Popen([sys.executable, *command, *port_flag], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > end:
                raise ZooError(f"the server did not start: python {' '.join(command)}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _answers(port: int) -> bool:
    session = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        session.request("GET", "/health")
        return session.getresponse().status == 200
    except OSError:
        return False
    finally:
        session.close()
