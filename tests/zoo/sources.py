"""Tiny models that read a source, and what the tests of them share."""

import functools

import jax
import numpy as np
import pytest

import zoo

RECURRENT = {"vocab_size": 11, "embedding_size": 6, "hidden_size": 8, "num_layers": 2, "dropout_rate": 0.0}
OWN = {**RECURRENT, "source_vocab_size": 13}
SHARED = {**RECURRENT, "source_vocab_size": None}
TRANSFORMER = {"vocab_size": 11, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "mlp_size": 24, "max_length": 16}
QUIET = {**TRANSFORMER, "dropout_rate": 0.0}
BUCKETS = {"num_buckets": 8, "max_distance": 6}  # so that seven tokens fill them
SEQ2SEQ = {  # name, fields
    "lstm": ("seq2seq_lstm", OWN),
    "gru": ("seq2seq_gru_attention", {**SHARED, "attention_size": 7, "maxout_size": 5}),
    "dot": ("seq2seq_lstm_luong", {**SHARED, "score": "dot"}),
    "general": ("seq2seq_lstm_luong", {**OWN, "score": "general"}),
    "concat": ("seq2seq_lstm_luong", {**SHARED, "num_layers": 1, "score": "concat"}),
    "unfed": ("seq2seq_lstm_luong", {**OWN, "score": "dot", "input_feeding": False}),
    "unfed_concat": ("seq2seq_lstm_luong", {**SHARED, "score": "concat", "input_feeding": False}),
}
TRANSFORMERS = {
    "post_norm": ("transformer_base", QUIET),
    "pre_norm": ("transformer_base", {**QUIET, "norm_first": True, "source_vocab_size": 13, "tied": False}),
    "t5": ("t5_small", {**QUIET, **BUCKETS, "head_dim": 6}),
    "bart": ("bart_base", {**QUIET, "num_decoder_layers": 1}),
    "marian": ("opus_mt", {**QUIET, "source_vocab_size": 13}),
    "t5_1.1": ("t5_small", {**QUIET, **BUCKETS, "activation": "geglu", "tied": False}),
}
QUICK = ("lstm", "gru", "general", "post_norm", "bart", "t5")
B, T, S = 3, 7, 5
_RNG = np.random.default_rng(0)
TOKENS = _RNG.integers(0, 11, (B, T)).astype(np.int32)
SOURCE = _RNG.integers(0, 11, (B, S)).astype(np.int32)
LENGTHS = np.array([5, 2, 3], np.int32)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def kinds(names):
    """Names as parameters, those that are not QUICK marked slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@functools.cache
def tiny(kind, **fields):
    """A tiny model and its variables, moved from where norms and biases begin."""
    name, own = {**SEQ2SEQ, **TRANSFORMERS}[kind]
    model = zoo.create_model(name, **{**own, **fields})
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    leaves, structure = jax.tree.flatten(variables)
    keys, by = jax.random.split(jax.random.key(1), len(leaves)), 0.5 if kind in SEQ2SEQ else 0.3
    moved = [leaf + by * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(structure, moved)


@functools.partial(jax.jit, static_argnums=0)
def forced(model, variables, tokens, source, source_lengths=None):
    """The logits of all tokens at once."""
    return model.apply(variables, tokens, source=source, source_lengths=source_lengths)


@functools.partial(jax.jit, static_argnums=(0, 2))
def encoded(model, variables, max_length):
    return model.apply(variables, SOURCE, LENGTHS, max_length, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def step(model, variables, tokens, state, lengths=None):
    return model.apply(variables, tokens, state, lengths)


@functools.cache
def whole(kind):
    return forced(*tiny(kind), TOKENS, SOURCE, LENGTHS)
