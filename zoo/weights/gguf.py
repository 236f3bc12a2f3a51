"""GGUF files: a quantised decoder with its config, tokenizer and chat template in one file, read by the `gguf` package.

The metadata become the config.json that Hugging Face's transformers would have, the names of tensors those of its state
dict, so that an architecture is read as from its folder. A tensor is dequantised when it is copied to its place.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from zoo.errors import ZooError, first_line, unknown
from zoo.inputs import Inputs
from zoo.inputs.text import TextInputs
from zoo.inputs.tokenizer_files import bytewise, pieces
from zoo.ops.positions import Llama3Scaling
from zoo.registry import abstract_variables, create_model, example_of
from zoo.weights import huggingface
from zoo.weights.fit import fit

# The architectures: transformers' model_type, and keys of a config.json beside those of CONFIG.
_GEMMA: dict[str, Any] = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in ("llama", "qwen2", "qwen3", "phi3")},
    "gemma": ("gemma", {"hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": ("gemma3_text", {**_GEMMA, "rope_local_base_freq": 10_000.0}),
}
CONFIG = {  # key of a config.json: of the metadata
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
TENSORS = {  # beginning of a name: of a state dict
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_AFTER = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OTHERS = {  # names of some architectures that differ from LAYER
    **{"gemma2": _AFTER, "gemma3": _AFTER},
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
}
CONTROL, DEFINED = 3, 4  # types of tokens: no text, and text that is found whole
UNKNOWN_TYPE = 2
UNREAD = ("rope_freqs.weight",)  # rates, which the config names
LLAMA3_LENGTH = 8192  # tokens for which Llama 3's rates were chosen


class Lazy:
    """A tensor whose numbers are read when they are needed."""

    def __init__(self, shape: tuple[int, ...], read: Callable[[], np.ndarray]):
        self.shape, self.read, self.ndim, self.dtype = shape, read, len(shape), np.dtype(np.float32)

    @property
    def T(self) -> "Lazy":
        return Lazy(self.shape[::-1], lambda: self.read().T)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.read() if dtype is None else self.read().astype(dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.read()[index]


def loaded(path: str | os.PathLike, overrides: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Any], Inputs]:
    """Model, variables and inputs of a `.gguf` file; `overrides` are fields of the model.

    ZooError for a file that is damaged, of an architecture or a tokenizer that is not known, or with tensors that do
    not fit.
    """
    path = pathlib.Path(path).expanduser()
    gguf, about, tensors = _opened(path)
    with _naming(path):
        name, fields, inputs = _described(about, tensors)
        model = create_model(name, **{**fields, **overrides})
        example = example_of(model)
        kind = about["general.architecture"]
        found: Any = {
            _renamed(name, kind): _lazy(gguf, tensor, about) for name, tensor in tensors.items() if name not in UNREAD
        }
    return model, fit(model, example, abstract_variables(model, *example), found, repr(str(path)), draw=False), inputs


def described(path: str | os.PathLike) -> tuple[str, dict[str, Any], Inputs]:
    """The registered model of a `.gguf` file, its fields, and its inputs; ZooError as `loaded`."""
    path = pathlib.Path(path).expanduser()
    _, about, tensors = _opened(path)
    with _naming(path):
        return _described(about, tensors)


def _opened(path: pathlib.Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The package, and a file's metadata and tensors by name."""
    try:
        import gguf
    except ImportError:
        raise ZooError("reading GGUF needs gguf: pip install 'flaxzoo[gguf]'") from None
    try:
        reader = gguf.GGUFReader(path)
        about = {name: field.contents() for name, field in reader.fields.items()}
        return gguf, about, {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # the reader checks nothing and raises whatever a damaged file leads to
        raise ZooError(f"{str(path)!r} is no readable GGUF file: {first_line(error)}") from None


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Errors within name the file."""
    try:
        yield
    except ZooError as error:
        raise ZooError(f"{str(path)!r}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:  # values of another type
        raise ZooError(f"{str(path)!r} describes no model: {error!r:.120}") from None


def _described(about: Mapping[str, Any], tensors: Mapping[str, Any]) -> tuple[str, dict[str, Any], TextInputs]:
    name, fields = _fields(about, tensors)
    inputs = inputs_of(about, fields["max_length"])
    if inputs.vocab_size > fields["vocab_size"]:
        raise ZooError(f"it has {inputs.vocab_size} tokens, more than the rows of its embedding")
    return name, fields, inputs


def _fields(about: Mapping[str, Any], tensors: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model and its fields, by way of the config.json of Hugging Face's architecture."""
    kind = about["general.architecture"]
    if kind not in ARCHITECTURES:
        raise unknown("architecture", str(kind), ARCHITECTURES)
    own = {key: about[f"{kind}.{name}"] for key, name in CONFIG.items() if f"{kind}.{name}" in about}
    scaling = _scaling(about, tensors, kind)
    if about.get(f"{kind}.rope.dimension_count", head := _head_dim(own)) != head:
        raise ZooError(f"rope.dimension_count must be the width of a head, {head}")
    rows = int(tensors["token_embd.weight"].shape[1])
    name, more = ARCHITECTURES[kind]
    config = {"model_type": name, **more, **own, **scaling, "vocab_size": rows}
    config["tie_word_embeddings"] = "output.weight" not in tensors
    if "query_pre_attn_scalar" in more and _head_dim(own) != 256:
        raise ZooError(f"a {kind} with heads of {_head_dim(own)} features does not say how it scales its scores")
    return huggingface.KINDS[name].fields(config)


def _scaling(about: Mapping[str, Any], tensors: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The scaling of rotations, as a config.json has it: linear, or Llama 3's, whose rates are a tensor."""
    form, factor = about.get(f"{kind}.rope.scaling.type", "none"), about.get(f"{kind}.rope.scaling.factor", 1.0)
    if form == "linear":
        return {"rope_scaling": {"rope_type": "linear", "factor": float(factor)}}
    if form not in ("none", "") or {"rope_factors_long.weight", "rope_factors_short.weight"} & tensors.keys():
        raise ZooError(f"scaled rotary positions ({form}) are not read from GGUF; load the .safetensors instead")
    if "rope_freqs.weight" not in tensors:
        return {}
    slowed = np.asarray(tensors["rope_freqs.weight"].data, np.float32).reshape(-1)
    theta = about.get(f"{kind}.rope.freq_base", 10_000.0)
    rates = theta ** (-np.arange(len(slowed)) / len(slowed))
    found = {"factor": float(slowed.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled, _ = Llama3Scaling(found["factor"], 1.0, 4.0, LLAMA3_LENGTH)(rates, theta)
    if not np.allclose(rates / scaled, slowed, rtol=1e-3):
        raise ZooError("rope_freqs.weight is not of Llama 3's scaling; load the .safetensors instead")
    return {"rope_scaling": {"rope_type": "llama3", **found, "original_max_position_embeddings": LLAMA3_LENGTH}}


def _head_dim(config: Mapping[str, Any]) -> int:
    return config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])


def _renamed(name: str, kind: str) -> str:
    """The name of a tensor in a state dict; an unknown name stays, and is reported as unexpected."""
    first, _, rest = name.partition(".")
    if first in TENSORS:
        return f"{TENSORS[first]}.{rest}"
    if first == "blk":
        number, _, rest = rest.partition(".")
        module, _, leaf = rest.rpartition(".")
        layer = LAYER | OTHERS.get(kind, {})
        if module in layer:
            return f"model.layers.{number}.{layer[module]}.{leaf}"
    return name


def _lazy(gguf: Any, tensor: Any, about: Mapping[str, Any]) -> Lazy:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    kind = tensor.tensor_type
    try:
        gguf.quants.dequantize(np.zeros((1, tensor.data.shape[-1]), tensor.data.dtype), kind)
    except NotImplementedError:
        raise ZooError(f"tensor {tensor.name!r} is of kind {kind.name}, which gguf cannot dequantise") from None
    heads = None
    if about["general.architecture"] == "llama" and tensor.name.endswith((".attn_q.weight", ".attn_k.weight")):
        heads = about["llama.attention.head_count" + ("_kv" if "attn_k" in tensor.name else "")]

    offset = tensor.name.endswith("norm.weight") and about["general.architecture"].startswith("gemma")

    def read() -> np.ndarray:
        found = np.asarray(gguf.quants.dequantize(tensor.data, kind), np.float32).reshape(shape)
        found = found - 1 if offset else found  # the file's are what is multiplied with
        if heads is None:
            return found
        # Rotated features are neighbours in the file's form of a Llama; here they are half a head apart.
        return found.reshape(heads, -1, 2, shape[-1]).swapaxes(1, 2).reshape(shape)

    return Lazy(shape, read)


def inputs_of(about: Mapping[str, Any], length: int) -> TextInputs:
    """The tokenizer and the chat template of a file's metadata."""
    key = "tokenizer.ggml."
    tokens, kinds = about[key + "tokens"], about[key + "token_type"]
    special = {token: kind == CONTROL for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, DEFINED)}

    def named(which: str) -> str:
        number = about.get(f"{key}{which}_token_id")
        return tokens[number] if number is not None else ""

    begin = named("bos") if about.get(key + "add_bos_token", about[key + "model"] == "llama") else None
    if about[key + "model"] == "gpt2":
        merges = [tuple(merge.split(" ", 1)) for merge in about[key + "merges"]]
        ids = {token: i for i, token in enumerate(tokens)}
        kind, vocabulary = "bpe", bytewise(ids, merges, special, about.get(key + "pre", "default"), begin)
    elif about[key + "model"] == "llama":
        scored = list(zip(tokens, about[key + "scores"], strict=True))
        first = kinds.index(UNKNOWN_TYPE)
        prefix = about.get(key + "add_space_prefix", True)
        kind, vocabulary = "bpe", pieces(scored, special, first, merged=True, prefix=prefix, begin=begin)
    else:
        raise unknown("tokenizer", str(about[key + "model"]), ("gpt2", "llama"))
    template = about.get("tokenizer.chat_template", "")
    return TextInputs(
        kind, vocabulary, length, chat_template=template, begin_token=named("bos"), end_token=named("eos")
    )
