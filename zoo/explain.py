"""What an answer depends on: Grad-CAM, attention rollout, the attention of a target over its source."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import zoo
from zoo.decode import source_attention
from zoo.features import adding
from zoo.run import Run
from zoo.transformer import ViT


def stages(run: Run) -> dict[str, tuple[int, ...]]:
    """Names and shapes [h, w, C] of the maps that an image model sows as stages, in order."""
    features = zoo.registry.features_of(run.model, *run.inputs.example())
    return {name: shape for name, shape in sorted(features.items()) if name.startswith("stage") and len(shape) == 3}


def explainable(run: Run) -> bool:
    """Whether `explain` takes the model: a ViT, or one with stages."""
    return isinstance(run.model, ViT) or bool(stages(run))


def explain(run: Run, images: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For uint8 images [B, H, W, C]: logits, Grad-CAM of the prediction [B, h, w], and its gradient by the input.

    Grad-CAM (Selvaraju et al. 2017) is taken at the last stage: the ReLU of its maps, weighted by the mean gradient of
    the predicted class's logit by each. A ViT has attention instead.
    """
    inputs: Any = run.inputs
    x = inputs.normalize(jnp.asarray(images))
    if isinstance(run.model, ViT):
        return explain_by_attention(run.model, run.variables, x)
    stage, shape = max(stages(run).items())

    def answer(x: jax.Array, delta: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        with adding(stage, delta):
            logits, changed = run.model.apply(run.variables, x, mutable=["features"])
        return jnp.sum(jnp.max(logits, axis=-1).astype(jnp.float32)), (logits, changed["features"][stage])

    zeros = jnp.zeros((len(images), *shape), run.model.dtype)
    (by_x, by_maps), (logits, maps) = jax.grad(answer, argnums=(0, 1), has_aux=True)(x, zeros)
    weights = jnp.mean(by_maps, axis=(1, 2), keepdims=True)
    return logits, jax.nn.relu(jnp.sum(weights * maps, axis=-1)), by_x


def maps_of(run: Run, images: Any) -> dict[str, jax.Array]:
    """For uint8 images [B, H, W, C]: the maps of each stage [B, h, w, C]; none of a model without stages."""
    inputs: Any = run.inputs
    _, changed = run.model.apply(run.variables, inputs.normalize(jnp.asarray(images)), mutable=["features"])
    return {name: changed["features"][name] for name in stages(run)}


def explain_by_attention(model: ViT, variables: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For normalised images: logits, the share of each patch [B, h, w] in what is classified, the gradient by x."""

    def answer(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        logits, changed = model.apply(variables, x, mutable=["features"])
        return jnp.sum(jnp.max(logits, axis=-1).astype(jnp.float32)), (logits, changed["features"]["layers"])

    by_x, (logits, layers) = jax.grad(answer, has_aux=True)(x)
    shares = rollout([layers[f"layer{i}"]["attention"]["weights"] for i in range(model.num_layers)])
    shares = shares[:, 0, 1:] if model.pooling == "token" else jnp.mean(shares, axis=1)
    side = model.image_size // model.patch_size
    return logits, shares.reshape(-1, side, side), by_x


def rollout(weights: Sequence[jax.Array]) -> jax.Array:
    """The share [B, T, T] of each input token in each output token, from attention weights [B, N, T, T] by layer.

    The product over layers of the mean over heads, averaged with the identity for the residual stream (Abnar and
    Zuidema 2020, section 3).
    """
    stream = jnp.eye(weights[0].shape[-1])
    shares = jnp.broadcast_to(stream, (len(weights[0]), *stream.shape))
    for layer in weights:
        shares = (jnp.mean(layer, axis=1) + stream) / 2 @ shares
    return shares


def attention(run: Run, source: np.ndarray, target: np.ndarray, width: int | None = None) -> np.ndarray:
    """The attention of a target's token ids int32 [T], its end included, to a source's [S]: float32 [T, S].

    The source is padded to `width` tokens and the target to the most that the model gives, so that few programs are
    compiled. ZooError for a model without attention.
    """
    inputs: Any = run.inputs
    sides = (source, width or len(source)), (target, inputs.target.length)
    tokens, targets = (np.pad(row[:size], (0, max(size - len(row), 0)))[None] for row, size in sides)
    batch = {"source": tokens, "source_length": np.array([len(source)], np.int32), "target": targets}
    args, kwargs = inputs.arguments(batch)
    return np.asarray(_attention(run.model, run.variables, args, kwargs))[0, : len(target), : len(source)]


@functools.partial(jax.jit, static_argnums=0)
def _attention(model: nn.Module, variables: Any, args: Any, kwargs: Any) -> jax.Array:
    _, changed = model.apply(variables, *args, **kwargs, mutable=["features"])
    return source_attention(changed["features"])
