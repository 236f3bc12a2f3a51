"""Folders as Hugging Face's `transformers` writes and reads them: config.json beside `.safetensors`.

Decoders alone: GPT-2, Llama, Qwen 3. A config that asks for what ours do not have (another activation, another scaling
of rotations, biases in a Llama) is refused by name.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from zoo.errors import ZooError
from zoo.registry import abstract_variables, create_model
from zoo.transformer.decoder import Decoder
from zoo.transformer.layers import unstacked
from zoo.weights import huggingface, load_weights, write_safetensors

_MODELS = {"gpt2": "gpt2", "llama": "llama3_1b", "qwen3": "qwen3_0.6b"}  # model_type to the registered one of its kind
_ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_GPT2_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
_LLAMA_ACTIVATIONS = {"silu": "swiglu"}
_ONLY = {  # what a config may say of these, and what it says where it says nothing
    "attention_bias": False,
    "mlp_bias": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def from_pretrained(folder: str | os.PathLike, **overrides: Any) -> tuple[nn.Module, Mapping[str, Any]]:
    """The decoder and its variables of a folder with config.json and model.safetensors, whole or in shards.

    `overrides` are fields of `Decoder`, such as dtype, max_length or scan_layers. ZooError, in a line, for what is
    missing, damaged or not of a GPT-2, Llama or Qwen 3; nothing is half loaded.
    """
    folder = pathlib.Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise ZooError(f"{str(folder)!r} is no folder of Hugging Face's: it has no config.json")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ZooError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ZooError(f"{str(path)!r} must hold an object, not {config!r:.40}")
    try:
        kind, fields = _fields(config)
    except (ZooError, TypeError, AttributeError) as error:  # the latter two of values of another type
        raise ZooError(f"{str(path)!r}: {error}") from None
    model = create_model(_MODELS[kind], **{**fields, **overrides})
    weights = [folder / "model.safetensors", folder / "model.safetensors.index.json"]
    found = [path for path in weights if path.is_file()]
    if not found:
        raise ZooError(f"{str(folder)!r} has neither {weights[0].name} nor {weights[1].name}")
    return model, load_weights(model, found[0])


def save_pretrained(model: nn.Module, variables: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """Writes config.json and model.safetensors, from which `transformers` makes the same model.

    ZooError where the folder has something in it, the variables are of another model, or Hugging Face's have no such
    decoder.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ZooError(f"{str(folder)!r} exists already; name an empty folder or a new one")
    if not isinstance(model, Decoder):
        raise ZooError(f"{type(model).__name__} has no layout of Hugging Face's; a Decoder has")
    config = _config(model)
    template = abstract_variables(model, jax.ShapeDtypeStruct((1, 1), np.dtype("int32")))
    if jax.tree.map(np.shape, variables) != jax.tree.map(np.shape, template):
        raise ZooError("the variables are not of this model: their names or shapes differ")
    tensors = huggingface.to_file(unstacked(variables))
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The model_type of a config and the fields of its Decoder; ZooError where there is none such."""
    kind = _kind(config)
    for key, right in _ONLY.items():
        if config.get(key, right) != right:
            raise ZooError(f"{key} must be {json.dumps(right)}, not {json.dumps(config[key])}")
    return kind, _gpt2_fields(config) if kind == "gpt2" else _llama_fields(config, kind)


def _kind(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    if kind is None:
        names = config.get("architectures") or ["none"]
        kind = next((kind for kind, name in _ARCHITECTURES.items() if name in names), names[0])
    if str(kind) not in _MODELS:
        raise ZooError(f"unknown model_type {kind!r}; there are {', '.join(_MODELS)}")
    return kind


def _gpt2_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    size, heads = _count(config, "n_embd"), _count(config, "n_head")
    if size % heads:
        raise ZooError(f"n_embd {size} must be a multiple of n_head {heads}")
    return {
        "vocab_size": _count(config, "vocab_size"),
        "hidden_size": size,
        "num_layers": _count(config, "n_layer"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": size // heads,
        "mlp_size": _count(config, "n_inner", 4 * size),
        "max_length": _count(config, "n_positions"),
        "activation": _activation(config.get("activation_function", "gelu_new"), _GPT2_ACTIVATIONS),
        "norm": "layer",
        "norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
        "use_bias": True,
        "positions": "learned",
        "qk_norm": False,
        "window": None,
        "soft_cap": None,
        "tied": config.get("tie_word_embeddings", True),
    }


def _llama_fields(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    size, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    theta, scaling = _rotations(config)
    head_dim = _count(config, "head_dim", 128 if kind == "qwen3" else size // heads)
    if head_dim % 2:
        raise ZooError(f"head_dim must be even, as features are turned in pairs, not {head_dim}")
    return {
        "vocab_size": _count(config, "vocab_size"),
        "hidden_size": size,
        "num_layers": _count(config, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": _count(config, "num_key_value_heads", heads),
        "head_dim": head_dim,
        "mlp_size": _count(config, "intermediate_size"),
        "max_length": _count(config, "max_position_embeddings"),
        "activation": _activation(config.get("hidden_act", "silu"), _LLAMA_ACTIVATIONS),
        "norm": "rms",
        "norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "use_bias": False,
        "positions": "rotary",
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qk_norm": kind == "qwen3",
        "window": _window(config) if kind == "qwen3" else None,
        "soft_cap": None,
        "tied": config.get("tie_word_embeddings", False),
    }


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A size of the config; ZooError where it is none, or is left out or null and has no default."""
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ZooError(f"{key} must be an integer of at least 1, not {value!r}")
    return value


