"""Generation as users expect it: rows that end, several samples with log probabilities, constraints, and texts whose
tokens are decoded together with those of the prompt."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.decode import Sampling, generate_samples, sample, stream, translate
from zoo.decode.text import continuation, first_stop
from zoo.inputs.pairs import PairInputs
from zoo.inputs.text import TextInputs, learn
from zoo.run import Run

LIMIT = 8
GREEDY = Sampling(temperature=0)


def tiny(name, loud=9, **fields):
    model = zoo.create_model(name, **{"vocab_size": 6, "hidden_size": 16, "num_layers": 1, **fields})
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    return model, jax.tree.map(lambda leaf: loud * leaf if leaf.ndim > 1 else leaf, variables)


@pytest.fixture(scope="module")
def decoder():
    return tiny("gpt2", num_heads=2, max_length=LIMIT)


@pytest.fixture(scope="module")
def recurrent():
    return tiny("gru_lm", loud=3)


def drawn(model, variables, *args, **kwargs):
    return np.concatenate([*sample(model, variables, *args, **kwargs)], axis=1)


# Rows and contexts.


def by_definition(model, variables, text, steps):
    """The greedy text token by token: a row with LIMIT tokens of context continues from the last half of them, except
    for the first token after a prompt that long."""
    text, start = list(text), 0
    apply = jax.jit(model.apply)
    for step in range(steps):
        if len(text) - start >= LIMIT and step:
            start = len(text) - LIMIT // 2
        read = text[start:]
        logits = apply(variables, np.array([read + [0] * (LIMIT - len(read))]))
        text.append(int(logits[0, len(read) - 1].argmax()))
    return text[-steps:]


def ragged(texts):
    lengths = np.array([*map(len, texts)])
    return np.stack([np.pad(text, (0, lengths.max() - len(text)), constant_values=5) for text in texts]), lengths


@pytest.mark.parametrize("chunk", [None, 3])
def test_each_row_of_a_ragged_batch_continues_by_itself(decoder, chunk):
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 6, n) for n in (8, 3, 5, 1, 7)]
    prompts, lengths = ragged(texts)
    together = drawn(*decoder, prompts, 19, GREEDY, lengths=lengths, chunk=chunk)
    assert len(np.unique(together)) > 2
    for row, text in zip(together, texts, strict=True):
        assert row.tolist() == by_definition(*decoder, text, 19)


def test_the_draws_of_a_row_depend_on_its_number_alone(decoder):
    rng = np.random.default_rng(1)
    text, found = rng.integers(0, 6, 4), []
    for others in ([8, 2, 1], [1], [3, 7]):
        prompts, lengths = ragged([rng.integers(0, 6, 5 + len(others)), text, *(rng.integers(0, 6, n) for n in others)])
        found.append(drawn(*decoder, prompts, 19, Sampling(0.7), lengths=lengths, seed=3)[1])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_a_prompt_as_long_as_the_context_is_read_whole(decoder):
    prompts = np.random.default_rng(2).integers(0, 6, (16, LIMIT))
    apply = jax.jit(decoder[0].apply)
    expected = np.argmax(apply(decoder[1], prompts)[:, -1], axis=-1)
    of_half = np.argmax(apply(decoder[1], prompts[:, LIMIT // 2 :])[:, -1], axis=-1)
    assert (expected != of_half).any()
    np.testing.assert_array_equal(drawn(*decoder, prompts, 1, GREEDY)[:, 0], expected)


# Rows that end.


@pytest.mark.parametrize("chunk", [None, 4])
def test_rows_end_after_the_end_token_and_generation_stops_when_all_have(decoder, chunk):
    prompts, lengths = ragged([[1, 2, 3], [4], [2] * 8, [3, 5]])
    options = {"lengths": lengths, "seed": 1}
    plain = drawn(*decoder, prompts, 40, Sampling(), **options)
    end = 2
    ended = drawn(*decoder, prompts, 40, Sampling(end=end), chunk=chunk, **options)
    places = [np.flatnonzero(row == end)[0] for row in plain]
    assert ended.shape[1] == max(places) + 1 < 40
    assert len(set(places)) > 1
    for row, own, place in zip(ended, plain, places, strict=True):
        np.testing.assert_array_equal(row[: place + 1], own[: place + 1])
        assert (row[place:] == end).all()


def test_the_end_comes_only_after_the_minimum_length(recurrent):
    prompts = np.array([[1], [2], [3], [4]])
    for shortest in (0, 3, 9):
        found = drawn(*recurrent, prompts, 40, Sampling(2.0, end=0, min_length=shortest), seed=1)
        lengths = [np.flatnonzero(row == 0)[0] for row in found]
        assert min(lengths) >= shortest
    assert 0 not in drawn(*recurrent, prompts, 6, Sampling(2.0, end=0, min_length=6), seed=1)


# Several samples, log probabilities.


def test_samples_of_a_prompt_are_those_of_the_prompt_repeated(decoder):
    prompts, lengths = ragged([[1, 2, 3], [4]])
    several = drawn(*decoder, prompts, 12, lengths=lengths, num_samples=3, seed=5)
    repeated = drawn(*decoder, np.repeat(prompts, 3, axis=0), 12, lengths=np.repeat(lengths, 3), seed=5)
    np.testing.assert_array_equal(several, repeated)
    assert len(np.unique(several[:3], axis=0)) == 3


def test_log_probabilities_are_those_of_teacher_forcing(recurrent):
    model, variables = recurrent
    sampling = Sampling(0.5, top_k=3, repetition_penalty=1.5, banned=[1], end=0)
    prompts = np.array([[1, 2], [3, 4], [5, 5]])
    pieces = [*sample(model, variables, prompts, 12, sampling, log_probabilities=True, seed=4, chunk=5)]
    tokens, scores = (np.concatenate(parts, axis=1) for parts in zip(*pieces, strict=True))
    logits = model.apply(variables, np.concatenate([prompts, tokens], axis=1))[:, 1:-1]
    forced = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], axis=2)[..., 0]
    before = np.cumsum(tokens == 0, axis=1) - (tokens == 0)  # ends before this place
    np.testing.assert_allclose(scores, np.where(before, 0, forced), atol=1e-5)  # float32, step by step against at once
    assert (before > 0).any()


# Constraints.


def test_greedy_tokens_under_constraints_are_the_best_of_those_left(recurrent):
    model, variables = recurrent

    def even(logits, tokens, lengths):
        return jnp.where((lengths % 2 == 0)[:, None], logits - 9 * jax.nn.one_hot(tokens[:, 0], 6), logits)

    options = {"banned": (0,), "no_repeat_ngram": 2, "processors": (even,)}
    prompts, lengths = ragged([[1, 2, 3], [4]])
    found = drawn(model, variables, prompts, 9, Sampling(0.0, **options), lengths=lengths, chunk=4)
    for row, length, prompt in zip(found, lengths, prompts, strict=True):
        text = [*prompt[:length].tolist(), *row.tolist()]
        logits = np.array(jax.jit(model.apply)(variables, np.array([text + [0] * (12 - len(text))]))[0])
        for n in range(length, len(text)):
            logits[n - 1, text[0]] -= 9 * (n % 2 == 0)
            pairs = set(itertools.pairwise(text[:n]))
            left = [token for token in range(1, 6) if (text[n - 1], token) not in pairs] or range(1, 6)
            assert text[n] == max(left, key=logits[n - 1].__getitem__)


def test_no_token_is_drawn_for_a_banned_one_when_ngrams_leave_none(recurrent):
    found = drawn(*recurrent, np.array([[1]]), 30, Sampling(2.0, no_repeat_ngram=1, banned=[0, 3]), seed=2)
    assert set(found[0, :3]) == {2, 4, 5}  # each once, then again
    assert not {0, 3} & set(found[0].tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 6}, "end 6 is outside the vocabulary of 6"),
        ({"banned": [7]}, "banned token 7 is outside the vocabulary of 6"),
        ({"min_length": 2}, "min-length 2 needs an end-of-text token, and none is known: give `end`"),
        ({"banned": range(6)}, "all 6 tokens are banned; at least one must remain"),
        ({"banned": range(5), "end": 5, "min_length": 1}, "all 6 tokens are banned"),
        ({"num_samples": 0}, "num_samples must be at least 1, not 0"),
        ({"num_samples": 2, "temperature": 0}, "2 samples at temperature 0 are all the same"),
    ],
)
def test_wrong_options(recurrent, options, message):
    several = {"num_samples": options.pop("num_samples")} if "num_samples" in options else {}
    with pytest.raises(zoo.ZooError, match=message) as error:
        next(sample(*recurrent, np.array([[1]]), 3, Sampling(**options), **several))
    assert "\n" not in str(error.value)


# Texts.


def language_model(inputs, **fields):
    return Run(*tiny("gru_lm", loud=4, vocab_size=inputs.vocab_size, **fields), inputs)


WORDS = "the cat sat on the mat and the dog sat on the log . don't stop ! " * 20


def test_words_keep_the_space_at_the_seam():
    inputs = learn("word", [WORDS], 300, 16)
    run = language_model(inputs)
    (tokens,) = sample(run.model, run.variables, inputs.prompt("the cat")[None], 6, Sampling(), seed=1)
    whole = "the cat" + zoo.generate(run, "the cat", 6, seed=1)
    assert whole == " ".join(["the cat", *(inputs.decode([token]) for token in tokens[0])])
    assert "the cat" + "".join(stream(run, "the cat", 6, seed=1, chunk=1)) == whole
    assert zoo.generate(run, length=3)


def llama_like():
    """A SentencePiece-style BPE: spaces as U+2581, one of them before the text, and bytes of unknown characters."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    library.train_from_iterator(
        [WORDS], tokenizers.trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    )
    return TextInputs("bpe", library.to_str(), 32)


