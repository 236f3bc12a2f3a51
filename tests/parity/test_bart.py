"""BART and Marian of transformers, both ways: logits, hidden states of both halves, greedy decoding and beam search."""

import functools

import jax
import numpy as np
import pytest
from peers import close, drawn, there_and_back, torch, transformers

import zoo

pytestmark = pytest.mark.parity
B, T, S, V = 3, 9, 12, 37
LENGTHS = np.array([12, 5, 2], np.int32)
PRESENT = np.arange(S) < LENGTHS[:, None]
SIZES = {
    **{"vocab_size": V, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "max_position_embeddings": 20},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
    **{"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None},
}
PEERS = {
    "bart": (transformers.BartForConditionalGeneration, {}),
    "bart-scaled": (
        transformers.BartForConditionalGeneration,
        {"scale_embedding": True, "activation_function": "relu"},
    ),
    "marian": (transformers.MarianMTModel, {"scale_embedding": True, "activation_function": "swish"}),
    "marian-separate": (
        transformers.MarianMTModel,
        {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 31, "activation_function": "gelu"},
    ),
}


def peer(name):
    torch.manual_seed(0)
    kind, fields = PEERS[name]
    model = drawn(kind(kind.config_class(**SIZES, **fields)))
    torch.nn.init.normal_(model.final_logits_bias)
    if name.startswith("marian"):  # whose positions are no weights
        for half in (model.model.encoder, model.model.decoder):
            half.embed_positions.weight.data.copy_(half.embed_positions.create_weight())
    return model


def tokens(steps, most=31):
    return np.random.default_rng(steps).integers(3, most, (B, steps))


def compare(model, variables, other):
    inputs = {"input_ids": tokens(S), "attention_mask": PRESENT.astype(int), "decoder_input_ids": tokens(T)}
    with torch.no_grad():
        theirs = other(**{key: torch.from_numpy(value) for key, value in inputs.items()}, output_hidden_states=True)
    apply = functools.partial(model.apply, source=tokens(S), source_lengths=LENGTHS, mutable=["features"])
    logits, seen = jax.jit(apply)(variables, tokens(T))
    close(logits, theirs.logits)
    for half, states, rows in (
        ("encoder", theirs.encoder_hidden_states, PRESENT),
        ("decoder", theirs.decoder_hidden_states, np.ones((B, T), bool)),
    ):
        features = seen["features"][half]
        hidden = [features["embedded"], *(layer["hidden"] for _, layer in sorted(features["layers"].items()))]
        for ours, expected in zip(hidden, states, strict=True):
            close(np.asarray(ours)[rows], expected[torch.from_numpy(rows)])


@pytest.mark.parametrize("name", PEERS)
def test_theirs_to_ours_and_back(name, tmp_path):
    other = peer(name)
    there_and_back(other, PEERS[name][0], compare, tmp_path)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["bart", "marian"])
def test_decoding_gives_their_tokens(name, beams, tmp_path):
    other = peer(name)
    other.save_pretrained(tmp_path)
    model, variables = zoo.from_pretrained(tmp_path)
    inputs = {"input_ids": torch.from_numpy(tokens(S)), "attention_mask": torch.from_numpy(PRESENT.astype(int))}
    settings = {"num_beams": beams, "length_penalty": 1.3, "no_repeat_ngram_size": 2, "early_stopping": True}
    theirs = other.generate(**inputs, do_sample=False, max_new_tokens=T, **settings)[:, 1:].numpy()
    ours = zoo.decode.beam.decode_sources(
        model, variables, tokens(S), LENGTHS, first=2, end=2, max_length=T, beam_size=beams, length_penalty=1.3,
        length_penalty_form="length", early_stopping=True, no_repeat_ngram=2,
    )  # fmt: skip
    found = np.asarray(ours.tokens)[:, 0]
    for mine, other_row in zip(found, theirs, strict=True):
        ends = np.flatnonzero(other_row == 2)
        kept = other_row[: ends[0]] if len(ends) else other_row
        np.testing.assert_array_equal(mine[: len(kept)], kept)
        assert (mine[len(kept) :] == 2).all()
