"""Tensors and config of GPT-NeoX and Pythia: `gpt_neox.layers.0.attention.query_key_value.weight`, whose rows are the
queries, keys and values of the first head, then those of the second."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.transformer.decoder import Decoder
from zoo.weights.huggingface import llama
from zoo.weights.huggingface.checks import activation, named, only
from zoo.weights.huggingface.layout import TensorLayout
from zoo.weights.huggingface.rope import rotations, written

ARCHITECTURES = {"gpt_neox": ("GPTNeoXForCausalLM",)}
_LAYER, _THEIRS = "layers/layer{}", "gpt_neox.layers.{}"
LAYOUT = TensorLayout(
    title="GPT-NeoX",
    marks=("embedding", "layers/layer0/attention"),
    table={
        "embedding": "gpt_neox.embed_in.weight",
        f"{_LAYER}/norm1": f"{_THEIRS}.input_layernorm",
        f"{_LAYER}/attention/query": f"{_THEIRS}.attention.query_key_value",
        f"{_LAYER}/attention/key": f"{_THEIRS}.attention.query_key_value",
        f"{_LAYER}/attention/value": f"{_THEIRS}.attention.query_key_value",
        f"{_LAYER}/attention/out": f"{_THEIRS}.attention.dense",
        f"{_LAYER}/norm2": f"{_THEIRS}.post_attention_layernorm",
        f"{_LAYER}/mlp/up": f"{_THEIRS}.mlp.dense_h_to_4h",
        f"{_LAYER}/mlp/down": f"{_THEIRS}.mlp.dense_4h_to_h",
        "norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
    },
    prefix="gpt_neox.",
    body=r"(layers|embed_in|final_layer_norm)\.",
    unused=r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",
    tied=("embed_out.weight", "gpt_neox.embed_in.weight"),
    interleaved=True,
)
LAYOUTS = (LAYOUT,)
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu"}


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as GPT-NeoX."""
    return isinstance(model, Decoder) and model.positions == "rotary" and model.norm == "layer"


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    only(config, {"attention_bias": True})
    found = llama.decoder({**config, "hidden_act": "silu"}, {"silu": "swiglu"}) | rotations(config)
    return "pythia_160m", found | {
        "activation": activation(config.get("hidden_act", "gelu"), _ACTIVATIONS),
        "norm": "layer",
        "norm_epsilon": config.get("layer_norm_eps", 1e-5),
        "use_bias": True,
        "parallel": config.get("use_parallel_residual", True),
        "rotary_share": _share(config),
    }


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model."""
    found = llama.common(model, "gpt_neox", ARCHITECTURES)
    return found | {
        "hidden_act": named(model.activation, _ACTIVATIONS),
        "layer_norm_eps": model.norm_epsilon,
        "attention_bias": True,
        "use_parallel_residual": model.parallel,
        "rotary_pct": model.rotary_share,
        "rope_parameters": {"partial_rotary_factor": model.rotary_share, **written(model)},
    }


def _share(config: Mapping[str, Any]) -> float:
    """The share of a head's features that are rotated, which is a quarter where a config does not say it."""
    return rotations({"rotary_pct": 0.25, **config})["rotary_share"]
