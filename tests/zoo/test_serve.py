"""`python -m zoo serve`, by the real client of OpenAI's protocol and by hand: answers, limits, mistakes."""

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import socket

import httpx
import jax
import numpy as np
import openai
import pytest
from serving import serving, until

import zoo
from zoo.__main__ import main
from zoo.decode import Conversation, generate_samples
from zoo.inputs.text import TextInputs
from zoo.run import Run
from zoo.serve.bodies import Limits

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
SYMBOLS = "\n :?abcdefghijklmnopqrstuvwxyz"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def run():
    inputs = dataclasses.replace(TextInputs(length=64, tokenizer="char", vocabulary=SYMBOLS), chat_template=TEMPLATE)
    model = zoo.create_model("gpt2", vocab_size=len(SYMBOLS), hidden_size=32, num_layers=1, num_heads=2, max_length=512)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    return Run(model, jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 1 else leaf, variables), inputs)


@contextlib.contextmanager
def serving_one(run, **options):
    """The address of a server of one language model, and its worker."""
    with serving({"tiny": run}, **{"slots": 3, "context": 400, **options}) as (address, models):
        yield address, models["tiny"].worker


@pytest.fixture(scope="module")
def server(run):
    with serving_one(run) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)


def test_a_completion_is_the_text_that_the_model_generates(client, run):
    assert [model.id for model in client.models.list()] == ["tiny"]
    for options in ({"temperature": 0}, {"temperature": 0.9, "seed": 3}, {"top_p": 0.6, "seed": 4}):
        found = client.completions.create(model="tiny", prompt="hello", max_tokens=20, **options)
        assert found.choices[0].text == zoo.generate(run, "hello", 20, **options)
        assert found.choices[0].finish_reason == "length"
        assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (5, 20, 25)
    several = client.completions.create(model="tiny", prompt=["a", [5, 6]], n=2, seed=7, max_tokens=4)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[1].text == zoo.generate(run, "a", 4, seed=8)


def test_a_streamed_chat_is_the_answer_of_a_conversation(client, run):
    whole = "".join(Conversation(run, "be kind", length=30).ask("hello"))
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    ]
    options = {"model": "tiny", "messages": messages, "temperature": 0, "max_completion_tokens": 30}
    assert client.chat.completions.create(**options).choices[0].message.content == whole
    chunks = [*client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 30
    assert len(chunks) > 10  # token by token


def test_a_stop_string_ends_the_text_before_it(client, run):
    whole = zoo.generate(run, "hello", 30, temperature=0)
    stop = whole[7:9]
    found = client.completions.create(model="tiny", prompt="hello", max_tokens=30, temperature=0, stop=[stop])
    assert found.choices[0].text == whole[: whole.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    options = {"model": "tiny", "prompt": "hello", "max_tokens": 30, "temperature": 0, "stop": stop, "stream": True}
    assert (
        "".join(chunk.choices[0].text for chunk in client.completions.create(**options)) == whole[: whole.index(stop)]
    )


def test_log_probabilities_are_the_models(client, run):
    wanted = generate_samples(run, "hello", 1, 5, seed=2)[0]
    found = client.completions.create(model="tiny", prompt="hello", max_tokens=5, seed=2, logprobs=3).choices[0]
    np.testing.assert_allclose(found.logprobs.token_logprobs, wanted.log_probabilities, atol=1e-4)
    assert "".join(found.logprobs.tokens) == wanted.text
    assert [len(row) for row in found.logprobs.top_logprobs] == [3] * 5
    options = {"model": "tiny", "messages": HELLO, "max_tokens": 4, "seed": 2, "logprobs": True, "top_logprobs": 2}
    content = client.chat.completions.create(**options).choices[0].logprobs.content
    assert len(content) == 4
    assert all(len(one.top_logprobs) == 2 and one.top_logprobs[0].logprob <= 0 for one in content)
    assert math.exp(content[0].top_logprobs[0].logprob) <= 1


def test_many_clients_get_what_each_gets_alone(client, run):
    def ask(number):
        prompt = "abcdefghij"[: number % 9 + 1]
        found = client.completions.create(model="tiny", prompt=prompt, max_tokens=5 + number % 7, seed=number)
        return found.choices[0].text == zoo.generate(run, prompt, 5 + number % 7, seed=number)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(36)))


WRONG = [
    ({"prompt": "UPPER"}, "prompt"),
    ({"prompt": ""}, None),
    ({"prompt": "a" * 500}, None),
    ({"prompt": [999]}, None),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({}, "prompt"),
    ({"prompt": "a", "temperature": -1}, "temperature"),
    ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 2.5}, "max_tokens"),
    ({"prompt": "a", "n": 1000}, "n"),
    ({"prompt": "a", "seed": True}, "seed"),
    ({"prompt": "a", "stop": [""]}, "stop"),
    ({"prompt": "a", "logprobs": 99}, "logprobs"),
    ({"prompt": "a", "stream": "yes"}, "stream"),
    ({"prompt": "a", "presence_penalty": 1.0}, "presence_penalty"),
    ({"prompt": "a", "colour": "red"}, "colour"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[json.dumps(body)[:40] for body, _ in WRONG])
