"""DistilBERT's tensors and config: `distilbert.transformer.layer.0.attention.q_lin.weight`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.errors import ZooError
from zoo.transformer.encoder import Encoder
from zoo.weights.huggingface.checks import activation, count, named, only
from zoo.weights.huggingface.layout import TensorLayout

ARCHITECTURES = {"distilbert": ("DistilBertModel", "DistilBertForMaskedLM", "DistilBertForSequenceClassification")}
_LAYER, _THEIRS = "layers/layer{}", "distilbert.transformer.layer.{}"
LAYOUT = TensorLayout(
    title="DistilBERT",
    marks=("embedding", "positions", "embedding_norm", "layers/layer0/attention"),
    table={
        "embedding": "distilbert.embeddings.word_embeddings.weight",
        "positions": "distilbert.embeddings.position_embeddings.weight",
        "embedding_norm": "distilbert.embeddings.LayerNorm",
        f"{_LAYER}/attention/query": f"{_THEIRS}.attention.q_lin",
        f"{_LAYER}/attention/key": f"{_THEIRS}.attention.k_lin",
        f"{_LAYER}/attention/value": f"{_THEIRS}.attention.v_lin",
        f"{_LAYER}/attention/out": f"{_THEIRS}.attention.out_lin",
        f"{_LAYER}/norm1": f"{_THEIRS}.sa_layer_norm",
        f"{_LAYER}/mlp/up": f"{_THEIRS}.ffn.lin1",
        f"{_LAYER}/mlp/down": f"{_THEIRS}.ffn.lin2",
        f"{_LAYER}/norm2": f"{_THEIRS}.output_layer_norm",
        "pooler": "pre_classifier",
        "head": "classifier",
        "told": "vocab_transform",
        "told_norm": "vocab_layer_norm",
        "told_bias": "vocab_projector.bias",
    },
    prefix="distilbert.",
    body=r"(embeddings|transformer)\.",
    unused=r"distilbert\.embeddings\.position_ids$|vocab_|pre_classifier\.|classifier\.",
    heads=(("pooler",), ("head",), ("told", "told_norm", "told_bias")),
)
LAYOUTS = (LAYOUT,)
_ACTIVATIONS = {"gelu": "gelu", "relu": "relu"}


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as DistilBERT."""
    return isinstance(model, Encoder) and model.num_types is None and model.num_buckets is None


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    only(config, {"tie_word_embeddings": True})
    kind = (config.get("architectures") or ["DistilBertModel"])[0]
    if kind not in ARCHITECTURES["distilbert"]:
        raise ZooError(f"unknown architecture {kind!r}; there are {', '.join(ARCHITECTURES['distilbert'])}")
    labels = config.get("id2label")
    classes = len(labels) if labels else count(config, "num_labels", 2)
    return "distilbert_base", {
        "vocab_size": count(config, "vocab_size"),
        "num_classes": classes if kind.endswith("ForSequenceClassification") else None,
        "output": "tokens" if kind.endswith("ForMaskedLM") else "hidden",
        "hidden_size": count(config, "dim"),
        "num_layers": count(config, "n_layers"),
        "num_heads": count(config, "n_heads"),
        "mlp_size": count(config, "hidden_dim"),
        "max_length": count(config, "max_position_embeddings", 512),
        "num_types": None,
        "first_position": 0,
        "activation": activation(config.get("activation", "gelu"), _ACTIVATIONS),
        "pooler_activation": "relu",
        "norm_epsilon": 1e-12,
        "dropout_rate": config.get("dropout", 0.1),
    }


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model."""
    plain, masked, classes = ARCHITECTURES["distilbert"]
    return {
        "architectures": [classes if model.num_classes else masked if model.output == "tokens" else plain],
        "model_type": "distilbert",
        "vocab_size": model.vocab_size,
        "dim": model.hidden_size,
        "n_layers": model.num_layers,
        "n_heads": model.num_heads,
        "hidden_dim": model.mlp_size,
        "max_position_embeddings": model.max_length,
        "activation": named(model.activation, _ACTIVATIONS),
        "dropout": model.dropout_rate,
        "attention_dropout": 0.0,
        **({"id2label": {str(i): f"LABEL_{i}" for i in range(model.num_classes)}} if model.num_classes else {}),
    }