def _activation(name: Any, known: Mapping[str, str]) -> str:
    if str(name) not in known:
        raise ZooError(f"unknown activation {name!r}; there are {', '.join(known)}")
    return known[name]


def _rotations(config: Mapping[str, Any]) -> tuple[float, tuple[float, float, float, int] | None]:
    """Theta and Llama 3's scaling: from `rope_parameters`, or from `rope_theta` and `rope_scaling`, the older form."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ZooError(f"rope_parameters must be an object, not {rope!r:.40}")
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ZooError("partial_rotary_factor must be 1: all of a head's features are turned")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ZooError(f"unknown rope_type {kind!r}; there are default, llama3")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if lacking := [key for key in keys if key not in rope]:
        raise ZooError(f"a rope_type of llama3 needs {', '.join(lacking)}")
    return theta, (rope[keys[0]], rope[keys[1]], rope[keys[2]], rope[keys[3]])


def _window(config: Mapping[str, Any]) -> int | None:
    """Qwen 3's window, where every layer has it; ZooError where some have."""
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return None
    depth = _count(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    sliding = depth - config.get("max_window_layers", 28) if kinds is None else kinds.count("sliding_attention")
    if 0 < sliding < depth:
        raise ZooError(f"sliding_window must be of all {depth} layers or none, not of {sliding}")
    return _count(config, "sliding_window") if sliding > 0 else None


def _config(model: Decoder) -> dict[str, Any]:
    """The config.json of a decoder; ZooError, with the fields that differ, where Hugging Face's have none like it."""
    kv_heads, head_dim = model.sizes
    kind = "gpt2" if model.positions == "learned" else "qwen3" if model.qk_norm else "llama"
    mlp_size = model.mlp_size or 4 * model.hidden_size
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied,
        "bos_token_id": None,  # the tokenizer knows
        "eos_token_id": None,
    }
    if kind == "gpt2":
        config |= {
            "n_embd": model.hidden_size,
            "n_layer": model.num_layers,
            "n_head": model.num_heads,
            "n_inner": mlp_size,
            "n_positions": model.max_length,
            "activation_function": _named(model.activation, _GPT2_ACTIVATIONS),
            "layer_norm_epsilon": model.norm_epsilon,
            "embd_pdrop": model.dropout_rate,
            "resid_pdrop": model.dropout_rate,
            "attn_pdrop": 0.0,
        }
    else:
        rope: dict[str, Any] = {"rope_type": "default"}
        if model.rope_scaling is not None:
            keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            rope = {"rope_type": "llama3", **dict(zip(keys, model.rope_scaling, strict=True))}
        config |= {
            "hidden_size": model.hidden_size,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": model.num_heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "intermediate_size": mlp_size,
            "max_position_embeddings": model.max_length,
            "hidden_act": _named(model.activation, _LLAMA_ACTIVATIONS),
            "rms_norm_eps": model.norm_epsilon,
            "attention_bias": False,
            "rope_theta": model.rope_theta,  # as transformers 4 reads it, and 5 with it
            "rope_scaling": None if model.rope_scaling is None else rope,
            "rope_parameters": {**rope, "rope_theta": model.rope_theta},
        }
        if kind == "qwen3" and model.window is not None:
            config |= {"use_sliding_window": True, "sliding_window": model.window, "max_window_layers": 0}
    again = _fields(config)[1]
    ours = {"num_kv_heads": kv_heads, "head_dim": head_dim, "mlp_size": mlp_size}
    for key, value in again.items():
        if (own := ours.get(key, getattr(model, key))) != value:
            raise ZooError(f"Hugging Face's {kind} has {key} {value!r}, not {own!r}")
    return config


def _named(activation: str, known: Mapping[str, str]) -> str:
    """Hugging Face's name of an activation; the first one where it has none, which is then complained of."""
    return next((theirs for theirs, ours in known.items() if ours == activation), next(iter(known)))