def test_sentencepiece_keeps_the_space_at_the_seam():
    inputs = llama_like()
    tokens = inputs.encode("dog sat")
    assert "the cat" + continuation(inputs, inputs.prompt("the cat"), tokens) == "the cat dog sat"
    assert inputs.decode(tokens) == "dog sat"


@pytest.mark.parametrize("kind", ["llama", "bpe", "byte", "word", "wordpiece", "unigram"])
def test_streamed_texts_are_beginnings_of_the_whole(kind):
    inputs = llama_like() if kind == "llama" else learn(kind, [WORDS], 300, 16)
    rng = np.random.default_rng(0)
    spelled = [*inputs.encode("\u20ac\U0001f600 \u00e9 \ufffd the don't")]
    for prompt in ("the cat", " the  cat ", "\u20ac", "don't stop"):
        before = inputs.prompt(prompt)
        for _ in range(12):
            tokens = rng.integers(0, inputs.vocab_size, 24)
            place = int(rng.integers(0, 12))
            tokens = np.r_[tokens[:place], spelled, tokens[place:]]
            whole = continuation(inputs, before, tokens)
            pieces = [continuation(inputs, before, tokens[:n], more=True) for n in range(len(tokens) + 1)]
            assert all(whole.startswith(piece) for piece in pieces)
            assert len(pieces[-1]) >= len(whole) // 3
            both = inputs.decode(np.r_[before, tokens])
            assert both.endswith(whole)
            if both.startswith(inputs.decode(before)):
                assert inputs.decode(before) + whole == both


