"""Hugging Face's state dicts of decoders: GPT-2's, and Llama's and Qwen 3's, which have the same names.

Which of them follows from the parameters: GPT-2 has learned positions. `params/layers/layer0/mlp/up/kernel` is
`model.layers.0.mlp.up_proj.weight` [out, in], transposed, in a Llama, and `transformer.h.0.mlp.c_fc.weight` [in, out],
as it is, in a GPT-2, where query, key and value are one tensor [in, 3 in].
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import ZooError

_QKV = ("query", "key", "value")
_GPT2 = {
    "embedding": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "layers": "transformer.h",
    "norm1": "ln_1",
    "attention/query": "attn.c_attn",
    "attention/key": "attn.c_attn",
    "attention/value": "attn.c_attn",
    "attention/out": "attn.c_proj",
    "norm2": "ln_2",
    "mlp/up": "mlp.c_fc",
    "mlp/down": "mlp.c_proj",
}
_LLAMA = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "layers": "model.layers",
    "norm1": "input_layernorm",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/query_norm": "self_attn.q_norm",
    "attention/key_norm": "self_attn.k_norm",
    "attention/out": "self_attn.o_proj",
    "norm2": "post_attention_layernorm",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def is_decoder(variables: Mapping[str, Any]) -> bool:
    """Whether variables, unstacked, are those of a `zoo.transformer.decoder.Decoder`."""
    params = variables["params"]
    layers = params.get("layers", {})
    first = layers.get("layer0", {}) if isinstance(layers, Mapping) else {}
    return {"embedding", "norm"} <= set(params) and {"norm1", "attention", "norm2", "mlp"} == set(first)


def ignored(name: str) -> bool:
    """Whether a tensor of the file has no place in a model: masks, rotations, and the head of a tied one."""
    return name == "lm_head.weight" or name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"))


def merged(tensors: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A state dict with the names that a language model's has, where it may be its body's alone.

    ValueError where it has a head of its own and the model, a tied one, would not.
    """
    named = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^(?=(h|wte|wpe|ln_f)\.)", "transformer.", name)
        named[re.sub(r"^(?=(layers|embed_tokens|norm)\.)", "model.", name)] = tensor
    table = named.get(f"{_table(variables)['embedding']}.weight")
    if "head" not in variables["params"] and table is not None and "lm_head.weight" in named:
        head = named["lm_head.weight"]
        if head is not table and not np.array_equal(head, table):
            raise ValueError("its lm_head.weight is not its embedding, as in a tied model; give tied=False")
    return named


def names(variables: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """The state dict's tensors by name, each with a path of that name alone and the shape that it has in the file."""
    return {name: ((name,), leaf) for name, leaf in jax.eval_shape(to_file, variables).items()}


def from_file(tensor: np.ndarray, leaf: Any, path: tuple[str, ...]) -> np.ndarray:
    """The tensor, cast to the leaf's dtype; ValueError (what was, what should be) where it does not fit."""
    if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
        raise ValueError(f"{tensor.dtype}, not floating point")
    if tensor.shape != leaf.shape:
        raise ValueError(f"{tensor.shape}, not {leaf.shape}")
    return tensor.astype(leaf.dtype)


def differs_in_classes(tensor: np.ndarray, leaf: Any) -> bool:
    """Another vocabulary is another embedding: a head alone never differs."""
    return False


def to_file(variables: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The state dict of variables, unstacked."""
    table, tensors = _table(variables), {}
    parts: dict[str, dict[str, jax.Array]] = {}
    for path, leaf in _leaves(variables):
        name = _name(path, table)
        if _fused(path, table):
            parts.setdefault(name, {})[path[-2]] = leaf
        else:
            tensors[name] = leaf.T if _transposed(path, table) else leaf
    for name, part in parts.items():
        if len({leaf.shape for leaf in part.values()}) > 1:
            raise ZooError(f"Hugging Face's GPT-2 has as many key as query heads; {name} would not")
        tensors[name] = jnp.concatenate([part[of] for of in _QKV], axis=-1)
    return tensors


def leaves(
    tensors: Mapping[tuple[str, ...], np.ndarray], variables: Mapping[str, Any]
) -> dict[tuple[str, ...], np.ndarray]:
    """The inverse of `to_file`: of tensors by `names`' paths, the leaves of variables, unstacked, by theirs."""
    table, found = _table(variables), {}
    for path, _ in _leaves(variables):
        tensor = tensors[(_name(path, table),)]
        if _fused(path, table):  # `to_file` saw to it that the three are as wide
            tensor = np.split(tensor, 3, axis=-1)[_QKV.index(path[-2])]
        found[path] = np.ascontiguousarray(tensor.T if _transposed(path, table) else tensor)
    return found


def _table(variables: Mapping[str, Any]) -> dict[str, str]:
    return _GPT2 if "positions" in variables["params"] else _LLAMA


def _leaves(variables: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Any]]:
    paths = jax.tree_util.tree_leaves_with_path(variables)
    return [(tuple(key.key for key in path), leaf) for path, leaf in paths]


def _fused(path: tuple[str, ...], table: Mapping[str, str]) -> bool:
    return table is _GPT2 and path[-2] in _QKV


def _transposed(path: tuple[str, ...], table: Mapping[str, str]) -> bool:
    return path[-1] == "kernel" and (table is _LLAMA or path[1] == "head")


def _name(path: tuple[str, ...], table: Mapping[str, str]) -> str:
    """The tensor's name of a leaf, `params/layers/layer0/norm1/scale`; ZooError where Hugging Face's have no such."""
    try:
        if len(path) == 2:
            return f"{table[path[1]]}.weight"
        if path[1] != "layers":
            return f"{table[path[1]]}.{_LEAF[path[2]]}"
        layer, module = path[2].removeprefix("layer"), "/".join(path[3:-1])
        return f"{table['layers']}.{layer}.{table[module]}.{_LEAF[path[-1]]}"
    except KeyError:
        kind = "GPT-2" if table is _GPT2 else "Llama"
        raise ZooError(f"Hugging Face's {kind} has no {'/'.join(path)}; zoo.weights.save_native keeps it") from None
