"""DINOv2's tensors and config: `encoder.layer.0.layer_scale1.lambda1`. A body, whose result is the class token's state.

The form with registers, whose class token alone has a position, is not read here; timm's is.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.errors import ZooError
from zoo.transformer.vit import DINOV2, ViT
from zoo.weights.huggingface import vit
from zoo.weights.huggingface.checks import activation, count, named, only

ARCHITECTURES = {"dinov2": ("Dinov2Model",)}
_LAYER, _THEIRS = "layers/layer{}", "encoder.layer.{}"
LAYOUT = vit.LAYOUT._replace(
    title="DINOv2",
    marks=("patches", "layers/layer0/norm1_scale"),
    table={
        **{key: name.removeprefix("vit.") for key, name in vit.LAYOUT.table.items() if key != "head"},
        f"{_LAYER}/norm1": f"{_THEIRS}.norm1",
        f"{_LAYER}/norm1_scale/scale": f"{_THEIRS}.layer_scale1.lambda1",
        f"{_LAYER}/norm2": f"{_THEIRS}.norm2",
        f"{_LAYER}/norm2_scale/scale": f"{_THEIRS}.layer_scale2.lambda1",
        f"{_LAYER}/mlp/up": f"{_THEIRS}.mlp.fc1",
        f"{_LAYER}/mlp/down": f"{_THEIRS}.mlp.fc2",
    },
    prefix="",
    body="(?!)",
    unused=r"embeddings\.mask_token$",
    heads=(),
)
LAYOUTS = (LAYOUT,)
_ACTIVATIONS = {"gelu": "gelu"}


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as DINOv2."""
    return isinstance(model, ViT) and model.layer_scale is not None


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    only(config, {"qkv_bias": True, "num_channels": 3, "use_swiglu_ffn": False})
    kind = (config.get("architectures") or ["Dinov2Model"])[0]
    if kind not in ARCHITECTURES["dinov2"]:
        raise ZooError(f"unknown architecture {kind!r}; there are {', '.join(ARCHITECTURES['dinov2'])}")
    width = count(config, "hidden_size", 768)
    return "dinov2_base14", {
        **DINOV2,
        "image_size": count(config, "image_size", 224),
        "patch_size": count(config, "patch_size", 14),
        "hidden_size": width,
        "num_layers": count(config, "num_hidden_layers", 12),
        "num_heads": count(config, "num_attention_heads", 12),
        "mlp_size": width * count(config, "mlp_ratio", 4),
        "activation": activation(config.get("hidden_act", "gelu"), _ACTIVATIONS),
        "norm_epsilon": config.get("layer_norm_eps", 1e-6),
        "layer_scale": config.get("layerscale_value", 1.0),
    }


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model; ZooError for one with classes, registers, or a width that is no multiple."""
    hidden = model.settled["mlp_size"]
    plain = model.num_registers is None and not model.qk_norm and model.pooling == "token" and model.num_classes is None
    if not plain or hidden % model.hidden_size:
        raise ZooError(
            "transformers' Dinov2Model has a class token, no classes, registers or norms of queries and keys"
        )
    return {
        "architectures": list(ARCHITECTURES["dinov2"]),
        "model_type": "dinov2",
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "mlp_ratio": hidden // model.hidden_size,
        "hidden_act": named(model.activation, _ACTIVATIONS),
        "layer_norm_eps": model.norm_epsilon,
        "layerscale_value": model.layer_scale,
        "qkv_bias": True,
        "drop_path_rate": 0.0,
    }
