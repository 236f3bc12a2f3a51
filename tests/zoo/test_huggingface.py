"""Hugging Face's folders without torch: what is written is read, and what does not fit is told in a line."""

import json

import jax
import numpy as np
import pytest

import zoo
from zoo.errors import ZooError
from zoo.weights import read_safetensors, save_native, write_safetensors

SMALL = {"vocab_size": 11, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "max_length": 8}
NAMES = {"gpt2": "gpt2", "llama": "llama3_1b", "qwen3": "qwen3_0.6b"}
FIELDS = {
    "gpt2": {},
    "llama": {"num_kv_heads": 2, "mlp_size": 24, "tied": False},
    "qwen3": {"num_kv_heads": 2, "head_dim": 6, "mlp_size": 24, "window": 3},
}


def small(kind, **fields):
    """A model of few numbers and its variables, all of them drawn."""
    model = zoo.create_model(NAMES[kind], **{**SMALL, **FIELDS[kind], **fields})
    variables = model.init(jax.random.key(0), np.zeros((1, 4), np.int32))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), variables)


@pytest.fixture
def folder(tmp_path):
    zoo.save_pretrained(*small("llama"), tmp_path / "llama")
    return tmp_path / "llama"


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def refused(folder, match, **overrides):
    with pytest.raises(ZooError, match=match) as caught:
        zoo.from_pretrained(folder, **overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("kind", NAMES)
def test_what_is_saved_is_loaded(kind, scan_layers, tmp_path):
    model, variables = small(kind, scan_layers=scan_layers)
    zoo.save_pretrained(model, variables, tmp_path / "new" / "folder")
    again, loaded = zoo.from_pretrained(tmp_path / "new" / "folder", scan_layers=scan_layers)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    tokens = np.arange(8)[None]
    np.testing.assert_array_equal(again.apply(loaded, tokens), model.apply(variables, tokens))


@pytest.mark.parametrize("save", [zoo.save_weights, save_native])
@pytest.mark.parametrize("kind", NAMES)
def test_weights_lie_layer_by_layer(kind, save, tmp_path):
    model, variables = small(kind, scan_layers=True)
    save(variables, tmp_path / "w.safetensors")
    assert not any("stacked" in name for name in read_safetensors(tmp_path / "w.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, zoo.load_weights(model, tmp_path / "w.safetensors"), variables)
    plain = model.clone(scan_layers=False)
    loaded = zoo.load_weights(plain, tmp_path / "w.safetensors")
    tokens = np.arange(8)[None]
    np.testing.assert_allclose(plain.apply(loaded, tokens), model.apply(variables, tokens), rtol=1e-4, atol=1e-4)


def test_layouts(tmp_path):
    _, gpt2 = small("gpt2")
    zoo.save_weights(gpt2, tmp_path / "gpt2.safetensors")
    tensors = read_safetensors(tmp_path / "gpt2.safetensors")
    attention = gpt2["params"]["layers"]["layer1"]["attention"]
    fused = np.concatenate([attention[name]["kernel"] for name in ("query", "key", "value")], axis=1)
    np.testing.assert_array_equal(tensors["transformer.h.1.attn.c_attn.weight"], fused)
    _, llama = small("llama")
    zoo.save_weights(llama, tmp_path / "llama.safetensors")
    tensors = read_safetensors(tmp_path / "llama.safetensors")
    kernel = llama["params"]["layers"]["layer0"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(tensors["model.layers.0.mlp.up_proj.weight"], kernel.T)
    assert tensors["lm_head.weight"].shape == (11, 16)


def test_old_gpt2_files_have_no_prefix_but_masks(tmp_path):
    model, variables = small("gpt2")
    zoo.save_weights(variables, tmp_path / "new.safetensors")
    tensors = read_safetensors(tmp_path / "new.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old |= {"h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32), "h.0.attn.masked_bias": np.float32(-1e4)}
    write_safetensors({**old, "lm_head.weight": old["wte.weight"]}, tmp_path / "old.safetensors")
    jax.tree.map(np.testing.assert_array_equal, zoo.load_weights(model, tmp_path / "old.safetensors"), variables)
    write_safetensors({**old, "lm_head.weight": old["wte.weight"] + 1}, tmp_path / "other.safetensors")
    with pytest.raises(ZooError, match=r"lm_head.weight is not its embedding.*give tied=False"):
        zoo.load_weights(model, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"model_type": "mamba"}, r"unknown model_type 'mamba'; (did you mean|there are) "),
        ({"model_type": None, "architectures": ["MambaForCausalLM"]}, r"unknown model_type 'MambaForCausalLM'"),
        ({"hidden_act": "gelu"}, r"unknown activation 'gelu'; there are silu"),
        ({"hidden_act": ["silu"]}, "unknown activation"),
        ({"attention_bias": True}, r"attention_bias must be false, not true"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, r"unknown rope_type 'dynamic'; there are default, linear"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, r"needs low_freq_factor, high_freq_factor, orig"),
        ({"rope_parameters": 3}, r"rope_parameters must be an object, not 3"),
        ({"hidden_size": None}, r"hidden_size must be an integer of at least 1, not None"),
        ({"head_dim": -4}, r"head_dim must be an integer of at least 1, not -4"),
        ({"head_dim": 5}, r"head_dim must be even"),
        ({"architectures": 3, "model_type": None}, r"config.json': 'int' object"),
        ({"num_key_value_heads": 3}, r"num_heads 4 must be a multiple of num_kv_heads 3"),
        ({"rms_norm_eps": "small"}, r"norm_epsilon must be float, not 'small'"),
        ({"num_hidden_layers": 3}, r"does not fit Decoder: missing: model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, r"unexpected: model.layers.1.input_layernorm.weight"),
        ({"vocab_size": 12}, r"misshapen: lm_head.weight \(\(11, 16\), not \(12, 16\)\), model.embed_tokens"),
        ({"tie_word_embeddings": True}, r"lm_head.weight is not its embedding"),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
            r"sliding_window must apply to all 2 layers or none, not to 1",
        ),
        ({"model_type": "qwen3", "head_dim": 4}, r"missing: model.layers.0.self_attn.k_norm.weight"),
    ],
)
def test_configs_that_do_not_fit(folder, values, match):
    change(folder, **values)
    refused(folder, match)


