"""The server's one-shot models, and the connections of clients that do not behave."""

import base64
import concurrent.futures
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import jax
import numpy as np
import openai
import pytest
from PIL import Image
from serving import serving, until

import zoo
from zoo.decode import source_attention, translate
from zoo.explain import explain
from zoo.inputs.pairs import PairInputs
from zoo.inputs.text import TextInputs, learn
from zoo.run import Run
from zoo.serve import connection
from zoo.serve.bodies import Limits

JSON = {"content-type": "application/json"}
TEXTS = ["the cat sat", "a dog ran far", "the end"]


def drawn(name, inputs, **fields):
    model = zoo.create_model(name, **fields)
    args, kwargs = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), inputs.example())
    return Run(model, jax.jit(model.init)(jax.random.key(0), *args, **kwargs), inputs)


@pytest.fixture(scope="module")
def runs():
    texts = learn("wordpiece", TEXTS, 60, 40, ("bad", "good"))
    size = {"vocab_size": texts.vocab_size, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 32}
    pairs = PairInputs(TextInputs("char", " acdehnorst", 12), TextInputs("char", "xyz", 6))
    sides = {"vocab_size": 7, "source_vocab_size": 15, "hidden_size": 8, "embedding_size": 6}
    return {
        "digits": zoo.load("lenet5"),
        "mood": drawn("bert_base", texts, **size, max_length=40, num_classes=2),
        "masked": drawn("bert_base", learn("wordpiece", TEXTS, 60, 40), **size, max_length=40, output="tokens"),
        "vectors": drawn("bge_small", learn("wordpiece", TEXTS, 60, 40), **size, max_length=40),
        "pairs": drawn("seq2seq_lstm_luong", pairs, **sides, num_layers=1),
        "plain": drawn("seq2seq_lstm", pairs, **sides, num_layers=1),
    }


@pytest.fixture(scope="module")
def server(runs):
    with serving(runs, batch=4, limits=Limits(pixels=2**20)) as (address, models):
        yield address, models


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def stroke(column=14):
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, column - 1 : column + 2] = 255
    return png(pixels)


def encoded(content):
    return base64.b64encode(content).decode()


def post(server, path, status=200, **body):
    found = httpx.post(server[0] + path, json=body, timeout=60)
    assert found.status_code == status, found.text
    return found.json()


def test_an_image_has_the_labels_of_its_model(server, runs):
    run, content = runs["digits"], stroke()
    wanted = jax.nn.softmax(run.model.apply(run.variables, run.inputs.encode(content)[None])[0])
    for image in (encoded(content), "data:image/png;base64," + encoded(content)):
        (found,) = post(server, "/predict", images=[image], model="digits", top_k=2)["predictions"]
        assert found["labels"][0]["label"] == "1"
        assert len(found["labels"]) == 2
        np.testing.assert_allclose(found["labels"][0]["probability"], wanted[1], atol=1e-5)
    raw = httpx.post(
        f"{server[0]}/predict?model=digits&top_k=1&explain=true", content=content, headers={"content-type": "image/png"}
    ).json()
    assert [label["label"] for label in raw["predictions"][0]["labels"]] == ["1"]
    assert "grad_cam" in raw["predictions"][0]


def test_an_explanation_is_grad_cam_and_pictures_of_the_maps(server, runs):
    content = stroke()
    (found,) = post(server, "/predict", images=[encoded(content)], model="digits", explain=True)["predictions"]
    _, heat, _ = explain(runs["digits"], runs["digits"].inputs.pixels(content)[None])
    np.testing.assert_allclose(found["grad_cam"], heat[0] / heat.max(), atol=2e-3)
    assert set(found["features"]) == {"stage1", "stage2"}
    for stage in found["features"].values():
        picture = Image.open(io.BytesIO(base64.b64decode(stage["png"].partition(",")[2])))
        height, width, channels = stage["shape"]
        assert picture.size == (width * min(channels, 16), height)


def test_many_clients_share_batches_and_each_gets_its_own_answer(server, runs):
    model, sizes = server[1]["digits"], []
    run = model.rows.run
    model.rows.run = lambda rows: sizes.append(len(rows)) or run(rows)
    images = [stroke(column) for column in range(4, 25)]
    alone = [post(server, "/predict", images=[encoded(one)], model="digits")["predictions"] for one in images]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = pool.map(
            lambda one: post(server, "/predict", images=[encoded(one)], model="digits")["predictions"], images * 3
        )
    model.rows.run = run
    for one, other in zip(found, alone * 3, strict=True):
        assert [label["label"] for label in one[0]["labels"]] == [label["label"] for label in other[0]["labels"]]
        probabilities = [[label["probability"] for label in either[0]["labels"]] for either in (one, other)]
        np.testing.assert_allclose(*probabilities, atol=1e-5)
    assert 1 < max(sizes) <= 4
    together = post(server, "/predict", images=[*map(encoded, images)], model="digits")["predictions"]
    assert [one["labels"][0]["label"] for one in together] == [one[0]["labels"][0]["label"] for one in alone]


