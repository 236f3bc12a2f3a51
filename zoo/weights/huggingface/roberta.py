"""Tensors and configs of RoBERTa and XLM-RoBERTa: BERT's names below `roberta.`, other heads, positions from 2."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.errors import ZooError
from zoo.transformer.encoder import Encoder
from zoo.weights.huggingface import bert
from zoo.weights.huggingface.checks import count, only

_CLASSES = ("Model", "ForMaskedLM", "ForSequenceClassification")
ARCHITECTURES = {
    "roberta": tuple(f"Roberta{name}" for name in _CLASSES),
    "xlm-roberta": tuple(f"XLMRoberta{name}" for name in _CLASSES),
}
_HEADS = {"told": "lm_head.dense", "told_norm": "lm_head.layer_norm", "told_bias": "lm_head.bias"}
BODY = bert.LAYOUT._replace(
    title="RoBERTa",
    table={k: name.replace("bert.", "roberta.", 1) for k, name in bert.LAYOUT.table.items() if k != "head"} | _HEADS,
    prefix="roberta.",
    unused=r"roberta\.embeddings\.position_ids$|roberta\.pooler\.|lm_head\.|classifier\.",
)
CLASSES = BODY._replace(table={**BODY.table, "pooler": "classifier.dense", "head": "classifier.out_proj"})
LAYOUTS = (BODY, CLASSES)


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as RoBERTa."""
    return isinstance(model, Encoder) and model.first_position > 0 and model.num_buckets is None


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    return "roberta_base", fields_of(config, ARCHITECTURES[config["model_type"]])


def fields_of(config: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """The fields by a config of one of the `known` classes: body, masked tokens, classes."""
    own = (config.get("architectures") or [known[0]])[0]
    if own not in known:
        raise ZooError(f"unknown architecture {own!r}; there are {', '.join(known)}")
    theirs = bert.ARCHITECTURES["bert"][known.index(own)]
    found = bert.fields({"type_vocab_size": 1, "layer_norm_eps": 1e-5, **config, "architectures": [theirs]})[1]
    if found["output"] == "tokens":
        only(config, {"hidden_act": "gelu"})  # which its head has whatever the layers have
    first = count(config, "pad_token_id", 1) + 1
    rows = found["max_length"]
    return found | {"first_position": first, "max_length": rows - first}


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model."""
    return config_as(model, "roberta", ARCHITECTURES["roberta"])


def config_as(model: Any, kind: str, known: tuple[str, ...]) -> dict[str, Any]:
    """The config.json of a model of a `model_type` with the `known` classes."""
    found = bert.config(model)
    names = dict(zip(bert.ARCHITECTURES["bert"], known, strict=False))
    return found | {
        "architectures": [names[found["architectures"][0]]],
        "model_type": kind,
        "max_position_embeddings": model.max_length + model.first_position,
        "pad_token_id": model.first_position - 1,
    }
