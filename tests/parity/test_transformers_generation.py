"""Generation by Hugging Face's transformers: the sets of tokens that its processors leave, greedy decoding under
constraints, and beam search with its length penalty and early stopping."""

import jax.numpy as jnp
import numpy as np
import pytest
from peers import drawn, torch, transformers

import zoo
from zoo.decode import Sampling, decode_sources, filtered, sample
from zoo.decode.constraints import members, penalised, repeating

pytestmark = pytest.mark.parity

V, S, T, END = 8, 9, 12, 1
LENGTHS = np.array([9, 4, 1], np.int32)
SOURCE = np.random.default_rng(0).integers(2, V, (len(LENGTHS), S))


def rows_with_ties():
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(300, 40)) * rng.choice([0.5, 2, 6], (300, 1))
    return np.concatenate([smooth, rng.integers(0, 5, (300, 40)), np.zeros((1, 40))]).astype(np.float32)


@pytest.mark.parametrize("share", [0.013, 0.3, 0.5, 0.77, 0.9, 0.993])
def test_the_filters_leave_as_many_tokens_of_the_same_probabilities(share):
    """Of ties at top-p's boundary transformers takes those that its sort puts last; the probabilities are the same."""
    rows, count = rows_with_ties(), int(1 + 40 * share)
    warpers = transformers.generation.logits_process
    for ours, theirs in (
        ({"top_p": share}, warpers.TopPLogitsWarper(share)),
        ({"min_p": share}, warpers.MinPLogitsWarper(share)),
        ({"top_k": count}, warpers.TopKLogitsWarper(count)),
        ({"temperature": share}, warpers.TemperatureLogitsWarper(share)),
    ):
        found = np.asarray(filtered(jnp.asarray(rows), Sampling(**ours)))
        expected = theirs(None, torch.from_numpy(rows)).numpy()
        np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-6)
        if "top_p" not in ours:
            np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 7, 30])
def test_penalties_and_ngrams_exclude_the_same_tokens(length):
    rng, warpers = np.random.default_rng(length), transformers.generation.logits_process
    tokens, scores = rng.integers(0, 5, (64, length)), rng.normal(size=(64, 5)).astype(np.float32)
    theirs, ours = (torch.from_numpy(tokens), torch.from_numpy(scores)), (jnp.asarray(tokens), jnp.full(64, length))
    expected = warpers.RepetitionPenaltyLogitsProcessor(1.7)(*theirs)
    np.testing.assert_allclose(penalised(scores, members(*ours, 5), 1.7), expected, rtol=1e-6)
    for n in (1, 2, 3, 8):
        expected = warpers.NoRepeatNGramLogitsProcessor(n)(*theirs).numpy() == -np.inf
        np.testing.assert_array_equal(repeating(*ours, n, 5), expected)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    torch.manual_seed(7)
    sizes = {"vocab_size": V, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    other = drawn(transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)))
    folder = tmp_path_factory.mktemp("t5")
    other.save_pretrained(folder)
    return other, zoo.from_pretrained(folder)


CONSTRAINTS = {"repetition_penalty": 1.3, "no_repeat_ngram": 2, "min_length": 4, "banned": (5,)}
THEIRS = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 4, "suppress_tokens": [5]}


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 1.5])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_beam_search_finds_the_same_targets(t5, early_stopping, length_penalty, constrained):
    other, (model, variables) = t5
    options = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": T, "do_sample": False}
    options |= {"decoder_start_token_id": 0, "eos_token_id": END, "pad_token_id": END, "return_dict_in_generate": True}
    options |= {"length_penalty": length_penalty, "early_stopping": early_stopping, "output_scores": True}
    inputs = {
        "input_ids": torch.from_numpy(SOURCE),
        "attention_mask": torch.from_numpy(np.arange(S) < LENGTHS[:, None]),
    }
    theirs = other.generate(**inputs, **options, **(THEIRS if constrained else {}))
    expected = theirs.sequences.numpy()[:, 1:]
    expected = np.pad(expected, ((0, 0), (0, T - expected.shape[1])), constant_values=END)
    found = decode_sources(
        model, variables, SOURCE, LENGTHS, first=0, end=END, max_length=T, beam_size=4, num_best=3,
        length_penalty=length_penalty, length_penalty_form="length", early_stopping=early_stopping,
        **(CONSTRAINTS if constrained else {}),
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(found.tokens).reshape(-1, T), expected)
    # float32 sums over up to 12 tokens
    np.testing.assert_allclose(np.asarray(found.scores).reshape(-1), theirs.sequences_scores.numpy(), rtol=1e-4)
    assert (np.asarray(found.lengths) < T).any()


@pytest.mark.parametrize("constrained", [False, True])
def test_greedy_decoding_ends_and_obeys_the_same_constraints(constrained, tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}
    other = drawn(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)))
    other.save_pretrained(tmp_path)
    model, variables = zoo.from_pretrained(tmp_path)
    prompts = np.random.default_rng(1).integers(2, V, (6, 5))
    options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": END, "pad_token_id": END}
    theirs = other.generate(torch.from_numpy(prompts), **options, **(THEIRS if constrained else {})).numpy()[:, 5:]
    sampling = Sampling(temperature=0, end=END, **(CONSTRAINTS if constrained else {}))
    (ours,) = sample(model, variables, prompts, 40, sampling)
    np.testing.assert_array_equal(ours, theirs)