def test_texts_have_labels_and_masks_have_tokens(server, runs):
    run = runs["mood"]
    found = post(server, "/predict", texts=TEXTS, model="mood")["predictions"]
    args, kwargs = run.inputs.arguments(run.inputs.batch(TEXTS))
    wanted = jax.nn.softmax(run.model.apply(run.variables, *args, **kwargs))
    for one, row in zip(found, np.asarray(wanted), strict=True):
        assert {label["label"] for label in one["labels"]} == {"bad", "good"}
        by_name = {label["label"]: label["probability"] for label in one["labels"]}
        np.testing.assert_allclose([by_name["bad"], by_name["good"]], row, atol=1e-5)
    (found,) = post(server, "/predict", texts=["the [MASK] sat [MASK]"], model="masked", top_k=1)["predictions"]
    assert len(found["masks"]) == 2
    assert found["labels"] == found["masks"][0]
    post(server, "/predict", 400, texts=["no mask", "the [MASK]"], model="masked")


def test_embeddings_are_the_models_by_openais_client(server, runs):
    client = openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)
    run = runs["vectors"]
    args, kwargs = run.inputs.arguments(run.inputs.batch(TEXTS))
    wanted = np.asarray(run.model.apply(run.variables, *args, **kwargs))
    for form in ("float", "base64"):
        found = client.embeddings.create(model="vectors", input=TEXTS, encoding_format=form)
        vectors = [one.embedding for one in found.data]
        if form == "base64":
            vectors = [np.frombuffer(base64.b64decode(one), "<f4") for one in vectors]
        np.testing.assert_allclose(vectors, wanted, atol=1e-5)
    assert found.usage.prompt_tokens == sum(len(run.inputs.encode(text)) for text in TEXTS)
    assert len(client.embeddings.create(model="vectors", input="the cat").data) == 1
    with pytest.raises(openai.BadRequestError, match="more than the model's 40"):
        client.embeddings.create(model="vectors", input="cat " * 50)


def test_targets_are_those_of_beam_search_with_their_attention(server, runs):
    run, texts = runs["pairs"], ["the cat", "a dream", "the rest is"[:9]]
    found = post(server, "/translate", texts=["the cat", "one rose", "dart"], model="pairs", attention=True)
    wanted = translate(run, ["the cat", "one rose", "dart"])
    assert [one["text"] for one in found["translations"]] == [best.text for (best,) in wanted]
    one, inputs = found["translations"][0], run.inputs
    tokens, target = inputs.encode("the cat"), inputs.tokens(inputs.target, one["text"]) if one["text"] else None
    target = np.array([inputs.end], np.int32) if target is None else target[: inputs.target.length]
    batch = {"source": tokens[None], "source_length": np.array([len(tokens)]), "target": target[None]}
    args, kwargs = inputs.arguments(batch)
    _, changed = run.model.apply(run.variables, *args, **kwargs, mutable=["features"])
    np.testing.assert_allclose(one["attention"]["weights"], source_attention(changed["features"])[0], atol=1e-3)
    assert one["attention"]["source"] == [*"the cat", "</s>"]
    assert len(one["attention"]["target"]) == len(target)
    post(server, "/translate", 400, texts=texts, model="plain", attention=True)  # it has none


