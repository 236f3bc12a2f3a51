"""What of a model is exported: pure functions of weights and arrays, with symbolic sizes.

| model | programs |
|---|---|
| of images, of images and texts, of series, of texts | `forward` |
| causal, over tokens | `prefill`, `decode` |
| encoder-decoder | `encode`, `decode` |
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export

from zoo.errors import ZooError
from zoo.export import preprocessing
from zoo.inputs import ImageInputs, ImageTextInputs, SeriesInputs, TextInputs
from zoo.inputs.sides import Sides
from zoo.run import Run

KERNELS = (None, "cudnn", "pallas")  # implementations of attention that are, or may be, one platform's own
LONGEST = 1024  # tokens of a cache, where nothing else is asked for

Apply = Callable[..., Any]


class Program(NamedTuple):
    """`function(variables, *arguments)`; `arguments` are abstract, by name."""

    function: Callable[..., Any]
    arguments: dict[str, Any]


class Programs(NamedTuple):
    """The programs of a model by name; the most tokens of a text, with its answer, or of a target, and of a source."""

    by_name: dict[str, Program]
    longest: int | None = None
    longest_source: int | None = None


def on_any_platform(model: nn.Module, dtype: Any = None) -> nn.Module:
    """The model with attention as XLA computes it on every platform, and another compute dtype if one is given."""
    changed: dict[str, Any] = {} if dtype is None else {"dtype": jnp.dtype(dtype)}
    if getattr(model, "attention", "") in KERNELS:
        changed["attention"] = "xla"
    return model.clone(**changed) if changed else model


def programs_of(
    run: Run, apply: Apply, variables: Any, preprocess: bool = False, max_length: int | None = None
) -> Programs:
    """The programs of a run's model, whose forward pass is `apply` with variables like these. ZooError for settings
    that do not fit the model."""
    model, inputs = run.model, run.inputs
    cached = hasattr(model, "encode") or (hasattr(model, "init_state") and not getattr(model, "recurrent", False))
    if max_length is not None and (not cached or max_length < 1):
        right = "at least 1" if cached else f"left out: {type(model).__name__} has no cache of tokens"
        raise ZooError(f"max_length is {max_length}; it must be {right}")
    if preprocess and not isinstance(inputs, ImageInputs | ImageTextInputs | SeriesInputs):
        raise ZooError("preprocessing can be part of a program for images and series; texts are read by a tokenizer")
    if isinstance(inputs, Sides) and hasattr(model, "encode"):
        return _encoder_decoder(model, inputs, apply, variables, max_length)
    if isinstance(inputs, TextInputs) and hasattr(model, "init_state"):
        return _causal(model, apply, max_length)
    if isinstance(inputs, TextInputs):
        return _text(model, inputs, apply)
    if isinstance(inputs, ImageTextInputs):
        return _image_text(inputs, apply, preprocess)
    if isinstance(inputs, ImageInputs):
        return _image(inputs, apply, preprocess)
    if isinstance(inputs, SeriesInputs):
        return _series(inputs, apply, preprocess)
    raise ZooError(f"a {type(model).__name__} with inputs of kind {inputs.kind!r} has no program to export")


def _image_argument(inputs: ImageInputs, preprocess: bool, rows: Any) -> Any:
    if not preprocess:
        return jax.ShapeDtypeStruct((rows, *inputs.shape), jnp.float32)
    preprocessing.check(inputs)
    height, width = export.symbolic_shape("h, w", scope=rows.scope)
    return jax.ShapeDtypeStruct((rows, height, width, inputs.shape[2]), jnp.uint8)


def _image(inputs: ImageInputs, apply: Apply, preprocess: bool) -> Programs:
    (rows,) = export.symbolic_shape("b")

    def forward(variables: Any, image: jax.Array) -> jax.Array:
        """Images to logits float32 [b, classes]."""
        image = preprocessing.preprocess(inputs, image) if preprocess else image
        return apply(variables, image).astype(jnp.float32)

    return Programs({"forward": Program(forward, {"image": _image_argument(inputs, preprocess, rows)})})


def _image_text(inputs: ImageTextInputs, apply: Apply, preprocess: bool) -> Programs:
    limit = inputs.text.length
    rows, texts, steps = export.symbolic_shape("b, n, t", constraints=[f"t <= {limit}"])

    def forward(variables: Any, image: jax.Array, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """Images and texts to logits float32 [b, n]."""
        image = preprocessing.preprocess(inputs.image, image) if preprocess else image
        return apply(variables, image, tokens, lengths).astype(jnp.float32)

    arguments = {"image": _image_argument(inputs.image, preprocess, rows), **_tokens(texts, steps)}
    return Programs({"forward": Program(forward, arguments)}, limit)


def _series(inputs: SeriesInputs, apply: Apply, preprocess: bool) -> Programs:
    rows, steps = export.symbolic_shape("b, t")
    places = jnp.asarray(inputs.places)

    def forward(variables: Any, values: jax.Array) -> jax.Array:
        """Rows of a table to forecasts float32 [b, t, targets]: normalised, or in the table's units."""
        if not preprocess:
            return apply(variables, values).astype(jnp.float32)
        mean, std = (jnp.asarray(numbers, jnp.float32) for numbers in (inputs.mean, inputs.std))
        found = apply(variables, (values - mean) / std).astype(jnp.float32)
        return found * std[places] + mean[places]

    values = jax.ShapeDtypeStruct((rows, steps, len(inputs.columns)), jnp.float32)
    return Programs({"forward": Program(forward, {"values": values})})


