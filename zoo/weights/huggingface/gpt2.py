"""GPT-2's tensors and config: `transformer.h.0.attn.c_attn.weight` [in, 3 in] for queries, keys and values in one."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from zoo.errors import ZooError
from zoo.transformer.decoder import Decoder
from zoo.weights.huggingface.checks import activation, count, named, only
from zoo.weights.huggingface.layout import TensorLayout

ARCHITECTURES = {"gpt2": ("GPT2LMHeadModel",)}
LAYOUT = TensorLayout(
    title="GPT-2",
    marks=("embedding", "positions", "layers/layer0/attention"),
    table={
        "embedding": "transformer.wte.weight",
        "positions": "transformer.wpe.weight",
        "layers/layer{}/norm1": "transformer.h.{}.ln_1",
        "layers/layer{}/attention/query": "transformer.h.{}.attn.c_attn",
        "layers/layer{}/attention/key": "transformer.h.{}.attn.c_attn",
        "layers/layer{}/attention/value": "transformer.h.{}.attn.c_attn",
        "layers/layer{}/attention/out": "transformer.h.{}.attn.c_proj",
        "layers/layer{}/norm2": "transformer.h.{}.ln_2",
        "layers/layer{}/mlp/up": "transformer.h.{}.mlp.c_fc",
        "layers/layer{}/mlp/down": "transformer.h.{}.mlp.c_proj",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    prefix="transformer.",
    body=r"(h|wte|wpe|ln_f)\.",
    unused=r".*\.attn\.(bias|masked_bias)$",
    tied=("lm_head.weight", "transformer.wte.weight"),
    as_it_is=True,
)
NANOGPT = LAYOUT._replace(title="nanoGPT", as_it_is=False)  # with layers of torch.nn
LAYOUTS = (LAYOUT, NANOGPT)
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


def writes(model: nn.Module) -> bool:
    """Whether a model is saved as GPT-2."""
    return isinstance(model, Decoder) and model.positions == "learned"


def fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields; ZooError for unsupported settings."""
    only(config, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False})
    size, heads = count(config, "n_embd"), count(config, "n_head")
    if size % heads:
        raise ZooError(f"n_embd {size} must be a multiple of n_head {heads}")
    return "gpt2", {
        "vocab_size": count(config, "vocab_size"),
        "hidden_size": size,
        "num_layers": count(config, "n_layer"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": size // heads,
        "mlp_size": count(config, "n_inner", 4 * size),
        "max_length": count(config, "n_positions"),
        "activation": activation(config.get("activation_function", "gelu_new"), _ACTIVATIONS),
        "norm": "layer",
        "norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
        "use_bias": True,
        "positions": "learned",
        "norms": "before",
        "parallel": False,
        "qkv_bias": None,
        "qk_norm": False,
        "window": None,
        "score_scale": None,
        "soft_cap": None,
        "logit_cap": None,
        "scale_embedding": False,
        "tied": config.get("tie_word_embeddings", True),
    }


def config(model: Any) -> dict[str, Any]:
    """The config.json of a model."""
    return {
        "architectures": list(ARCHITECTURES["gpt2"]),
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.settled["mlp_size"],
        "n_positions": model.max_length,
        "activation_function": named(model.activation, _ACTIVATIONS),
        "layer_norm_epsilon": model.norm_epsilon,
        "tie_word_embeddings": model.tied,
        "embd_pdrop": model.dropout_rate,
        "resid_pdrop": model.dropout_rate,
        "attn_pdrop": 0.0,
        "bos_token_id": None,  # in the tokenizer's config
        "eos_token_id": None,
    }
