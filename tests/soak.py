"""Many clients of one server, a tenth of whose requests are broken or cut off: `python -m tests.soak --requests 20000`.

Each request that is not cut off must get the status that it deserves, and each that is right the answer that the server
gave to the same request at first, alone. Prints the counts, and the server's memory as the requests go on.
"""

import argparse
import base64
import collections
import concurrent.futures
import contextlib
import io
import json
import pathlib
import random
import socket
import subprocess
import sys
import time

import httpx
import jax
import numpy as np
import uvicorn
from PIL import Image

import zoo
from zoo.inputs.pairs import PairInputs
from zoo.inputs.text import TextInputs, learn
from zoo.run import Run
from zoo.serve.app import make_app
from zoo.serve.connection import Connection, many_connections
from zoo.serve.models import Bounds, served

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"
SYMBOLS = "\n :?abcdefghijklmnopqrstuvwxyz"
TEXTS = ["the cat sat", "a dog ran far", "the end"]
CLIENTS, POINTS = 16, 10


def drawn(name, inputs, **fields):
    model = zoo.create_model(name, **fields)
    args, kwargs = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), inputs.example())
    return Run(model, jax.jit(model.init)(jax.random.key(0), *args, **kwargs), inputs)


def runs():
    """A model of each kind."""
    language = TextInputs(length=64, tokenizer="char", vocabulary=SYMBOLS, chat_template=TEMPLATE)
    size = {"hidden_size": 32, "num_layers": 1, "num_heads": 2}
    texts, labelled = (learn("wordpiece", TEXTS, 60, 40, labels) for labels in ((), ("bad", "good")))
    pairs = PairInputs(TextInputs("char", " acdehnorst", 12), TextInputs("char", "xyz", 6))
    sides = {"vocab_size": 7, "source_vocab_size": 15, "hidden_size": 8, "embedding_size": 6, "num_layers": 1}
    encoder = {**size, "vocab_size": texts.vocab_size, "mlp_size": 32, "max_length": 40}
    return {
        "digits": zoo.load("lenet5"),
        "tiny": drawn("gpt2", language, **size, vocab_size=len(SYMBOLS), max_length=512),
        "mood": drawn("bert_base", labelled, **encoder, num_classes=2),
        "vectors": drawn("bge_small", texts, **encoder),
        "pairs": drawn("seq2seq_lstm_luong", pairs, **sides),
    }


def image(column):
    pixels, file = np.zeros((28, 28), np.uint8), io.BytesIO()
    pixels[4:24, column : column + 3] = 255
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def right(draw):
    """A request that deserves an answer: its path and body."""
    prompt = "abcdefghijklmnopqrstuvwxyz"[: draw.randrange(1, 27)]
    some = {"max_tokens": draw.randrange(1, 24), "temperature": draw.choice([0, 1]), "seed": draw.randrange(3)}
    texts = draw.sample(TEXTS, draw.randrange(1, 4))
    explain, sources = draw.random() < 0.2, ["the cat", "one rose"][: draw.randrange(1, 3)]
    return draw.choice(
        [
            ("/v1/completions", {"model": "tiny", "prompt": prompt, **some}),
            ("/v1/completions", {"model": "tiny", "prompt": prompt, **some, "stream": True}),
            ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": prompt}], **some}),
            ("/predict", {"model": "digits", "images": [image(draw.randrange(25))], "explain": explain}),
            ("/predict", {"model": "mood", "texts": texts}),
            ("/v1/embeddings", {"model": "vectors", "input": texts}),
            ("/translate", {"model": "pairs", "texts": sources, "attention": explain}),
        ]
    )


WRONG = [  # path, body, status
    ("/v1/completions", b"{", 400),
    ("/v1/completions", b'{"model": "tiny", "prompt": "UPPER"}', 400),
    ("/v1/completions", b'{"model": "other"}', 404),
    ("/v1/completions", json.dumps({"model": "tiny", "prompt": "a" * 900}).encode(), 400),
    ("/v1/chat/completions", b'{"model": "tiny", "messages": [], "temperature": 9}', 400),
    ("/predict", b'{"model": "digits", "images": ["/etc/passwd"]}', 400),
    ("/predict", b'{"model": "mood", "texts": [1]}', 400),
    ("/translate", b'{"model": "pairs", "texts": ["' + b"c" * 99 + b'"]}', 400),
    ("/nothing", b"{}", 404),
]


