"""Tensors and configs of Llama and of its kind, which have the same names: `model.layers.0.self_attn.q_proj.weight`.

Mistral (a window), Qwen 2 (biases of queries, keys and values), Qwen 3, SmolLM3 (layers without rotations), OLMo 2
(norms of outputs), and Phi-3, which has one tensor for queries, keys and values and one for gate and up.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.errors import ZooError
from zoo.transformer.decoder import Decoder
from zoo.weights.huggingface.checks import activation, count, named, only
from zoo.weights.huggingface.layout import TensorLayout
from zoo.weights.huggingface.rope import rotations, written

ARCHITECTURES = {
    "llama": ("LlamaForCausalLM",),
    "mistral": ("MistralForCausalLM",),
    "qwen2": ("Qwen2ForCausalLM",),
    "qwen3": ("Qwen3ForCausalLM",),
    "smollm3": ("SmolLM3ForCausalLM",),
    "olmo2": ("Olmo2ForCausalLM",),
    "phi3": ("Phi3ForCausalLM",),
}
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
_LAYER, _THEIRS = "layers/layer{}", "model.layers.{}"
OUTPUTS = LAYOUT._replace(
    title="OLMo 2",
    marks=(*LAYOUT.marks, "layers/layer0/norm1_after"),
    table={
        **{key: name for key, name in LAYOUT.table.items() if "norm1" not in key and "norm2" not in key},
        f"{_LAYER}/norm1_after": f"{_THEIRS}.post_attention_layernorm",
        f"{_LAYER}/norm2_after": f"{_THEIRS}.post_feedforward_layernorm",
    },
)
FUSED = LAYOUT._replace(
    title="Phi-3",
    table={
        **LAYOUT.table,
        **{f"{_LAYER}/attention/{name}": f"{_THEIRS}.self_attn.qkv_proj" for name in ("query", "key", "value")},
        **{f"{_LAYER}/mlp/{name}": f"{_THEIRS}.mlp.gate_up_proj" for name in ("gate", "up")},
    },
)
LAYOUTS = (LAYOUT, OUTPUTS, FUSED)
_MODELS = {
    "llama": "llama3_1b",
    "mistral": "mistral_7b",
    "qwen2": "qwen2.5_0.5b",
    "qwen3": "qwen3_0.6b",
    "smollm3": "smollm3_3b",
    "olmo2": "olmo2_1b",
    "phi3": "phi3_mini",
}
_ACTIVATIONS = {"silu": "swiglu"}


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as one of these."""
    return isinstance(model, Decoder) and model.positions == "rotary" and model.norm == "rms"


def decoder(config: Mapping[str, Any], activations: Mapping[str, str], act: str = "hidden_act") -> dict[str, Any]:
    """The fields of a decoder that all with rotary positions have."""
    size, heads = count(config, "hidden_size"), count(config, "num_attention_heads")
    head_dim = count(config, "head_dim", size // heads)
    if head_dim % 2:
        raise ZooError(f"head_dim must be even, since features are rotated in pairs, not {head_dim}")
    return {
        "vocab_size": count(config, "vocab_size"),
        "hidden_size": size,
        "num_layers": count(config, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": count(config, "num_key_value_heads", heads),
        "head_dim": head_dim,
        "mlp_size": count(config, "intermediate_size"),
        "max_length": count(config, "max_position_embeddings"),
        "activation": activation(config.get(act, next(iter(activations))), activations),
        "norm": "rms",
        "norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "norms": "before",
        "parallel": False,
        "use_bias": False,
        "qkv_bias": None,
        "positions": "rotary",
        "unrotated_every": None,
        "qk_norm": False,
        "window": None,
        "global_every": None,
        "local_theta": None,
        "score_scale": None,
        "soft_cap": None,
        "logit_cap": None,
        "scale_embedding": False,
        "tied": config.get("tie_word_embeddings", False),
    }


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    kind = config["model_type"]
    only(config, {"mlp_bias": False, "use_mrope": False})
    if kind not in ("qwen2",):
        only(config, {"attention_bias": False})
    if kind == "qwen3":
        config = {"head_dim": 128, **config}
    window = _window(config) if kind in ("qwen2", "qwen3") else config.get("sliding_window")
    if kind in ("llama", "smollm3", "olmo2"):
        window = None
        only(config, {"use_sliding_window": False})
    found = decoder(config, _ACTIVATIONS) | rotations(config, 2e6 if kind == "smollm3" else 10_000.0)
    found |= {"window": window, "qk_norm": {"qwen3": True, "olmo2": "whole"}.get(kind, False)}
    if kind == "qwen2":
        found["qkv_bias"] = True
    if kind == "olmo2":
        found["norms"] = "after"
    if kind == "smollm3":
        found["unrotated_every"] = _every(config, found["num_layers"])
        found["tied"] = config.get("tie_word_embeddings", True)
    return _MODELS[kind], found


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model."""
    marks = {
        "olmo2": model.qk_norm == "whole",
        "qwen3": model.qk_norm,
        "qwen2": model.qkv_bias,
        "smollm3": model.unrotated_every,
        "mistral": model.window,
    }
    kind = next((kind for kind, mark in marks.items() if mark), "llama")
    found = common(model, kind, ARCHITECTURES) | {"hidden_act": named(model.activation, _ACTIVATIONS)}
    if kind == "smollm3":
        every, depth = model.unrotated_every, model.num_layers
        found["no_rope_layers"] = [int(bool(number % every)) for number in range(1, depth + 1)]
    if kind in ("qwen2", "qwen3") and model.window is not None:
        found |= {"use_sliding_window": True, "sliding_window": model.window, "max_window_layers": 0}
    return found if kind != "mistral" else {**found, "sliding_window": model.window}


def common(model: Any, kind: str, architectures: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """What the configs of all decoders with rotary positions have."""
    settled, rope = model.settled, written(model)
    return {
        "architectures": list(architectures[kind]),
        "model_type": kind,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": settled["num_kv_heads"],
        "head_dim": settled["head_dim"],
        "intermediate_size": settled["mlp_size"],
        "max_position_embeddings": model.max_length,
        "rms_norm_eps": model.norm_epsilon,
        "attention_bias": False,
        "rope_theta": model.rope_theta,  # read by transformers 4 and 5
        "rope_scaling": None if model.rope_scaling is None else rope,
        "rope_parameters": rope,
        "tie_word_embeddings": model.tied,
        "pad_token_id": None,
        "bos_token_id": None,  # in the tokenizer's config
        "eos_token_id": None,
    }


def _every(config: Mapping[str, Any], depth: int) -> int | None:
    """SmolLM3's distance of layers without rotations; ZooError where they are not equally far apart."""
    flags = config.get("no_rope_layers")
    every = count(config, "no_rope_layer_interval", 4)
    if flags is None:
        return every
    if all(flags[:depth]):
        return None
    every = list(flags).index(0) + 1
    if list(flags[:depth]) != [int(bool(number % every)) for number in range(1, depth + 1)]:
        raise ZooError(f"no_rope_layers must have a 0 in every n-th place, not {flags!r:.80}")
    return every


def _window(config: Mapping[str, Any]) -> int | None:
    """Qwen's window if every layer has it; ZooError if only some have it."""
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return None
    depth = count(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    sliding = depth - config.get("max_window_layers", 28) if kinds is None else kinds.count("sliding_attention")
    if 0 < sliding < depth:
        raise ZooError(f"sliding_window must apply to all {depth} layers or none, not to {sliding}")
    return count(config, "sliding_window") if sliding > 0 else None
