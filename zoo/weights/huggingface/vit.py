"""The ViT's tensors and config: `vit.encoder.layer.0.attention.attention.query.weight`.

For the classifier, and for the body alone: its pooler (dense and tanh) is ignored, and the head is drawn.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.errors import ZooError
from zoo.transformer.vit import ViT
from zoo.weights.huggingface.checks import activation, count, named, only
from zoo.weights.huggingface.layout import TensorLayout

ARCHITECTURES = {"vit": ("ViTForImageClassification", "ViTModel")}
LAYOUT = TensorLayout(
    title="ViT",
    marks=("patches", "layers/layer0/attention"),
    table={
        "class_token": "vit.embeddings.cls_token",
        "positions": "vit.embeddings.position_embeddings",
        "patches": "vit.embeddings.patch_embeddings.projection",
        "layers/layer{}/norm1": "vit.encoder.layer.{}.layernorm_before",
        "layers/layer{}/attention/query": "vit.encoder.layer.{}.attention.attention.query",
        "layers/layer{}/attention/key": "vit.encoder.layer.{}.attention.attention.key",
        "layers/layer{}/attention/value": "vit.encoder.layer.{}.attention.attention.value",
        "layers/layer{}/attention/out": "vit.encoder.layer.{}.attention.output.dense",
        "layers/layer{}/norm2": "vit.encoder.layer.{}.layernorm_after",
        "layers/layer{}/mlp/up": "vit.encoder.layer.{}.intermediate.dense",
        "layers/layer{}/mlp/down": "vit.encoder.layer.{}.output.dense",
        "norm": "vit.layernorm",
        "head": "classifier",
    },
    prefix="vit.",
    body=r"(embeddings|encoder|layernorm|pooler)\.",
    unused=r"vit\.(pooler\.|embeddings\.mask_token$)",
    heads=(("head",),),
)
LAYOUTS = (LAYOUT,)
_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu"}


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as ViT."""
    return isinstance(model, ViT) and model.layer_scale is None


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    only(config, {"qkv_bias": True, "num_channels": 3})
    labels = config.get("id2label")
    return "vit_base16", {
        "num_classes": len(labels) if isinstance(labels, Mapping) else count(config, "num_labels", 2),
        "image_size": _side(config, "image_size", 224),
        "patch_size": _side(config, "patch_size", 16),
        "hidden_size": count(config, "hidden_size"),
        "num_layers": count(config, "num_hidden_layers"),
        "num_heads": count(config, "num_attention_heads"),
        "mlp_size": count(config, "intermediate_size"),
        "pooling": "token",
        "activation": activation(config.get("hidden_act", "gelu"), _ACTIVATIONS),
        "norm_epsilon": config.get("layer_norm_eps", 1e-12),
    }


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model."""
    if model.num_classes is None:
        raise ZooError(
            "a ViT without classes has no config.json of ViTForImageClassification; save it with save_weights"
        )
    labels = {str(i): f"LABEL_{i}" for i in range(model.num_classes)}
    return {
        "architectures": list(ARCHITECTURES["vit"][:1]),
        "model_type": "vit",
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.settled["mlp_size"],
        "hidden_act": named(model.activation, _ACTIVATIONS),
        "layer_norm_eps": model.norm_epsilon,
        "qkv_bias": True,
        "hidden_dropout_prob": model.dropout_rate,
        "attention_probs_dropout_prob": 0.0,
    }


def _side(config: Mapping[str, Any], key: str, default: int) -> int:
    """A side in pixels, from one number or two equal ones."""
    value = config.get(key)
    if not isinstance(value, list):
        return count(config, key, default)
    if len(value) != 2 or value[0] != value[1]:
        raise ZooError(f"{key} must be square, not {value}")
    return count({key: value[0]}, key)
