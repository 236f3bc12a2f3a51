"""Tensors and configs of Llama, and of Qwen 3, which has the same names: `model.layers.0.self_attn.q_proj.weight`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.errors import ZooError
from zoo.transformer.decoder import Decoder
from zoo.weights.huggingface.checks import activation, count, named, only
from zoo.weights.huggingface.layout import TensorLayout

ARCHITECTURES = {"llama": ("LlamaForCausalLM",), "qwen3": ("Qwen3ForCausalLM",)}
LAYOUT = TensorLayout(
    title="Llama",
    marks=("embedding", "layers/layer0/attention"),
    table={
        "embedding": "model.embed_tokens.weight",
        "layers/layer{}/norm1": "model.layers.{}.input_layernorm",
        "layers/layer{}/attention/query": "model.layers.{}.self_attn.q_proj",
        "layers/layer{}/attention/key": "model.layers.{}.self_attn.k_proj",
        "layers/layer{}/attention/value": "model.layers.{}.self_attn.v_proj",
        "layers/layer{}/attention/query_norm": "model.layers.{}.self_attn.q_norm",
        "layers/layer{}/attention/key_norm": "model.layers.{}.self_attn.k_norm",
        "layers/layer{}/attention/out": "model.layers.{}.self_attn.o_proj",
        "layers/layer{}/norm2": "model.layers.{}.post_attention_layernorm",
        "layers/layer{}/mlp/gate": "model.layers.{}.mlp.gate_proj",
        "layers/layer{}/mlp/up": "model.layers.{}.mlp.up_proj",
        "layers/layer{}/mlp/down": "model.layers.{}.mlp.down_proj",
        "norm": "model.norm",
        "head": "lm_head",
    },
    prefix="model.",
    body=r"(layers|embed_tokens|norm)\.",
    unused=r".*\.rotary_emb\.inv_freq$",
    tied=("lm_head.weight", "model.embed_tokens.weight"),
)
LAYOUTS = (LAYOUT,)
_MODELS = {"llama": "llama3_1b", "qwen3": "qwen3_0.6b"}
_ACTIVATIONS = {"silu": "swiglu"}
_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as Llama or Qwen 3."""
    return isinstance(model, Decoder) and model.positions == "rotary"


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    only(config, {"attention_bias": False, "mlp_bias": False})
    kind = config["model_type"]
    size, heads = count(config, "hidden_size"), count(config, "num_attention_heads")
    theta, scaling = _rotations(config)
    head_dim = count(config, "head_dim", 128 if kind == "qwen3" else size // heads)
    if head_dim % 2:
        raise ZooError(f"head_dim must be even, since features are rotated in pairs, not {head_dim}")
    return _MODELS[kind], {
        "vocab_size": count(config, "vocab_size"),
        "hidden_size": size,
        "num_layers": count(config, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": count(config, "num_key_value_heads", heads),
        "head_dim": head_dim,
        "mlp_size": count(config, "intermediate_size"),
        "max_length": count(config, "max_position_embeddings"),
        "activation": activation(config.get("hidden_act", "silu"), _ACTIVATIONS),
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


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model."""
    kind, settled = "qwen3" if model.qk_norm else "llama", model.settled
    rope: dict[str, Any] = {"rope_type": "default"}
    if model.rope_scaling is not None:
        rope = {"rope_type": "llama3", **dict(zip(_SCALING, model.rope_scaling, strict=True))}
    written = {
        "architectures": list(ARCHITECTURES[kind]),
        "model_type": kind,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": settled["num_kv_heads"],
        "head_dim": settled["head_dim"],
        "intermediate_size": settled["mlp_size"],
        "max_position_embeddings": model.max_length,
        "hidden_act": named(model.activation, _ACTIVATIONS),
        "rms_norm_eps": model.norm_epsilon,
        "attention_bias": False,
        "rope_theta": model.rope_theta,  # read by transformers 4 and 5
        "rope_scaling": None if model.rope_scaling is None else rope,
        "rope_parameters": {**rope, "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tied,
        "bos_token_id": None,  # in the tokenizer's config
        "eos_token_id": None,
    }
    if kind == "qwen3" and model.window is not None:
        written |= {"use_sliding_window": True, "sliding_window": model.window, "max_window_layers": 0}
    return written


def _rotations(config: Mapping[str, Any]) -> tuple[float, tuple[float, float, float, int] | None]:
    """Theta and Llama 3's scaling, from `rope_parameters`, or from `rope_theta` and `rope_scaling` in older configs."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ZooError(f"rope_parameters must be an object, not {rope!r:.40}")
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ZooError("partial_rotary_factor must be 1: all features of a head are rotated")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ZooError(f"unknown rope_type {kind!r}; there are default, llama3")
    if lacking := [key for key in _SCALING if key not in rope]:
        raise ZooError(f"a rope_type of llama3 needs {', '.join(lacking)}")
    return theta, (rope[_SCALING[0]], rope[_SCALING[1]], rope[_SCALING[2]], rope[_SCALING[3]])


def _window(config: Mapping[str, Any]) -> int | None:
    """Qwen 3's window if every layer has it; ZooError if only some have it."""
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return None
    depth = count(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    sliding = depth - config.get("max_window_layers", 28) if kinds is None else kinds.count("sliding_attention")
    if 0 < sliding < depth:
        raise ZooError(f"sliding_window must apply to all {depth} layers or none, not to {sliding}")
    return count(config, "sliding_window") if sliding > 0 else None
