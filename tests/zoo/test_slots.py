"""Continuous batching: each request gets what it would get alone, whenever others enter and leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.decode import Request, Sampling, Slots, sample
from zoo.decode.sampling import filtered
from zoo.decode.slots import filtered_rows

VOCABULARY = 50
MODELS = {
    "decoder": ("gpt2", {"num_heads": 2, "max_length": 200, "positions": "rotary"}),
    "learned positions": ("gpt2", {"num_heads": 2, "max_length": 200}),
    "window": ("gpt2", {"num_heads": 2, "max_length": 200, "positions": "rotary", "window": 6}),
    "recurrent": ("gru_lm", {}),
}
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(0.8),
    Sampling(1.3, top_k=5),
    Sampling(1.0, top_p=0.7),
    Sampling(0.9, min_p=0.1, top_k=20),
    Sampling(0, end=3),
]


@pytest.fixture(scope="module", params=MODELS)
def made(request):
    name, fields = MODELS[request.param]
    model = zoo.create_model(name, vocab_size=VOCABULARY, hidden_size=32, num_layers=2, **fields)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    return model, jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 1 else leaf, variables)


def requests(number, seed=0):
    draw = np.random.default_rng(seed)
    return [
        Request(
            draw.integers(0, VOCABULARY, draw.integers(1, 150 if i % 4 == 0 else 12)).astype(np.int32),
            int(draw.integers(1, 20)),
            SAMPLINGS[i % len(SAMPLINGS)],
            seed=i,
        )
        for i in range(number)
    ]


def alone(model, variables, request):
    options = {"sampling": request.sampling, "seed": request.seed}
    pieces = [*sample(model, variables, request.prompt[None], request.length, **options)]
    tokens = np.concatenate(pieces, axis=1)[0].tolist()
    end = request.sampling.end
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def test_each_request_draws_the_tokens_that_it_draws_alone(made):
    slots, wanted = Slots(*made, slots=3, context=200), requests(14)
    for step in range(2000):
        if step % 3 == 0 and step // 3 < len(wanted):  # they enter while others are read and written
            slots.add(wanted[step // 3])
        slots.step()
        assert len(slots.active) <= 3
        if step > 3 * len(wanted) and not slots.busy:
            break
    for request in wanted:
        assert request.tokens == alone(*made, request)
        assert request.reason == ("stop" if request.tokens[-1] == request.sampling.end else "length")


def test_log_probabilities_are_those_of_the_model(made):
    model, variables = made
    request, drawn = Request(np.array([1, 2, 3], np.int32), 5, Sampling(0.5), seed=4), []
    slots = Slots(model, variables, slots=2, context=200)
    slots.add(request)
    while slots.busy:
        drawn += slots.step()
    whole = np.r_[request.prompt, request.tokens].astype(np.int32)
    scores = np.asarray(jax.nn.log_softmax(model.apply(variables, whole[None])[0]))[2:-1]
    np.testing.assert_allclose([one.log_probability for one in drawn], scores[np.arange(5), request.tokens], atol=1e-4)
    for one, row in zip(drawn, scores, strict=True):
        np.testing.assert_allclose(one.best[1], np.sort(row)[::-1][:20], atol=1e-4)
        assert one.best[0][0] == row.argmax()


def test_a_cancelled_request_frees_its_slot_within_a_step(made):
    slots = Slots(*made, slots=1, context=200)
    first, second = Request(np.array([1], np.int32), 100), Request(np.array([2], np.int32), 2)
    slots.add(first)
    slots.add(second)
    for _ in range(3):
        slots.step()
    assert slots.active == [first]
    slots.cancel(first)
    assert [one.request for one in [*slots.step(), *slots.step()]] == [second]
    assert first.reason == "cancelled"
    assert second.tokens
    waiting = Request(np.array([2], np.int32), 2)
    slots.add(waiting)
    slots.cancel(waiting)
    while slots.busy:
        slots.step()
    assert not waiting.tokens


def test_the_next_turn_of_a_conversation_reads_only_what_is_new(made):
    model, variables = made
    slots, read = Slots(model, variables, slots=2, context=200), []
    chunk = slots._read
    slots._read = lambda slot, tokens: (read.append(len(tokens)), chunk(slot, tokens))[1]
    first = Request(np.arange(20, dtype=np.int32), 6, Sampling(0))
    slots.add(first)
    while slots.busy:
        slots.step()
    turn = np.r_[first.prompt, first.tokens, 7, 8].astype(np.int32)
    second = Request(turn, 6, Sampling(0))
    slots.add(second)
    while slots.busy:
        slots.step()
    assert read == [20, 3]  # the last token of the first answer has not been read
    assert second.tokens == alone(model, variables, second)


def test_rows_are_filtered_as_sampling_says():
    logits = jax.random.normal(jax.random.key(1), (6, 40)) * 3
    logits = logits.at[:, 5:9].set(logits[:, 4:5])  # equally probable ones
    samplings = [Sampling(), *SAMPLINGS[1:5], Sampling(2.0, top_k=7, top_p=0.5)]
    scaled = logits / jnp.array([by.temperature for by in samplings])[:, None]
    columns = [jnp.array([getattr(by, name) or other for by in samplings]) for name, other in
               (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0))]  # fmt: skip
    found = filtered_rows(scaled, *columns)
    for row, by in enumerate(samplings):
        np.testing.assert_array_equal(found[row], filtered(logits[row], by))


def test_banned_tokens_are_never_drawn(made):
    slots = Slots(*made, slots=2, context=200, banned=range(1, VOCABULARY))
    wanted = [Request(np.array([5], np.int32), 6, by) for by in (Sampling(0), Sampling(2.0))]
    for request in wanted:
        slots.add(request)
    while slots.busy:
        slots.step()
    assert [request.tokens for request in wanted] == [[0] * 6] * 2


def test_what_a_model_cannot_read_is_refused_before_it_waits(made):
    slots = Slots(*made, slots=1, context=20)
    for prompt, by, message in (
        ([], Sampling(), "a prompt needs at least one token"),
        ([1] * 20, Sampling(), "the prompt has 20 tokens, which leaves no room in the context of 20"),
        ([VOCABULARY], Sampling(), "token 50 is outside the vocabulary of 50"),
        ([1], Sampling(repetition_penalty=2.0), "repetition_penalty is not supported where requests share a batch"),
    ):
        with pytest.raises(zoo.ZooError, match=message):
            slots.add(Request(np.array(prompt, np.int32), 5, by))
    assert not slots.busy
    long = Request(np.ones(15, np.int32), 100)
    slots.add(long)
    while slots.busy:
        slots.step()
    assert len(long.tokens) == 5  # what the context has room for


def test_a_compiled_model_compiles_nothing_more(made):
    slots = Slots(*made, slots=2, context=200)
    slots.compile()
    compiled = []
    listener = lambda event, _seconds, **_: compiled.append(event) if "backend_compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for request in requests(6):
            slots.add(request)
        while slots.busy:
            slots.step()
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert not compiled
