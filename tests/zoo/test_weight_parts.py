"""Weights that lack a head or a pooler, or are for images of other channels: what is drawn or adapted, and said."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.errors import ZooError
from zoo.registry import abstract_variables, example_of
from zoo.weights import read_safetensors, save_native, write_safetensors

BERT = {"vocab_size": 11, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 24, "max_length": 8}
TOKENS = np.arange(8)[None]


def drawn(name, shape=None, **fields):
    """A model and variables that are all random."""
    model = zoo.create_model(name, **fields)
    rng = np.random.default_rng(0)
    shapes = abstract_variables(model, *example_of(model, shape))
    return model, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def without(path, *begins):
    """A file again without the tensors whose names begin in one of these ways."""
    kept = {name: tensor for name, tensor in read_safetensors(path).items() if not name.startswith(begins)}
    write_safetensors(kept, path, overwrite=True)


@pytest.mark.parametrize("save", [zoo.save_weights, save_native])
@pytest.mark.parametrize("fields", [{"num_classes": 3}, {"output": "hidden"}, {"output": "embedding"}])
def test_masked_language_models_begin_classifiers_and_embeddings(fields, save, tmp_path):
    masked, variables = drawn("bert_base", **BERT, output="tokens")
    save(variables, tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match="has no (head for this number of classes|pooler); .* drawn anew") as warned:
        loaded = zoo.load_weights("bert_base", tmp_path / "w.safetensors", **BERT, **fields)
    assert len(warned) == 1
    params = loaded["params"]
    for name in ("embedding", "layers", "positions"):
        jax.tree.map(np.testing.assert_array_equal, params[name], variables["params"][name])
    assert np.std(params["pooler"]["kernel"]) > 0
    assert "told" not in params
    model = zoo.create_model("bert_base", **BERT, **fields)
    hidden = model.clone(num_classes=None, output="hidden")
    plain = {"params": {name: value for name, value in params.items() if name != "head"}}
    _, seen = masked.apply(variables, TOKENS, mutable=["features"])
    expected = seen["features"]["layers"]["layer0"]["hidden"]
    np.testing.assert_allclose(hidden.apply(plain, TOKENS), expected, rtol=1e-5, atol=1e-5)
    assert np.all(np.isfinite(model.apply(loaded, TOKENS)))


def test_a_body_begins_a_masked_language_model(tmp_path):
    _, variables = drawn("bert_base", **BERT)
    for save in (zoo.save_weights, save_native):
        save(variables, tmp_path / "w.safetensors", overwrite=True)
        with pytest.warns(UserWarning, match="has no told or told_bias or told_norm; .* are drawn anew"):
            loaded = zoo.load_weights("bert_base", tmp_path / "w.safetensors", **BERT, output="tokens")
        assert not loaded["params"]["told_bias"].any()
        with pytest.raises(ZooError, match="would be random numbers"):
            zoo.load_weights("bert_base", tmp_path / "w.safetensors", draw=False, **BERT, output="tokens")


def test_a_pooler_that_nothing_reads_may_be_missing_where_nothing_is_drawn(tmp_path):
    _, variables = drawn("bert_base", **BERT)
    zoo.save_weights(variables, tmp_path / "w.safetensors")
    without(tmp_path / "w.safetensors", "bert.pooler")
    with pytest.warns(UserWarning, match="has no pooler; 'pooler' is drawn anew"):
        zoo.load_weights("bert_base", tmp_path / "w.safetensors", draw=False, **BERT)
    with pytest.raises(
        ZooError, match=r"no head for this number of classes: the head 'head' \(2\) and 'pooler' would be"
    ):
        zoo.load_weights("bert_base", tmp_path / "w.safetensors", draw=False, num_classes=2, **BERT)


def test_a_head_is_drawn_whole_or_not_at_all(tmp_path):
    """Half a head is damage, and so is any other tensor that is missing."""
    path = tmp_path / "w.safetensors"
    for name, half in (("resnet8", "fc.bias"), ("resnet8", "fc.weight"), ("lenet5", "fc2"), ("lstm_encoder", "head")):
        fields = {"hidden_size": 8, "num_layers": 1, "embedding_size": 4} if name == "lstm_encoder" else {}
        model, variables = drawn(name, **fields)
        zoo.save_weights(variables, path, overwrite=True)
        without(path, half)
        with pytest.raises(ZooError, match=f"missing: {half}"):
            zoo.load_weights(model, path)
    masked, variables = drawn("bert_base", **BERT, output="tokens")
    save_native(variables, path, overwrite=True)
    without(path, "params/told_norm")
    with pytest.raises(ZooError, match="missing: params/told_norm/bias"):
        zoo.load_weights(masked, path)
    save_native({"params": {**variables["params"], "other": {"kernel": np.ones(3, np.float32)}}}, path, overwrite=True)
    with pytest.raises(ZooError, match="unexpected: params/other/kernel"):
        zoo.load_weights(masked, path)


@pytest.mark.parametrize("save", [zoo.save_weights, save_native])
@pytest.mark.parametrize("name", ["resnet8", "vit_tiny16", "lenet5"])
@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 6)])
def test_the_first_kernel_adapts_to_the_channels_of_the_images(name, old, new, save, tmp_path):
    fields = {"image_size": 32, "hidden_size": 12, "num_layers": 1} if "vit" in name else {}
    model, variables = drawn(name, (32, 32, old), num_classes=3, **fields)
    save(variables, tmp_path / "w.safetensors")
    with pytest.warns(
        UserWarning, match=f"is for images of {old} channels, not {new}: its first kernel, .* is adapted"
    ):
        loaded = zoo.load_weights(model, tmp_path / "w.safetensors", (32, 32, new))
    grey = np.random.default_rng(1).normal(size=(1, 32, 32, 1)).astype(np.float32)
    expected, found = (
        jax.jit(model.apply)(weights, np.repeat(grey, channels, axis=-1))
        for weights, channels in ((variables, old), (loaded, new))
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())  # sums in another order


def test_a_wider_kernel_is_not_taken_for_other_channels(tmp_path):
    model, variables = drawn("resnet8", (32, 32, 3), width=8)
    zoo.save_weights(variables, tmp_path / "w.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ZooError, match="misshapen: "):
            zoo.load_weights("resnet8", tmp_path / "w.safetensors", (32, 32, 1), width=16)
        zoo.load_weights(model, tmp_path / "w.safetensors", (32, 32, 3))


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("save", [zoo.save_weights, save_native])
def test_on_a_mesh_each_device_gets_its_part(scan_layers, save, tmp_path):
    sizes = {"vocab_size": 512, "hidden_size": 256, "num_layers": 2, "num_heads": 4, "mlp_size": 512, "max_length": 8}
    model, variables = drawn("nanogpt", (8,), **sizes)
    save(variables, tmp_path / "w.safetensors")
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    model = model.clone(scan_layers=scan_layers, param_dtype=jnp.float32)
    plain, loaded = (zoo.load_weights(model, tmp_path / "w.safetensors", mesh=on) for on in (None, mesh))
    jax.tree.map(np.testing.assert_array_equal, loaded, plain)
    layers = loaded["params"]["layers"]
    kernel = (layers["stacked"] if scan_layers else layers["layer0"])["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec[-2:] == ("fsdp", "tensor")
    assert kernel.addressable_shards[0].data.shape[-2:] == (64, 256)


def test_weights_are_cast_on_the_way(tmp_path):
    """Kernels large enough for several threads, transposed and cast, and what is not transposed."""
    model, variables = drawn("simple_cnn", (32, 32, 3), hidden_size=300)
    zoo.save_weights(variables, tmp_path / "w.safetensors")
    half = zoo.load_weights(model.clone(param_dtype=jnp.bfloat16), tmp_path / "w.safetensors", (32, 32, 3))
    jax.tree.map(np.testing.assert_array_equal, half, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables))
    zoo.save_weights(half, tmp_path / "half.safetensors")
    again = zoo.load_weights(model, tmp_path / "half.safetensors", (32, 32, 3))
    jax.tree.map(np.testing.assert_array_equal, again, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(again))