def test_broken_folders(folder, tmp_path):
    refused(tmp_path / "absent", "it has no config.json")
    refused(folder, "has no field 'hidden'", hidden=3)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(folder, "is not a readable .safetensors file")
    weights.unlink()
    refused(folder, r"has neither model.safetensors nor model.safetensors.index.json")
    (folder / "config.json").write_text("{")
    refused(folder, "is not JSON")
    (folder / "config.json").write_text("[]")
    refused(folder, "must hold an object")


def test_weights_of_another_model(folder, tmp_path):
    zoo.save_pretrained(*small("gpt2"), tmp_path / "gpt2")
    (tmp_path / "gpt2" / "model.safetensors").replace(folder / "model.safetensors")
    refused(folder, r"does not fit Decoder: missing: lm_head.weight, .* unexpected: transformer.h.0.attn.c_attn.bias")


def test_shards(folder, tmp_path):
    model, expected = zoo.from_pretrained(folder)
    tensors = read_safetensors(folder / "model.safetensors")
    (folder / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = folder / "model.safetensors.index.json"
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        write_safetensors({name: tensors[name] for name in held}, folder / file)
    places = {name: file for file, held in parts.items() for name in held}
    index.write_text(json.dumps({"weight_map": places}))
    jax.tree.map(np.testing.assert_array_equal, zoo.from_pretrained(folder)[1], expected)
    jax.tree.map(np.testing.assert_array_equal, zoo.load_weights(model, index), expected)
    for name in ("../x.safetensors", str(tmp_path / "x.safetensors"), "..", "", "sub/a.safetensors", "..\\x"):
        index.write_text(json.dumps({"weight_map": {**places, names[0]: name}}))
        refused(folder, "a shard must be a file beside the index")
    index.write_text(json.dumps({"weight_map": {**places, names[0]: "b.safetensors"}}))
    refused(folder, f"lacks tensors that its index lists: {names[0]}")
    index.write_text(json.dumps({"weight_map": {**places, names[0]: "c.safetensors"}}))
    refused(folder, "no weights file")
    for broken in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        index.write_text(broken)
        refused(folder, "is not a weights index")


def test_saving_refuses(tmp_path):
    model, variables = small("llama")
    zoo.save_pretrained(model, variables, tmp_path / "a")
    with pytest.raises(ZooError, match="exists; choose an empty folder or a new one"):
        zoo.save_pretrained(model, variables, tmp_path / "a")
    with pytest.raises(ZooError, match="the variables do not belong to this model"):
        zoo.save_pretrained(model.clone(num_layers=3), variables, tmp_path / "b")
    for fields, match in [
        ({"window": 3, "unrotated_every": 2}, "smollm3 has window None, not 3"),
        ({"activation": "gelu"}, "llama has activation 'swiglu', not 'gelu'"),
        ({"norm": "layer"}, "gpt_neox has activation 'gelu', not 'swiglu'"),
    ]:
        with pytest.raises(ZooError, match=match):
            zoo.save_pretrained(*small("llama", **fields), tmp_path / "b")
    with pytest.raises(ZooError, match="gpt2 has use_bias True, not False"):
        zoo.save_pretrained(*small("gpt2", use_bias=False), tmp_path / "b")
    with pytest.raises(ZooError, match="has no Hugging Face layout"):
        zoo.save_pretrained(zoo.create_model("resnet8"), {}, tmp_path / "b")
    with pytest.raises(ZooError, match=r"GPT-2 has no params/layers/layer0/mlp/gate"):
        zoo.save_weights(small("gpt2", activation="swiglu")[1], tmp_path / "b")
    assert not (tmp_path / "b").exists()
