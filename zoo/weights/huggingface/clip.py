"""CLIP's tensors and config: `text_model.encoder.layers.0.self_attn.q_proj.weight`, and `vision_model` likewise."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.errors import ZooError
from zoo.transformer.clip import CLIP
from zoo.weights.huggingface.checks import activation, count, named
from zoo.weights.huggingface.layout import TensorLayout

ARCHITECTURES = {"clip": ("CLIPModel",)}


def _tower(ours: str, theirs: str) -> dict[str, str]:
    layer, their_layer = f"{ours}/layers/layer{{}}", f"{theirs}.encoder.layers.{{}}"
    return {
        f"{layer}/norm1": f"{their_layer}.layer_norm1",
        f"{layer}/attention/query": f"{their_layer}.self_attn.q_proj",
        f"{layer}/attention/key": f"{their_layer}.self_attn.k_proj",
        f"{layer}/attention/value": f"{their_layer}.self_attn.v_proj",
        f"{layer}/attention/out": f"{their_layer}.self_attn.out_proj",
        f"{layer}/norm2": f"{their_layer}.layer_norm2",
        f"{layer}/mlp/up": f"{their_layer}.mlp.fc1",
        f"{layer}/mlp/down": f"{their_layer}.mlp.fc2",
    }


LAYOUT = TensorLayout(
    title="CLIP",
    marks=("image/patches", "text/embedding"),
    table={
        "image/class_token": "vision_model.embeddings.class_embedding",
        "image/patches": "vision_model.embeddings.patch_embedding",
        "image/positions": "vision_model.embeddings.position_embedding.weight",
        "image/embedding_norm": "vision_model.pre_layrnorm",
        **_tower("image", "vision_model"),
        "image/norm": "vision_model.post_layernorm",
        "text/embedding": "text_model.embeddings.token_embedding.weight",
        "text/positions": "text_model.embeddings.position_embedding.weight",
        **_tower("text", "text_model"),
        "text/norm": "text_model.final_layer_norm",
        "image_projection": "visual_projection",
        "text_projection": "text_projection",
        "log_scale": "logit_scale",
    },
    prefix="",
    body="(?!)",
    unused=r"(vision|text)_model\.embeddings\.position_ids$",
    flat=("image/class_token", "image/positions"),
)
LAYOUTS = (LAYOUT,)
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}
_TOWERS = ("vision_config", "text_config")
_SHARED = ("hidden_act", "layer_norm_eps")  # of both towers


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as CLIP."""
    return isinstance(model, CLIP)


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    image, text = ({"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, **(config.get(key) or {})} for key in _TOWERS)
    for key in _SHARED:
        if image[key] != text[key]:
            raise ZooError(f"{key} must be the same in both towers, not {image[key]!r} and {text[key]!r}")
    sizes = [count(tower, "hidden_size", size) for tower, size in ((image, 768), (text, 512))]
    for tower, size, default in zip((image, text), sizes, (3072, 2048), strict=True):
        if (hidden := count(tower, "intermediate_size", default)) != 4 * size:
            raise ZooError(f"intermediate_size must be 4 hidden_size, {4 * size}, not {hidden}")
    if count(image, "num_channels", 3) != 3:
        raise ZooError(f"num_channels must be 3, not {image['num_channels']}")
    return "clip_vit_base32", {
        "embedding_size": count(config, "projection_dim", 512),
        "image_size": count(image, "image_size", 224),
        "patch_size": count(image, "patch_size", 32),
        "hidden_size": sizes[0],
        "num_layers": count(image, "num_hidden_layers", 12),
        "num_heads": count(image, "num_attention_heads", 12),
        "vocab_size": count(text, "vocab_size", 49408),
        "max_length": count(text, "max_position_embeddings", 77),
        "text_hidden_size": sizes[1],
        "text_num_layers": count(text, "num_hidden_layers", 12),
        "text_num_heads": count(text, "num_attention_heads", 8),
        "activation": activation(image["hidden_act"], _ACTIVATIONS),
        "norm_epsilon": image["layer_norm_eps"],
    }


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model."""
    shared = {
        "hidden_act": named(model.activation, _ACTIVATIONS),
        "layer_norm_eps": model.norm_epsilon,
        "projection_dim": model.embedding_size,
    }
    return {
        "architectures": list(ARCHITECTURES["clip"]),
        "model_type": "clip",
        "projection_dim": model.embedding_size,
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": model.image_size,
            "patch_size": model.patch_size,
            "hidden_size": model.hidden_size,
            "intermediate_size": 4 * model.hidden_size,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": model.num_heads,
            **shared,
        },
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": model.vocab_size,
            "eos_token_id": model.vocab_size - 1,
            "max_position_embeddings": model.max_length,
            "hidden_size": model.text_hidden_size,
            "intermediate_size": 4 * model.text_hidden_size,
            "num_hidden_layers": model.text_num_layers,
            "num_attention_heads": model.text_num_heads,
            **shared,
        },
    }
