"""Attention of a recurrent decoder over the encoded source, written for one step of a scan.

How well a query fits a place of the source: their product (`dot`), that with a matrix between them (`general`), or a
hidden layer of both (`concat`): Luong et al. 2015, equation 8. Concat is what Bahdanau et al. 2015 have, additive
attention. What the source alone determines is computed once: the keys [B, S, A].
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.ops.attention_scores import unnormalised

Score = Literal["dot", "general", "concat"]


class SourceAttention(nn.Module):
    """The weights of a score between queries as wide as `query_size` and values as wide as they come."""

    score: Score
    query_size: int
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
        """What steps read of the encoded source [B, S, D]: `value`, and `key` where it is another."""
        return {"value": values} if self.score == "dot" else {"value": values, "key": self.key(values)}

    def weights(self, memory: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What `attend` reads: the memory with the source's lengths, and concat's own."""
        if self.score != "concat":
            return memory
        return {**memory, "query": self.query_kernel.astype(self.dtype), "vector": self.vector.astype(self.dtype)}


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, F] by kernel [F, G]: float32 [B, G]."""
    return jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)


def attend(weights: dict[str, jax.Array], query: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The context [B, D] of queries [B, Q], and the attention [B, S] to each row's own source, both float32.

    A query of concat [B, A] has been multiplied by its kernel, with which others of its factors may be. Of an empty
    source both are zeros.
    """
    value, key = weights["value"], weights.get("key", weights["value"])
    if "vector" in weights:
        hidden = jnp.tanh(query[:, None] + key.astype(jnp.float32))
        scores = jnp.einsum("bsa,a->bs", hidden, weights["vector"].astype(jnp.float32))
    else:
        scores = jnp.einsum("bq,bsq->bs", query.astype(key.dtype), key, preferred_element_type=jnp.float32)
    visible = jnp.arange(scores.shape[1]) < weights["lengths"][:, None]
    found, total = unnormalised(scores, visible)
    found = found / total
    return jnp.einsum("bs,bsd->bd", found.astype(value.dtype), value, preferred_element_type=jnp.float32), found
