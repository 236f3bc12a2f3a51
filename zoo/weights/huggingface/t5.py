"""T5's tensors and config: `decoder.block.0.layer.1.EncDecAttention.q.weight`; the layers of a block have numbers.

A feed-forward layer has `wi` and `wo`, or, gated as in T5 1.1, `wi_0`, `wi_1` and `wo`. An untied head's logits are not
scaled; since transformers 5 a key of the config states this.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.transformer.t5 import T5
from zoo.weights.huggingface.checks import activation, count, named
from zoo.weights.huggingface.layout import TensorLayout

ARCHITECTURES = {"t5": ("T5ForConditionalGeneration",)}
_DISTANCES = "{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
_SELF = {name: f"layer.0.SelfAttention.{name[0]}" for name in ("query", "key", "value", "out")}
_HALVES = {
    "encoder": {"norm1": "layer.0.layer_norm", "norm2": "layer.1.layer_norm", "mlp": "layer.1.DenseReluDense"},
    "decoder": {"norm1": "layer.0.layer_norm", "norm2": "layer.2.layer_norm", "mlp": "layer.2.DenseReluDense"},
}


def _table(feed: Mapping[str, str]) -> dict[str, str]:
    """The names of all modules; `feed` are those inside a feed-forward layer."""
    table = {"embedding": "shared.weight", "head": "lm_head"}
    for half, names in _HALVES.items():
        ours, theirs = f"{half}/layers/layer{{}}", f"{half}.block.{{}}"
        table |= {f"{half}_distance_bias": _DISTANCES.format(half), f"{half}/norm": f"{half}.final_layer_norm"}
        table |= {f"{ours}/{norm}": f"{theirs}.{names[norm]}" for norm in ("norm1", "norm2")}
        table |= {f"{ours}/attention/{name}": f"{theirs}.{own}" for name, own in _SELF.items()}
        table |= {f"{ours}/mlp/{name}": f"{theirs}.{names['mlp']}.{own}" for name, own in feed.items()}
    layer, cross = "decoder/layers/layer{}", "decoder.block.{}.layer.1"
    return table | {
        f"{layer}/norm_cross": f"{cross}.layer_norm",
        f"{layer}/cross/query": f"{cross}.EncDecAttention.q",
        "source/layer{}/key": f"{cross}.EncDecAttention.k",
        "source/layer{}/value": f"{cross}.EncDecAttention.v",
        f"{layer}/cross/out": f"{cross}.EncDecAttention.o",
    }


LAYOUT = TensorLayout(
    title="T5",
    marks=("encoder_distance_bias",),
    table=_table({"up": "wi", "down": "wo"}),
    prefix="",
    body="(?!)",  # a body has the names of the whole model
    unused=r"(encoder|decoder)\.embed_tokens\.weight$|decoder\.block\.0\.layer\.1\..*\.relative_attention_bias\.weight$",
    tied=("lm_head.weight", "shared.weight"),
)
GATED = LAYOUT._replace(
    marks=(*LAYOUT.marks, "encoder/layers/layer0/mlp/gate"), table=_table({"gate": "wi_0", "up": "wi_1", "down": "wo"})
)
LAYOUTS = (GATED, LAYOUT)
_ACTIVATIONS = {"relu": "relu", "gated-gelu": "geglu", "gated-silu": "swiglu", "gelu": "gelu", "gelu_new": "gelu_tanh"}


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as T5."""
    return isinstance(model, T5)


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    layers = count(config, "num_layers")
    return "t5_small", {
        "vocab_size": count(config, "vocab_size"),
        "hidden_size": count(config, "d_model"),
        "num_layers": layers,
        "num_decoder_layers": count(config, "num_decoder_layers", layers),
        "num_heads": count(config, "num_heads"),
        "head_dim": count(config, "d_kv"),
        "mlp_size": count(config, "d_ff"),
        "max_length": count(config, "n_positions", 512),
        "activation": activation(config.get("feed_forward_proj", "relu"), _ACTIVATIONS),
        "norm_epsilon": config.get("layer_norm_epsilon", 1e-6),
        "tied": config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True)),
        "dropout_rate": config.get("dropout_rate", 0.1),
        "num_buckets": count(config, "relative_attention_num_buckets", 32),
        "max_distance": count(config, "relative_attention_max_distance", 128),
    }


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model."""
    return {
        "architectures": list(ARCHITECTURES["t5"]),
        "model_type": "t5",
        "vocab_size": model.vocab_size,
        "d_model": model.hidden_size,
        "d_kv": model.settled["head_dim"],
        "d_ff": model.mlp_size,
        "num_layers": model.num_layers,
        "num_decoder_layers": model.settled["num_decoder_layers"],
        "num_heads": model.num_heads,
        "n_positions": model.max_length,
        "relative_attention_num_buckets": model.num_buckets,
        "relative_attention_max_distance": model.max_distance,
        "feed_forward_proj": named(model.activation, _ACTIVATIONS),
        "layer_norm_epsilon": model.norm_epsilon,
        "dropout_rate": model.dropout_rate,
        "tie_word_embeddings": model.tied,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