def test_the_text_stops_at_the_tokenizers_end():
    inputs = llama_like()
    run, end = language_model(inputs), inputs.encode("</s>")[-1]
    assert inputs.end == end
    long = Sampling(3.0, end=int(end))
    tokens = np.concatenate([*sample(run.model, run.variables, inputs.prompt("the")[None], 2000, long, seed=1)], 1)[0]
    assert tokens[-1] == end
    assert len(tokens) < 2000
    text = zoo.generate(run, "the", 2000, temperature=3.0, seed=1)
    assert text == continuation(inputs, inputs.prompt("the"), tokens[:-1])
    assert "".join(stream(run, "the", 2000, temperature=3.0, seed=1, chunk=7)) == text
    assert "</s>" not in text


def test_rows_beyond_the_tokenizers_vocabulary_and_its_gaps_are_never_drawn():
    library = pytest.importorskip("tokenizers")
    model = library.Tokenizer(library.models.WordLevel({"a": 0, "b": 3, "c": 4}, unk_token="a"))
    model.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    inputs = TextInputs("word", model.to_str(), 8)
    run = Run(*tiny("gru_lm", loud=1, vocab_size=9), inputs)
    text = zoo.generate(run, "a b", 200, temperature=5.0)
    assert set(text.split()) == {"a", "b", "c"}
    assert len(text.split()) == 200


