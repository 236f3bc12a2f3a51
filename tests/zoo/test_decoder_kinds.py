"""The kinds of decoders: cached decoding, packing, scanned layers, rematerialisation, saving and loading for each."""

import functools

import jax
import numpy as np
import pytest

import zoo

SMALL = {"vocab_size": 11, "hidden_size": 16, "num_layers": 4, "num_heads": 4, "mlp_size": 24, "max_length": 16}
KINDS = {
    "qwen2.5_0.5b": {"num_kv_heads": 2},
    "smollm3_3b": {"num_kv_heads": 2, "unrotated_every": 2},
    "olmo2_1b": {},
    "gemma2_2b": {"num_kv_heads": 2, "head_dim": 6, "window": 3},
    "gemma3_1b": {"num_kv_heads": 2, "head_dim": 6, "window": 3, "global_every": 3},
    "pythia_160m": {},
}
EQUAL = ("qwen2.5_0.5b", "olmo2_1b", "pythia_160m")  # all of whose layers are equal
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 9)).astype(np.int32)
PUBLISHED = {  # of the authors' own checkpoints
    "qwen2.5_0.5b": 494_032_768,
    "mistral_7b": 7_241_732_096,
    "smollm3_3b": 3_075_098_624,
    "olmo2_1b": 1_484_916_736,
    "phi3_mini": 3_821_079_552,
    "gemma_2b": 2_506_172_416,
    "gemma2_2b": 2_614_341_888,
    "gemma3_1b": 999_885_952,
    "pythia_160m": 162_322_944,
    "pythia_70m": 70_426_624,
    "qwen2.5_1.5b": 1_543_714_304,
    "gemma3_270m": 268_098_176,
    "pythia_410m": 405_334_016,
}


@functools.cache
def small(name, **fields):
    """A small model and its variables, in which layers count for as much as embeddings."""
    model = zoo.create_model(name, **{**SMALL, **KINDS[name], **fields})
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    return model, jax.tree.map(lambda leaf: 8 * leaf if leaf.ndim > 1 else leaf + 0.1, variables)


def close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    assert zoo.model_info(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", KINDS)
def test_cached_decoding_matches_the_full_forward(name):
    model, variables = small(name)
    step = jax.jit(model.apply)
    expected = step(variables, TOKENS)
    for sizes in ((1,) * 9, (4, 5)):
        state, found, at = model.init_state(2, 12), [], 0
        for size in sizes:
            logits, state = step(variables, TOKENS[:, at : at + size], state)
            found.append(logits)
            at += size
        close(np.concatenate(found, axis=1), expected)


@pytest.mark.parametrize("name", KINDS)
def test_packed_documents_do_not_see_each_other(name):
    model, variables = small(name)
    segments = np.array([[0] * 4 + [1] * 5] * 2, np.int32)
    packed = jax.jit(model.apply)(variables, TOKENS, segments=segments)
    close(packed[:, :4], model.apply(variables, TOKENS[:, :4]))
    close(packed[:, 4:], model.apply(variables, TOKENS[:, 4:]))


@pytest.mark.parametrize("name", KINDS)
def test_scanned_layers_are_the_same_or_refused(name, tmp_path):
    model, variables = small(name)
    scanned = model.clone(scan_layers=True)
    if name not in EQUAL:
        with pytest.raises(zoo.ZooError, match="scan_layers needs equal layers"):
            scanned.init(jax.random.key(0), TOKENS)
        return
    zoo.save_pretrained(model, variables, tmp_path / "folder")
    stacked = zoo.load_weights(scanned, tmp_path / "folder" / "model.safetensors")
    close(jax.jit(scanned.apply)(stacked, TOKENS), model.apply(variables, TOKENS))


@pytest.mark.parametrize("name", ["gemma3_1b", "pythia_160m"])
def test_rematerialisation_keeps_gradients(name):
    model, variables = small(name)

    def loss(variables, remat):
        return (model.clone(remat=remat).apply(variables, TOKENS) ** 2).mean()

    plain, again = (jax.jit(jax.grad(loss), static_argnums=1)(variables, remat) for remat in ("none", "full"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, again)


def test_a_window_is_what_local_layers_see():
    """Of two layers the first has a window of 2, the second none: only its weights reach further back."""
    model, variables = small("gemma2_2b", window=2, num_layers=2)
    _, seen = model.apply(variables, TOKENS, mutable=["features"])
    local, everything = (seen["features"]["layers"][f"layer{i}"]["attention"]["weights"] for i in range(2))
    rows, columns = np.indices((9, 9))
    assert not np.asarray(local)[..., rows - columns >= 2].any()
    assert np.asarray(everything)[..., rows >= columns].all()


def test_logits_are_capped():
    model, variables = small("gemma2_2b", logit_cap=0.5)
    assert np.abs(model.apply(variables, TOKENS)).max() <= 0.5
