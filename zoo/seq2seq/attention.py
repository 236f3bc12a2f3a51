"""Attention of a recurrent decoder over the encoded source, written for one step of a scan.

The score of a query and a source position is their product (`dot`), a product with a matrix between them (`general`),
or a hidden layer of both (`concat`): Luong et al. 2015, equation 8. Concat is the additive attention of Bahdanau et al.
2015. What depends only on the source is computed once: the keys [B, S, A].
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.ops.attention_scores import unnormalised
from zoo.ops.precision import at_least_float32

Score = Literal["dot", "general", "concat"]


class SourceAttention(nn.Module):
    """The weights of a score between queries of width `query_size` and values of width `value_size`."""

    score: Score
    query_size: int
    value_size: int
    size: int  # of concat's hidden layer
    dtype: Any
    param_dtype: Any

    def setup(self) -> None:
        if self.score != "dot":
            width = self.query_size if self.score == "general" else self.size
            self.key = nn.Dense(width, False, self.dtype, self.param_dtype)
        if self.score == "concat":
            init, shape = nn.initializers.lecun_normal(), (self.query_size, self.size)
            self.query_kernel = self.param("query_kernel", init, shape, self.param_dtype)
            self.vector = self.param("vector", nn.initializers.normal(self.size**-0.5), (self.size,), self.param_dtype)

    def memory(self, values: jax.Array) -> dict[str, jax.Array]:
        """The encoded source [B, S, D] as steps read it: `value`, and `key` where it differs."""
        return {"value": values} if self.score == "dot" else {"value": values, "key": self.key(values)}

    def empty(self, rows: int, steps: int) -> dict[str, jax.Array]:
        """The `memory` of a source of `steps` tokens: zeros."""
        memory = {"value": jnp.zeros((rows, steps, self.value_size), self.dtype)}
        return (
            memory
            if self.score == "dot"
            else {**memory, "key": jnp.zeros((rows, steps, self.key.features), self.dtype)}
        )

    def weights(self, memory: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What `attend` reads: the memory with the source's lengths, and the weights of concat."""
        if self.score != "concat":
            return memory
        return {**memory, "query": self.query_kernel.astype(self.dtype), "vector": self.vector.astype(self.dtype)}


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, F] times kernel [F, G]: [B, G] in float32 or more."""
    return jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=at_least_float32(kernel))


def attend(weights: dict[str, jax.Array], query: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The context [B, D] of queries [B, Q], and the attention [B, S] over each row's source, both in float32 or
    more.

    The query of concat [B, A] is already multiplied by its kernel, so that the caller can fuse that product with
    others. For an empty source both are zeros.
    """
    value, key = weights["value"], weights.get("key", weights["value"])
    wide = at_least_float32(value)
    if "vector" in weights:
        hidden = jnp.tanh(query[:, None] + key.astype(wide))
        scores = jnp.einsum("bsa,a->bs", hidden, weights["vector"].astype(wide))
    else:
        scores = jnp.einsum("bq,bsq->bs", query.astype(key.dtype), key, preferred_element_type=wide)
    visible = jnp.arange(scores.shape[1]) < weights["lengths"][:, None]
    found, total = unnormalised(scores, visible)
    found = found / total
    return jnp.einsum("bs,bsd->bd", found.astype(value.dtype), value, preferred_element_type=wide), found
