"""Tensors and configs of BART and Marian: `model.decoder.layers.0.encoder_attn.q_proj.weight`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.errors import ZooError
from zoo.transformer.encoder_decoder import EncoderDecoder
from zoo.weights.huggingface.checks import activation, count, named, only
from zoo.weights.huggingface.layout import TensorLayout

ARCHITECTURES = {"bart": ("BartForConditionalGeneration",), "marian": ("MarianMTModel",)}
_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}


def _table(shared: str) -> dict[str, str]:
    """The names of all modules; `shared` is the target's embedding."""
    table = {
        "embedding": shared,
        "source_embedding": "model.encoder.embed_tokens.weight",
        "head": "lm_head",
        "head_bias": "final_logits_bias",
        "source_positions": "model.encoder.embed_positions.weight",
        "target_positions": "model.decoder.embed_positions.weight",
    }
    for half in ("encoder", "decoder"):
        layer, theirs = f"{half}/layers/layer{{}}", f"model.{half}.layers.{{}}"
        table |= {
            f"{half}/embedding_norm": f"model.{half}.layernorm_embedding",
            f"{layer}/norm1": f"{theirs}.self_attn_layer_norm",
            f"{layer}/norm2": f"{theirs}.final_layer_norm",
            f"{layer}/mlp/up": f"{theirs}.fc1",
            f"{layer}/mlp/down": f"{theirs}.fc2",
        }
        table |= {f"{layer}/attention/{ours}": f"{theirs}.self_attn.{own}" for ours, own in _PROJECTIONS.items()}
    cross = "model.decoder.layers.{}.encoder_attn"
    table |= {
        "decoder/layers/layer{}/norm_cross": f"{cross}_layer_norm",
        "decoder/layers/layer{}/cross/query": f"{cross}.q_proj",
        "source/layer{}/key": f"{cross}.k_proj",
        "source/layer{}/value": f"{cross}.v_proj",
        "decoder/layers/layer{}/cross/out": f"{cross}.out_proj",
    }
    return table


BART = TensorLayout(
    title="BART",
    marks=("source_positions", "decoder/layers/layer0/cross"),
    table=_table("model.shared.weight"),
    prefix="model.",
    body=r"(shared|encoder|decoder)\.",
    unused=r"model\.(encoder|decoder)\.(embed_tokens\.weight|version)$",
    tied=("lm_head.weight", "model.shared.weight"),
    zeros=("final_logits_bias",),  # files of the body alone, as BART's own, have none
)
MARIAN = BART._replace(
    title="Marian",
    marks=("head_bias", "decoder/layers/layer0/cross"),
    unused=rf"{BART.unused}|model\.(encoder|decoder)\.embed_positions\.weight$",
)
SEPARATE = MARIAN._replace(  # embeddings of source and target
    marks=("source_embedding", *MARIAN.marks),
    table=_table("model.decoder.embed_tokens.weight"),
    unused=r"model\.shared\.weight$|model\.(encoder|decoder)\.embed_positions\.weight$",
    tied=("lm_head.weight", "model.decoder.embed_tokens.weight"),
)
LAYOUTS = (BART, SEPARATE, MARIAN)
_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu", "gelu_new": "gelu_tanh"}
_SAME = ("attention_heads", "ffn_dim")  # of both halves


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as BART or Marian."""
    return isinstance(model, EncoderDecoder) and model.head_bias and model.positions != "sinusoids"


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    kind = config["model_type"]
    own = (config.get("architectures") or ARCHITECTURES[kind])[0]
    if own not in (*ARCHITECTURES[kind], "BartModel"):
        raise ZooError(f"unknown architecture {own!r}; there are {', '.join(ARCHITECTURES[kind])}")
    only(config, {"normalize_before": False, "normalize_embedding": kind == "bart", "add_final_layer_norm": False})
    for key in _SAME:
        if (encoder := count(config, f"encoder_{key}")) != (decoder := count(config, f"decoder_{key}")):
            raise ZooError(f"decoder_{key} must be encoder_{key}, {encoder}, not {decoder}")
    bart, size = kind == "bart", count(config, "vocab_size")
    shared = config.get("share_encoder_decoder_embeddings", True)
    target = size if shared else count(config, "decoder_vocab_size", size)
    return "bart_base" if bart else "opus_mt", {
        "vocab_size": target,
        "source_vocab_size": None if shared else size,
        "hidden_size": count(config, "d_model"),
        "num_layers": count(config, "encoder_layers"),
        "num_decoder_layers": count(config, "decoder_layers"),
        "num_heads": count(config, "encoder_attention_heads"),
        "mlp_size": count(config, "encoder_ffn_dim"),
        "max_length": count(config, "max_position_embeddings", 1024),
        "activation": activation(config.get("activation_function", "gelu"), _ACTIVATIONS),
        "norm_epsilon": 1e-5,
        "positions": "learned" if bart else "paper",
        "first_position": 2 if bart else 0,
        "norm_embedded": bart,
        "scale_embedding": config.get("scale_embedding", False) is True,
        "head_bias": True,
        "dropout_rate": config.get("dropout", 0.1),
    }


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model."""
    kind = "bart" if model.positions == "learned" else "marian"
    shared = model.source_vocab_size is None
    return {
        "architectures": list(ARCHITECTURES[kind]),
        "model_type": kind,
        "vocab_size": model.vocab_size if shared else model.source_vocab_size,
        "d_model": model.hidden_size,
        "max_position_embeddings": model.max_length,
        "activation_function": named(model.activation, _ACTIVATIONS),
        "scale_embedding": model.scale_embedding,
        "dropout": model.dropout_rate,
        "is_encoder_decoder": True,
        **{f"{half}_attention_heads": model.num_heads for half in ("encoder", "decoder")},
        **{f"{half}_ffn_dim": model.mlp_size for half in ("encoder", "decoder")},
        "encoder_layers": model.num_layers,
        "decoder_layers": model.settled["num_decoder_layers"],
        **({"normalize_embedding": True} if kind == "bart" else _special(model)),
        **({} if shared else {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": model.vocab_size}),
    }


def _special(model: Any) -> dict[str, int]:
    """Marian's special tokens: the last of the (smaller) vocabulary pads and begins a target, the first ends it."""
    last = min(model.vocab_size, model.source_vocab_size or model.vocab_size) - 1
    return {"pad_token_id": last, "decoder_start_token_id": last, "eos_token_id": 0, "forced_eos_token_id": 0}
