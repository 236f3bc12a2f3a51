"""Model names: a registered Linen module class, or a partial of one, by name."""

import dataclasses
import difflib
import fnmatch
import functools
import json
import math
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.errors import ZooError, unknown
from zoo.flops import count_flops

PRETRAINED = pathlib.Path(__file__).parent / "pretrained"  # a folder a model, as a run exports it, with a card
_MODELS: dict[str, "ModelInfo"] = {}


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What is known of a registered model.

    `input_shape` is the shape of one example without its batch axis, `input_dtype` its dtype; `parameters` and `flops`
    (one example, forward, two a multiply-add) hold for the default fields and are counted when first read.
    """

    name: str
    family: str
    constructor: Callable[..., nn.Module]
    input_shape: tuple[int, ...]
    input_dtype: str
    paper: str

    @property
    def module_class(self) -> type[nn.Module]:
        return getattr(self.constructor, "func", None) or typing.cast(type[nn.Module], self.constructor)

    @property
    def fields(self) -> dict[str, Any]:
        """Every field that `create_model` takes, with this model's default."""
        chosen = getattr(self.constructor, "keywords", {})
        return {
            f.name: chosen.get(f.name, f.default if f.default is not dataclasses.MISSING else None)
            for f in dataclasses.fields(self.module_class)
            if f.name not in ("parent", "name")
        }

    @property
    def pretrained(self) -> dict[str, str] | None:
        """Of the weights that come with the zoo: data, accuracy, command, seed, licence; None where it has none."""
        config = PRETRAINED / self.name / "config.json"
        return json.loads(config.read_text())["card"] if config.is_file() else None

    @functools.cached_property
    def parameters(self) -> int:
        return count_parameters(abstract_variables(self.constructor(), self.example()))

    @functools.cached_property
    def flops(self) -> int:
        # A loop over blocks of keys has no length to count by; the whole matrix has.
        model = self.constructor(**({"attention": "xla"} if "attention" in self.fields else {}))
        apply = functools.partial(_apply_example, model)
        return count_flops(apply, abstract_variables(model, self.example()), self.example())

    @functools.cached_property
    def features(self) -> dict[str, tuple[int, ...]]:
        """The hidden features that `mutable=["features"]` gives, by name, with their shapes for one example."""
        return features_of(self.constructor(), self.example())

    def example(self, batch_size: int = 1) -> jax.ShapeDtypeStruct:
        """The abstract input of a batch."""
        return jax.ShapeDtypeStruct((batch_size, *self.input_shape), jnp.dtype(self.input_dtype))


MOST, MOST_LAYERS = 2**31 - 1, 1000  # of any whole number; of layers, which are traced one by one


def register(
    name: str, *, family: str, input_shape: tuple[int, ...], input_dtype: str = "float32", paper: str = ""
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Registers a Linen module class, or a `functools.partial` of one, under `name`; usable as a decorator.

    `input_shape` is one example's, without the batch axis. A name that another class already has is a ZooError.
    """

    def add(constructor: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        info = ModelInfo(name, family, constructor, input_shape, input_dtype, paper)
        held = _MODELS.get(name)
        if held is not None and held.module_class.__qualname__ != info.module_class.__qualname__:
            raise ZooError(f"the model name {name!r} is taken by {held.module_class.__name__}; choose another")
        _MODELS[name] = info
        return constructor

    return add


def list_models(glob: str = "*", family: str | None = None) -> list[str]:
    """Registered names that match a shell pattern, sorted, of one family (`cnn`, ...) if one is named."""
    families = {info.family for info in _MODELS.values()}
    if family is not None and family not in families:
        raise unknown("family", family, families)
    return sorted(n for n, m in _MODELS.items() if fnmatch.fnmatch(n, glob) and family in (None, m.family))


def model_info(name: str) -> ModelInfo:
    """The registered model `name`; ZooError with the nearest names where there is none."""
    if name not in _MODELS:
        raise unknown("model", name, _MODELS)
    return _MODELS[name]


def create_model(name: str, /, **overrides: Any) -> nn.Module:
    """The model `name` as a Linen module, with `overrides` of its fields; dtypes may be strings.

    ZooError for an unknown model or field (with the nearest ones), and for a value of the wrong type or range.
    """
    info = model_info(name)
    hints = typing.get_type_hints(info.module_class)
    fields: dict[str, Any] = {}
    for key, value in overrides.items():
        if key == "pretrained" and key not in info.fields:
            raise ZooError(f"create_model loads no weights; zoo.load({name!r}) gives the pretrained model")
        if key not in info.fields:
            near = difflib.get_close_matches(key, info.fields, n=3, cutoff=0.5)
            guess = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(info.fields)}"
            raise ZooError(f"{name} has no field {key!r}; {guess}")
        fields[key] = _checked(f"{name}: {key}", key, value, hints[key])
    return info.constructor(**fields)


def _checked(where: str, key: str, value: Any, hint: Any) -> Any:
    """`value` if it fits the field's type and range, a dtype where the field is one; ZooError otherwise."""
    if key.endswith("dtype"):
        try:
            return jnp.dtype(value)
        except TypeError:
            raise ZooError(f"{where} must be a dtype such as float32 or bfloat16, not {value!r}") from None
    if isinstance(value, list):
        value = tuple(value)
    if not fits(value, hint):
        raise ZooError(f"{where} must be {type_name(hint)}, not {value!r}")
    counts = key.startswith("num_") or key.endswith(("width", "widths", "size", "sizes"))
    if counts and value is not None and any(size < 1 for size in (value if isinstance(value, tuple) else (value,))):
        raise ZooError(f"{where} must be at least 1, not {value!r}")
    sizes = value if isinstance(value, tuple) else (value,)
    most = MOST_LAYERS if key.endswith(("layers", "blocks")) or key.startswith("stage") else MOST
    if any(isinstance(size, int) and size > most for size in sizes):
        raise ZooError(f"{where} must be at most {most}, not {value!r}")
    if key.endswith("_rate") and not 0 <= value < 1:
        raise ZooError(f"{where} must be in [0, 1), not {value!r}")
    return value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; a whole number is a float as well, a bool is no number."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(fits, value, args))
    if origin is list and args:
        return isinstance(value, list) and all(fits(item, args[0]) for item in value)
    if origin is dict and args:
        return isinstance(value, dict) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def type_name(hint: Any) -> str:
    """An annotated type in an error's words."""
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def abstract_variables(model: nn.Module, inputs: jax.ShapeDtypeStruct) -> Mapping[str, Any]:
    """The shapes and dtypes of the model's variables; nothing is allocated."""
    return jax.eval_shape(model.init, jax.random.key(0), inputs)


def _apply_example(model: nn.Module, variables: Any, inputs: jax.Array, **kwargs: Any) -> Any:
    """`model.apply` to an example, which an encoder-decoder reads as its source too."""
    if hasattr(model, "encode"):
        kwargs["source"] = inputs
    return model.apply(variables, inputs, **kwargs)


def features_of(model: nn.Module, inputs: jax.Array | jax.ShapeDtypeStruct) -> dict[str, tuple[int, ...]]:
    """The features that the model sows, by name, with their shapes for one example; nothing is computed."""
    inputs = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
    apply = functools.partial(_apply_example, model, mutable=["features"])
    _, changed = jax.eval_shape(apply, abstract_variables(model, inputs), inputs)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape[1:]
        for path, leaf in jax.tree_util.tree_leaves_with_path(changed.get("features", {}))
    }


def count_parameters(variables: Mapping[str, Any]) -> int:
    """Trainable numbers: those of the collection `params`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