def test_a_mistake_is_an_error_object_that_names_the_parameter(server, body, param):
    found = httpx.post(f"{server[0]}/v1/completions", json={"model": "tiny", **body})
    assert found.status_code == 400
    error = found.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert "\n" not in error["message"]
    assert until(lambda: not server[1].pending)


def test_bodies_that_are_no_request_are_refused(server, client):
    address = f"{server[0]}/v1/chat/completions"
    as_json = {"content-type": "application/json"}
    assert httpx.post(address, content=b"{", headers=as_json).status_code == 400
    assert httpx.post(address, content=b"[" * 100_000, headers=as_json).status_code == 400
    assert httpx.post(address, content=b"[1]", headers=as_json).status_code == 400
    assert httpx.post(address, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert httpx.post(address, content=b"x" * (2**24 + 1), headers=as_json).status_code == 413
    assert httpx.get(address).status_code == 405
    assert httpx.get(f"{server[0]}/etc/passwd").status_code == 404
    assert httpx.get(f"{server[0]}/..%2f..%2fetc/passwd").json()["error"]["message"].startswith("no GET /")
    for messages in ([], "hello", [{"role": "user"}], [{"content": "hello"}], [{"role": "user", "content": [{}]}]):
        found = httpx.post(address, json={"model": "tiny", "messages": messages})
        assert (found.status_code, found.json()["error"]["param"]) == (400, "messages")
    with pytest.raises(openai.NotFoundError, match="unknown model 'other'; there are tiny"):
        client.chat.completions.create(model="other", messages=HELLO)


def test_a_client_that_leaves_frees_its_slot(server, client):
    worker = server[1]
    stream = client.completions.create(model="tiny", prompt="a", max_tokens=390, stream=True)
    next(iter(stream))
    stream.close()
    assert until(lambda: not worker.pending and not worker.slots.busy)
    with pytest.raises(httpx.ReadTimeout):  # also where the answer comes at once
        httpx.post(
            f"{server[0]}/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 390}, timeout=0.05
        )
    assert until(lambda: not worker.pending and not worker.slots.busy)


def test_a_full_queue_answers_429(run):
    with serving_one(run, slots=1, waiting=0) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="tiny", prompt="a", max_tokens=390, stream=True)
        next(iter(stream))
        body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
        found = httpx.post(f"{address}/v1/completions", json=body)
        assert (found.status_code, found.headers["retry-after"]) == (429, "1")
        stream.close()
        assert until(lambda: httpx.post(f"{address}/v1/completions", json=body).status_code == 200)


def test_a_model_that_fails_answers_503_and_lives_on(run, monkeypatch):
    with serving_one(run) as (address, worker):
        body, step = {"model": "tiny", "prompt": "a", "max_tokens": 3, "temperature": 0}, worker.slots.step

        def fails():
            monkeypatch.setattr(worker.slots, "step", step)
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

        monkeypatch.setattr(worker.slots, "step", fails)
        found = httpx.post(f"{address}/v1/completions", json=body)
        assert found.status_code == 503
        assert "RESOURCE_EXHAUSTED" in found.json()["error"]["message"]
        found = httpx.post(f"{address}/v1/completions", json=body).json()
        assert found["choices"][0]["text"] == zoo.generate(run, "a", 3, temperature=0)


def test_an_answer_that_takes_too_long_is_ended(run):
    with serving_one(run, limits=Limits(time=0.0)) as (address, worker):
        found = httpx.post(f"{address}/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 390})
        assert found.status_code == 504
        assert until(lambda: not worker.pending)


def test_a_key_is_needed_where_one_is_set(run):
    with serving_one(run, key="secret") as (address, _):
        for key, error in (("secret", None), ("wrong", openai.AuthenticationError)):
            client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
            with pytest.raises(error) if error else contextlib.nullcontext():
                client.completions.create(model="tiny", prompt="a", max_tokens=1)
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}


def test_metrics_count_requests_and_tokens(run):
    with serving_one(run) as (address, _):
        httpx.post(f"{address}/v1/completions", json={"model": "tiny", "prompt": "abc", "max_tokens": 4})
        httpx.post(f"{address}/v1/completions", json={"model": "other"})
        lines = httpx.get(f"{address}/metrics").text.splitlines()
        assert 'zoo_tokens_total{kind="prompt"} 3.0' in lines
        assert 'zoo_tokens_total{kind="generated"} 4.0' in lines
        assert 'zoo_requests_total{route="/v1/completions",status="200"} 1.0' in lines
        assert 'zoo_requests_total{route="/v1/completions",status="404"} 1.0' in lines
        assert 'zoo_pending_requests{model="tiny"} 0.0' in lines


def test_the_command_refuses_what_it_cannot_serve(capsys):
    assert main(["serve", "lenet5", "--port", "70000"]) == 2
    assert "--port must be from 1 to 65535, not 70000" in capsys.readouterr().err
    assert main(["serve", "lenet5", "--batch", "0"]) == 2
    assert "--batch must be at least 1, not 0" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "lenet5", "--port", str(port)]) == 2
        assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err
    assert main(["serve", "lenet5", "--host", "nowhere.invalid"]) == 2
    assert "cannot listen at nowhere.invalid" in capsys.readouterr().err