def test_translations_have_no_tokens_beyond_the_targets_vocabulary():
    inputs = PairInputs(TextInputs("char", "abc", 6), TextInputs("char", "xy", 6))
    sizes = {"source_vocab_size": 7, "hidden_size": 8, "embedding_size": 6, "num_layers": 1, "vocab_size": 90}
    model = zoo.create_model("seq2seq_lstm", **sizes)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    (found,) = translate(Run(model, variables, inputs), ["abca"], beam_size=4, num_best=4, min_length=5)
    assert all(set(text) <= set("xy\ufffd") for text, _ in found)
    assert any(text for text, _ in found)


def test_several_texts_with_their_tokens(recurrent):
    run = Run(*recurrent, TextInputs("char", "\nabcde", 8))
    found = generate_samples(run, "ab", 3, 12, seed=2, stop=["d"], end=1)
    assert found[0].text == zoo.generate(run, "ab", 12, seed=2, stop=["d"], end=1)
    assert len({one.text for one in found}) > 1
    for one in found:
        assert len(one.tokens) == len(one.log_probabilities) <= 12
        assert 1 not in one.tokens[:-1]
        whole = run.inputs.decode(one.tokens[one.tokens != 1])
        assert one.text == whole.split("d")[0]
        assert (one.log_probabilities < 0).all()


def test_the_stop_string_that_is_complete_first_ends_the_text():
    assert first_stop("xabcd", ["abcd", "bc"]) == 2
    assert first_stop("xabc", ["abc", "bc"]) == 1
    assert first_stop("xa", ["abc"]) is None


def test_stops_do_not_depend_on_the_pieces(recurrent):
    run = Run(*recurrent, TextInputs("char", "\nabcde", 8))
    rng = np.random.default_rng(3)
    for seed in range(6):
        stop = ["".join(rng.choice(list("abcde"), rng.integers(1, 4))) for _ in range(3)]
        whole = zoo.generate(run, "ab", 24, seed=seed, stop=stop)
        assert not any(word in whole for word in stop)
        for chunk in (1, 5):
            assert "".join(stream(run, "ab", 24, seed=seed, stop=stop, chunk=chunk)) == whole


# Wider numbers.


def test_sampling_in_x64_is_the_same_and_in_float64_more_exact(recurrent, decoder):
    prompts, sampling = (
        np.array([[1, 2]]),
        Sampling(0.8, 4, 0.9, 0.05, repetition_penalty=1.2, no_repeat_ngram=3, end=0),
    )
    for model, variables in (recurrent, decoder):
        plain = drawn(model, variables, prompts, 12, sampling, seed=1)
        with jax.enable_x64(True):
            np.testing.assert_array_equal(drawn(model, variables, prompts, 12, sampling, seed=1), plain)
    with jax.enable_x64(True):
        wide = decoder[0].clone(dtype=jnp.float64, param_dtype=jnp.float64)
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), decoder[1])
        ((tokens, scores),) = sample(wide, variables, prompts, 5, log_probabilities=True)
        logits = wide.apply(variables, np.concatenate([prompts, tokens], axis=1))[:, 1:-1]
        forced = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], axis=2)[..., 0]
        np.testing.assert_allclose(scores, forced, rtol=1e-9)
