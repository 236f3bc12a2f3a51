"""Attention of a recurrent decoder over the encoded source, written for one step of a scan.

How well a query fits a place of the source: their product (`dot`), that with a matrix between them (`general`), or a
hidden layer of both (`concat`): Luong et al. 2015, equation 8. Concat is what Bahdanau et al. 2015 have, additive
attention. What the source alone determines is computed once: the keys [B, S, A].
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.ops.scan import Times

Score = Literal["dot", "general", "concat"]
LEAST = -1e30  # below any score, and finite


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

    def weights(self, memory: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """By the names that `attend` knows: the kernels with which a step multiplies, and what else it reads."""
        shared: dict[str, Any] = {"source_lengths": memory["lengths"]}
        if self.score != "concat":
            key = memory.get("key", memory["value"])
            return {"value": memory["value"], "key": key.swapaxes(1, 2)}, shared
        kernels = {"value": memory["value"], "query": self.query_kernel.astype(self.dtype)}
        return kernels, {**shared, "key": memory["key"], "vector": self.vector.astype(self.dtype)}


def attend(times: Times, shared: dict[str, Any], query: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The context [B, D] of queries [B, Q], and the weights [B, S] over each row's own source, both float32.

    Of an empty source both are zeros.
    """
    if "vector" in shared:
        hidden = jnp.tanh(times("query", query)[:, None] + shared["key"].astype(jnp.float32))
        scores = jnp.einsum("bsa,a->bs", hidden, shared["vector"].astype(jnp.float32))
    else:
        scores = times("key", query)
    visible = jnp.arange(scores.shape[1]) < shared["source_lengths"][:, None]
    scores = jnp.where(visible, scores, LEAST)
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=1, keepdims=True, initial=LEAST))
    weights = jnp.where(visible, jnp.exp(scores - largest), 0)
    total = jnp.sum(weights, axis=1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    return times("value", weights), weights
