"""BERT's tensors and config, and sentence-transformers': `bert.encoder.layer.0.intermediate.dense.weight`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.errors import ZooError
from zoo.transformer.encoder import Encoder
from zoo.weights.huggingface.checks import activation, count, named, only
from zoo.weights.huggingface.layout import TensorLayout

ARCHITECTURES = {"bert": ("BertModel", "BertForMaskedLM", "BertForSequenceClassification", "BertForPreTraining")}
_MASKED = ("BertForMaskedLM", "BertForPreTraining")
LAYOUT = TensorLayout(
    title="BERT",
    marks=("embedding", "positions", "types", "layers/layer0/attention"),
    table={
        "embedding": "bert.embeddings.word_embeddings.weight",
        "positions": "bert.embeddings.position_embeddings.weight",
        "types": "bert.embeddings.token_type_embeddings.weight",
        "embedding_norm": "bert.embeddings.LayerNorm",
        "layers/layer{}/attention/query": "bert.encoder.layer.{}.attention.self.query",
        "layers/layer{}/attention/key": "bert.encoder.layer.{}.attention.self.key",
        "layers/layer{}/attention/value": "bert.encoder.layer.{}.attention.self.value",
        "layers/layer{}/attention/out": "bert.encoder.layer.{}.attention.output.dense",
        "layers/layer{}/norm1": "bert.encoder.layer.{}.attention.output.LayerNorm",
        "layers/layer{}/mlp/up": "bert.encoder.layer.{}.intermediate.dense",
        "layers/layer{}/mlp/down": "bert.encoder.layer.{}.output.dense",
        "layers/layer{}/norm2": "bert.encoder.layer.{}.output.LayerNorm",
        "pooler": "bert.pooler.dense",
        "head": "classifier",
        "told": "cls.predictions.transform.dense",
        "told_norm": "cls.predictions.transform.LayerNorm",
        "told_bias": "cls.predictions.bias",
    },
    prefix="bert.",
    body=r"(embeddings|encoder|pooler)\.",
    unused=r"bert\.embeddings\.position_ids$|bert\.pooler\.|cls\.|classifier\.",  # heads of other tasks
    older=((".gamma", ".weight"), (".beta", ".bias")),
    heads=(("pooler",), ("head",), ("told", "told_norm", "told_bias")),
)
LAYOUTS = (LAYOUT,)
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as BERT."""
    return isinstance(model, Encoder) and model.num_types is not None and model.first_position == 0


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    only(config, {"position_embedding_type": "absolute", "is_decoder": False, "tie_word_embeddings": True})
    kind = (config.get("architectures") or ["BertModel"])[0]
    if kind not in ARCHITECTURES["bert"]:
        raise ZooError(f"unknown architecture {kind!r}; there are {', '.join(ARCHITECTURES['bert'])}")
    labels = config.get("id2label")
    classes = len(labels) if labels else count(config, "num_labels", 2)
    size, heads = count(config, "hidden_size"), count(config, "num_attention_heads")
    if size % heads:
        raise ZooError(f"hidden_size {size} must be a multiple of num_attention_heads {heads}")
    return "bert_base", {
        "vocab_size": count(config, "vocab_size"),
        "num_classes": classes if kind == "BertForSequenceClassification" else None,
        "output": "tokens" if kind in _MASKED else "hidden",
        "hidden_size": size,
        "num_layers": count(config, "num_hidden_layers"),
        "num_heads": heads,
        "mlp_size": count(config, "intermediate_size"),
        "max_length": count(config, "max_position_embeddings"),
        "num_types": count(config, "type_vocab_size"),
        "first_position": 0,
        "pooler_activation": "tanh",
        "activation": activation(config.get("hidden_act", "gelu"), _ACTIVATIONS),
        "norm_epsilon": config.get("layer_norm_eps", 1e-12),
        "dropout_rate": config.get("hidden_dropout_prob", 0.1),
    }


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model."""
    plain, masked, classes, _ = ARCHITECTURES["bert"]
    kind = classes if model.num_classes else masked if model.output == "tokens" else plain
    return {
        "architectures": [kind],
        "model_type": "bert",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_size,
        "max_position_embeddings": model.max_length,
        "type_vocab_size": model.num_types,
        "hidden_act": named(model.activation, _ACTIVATIONS),
        "layer_norm_eps": model.norm_epsilon,
        "hidden_dropout_prob": model.dropout_rate,
        "attention_probs_dropout_prob": 0.0,
        **({"id2label": {str(i): f"LABEL_{i}" for i in range(model.num_classes)}} if model.num_classes else {}),
    }
