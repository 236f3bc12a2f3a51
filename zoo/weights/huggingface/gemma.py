"""Tensors and configs of Gemma, 2 and 3 (its text model), with Llama's names.

In Gemma 2 and 3 a layer's outputs are normalised too: `post_attention_layernorm`, which in Llama is of an input.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.errors import ZooError
from zoo.transformer.decoder import Decoder
from zoo.weights.huggingface import llama
from zoo.weights.huggingface.checks import count, named, only
from zoo.weights.huggingface.rope import rotations

ARCHITECTURES = {
    "gemma": ("GemmaForCausalLM",),
    "gemma2": ("Gemma2ForCausalLM",),
    "gemma3_text": ("Gemma3ForCausalLM",),
}
LAYOUT = llama.LAYOUT._replace(title="Gemma")
_LAYER, _THEIRS = "layers/layer{}", "model.layers.{}"
BOTH = LAYOUT._replace(
    title="Gemma 2",
    marks=(*LAYOUT.marks, "layers/layer0/norm1", "layers/layer0/norm1_after"),
    table={
        **LAYOUT.table,
        f"{_LAYER}/norm1_after": f"{_THEIRS}.post_attention_layernorm",
        f"{_LAYER}/norm2": f"{_THEIRS}.pre_feedforward_layernorm",
        f"{_LAYER}/norm2_after": f"{_THEIRS}.post_feedforward_layernorm",
    },
)
LAYOUTS = (BOTH, LAYOUT)
_MODELS = {"gemma": "gemma_2b", "gemma2": "gemma2_2b", "gemma3_text": "gemma3_1b"}
_ACTIVATIONS = {"gelu_pytorch_tanh": "geglu"}
_EVERY = {"gemma2": 2, "gemma3_text": 6}  # layers without a window, where a config does not say which


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as Gemma."""
    return isinstance(model, Decoder) and model.norm == "rms_offset"


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    kind = config["model_type"]
    only(config, {"attention_bias": False})
    if config.get("use_bidirectional_attention"):  # null in most files
        raise ZooError("use_bidirectional_attention must be false")
    config = {"head_dim": 256, "tie_word_embeddings": True, **config}
    act = "hidden_act" if kind == "gemma" else "hidden_activation"
    if kind == "gemma" and config.get("hidden_act") == "gelu":  # of old files, which mean the tanh form
        config = {**config, "hidden_act": "gelu_pytorch_tanh"}
    found = llama.decoder(config, _ACTIVATIONS, act)
    found |= {"norm": "rms_offset", "scale_embedding": True}
    if kind == "gemma":
        return _MODELS[kind], found | rotations(config)
    found |= {
        "norms": "both",
        "window": count(config, "sliding_window", 4096),
        "global_every": _global_every(config, kind, found["num_layers"]),
        "score_scale": config.get("query_pre_attn_scalar", 256) ** -0.5,
        "soft_cap": config.get("attn_logit_softcapping", 50.0 if kind == "gemma2" else None),
        "logit_cap": config.get("final_logit_softcapping", 30.0 if kind == "gemma2" else None),
    }
    if kind == "gemma2":
        return _MODELS[kind], found | rotations(config)
    local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    found |= {"qk_norm": True, "local_theta": local.get("rope_theta", config.get("rope_local_base_freq", 10_000.0))}
    if local.get("rope_type", "default") != "default":
        raise ZooError("rope_parameters of sliding_attention must be of the default type")
    return _MODELS[kind], found | rotations(config, 1e6, "full_attention")


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model."""
    kind = "gemma" if model.norms == "before" else "gemma3_text" if model.qk_norm else "gemma2"
    found = llama.common(model, kind, ARCHITECTURES)
    act = named(model.activation, _ACTIVATIONS)
    if kind == "gemma":
        return found | {"hidden_act": act}
    every = model.global_every
    kinds = ["sliding_attention" if number % every else "full_attention" for number in range(1, model.num_layers + 1)]
    found |= {
        "hidden_activation": act,
        "sliding_window": model.window,
        "layer_types": kinds,
        "query_pre_attn_scalar": round(model.score_scale**-2),
        "attn_logit_softcapping": model.soft_cap,
        "final_logit_softcapping": model.logit_cap,
    }
    if kind == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": model.local_theta}
        found["rope_parameters"] = {"full_attention": found["rope_parameters"], "sliding_attention": local}
        found["rope_local_base_freq"] = model.local_theta
    return found


def _global_every(config: Mapping[str, Any], kind: str, depth: int) -> int:
    """The distance of the layers without a window; ZooError where they are not equally far apart."""
    every = count(config, "sliding_window_pattern", _EVERY[kind])
    kinds = config.get("layer_types")
    if kinds is None:
        return every
    if "full_attention" in kinds:
        every = list(kinds).index("full_attention") + 1
    expected = ["sliding_attention" if number % every else "full_attention" for number in range(1, depth + 1)]
    if list(kinds[:depth]) != expected:
        raise ZooError(f"layer_types must be full_attention in every n-th layer, not {kinds!r:.120}")
    return every