def _text(model: nn.Module, inputs: TextInputs, apply: Apply) -> Programs:
    limit = getattr(model, "max_length", None)
    rows, steps = export.symbolic_shape("b, t", constraints=[] if limit is None else [f"t <= {limit}"])
    measured = "lengths" in inspect.signature(type(model).__call__).parameters

    def forward(variables: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """Padded tokens to the model's output, float32 [b, ...]."""
        return apply(variables, tokens, **({"lengths": lengths} if measured else {})).astype(jnp.float32)

    return Programs({"forward": Program(forward, _tokens(rows, steps))}, limit)


def _causal(model: Any, apply: Apply, max_length: int | None) -> Programs:
    limit = None
    if not getattr(model, "recurrent", False):
        limit = min(model.max_length, LONGEST) if max_length is None else max_length
        if limit > model.max_length:
            raise ZooError(f"max_length is {limit}; the model reads at most {model.max_length} tokens")
    rows, steps = export.symbolic_shape("b, t", constraints=[] if limit is None else [f"t <= {limit}"])

    def prefill(variables: Any, tokens: jax.Array, lengths: jax.Array) -> tuple[jax.Array, Any]:
        """Padded prompts to the logits after each one's last token, float32 [b, vocabulary], and the state."""
        logits, state = apply(variables, tokens, model.init_state(tokens.shape[0], limit or 0), lengths)
        last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)
        return last[:, 0].astype(jnp.float32), state

    (alone,) = export.symbolic_shape("b")  # constraints hold for all programs of a scope, and a step has no t
    state = jax.eval_shape(lambda: model.init_state(alone, limit or 0))
    step = _decode(apply, alone, state)
    return Programs({"prefill": Program(prefill, _tokens(rows, steps)), "decode": step}, limit)


def _encoder_decoder(model: Any, inputs: Sides, apply: Apply, variables: Any, max_length: int | None) -> Programs:
    limit = inputs.target.length if max_length is None else max_length
    most = getattr(model, "max_length", limit)
    if limit > most:
        raise ZooError(f"max_length is {limit}; the model writes at most {most} tokens")
    longest = min(inputs.source.length, getattr(model, "max_length", inputs.source.length))
    rows, steps = export.symbolic_shape("b, t", constraints=[f"t <= {longest}"])

    def encode(variables: Any, tokens: jax.Array, lengths: jax.Array) -> Any:
        """Padded sources to the state before the first target token."""
        return apply(variables, tokens, lengths, limit, method="encode")

    begin = _tokens(rows, steps)
    state = jax.eval_shape(encode, variables, *begin.values())
    if not any(export.is_symbolic_dim(size) for leaf in jax.tree.leaves(state) for size in leaf.shape[1:]):
        (rows,) = export.symbolic_shape("b")  # as in `_causal`
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), state)
    return Programs({"encode": Program(encode, begin), "decode": _decode(apply, rows, state)}, limit, longest)


def _decode(apply: Apply, rows: Any, state: Any) -> Program:
    """The step from a state of these shapes."""

    def decode(variables: Any, token: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """A token for each row to the logits after it, float32 [b, vocabulary], and the new state."""
        logits, state = apply(variables, token[:, None], state)
        return logits[:, 0].astype(jnp.float32), state

    return Program(decode, {"token": jax.ShapeDtypeStruct((rows,), jnp.int32), "state": state})


def _tokens(rows: Any, steps: Any) -> dict[str, Any]:
    return {
        "tokens": jax.ShapeDtypeStruct((rows, steps), jnp.int32),
        "lengths": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