BOMB = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x75\x30\0\0\x75\x30\x08\0\0\0\0"  # 30,000 pixels a side
WRONG = [
    ("/predict", {"model": "digits"}, 400, "images"),
    ("/predict", {"model": "digits", "images": []}, 400, "images"),
    ("/predict", {"model": "digits", "images": ["/etc/passwd"]}, 400, "images"),
    ("/predict", {"model": "digits", "images": ["file:///etc/passwd"]}, 400, "images"),
    ("/predict", {"model": "digits", "images": [encoded(b"no image")]}, 400, "images"),
    ("/predict", {"model": "digits", "images": [encoded(stroke()[:60])]}, 400, "images"),
    ("/predict", {"model": "digits", "images": [encoded(png(np.zeros((2000, 1000), np.uint8)))]}, 413, "images"),
    ("/predict", {"model": "digits", "images": [encoded(stroke())] * 65}, 400, "images"),
    ("/predict", {"model": "digits", "images": [encoded(stroke())], "top_k": 0}, 400, "top_k"),
    ("/predict", {"model": "digits", "images": [encoded(stroke())], "explain": "yes"}, 400, "explain"),
    ("/predict", {"model": "digits", "images": [encoded(stroke())], "colour": 1}, 400, "colour"),
    ("/predict", {"model": "digits", "texts": ["a"]}, 400, "images"),
    ("/predict", {"model": "mood", "texts": ["a"], "explain": True}, 400, "explain"),
    ("/predict", {"model": "mood", "texts": "a"}, 400, "texts"),
    ("/predict", {"texts": ["a"]}, 404, "model"),
    ("/predict", {"model": "pairs", "texts": ["a"]}, 400, "model"),
    ("/translate", {"model": "pairs", "texts": [" "]}, 400, "texts"),
    ("/translate", {"model": "pairs", "texts": ["c" * 30]}, 400, "texts"),
    ("/translate", {"model": "pairs", "texts": ["Q"], "attention": 1}, 400, "attention"),
    ("/v1/embeddings", {"model": "vectors", "input": []}, 400, "input"),
    ("/v1/embeddings", {"model": "vectors", "input": ["a"], "encoding_format": "xml"}, 400, "encoding_format"),
    ("/v1/chat/completions", {"model": "digits", "messages": []}, 400, "model"),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_a_mistake_is_an_error_object(server, path, body, status, param):
    error = post(server, path, status, **body)["error"]
    assert error["param"] == param
    assert "\n" not in error["message"]


def test_bodies_that_cost_too_much_are_refused_unread(server):
    bomb = httpx.post(f"{server[0]}/predict?model=digits", content=BOMB, headers={"content-type": "image/png"})
    assert bomb.status_code in (400, 413)
    host, port = server[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:  # 2 GB, of which 16 MB are sent
        head = f"POST /predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {2**31}"
        client.sendall(head.encode() + b"\r\n\r\n")
        client.sendall(b" " * (Limits().body + 1))
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")
    post(server, "/predict", images=[encoded(stroke())], model="digits")


def test_a_full_queue_answers_429_and_a_failing_model_503(runs):
    with serving({"digits": runs["digits"]}, batch=1, waiting=0) as server:
        rows, goes = server[1]["digits"].rows, threading.Event()
        run = rows.run
        rows.run = lambda pieces: goes.wait(30) and run(pieces)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            first = pool.submit(post, server, "/predict", images=[encoded(stroke())])
            assert until(lambda: rows.pending)
            found = httpx.post(f"{server[0]}/predict", json={"images": [encoded(stroke())]})
            assert (found.status_code, found.headers["retry-after"]) == (429, "1")
            goes.set()
            assert first.result()["predictions"]

        goes.clear()
        rows.run = lambda pieces: goes.wait(30) and run(pieces)
        with pytest.raises(httpx.ReadTimeout):  # a client that leaves makes room
            httpx.post(f"{server[0]}/predict", json={"images": [encoded(stroke())]}, timeout=0.2)
        assert until(lambda: not rows.pending)
        goes.set()

        def fails(pieces):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

        rows.run = fails
        assert "RESOURCE_EXHAUSTED" in post(server, "/predict", 503, images=[encoded(stroke())])["error"]["message"]
        rows.run = run
        post(server, "/predict", images=[encoded(stroke())])
        assert "zoo_rows_total" in httpx.get(f"{server[0]}/metrics").text


def test_connections_that_say_nothing_are_closed_and_hinder_nobody(runs, monkeypatch):
    monkeypatch.setattr(connection, "HEAD", 1.0)
    connection.many_connections()
    with serving({"digits": runs["digits"]}, batch=1) as server:
        host, port = server[0].removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port)), timeout=20) for _ in range(1000)]
        for client in idle[::2]:
            client.sendall(b"POST /predict HTTP/1.1\r\nx: ")
        post(server, "/predict", images=[encoded(stroke())])
        for client in idle:
            assert client.recv(1000) in (b"",) or client.recv(1000) == b""
            client.close()
        with httpx.Client() as kept:  # a client that is slow between requests is not meant
            for _ in range(2):
                assert kept.get(f"{server[0]}/health").status_code == 200
                time.sleep(1.5)


def test_sigterm_ends_the_server_after_the_answers_under_way(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "zoo", "serve", "lenet5", "--batch", "4", "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    try:
        address = f"http://127.0.0.1:{port}"

        def up():
            try:
                return httpx.get(f"{address}/health").status_code == 200
            except httpx.HTTPError:
                return False

        assert until(up, 120)
        images = {"images": [encoded(stroke())] * 64, "explain": True}
        with concurrent.futures.ThreadPoolExecutor() as pool:
            answer = pool.submit(httpx.post, f"{address}/predict", json=images, timeout=60)
            assert until(lambda: 'zoo_pending_requests{model="lenet5"} 0.0' not in httpx.get(f"{address}/metrics").text)
            process.send_signal(signal.SIGTERM)
            assert answer.result().status_code == 200
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()


@pytest.mark.slow
def test_no_request_of_a_soak_is_lost():
    command = [sys.executable, "-m", "tests.soak", "--requests", "2000", "--seed", "1"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stdout
    assert "; 0 lost or wrong" in found.stdout
    memory = [float(one) for one in found.stdout.splitlines()[-1].split("tenth:")[1].split()]
    assert memory[-1] < 1.1 * memory[len(memory) // 2]
