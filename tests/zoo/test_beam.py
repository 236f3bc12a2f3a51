"""Beam search: what trying every target finds where that is possible, and with one beam, what greedy decoding says."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.decode import Sampling, beam, beam_search, decode_sources, sample, source_attention
from zoo.registry import abstract_variables
from zoo.transformer.layers import stacked

VOCABULARY, END, FIRST = 4, 1, 2
RECURRENT = {"vocab_size": VOCABULARY, "source_vocab_size": 9, "embedding_size": 6, "hidden_size": 8, "num_layers": 1}
TRANSFORMER = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "mlp_size": 24}
TINY = {
    "lstm": ("seq2seq_lstm", RECURRENT),
    "gru": ("seq2seq_gru_attention", {**RECURRENT, "attention_size": 7, "maxout_size": 5}),
    "luong": ("seq2seq_lstm_luong", RECURRENT),
    "transformer": ("transformer_base", {**TRANSFORMER, "max_length": 16, "source_vocab_size": 9}),
    "t5": ("t5_small", {**TRANSFORMER, "max_length": 16, "num_buckets": 8, "max_distance": 6}),
}
KINDS = [kind if kind in ("gru", "transformer") else pytest.param(kind, marks=pytest.mark.slow) for kind in TINY]
S = 5
LENGTHS = np.array([5, 2, 0, 4], np.int32)
SOURCE = np.random.default_rng(0).integers(0, VOCABULARY, (len(LENGTHS), S)).astype(np.int32)
MOST = 4  # tokens of a target, where all are tried


@functools.cache
def tiny(kind):
    """A model whose probabilities are neither all alike nor settled."""
    name, fields = TINY[kind]
    model = zoo.create_model(name, **fields, dropout_rate=0.0)
    variables = jax.jit(model.init)(jax.random.key(0), SOURCE)
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [leaf + 0.6 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(structure, moved)


@functools.cache
def decoder_only():
    fields = {**TRANSFORMER, "max_length": 16}
    model = zoo.create_model("gpt2", **{k: v for k, v in fields.items() if k != "mlp_size"})
    variables = jax.jit(model.init)(jax.random.key(0), SOURCE)
    return model, jax.tree.map(lambda leaf: 9 * leaf if leaf.ndim > 1 else leaf, variables)


def decode(kind, source=SOURCE, lengths=LENGTHS, max_length=MOST, **options):
    found = decode_sources(*tiny(kind), source, lengths, first=FIRST, end=END, max_length=max_length, **options)
    return jax.tree.map(np.asarray, found)


@functools.partial(jax.jit, static_argnums=0)
def log_probabilities(model, variables, targets, source, lengths):
    """Of each of the targets [N, T], by teacher forcing, and the attention [N, T, S] where there is one."""
    before = jnp.concatenate([jnp.full((len(targets), 1), FIRST), targets[:, :-1]], axis=1)
    options = {"source": source, "source_lengths": lengths, "mutable": ["features"]}
    logits, changed = model.apply(variables, before, **options)
    scores = jax.nn.log_softmax(logits.astype(jnp.float32))
    attention = source_attention(changed["features"]) if "lstm" not in type(model).__name__.lower() else None
    return jnp.take_along_axis(scores, targets[..., None], axis=2)[..., 0], attention


@functools.cache
def every_target():
    """All targets that end within MOST tokens, `end` included, or are cut off there: tokens [N, MOST], tokens read."""
    targets = []
    others = [token for token in range(VOCABULARY) if token != END]
    for length in range(MOST + 1):
        for words in itertools.product(others, repeat=length):
            targets.append(words + (END,) * (MOST - length))
    tokens = np.array(targets, np.int32)
    lengths = (tokens != END).sum(axis=1)
    return tokens, lengths, np.minimum(lengths + 1, MOST)


@functools.cache
def exhaustive(kind, row, length_penalty, coverage_penalty=0.0, form="gnmt"):
    """Every target, its length and its score, best first."""
    model, variables = tiny(kind)
    tokens, lengths, read = every_target()
    n = len(tokens)
    source, source_lengths = np.repeat(SOURCE[row : row + 1], n, axis=0), np.full(n, LENGTHS[row], np.int32)
    scores, attention = log_probabilities(model, variables, tokens, source, source_lengths)
    reads = np.arange(MOST) < read[:, None]
    scores = np.sum(np.where(reads, scores, 0), axis=1)
    scores = scores / ((5 + read) / 6 if form == "gnmt" else read) ** length_penalty
    if coverage_penalty:
        covered = np.sum(np.where(reads[..., None], attention, 0), axis=1)[:, : LENGTHS[row]]
        scores = scores + coverage_penalty * np.log(np.minimum(covered, 1)).sum(axis=1)
    order = np.argsort(-scores)
    return tokens[order], lengths[order], scores[order]


def best_of(found, n):
    return [leaf[:n] for leaf in found]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_what_trying_every_target_finds(kind, length_penalty):
    wide = len(every_target()[0])
    found = decode(kind, beam_size=wide, num_best=6, length_penalty=length_penalty)
    for row in range(len(SOURCE)):
        tokens, lengths, scores = best_of(exhaustive(kind, row, length_penalty), 6)
        np.testing.assert_array_equal(found.tokens[row], tokens)
        np.testing.assert_array_equal(found.lengths[row], lengths)
        np.testing.assert_allclose(found.scores[row], scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("early_stopping", [None, "never"])
def test_scores_may_be_divided_by_a_power_of_the_length(early_stopping):
    options = {"length_penalty": 1.3, "length_penalty_form": "length", "early_stopping": early_stopping}
    found = decode("gru", beam_size=len(every_target()[0]), num_best=6, **options)
    for row in range(len(SOURCE)):
        tokens, lengths, scores = best_of(exhaustive("gru", row, 1.3, form="length"), 6)
        np.testing.assert_array_equal(found.tokens[row], tokens)
        np.testing.assert_array_equal(found.lengths[row], lengths)
        np.testing.assert_allclose(found.scores[row], scores, rtol=1e-5, atol=1e-5)


def test_constraints_leave_the_best_of_the_targets_that_obey_them():
    found = decode("gru", beam_size=len(every_target()[0]), num_best=4, banned=[3], min_length=2, no_repeat_ngram=2)
    for row in range(len(SOURCE)):
        targets, lengths, scores = exhaustive("gru", row, 0.6)
        pairs = [[*itertools.pairwise([FIRST, *t[: n + 1]])] for t, n in zip(targets.tolist(), lengths, strict=True)]
        once = np.array([len(set(some)) == len(some) for some in pairs])
        obey = np.flatnonzero(once & (lengths >= 2) & ~(targets == 3).any(axis=1))[:4]
        np.testing.assert_array_equal(found.tokens[row], targets[obey])
        np.testing.assert_allclose(found.scores[row], scores[obey], rtol=1e-5, atol=1e-5)


def test_a_penalty_for_repeated_tokens_counts_the_first_token_and_the_targets():
    found = decode("gru", max_length=6, beam_size=1, repetition_penalty=4.0, length_penalty=0.0)
    model, variables = tiny("gru")
    before = np.concatenate([np.full((len(SOURCE), 1), FIRST), found.tokens[:, 0]], axis=1)
    logits = jax.jit(model.apply)(variables, before, source=SOURCE, source_lengths=LENGTHS)
    for row, scores in enumerate(np.array(jax.nn.log_softmax(logits))):
        total, read = 0.0, min(found.lengths[row, 0] + 1, 6)
        for n in range(read):
            scores[n, np.unique(before[row, : n + 1])] *= 4  # log probabilities are negative
            assert before[row, n + 1] == scores[n].argmax()
            total += scores[n].max()
        np.testing.assert_allclose(found.scores[row, 0], total, rtol=1e-5)
    assert len(np.unique(found.tokens)) > 2


@pytest.mark.parametrize("kind", ["gru", pytest.param("transformer", marks=pytest.mark.slow)])
def test_x64_changes_nothing_and_float64_is_exact(kind):
    """Every score to 1e-9 of the one by teacher forcing, in float64."""
    options = {"max_length": 7, "beam_size": 3, "num_best": 2, "coverage_penalty": 0.2, "no_repeat_ngram": 3}
    plain = decode(kind, **options)
    with jax.enable_x64(True):
        again = decode(kind, **options)
        np.testing.assert_array_equal(again.tokens, plain.tokens)
        np.testing.assert_allclose(again.scores, plain.scores, rtol=1e-6)
        assert again.scores.dtype == np.float32
        model, variables = tiny(kind)
        model = model.clone(dtype=jnp.float64, param_dtype=jnp.float64)
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        wide = {"first": FIRST, "end": END, "max_length": 7, "beam_size": 3, "length_penalty": 0.0}
        found = jax.tree.map(np.asarray, decode_sources(model, variables, SOURCE, LENGTHS, **wide))
        assert found.scores.dtype == np.float64
        targets, read = found.tokens[:, 0], np.minimum(found.lengths + 1, 7)
        before = np.concatenate([np.full((len(targets), 1), FIRST), targets[:, :-1]], axis=1)
        logits = model.apply(variables, before, source=SOURCE, source_lengths=LENGTHS)
        forced = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], axis=2)[..., 0]
        sums = np.where(np.arange(7) < read, forced, 0).sum(axis=1)
        np.testing.assert_allclose(found.scores[:, 0], sums, rtol=1e-9)


@pytest.mark.parametrize("kind", ["gru", "luong", "transformer", "t5"])
def test_coverage_is_counted_as_wu_et_al_have_it(kind):
    wide = len(every_target()[0])
    found = decode(kind, beam_size=wide, num_best=4, coverage_penalty=0.3)
    for row in range(len(SOURCE)):
        tokens, _, scores = best_of(exhaustive(kind, row, 0.6, 0.3), 4)
        np.testing.assert_array_equal(found.tokens[row], tokens)
        np.testing.assert_allclose(found.scores[row], scores, rtol=1e-5, atol=1e-5)
    plain = decode(kind, beam_size=wide, num_best=4)
    assert np.abs(plain.scores - found.scores)[LENGTHS > 0].max() > 1e-2
    np.testing.assert_array_equal(plain.scores[LENGTHS == 0], found.scores[LENGTHS == 0])  # nothing to cover


@pytest.mark.parametrize("kind", KINDS)
def test_one_beam_is_greedy(kind):
    model, variables = tiny(kind)
    found = decode(kind, max_length=12, beam_size=1)
    options = {"source": SOURCE, "source_lengths": LENGTHS}
    (greedy,) = sample(model, variables, np.full((len(SOURCE), 1), FIRST), 12, Sampling(temperature=0), **options)
    check_greedy(found, greedy)


def check_greedy(found, greedy):
    for row, tokens in enumerate(greedy):
        ends = np.flatnonzero(tokens == END)
        length = ends[0] if len(ends) else len(tokens)
        assert found.lengths[row, 0] == length
        np.testing.assert_array_equal(found.tokens[row, 0, :length], tokens[:length])
        assert (found.tokens[row, 0, length:] == END).all()


def test_a_language_model_continues_from_its_prompt():
    model, variables = decoder_only()
    prompts, lengths = np.array([[2, 3, 0], [2, 0, 0], [3, 3, 3]], np.int32), np.array([3, 1, 2], np.int32)
    _, state = model.apply(variables, prompts, model.init_state(3, 16), lengths - 1)
    first = prompts[np.arange(3), lengths - 1]
    found = beam_search(model, variables, state, first, end=END, max_length=10, beam_size=1)
    (greedy,) = sample(model, variables, prompts, 10, Sampling(temperature=0), lengths=lengths)
    check_greedy(jax.tree.map(np.asarray, found), greedy)
    assert len(set(np.asarray(found.lengths).reshape(-1).tolist())) > 1
    more = beam_search(model, variables, state, first, end=END, max_length=10, beam_size=3, num_best=3)
    assert (np.diff(np.asarray(more.scores)) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_teacher_forced_log_probabilities_and_the_best_are_sorted_and_distinct(kind):
    model, variables = tiny(kind)
    found = decode(kind, max_length=9, beam_size=4, num_best=4, length_penalty=0.8)
    assert (np.diff(found.scores) <= 0).all()
    for row in range(len(SOURCE)):
        assert len({tuple(tokens) for tokens in found.tokens[row].tolist()}) == 4
    targets, lengths = found.tokens.reshape(-1, 9), found.lengths.reshape(-1)
    repeated = np.repeat(SOURCE, 4, axis=0), np.repeat(LENGTHS, 4)
    forced, _ = log_probabilities(model, variables, targets, *repeated)
    read = np.minimum(lengths + 1, 9)
    sums = np.sum(np.where(np.arange(9) < read[:, None], forced, 0), axis=1)
    np.testing.assert_allclose(found.scores.reshape(-1), sums / ((5 + read) / 6) ** 0.8, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_rows_do_not_depend_on_one_another_nor_on_padding(kind):
    together = decode(kind, max_length=9, beam_size=3, num_best=2)
    padded = np.concatenate([SOURCE, np.full((len(SOURCE), 3), 3, np.int32)], axis=1)
    for row in range(len(SOURCE)):
        alone = decode(kind, padded[row : row + 1], LENGTHS[row : row + 1], max_length=9, beam_size=3, num_best=2)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_array_equal(alone.lengths[0], together.lengths[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-5, atol=1e-5)


def test_stopping_early_changes_nothing_and_stops(monkeypatch):
    model, variables = tiny("gru")
    state, first, steps = model.apply(variables, SOURCE, LENGTHS, 30, method="encode"), np.full(4, FIRST), []
    options = {"end": END, "max_length": 30, "beam_size": 6, "length_penalty": 0.3}
    original, search = beam._step, beam._search.__wrapped__

    def counted(*args):
        jax.debug.callback(lambda: steps.append(1))
        return original(*args)

    def run():
        steps.clear()
        monkeypatch.setattr(beam, "_search", jax.jit(lambda *args: search(*args), static_argnums=(0, 1)))
        found = jax.block_until_ready(beam_search(model, variables, state, first, **options))
        jax.effects_barrier()
        return found, len(steps)

    monkeypatch.setattr(beam, "_step", counted)
    early, few = run()
    monkeypatch.setattr(beam, "possible", lambda settings, scores: jnp.full_like(scores, jnp.inf))
    late, many = run()
    jax.tree.map(np.testing.assert_array_equal, early, late)
    assert few < many <= 30


class Sure(nn.Module):
    """Says 2 four times, then the end; at every step the end is the next probable, e^-7."""

    vocab_size: int = VOCABULARY

    def __call__(self, tokens, state=None):
        says = jnp.where(state["position"] < 4, 2, END)
        logits = 14.0 * jax.nn.one_hot(says, self.vocab_size) + 7.0 * jax.nn.one_hot(END, self.vocab_size)
        return logits[:, None], {"position": state["position"] + 1}


@pytest.mark.parametrize("beam_size", [1, 2, 3, 4])
def test_the_ends_of_poor_beginnings_do_not_stop_the_best(beam_size):
    state = {"position": np.zeros(1, np.int32)}
    found = beam_search(Sure(), {}, state, np.full(1, FIRST), end=END, max_length=9, beam_size=beam_size)
    assert found.tokens[0, 0].tolist() == [2, 2, 2, 2, *[END] * 5]
    assert found.scores[0, 0] > -0.1


class Scripted(nn.Module):
    """The probabilities of the end and of token 2 after 0, 1, 2, ... tokens; the last ones from then on."""

    steps: tuple[tuple[float, float], ...]
    vocab_size: int = VOCABULARY

    def __call__(self, tokens, state=None):
        ends, continues = jnp.array(self.steps)[jnp.minimum(state["position"], len(self.steps) - 1)].T
        rest = (1 - ends - continues) / 2
        return jnp.log(jnp.stack([rest, ends, continues, rest], axis=1))[:, None], {"position": state["position"] + 1}


@pytest.mark.parametrize(("early_stopping", "length"), [(True, 1), (False, 2), ("never", 30)])
def test_early_stopping_is_a_choice(early_stopping, length):
    """Two beams, log probabilities divided by the length. After 2 tokens two targets are complete, of scores log(0.3)
    and log(0.21) / 2: True stops. After 4, they are log(0.49 * 0.69) / 3 and log(0.147 * 0.69) / 4, and the beam, of
    log(0.0441) / 4 by now, is behind: False stops. In 30 tokens it comes to about log(0.0441) / 30, which wins."""
    model = Scripted(((0.3, 0.699), (0.3, 0.699), (0.69, 0.3), (0.69, 0.3), (1e-5, 0.9999)))
    options = {"end": END, "max_length": 30, "beam_size": 2, "length_penalty": 1.0, "length_penalty_form": "length"}
    state = {"position": np.zeros(1, np.int32)}
    found = beam_search(model, {}, state, np.full(1, FIRST), **options, early_stopping=early_stopping)
    assert found.lengths[0, 0] == length
    assert (found.tokens[0, 0, :length] == 2).all()


def test_several_calls_compile_once():
    before = beam._encode_and_search._cache_size()
    for shift in range(3):
        decode("luong", np.roll(SOURCE, shift, axis=0), np.roll(LENGTHS, shift), max_length=7)
    assert beam._encode_and_search._cache_size() == before + 1


def test_fewer_targets_than_asked_for_leave_blanks():
    found = decode("lstm", max_length=1, beam_size=6, num_best=6)
    assert np.isfinite(found.scores[:, :4]).all()
    assert (found.scores[:, 4:] == -np.inf).all()
    assert (found.tokens[:, 4:] == END).all()
    assert not found.lengths[:, 4:].any()


def test_scanned_layers_find_the_same():
    model, variables = tiny("transformer")
    scanned = model.clone(scan_layers=True)
    like = abstract_variables(scanned, [jax.ShapeDtypeStruct((1, 1), jnp.int32)])["params"]
    options = {"first": FIRST, "end": END, "max_length": MOST}
    found = decode_sources(scanned, {"params": stacked(variables["params"], like)}, SOURCE, LENGTHS, **options)
    jax.tree.map(np.testing.assert_array_equal, found, decode("transformer"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size must be at least 1, not 0"),
        ({"num_best": 0}, "num_best must be at least 1, not 0"),
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"num_best": 6}, "num_best 6 is more than beam_size 5"),
        ({"length_penalty": -1.0}, "length_penalty must be a number of at least 0, not -1.0"),
        ({"length_penalty": float("nan")}, "length_penalty must be a number of at least 0, not nan"),
        ({"coverage_penalty": -0.1}, "coverage_penalty must be a number of at least 0, not -0.1"),
        ({"max_length": 17}, "max_length 17 is more than the model's max_length of 16"),
        ({"source": np.zeros((4, 17), np.int32)}, "17 tokens are more than the model's max_length of 16"),
        ({"lengths": np.array([6, 1, 1, 1])}, "length 6 is outside 0 to 5"),
        ({"length_penalty_form": "log"}, "length_penalty_form must be gnmt or length, not 'log'"),
        ({"early_stopping": "always"}, "early_stopping must be True, False, 'never' or None, not 'always'"),
        ({"banned": [4]}, "banned token 4 is outside the vocabulary of 4"),
        ({"banned": [0, 2, 3], "min_length": 1}, "all 4 tokens are banned"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(zoo.ZooError, match=message) as error:
        decode("transformer", **options)
    assert "\n" not in str(error.value)


def test_what_a_model_does_not_have():
    with pytest.raises(zoo.ZooError, match="the model has no attention over a source, which coverage penalties"):
        decode("lstm", coverage_penalty=0.2)
    model, variables = decoder_only()
    with pytest.raises(zoo.ZooError, match="Decoder has no encoder for a source"):
        decode_sources(model, variables, SOURCE, first=FIRST, end=END, max_length=3)
    state = model.init_state(2, 5)
    search = functools.partial(beam_search, model, variables, end=END, max_length=6)
    with pytest.raises(zoo.ZooError, match="max_length 6 is more than the 5 tokens that the state has room for"):
        search(state, np.array([2, 2]))
    with pytest.raises(zoo.ZooError, match=r"one token per row of the state, \[2\], not \[3\]"):
        search(model.init_state(2, 6), np.array([2, 2, 2]))
    with pytest.raises(zoo.ZooError, match="end 4 is outside the vocabulary of 4"):
        beam_search(model, variables, state, np.array([2, 2]), end=4, max_length=5)