def content(found):
    """What of an answer is the same each time."""
    if found.headers["content-type"].startswith("text/event-stream"):
        events = [json.loads(line[6:]) for line in found.text.splitlines() if line.startswith("data: {")]
        return "".join(choice["text"] for event in events for choice in event["choices"])
    return {name: value for name, value in found.json().items() if name not in ("id", "created")}


def near(one, other):
    """Whether two answers are the same; numbers, which may come from batches of other sizes, up to rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 2e-3
    return one == other or (isinstance(one, str) and one.startswith("data:image"))


def cut(address, path, body, draw):
    """Sends a request and goes away: in its middle, before its answer, or after some of it."""
    host, port = address.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    sent = head.encode() + data
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(sent[: draw.choice([len(sent), len(sent), draw.randrange(len(sent))])])
        if draw.random() < 0.5:
            client.settimeout(0.02)
            with contextlib.suppress(TimeoutError):
                client.recv(100)


class Soak:
    """The requests of one number each, and what became of them."""

    def __init__(self, address, seed):
        self.address, self.seed, self.first, self.counts = address, seed, {}, collections.Counter()
        self.client = httpx.Client(timeout=120, limits=httpx.Limits(max_connections=CLIENTS))

    def post(self, path, data):
        """The answer, asked for again while the queue is full."""
        while True:
            found = self.client.post(self.address + path, content=data, headers={"content-type": "application/json"})
            if found.status_code != 429:
                return found
            self.counts["429, asked again"] += 1
            time.sleep(0.05)

    def __call__(self, number):
        draw = random.Random(f"{self.seed} {number}")
        kind = draw.random()
        try:
            if kind < 0.05:
                cut(self.address, *right(draw), draw)
                self.counts["cut off"] += 1
                return
            if kind < 0.1:
                path, data, status = draw.choice(WRONG)
                found = self.post(path, data)
                self.counts["broken, refused" if found.status_code == status else "WRONG STATUS"] += 1
                return
            path, body = right(draw)
            data = json.dumps(body).encode()
            found = self.post(path, data)
            if found.status_code != 200:
                self.counts[f"LOST: {found.status_code}"] += 1
                return
            same = near(self.first.setdefault((path, data), content(found)), content(found))
            self.counts["answered" if same else "ANOTHER ANSWER"] += 1
        except Exception as error:
            self.counts[f"LOST: {type(error).__name__}"] += 1


def memory(process):
    """The resident memory of a process, in MiB."""
    lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def soak(requests, seed):
    """The counts of what became of the requests, and the server's memory in MiB after each tenth of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "tests.soak", "--serve", str(port)])
    try:
        one = Soak(f"http://127.0.0.1:{port}", seed)
        while True:
            try:
                httpx.get(f"{one.address}/health").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        used = []
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            for numbers in np.array_split(np.arange(requests), POINTS):
                list(pool.map(one, numbers.tolist()))
                used.append(memory(process.pid))
                print(f"{numbers[-1] + 1} requests, {used[-1]:.0f} MiB, {dict(one.counts)}", flush=True)
        lines = one.client.get(f"{one.address}/metrics").text.splitlines()
        for _ in range(100):
            pending = [line for line in lines if line.startswith("zoo_pending_requests{") and not line.endswith(" 0.0")]
            if not pending:
                break
            time.sleep(0.1)
            lines = one.client.get(f"{one.address}/metrics").text.splitlines()
        one.counts["NEVER ENDED"] += len(pending)
        return +one.counts, used
    finally:
        process.terminate()
        assert process.wait(60) in (0, -15)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", type=int, metavar="PORT", help="be the server")
    args = parser.parse_args()
    if args.serve:
        many_connections()
        models = {name: served(run, Bounds(slots=4, batch=8, waiting=32, context=400)) for name, run in runs().items()}
        uvicorn.run(make_app(models), port=args.serve, http=Connection, log_level="error", timeout_keep_alive=60)
        return 0
    started = time.monotonic()
    counts, used = soak(args.requests, args.seed)
    bad = sum(count for name, count in counts.items() if name.isupper() or name.startswith("LOST"))
    print(f"{args.requests} requests in {time.monotonic() - started:.0f} s: {dict(counts)}; {bad} lost or wrong")
    print("memory, MiB, after each tenth:", *(f"{one:.0f}" for one in used))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
