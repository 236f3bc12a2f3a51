"""Tensors and configs of MPNet: BERT's with a bias by distance, and RoBERTa's heads and positions from 2."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.transformer.encoder import Encoder
from zoo.weights.huggingface import bert, roberta
from zoo.weights.huggingface.checks import only

ARCHITECTURES = {"mpnet": tuple(f"MPNet{name}" for name in ("Model", "ForMaskedLM", "ForSequenceClassification"))}
_LAYER, _THEIRS = "layers/layer{}", "mpnet.encoder.layer.{}"
BODY = bert.LAYOUT._replace(
    title="MPNet",
    marks=("embedding", "distance_bias", "layers/layer0/attention"),
    table={
        **{key: name.replace("roberta.", "mpnet.", 1) for key, name in roberta.BODY.table.items()},
        "distance_bias": "mpnet.encoder.relative_attention_bias.weight",
        f"{_LAYER}/attention/query": f"{_THEIRS}.attention.attn.q",
        f"{_LAYER}/attention/key": f"{_THEIRS}.attention.attn.k",
        f"{_LAYER}/attention/value": f"{_THEIRS}.attention.attn.v",
        f"{_LAYER}/attention/out": f"{_THEIRS}.attention.attn.o",
        f"{_LAYER}/norm1": f"{_THEIRS}.attention.LayerNorm",
    },
    prefix="mpnet.",
    unused=r"mpnet\.embeddings\.position_ids$|mpnet\.pooler\.|lm_head\.|classifier\.",
)
CLASSES = BODY._replace(table={**BODY.table, "pooler": "classifier.dense", "head": "classifier.out_proj"})
LAYOUTS = (BODY, CLASSES)


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as MPNet."""
    return isinstance(model, Encoder) and model.num_buckets is not None


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    only(config, {"relative_attention_num_buckets": 32})  # the library computes with 32 whatever the config says
    found = roberta.fields_of(config, ARCHITECTURES["mpnet"])
    return "mpnet_base", found | {"num_types": None, "num_buckets": 32}


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model."""
    found = roberta.config_as(model, "mpnet", ARCHITECTURES["mpnet"])
    del found["type_vocab_size"]
    return found | {"relative_attention_num_buckets": model.num_buckets}
