"""GPT-2, Llama and Qwen 3 of Hugging Face's transformers: weights in and out, logits and hidden states to 1e-5 of the
largest value."""

import json

import jax
import numpy as np
import pytest
from peers import close, drawn, there_and_back, torch, transformers

import zoo
from zoo.weights import read_safetensors, save_native

pytestmark = pytest.mark.parity

B, T, V = 2, 24, 37
NO_ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
GPT2 = {"vocab_size": V, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32, **NO_ENDS}
LLAMA = {
    **{"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 64, **NO_ENDS},
}
SCALING = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 16,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}


def gpt2(**fields):
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, **fields))


def llama(**fields):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **fields))


def qwen3(**fields):
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**LLAMA, head_dim=16, **fields))


PEERS = {
    "gpt2": gpt2,
    "gpt2-relu": lambda: gpt2(activation_function="relu", n_inner=40, layer_norm_epsilon=1e-3),
    "gpt2-gelu": lambda: gpt2(activation_function="gelu"),
    "gpt2-untied": lambda: gpt2(tie_word_embeddings=False),
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True, rms_norm_eps=1e-3),
    "llama-scaled": lambda: llama(rope_theta=5e5, rope_scaling=dict(SCALING)),
    "qwen3": qwen3,
    "qwen3-tied": lambda: qwen3(tie_word_embeddings=True, rope_theta=1e6),
    "qwen3-sliding": lambda: qwen3(**SLIDING),
}


def peer(name):
    """A model of transformers with weights that are not small, and scales around 1."""
    torch.manual_seed(0)
    model = PEERS[name]()
    return drawn(model)


def tokens():
    return np.random.default_rng(0).integers(0, V, (B, T))


def compare(model, variables, other):
    """Logits and every hidden state."""
    with torch.no_grad():
        theirs = other(torch.from_numpy(tokens()), output_hidden_states=True)
    logits, seen = model.apply(variables, tokens(), mutable=["features"])
    close(logits, theirs.logits)
    features = seen["features"]
    hidden = [features["embedded"], *(features["layers"][f"layer{i}"]["hidden"] for i in range(model.num_layers - 1))]
    for ours, expected in zip([*hidden, features["normalised"]], theirs.hidden_states, strict=True):
        close(ours, expected)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", PEERS)
def test_theirs_to_ours_and_back(name, scan_layers, tmp_path):
    other = peer(name)
    there_and_back(other, transformers.AutoModelForCausalLM, compare, tmp_path, scan_layers=scan_layers)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_shards(name, tmp_path):
    other = peer(name)
    other.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    compare(*zoo.from_pretrained(tmp_path), other)


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_the_older_form_of_configs_and_the_body_alone(name, tmp_path):
    other = peer(f"{name}-tied" if name == "qwen3" else name)
    other.base_model.save_pretrained(tmp_path)
    assert not any(
        key.startswith(("transformer.", "model.")) for key in read_safetensors(tmp_path / "model.safetensors")
    )
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters", None)
    if rope:
        config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    compare(*zoo.from_pretrained(tmp_path), other)


def test_the_older_form_of_scaled_rotations(tmp_path):
    other = peer("llama-scaled")
    other.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 5e5, "rope_scaling": SCALING}
    (tmp_path / "config.json").write_text(json.dumps(config))
    compare(*zoo.from_pretrained(tmp_path), other)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_files_of_weights_alone(name, tmp_path):
    other = peer(name)
    other.save_pretrained(tmp_path / "theirs")
    plain, variables = zoo.from_pretrained(tmp_path / "theirs")
    scanned = plain.clone(scan_layers=True)
    stacked = zoo.load_weights(scanned, tmp_path / "theirs" / "model.safetensors")
    for save in (zoo.save_weights, save_native):
        path = tmp_path / f"{save.__name__}.safetensors"
        save(stacked, path)
        loaded = zoo.load_weights(plain, path)
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)
        jax.tree.map(np.testing.assert_array_equal, zoo.load_weights(scanned, path), stacked)


def test_half_precision_is_cast(tmp_path):
    peer("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    _, variables = zoo.from_pretrained(tmp_path)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    _, variables = zoo.from_pretrained(tmp_path, param_dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"bfloat16"}
