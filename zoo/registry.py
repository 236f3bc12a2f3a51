"""The registry of models: a Linen module class, or a partial of one, by name."""

import contextlib
import dataclasses
import difflib
import fnmatch
import functools
import importlib
import json
import math
import pathlib
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.arrays import Example
from zoo.errors import ZooError, unknown
from zoo.flops import count_flops
from zoo.sources import Source, sources_of

PRETRAINED = pathlib.Path(__file__).parent / "pretrained"  # one exported folder per model, with a card
_MODELS: dict[str, "ModelInfo"] = {}


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A registered model.

    `input_shape` is the shape of one example of the first input, without the batch axis, `input_dtype` its dtype;
    `more_inputs` are shape and dtype of the inputs that the model takes by keyword. `parameters` and `flops` (one
    example, forward, two a multiply-add) hold for the default fields and are computed when first read.
    """

    name: str
    family: str
    constructor: Callable[..., nn.Module]
    input_shape: tuple[int, ...]
    input_dtype: str
    more_inputs: Mapping[str, tuple[tuple[int, ...], str]]
    paper: str

    @property
    def module_class(self) -> type[nn.Module]:
        return getattr(self.constructor, "func", None) or typing.cast(type[nn.Module], self.constructor)

    @property
    def fields(self) -> dict[str, Any]:
        """Every field that `create_model` accepts, with its default for this model."""
        chosen = getattr(self.constructor, "keywords", {})
        return {
            f.name: chosen.get(f.name, f.default if f.default is not dataclasses.MISSING else None)
            for f in dataclasses.fields(self.module_class)
            if f.name not in ("parent", "name")
        }

    @property
    def pretrained(self) -> dict[str, str] | None:
        """The card of the weights that come with the zoo (data, accuracy, command, seed, licence), or None."""
        config = PRETRAINED / self.name / "config.json"
        return json.loads(config.read_text())["card"] if config.is_file() else None

    @property
    def sources(self) -> tuple[Source, ...]:
        """Public weights of the model, the default first."""
        return sources_of(self.name)

    @functools.cached_property
    def parameters(self) -> int:
        return count_parameters(self._traced[1])

    @functools.cached_property
    def flops(self) -> int:
        (model, variables), (args, kwargs) = self._traced, self.example()

        def apply(variables: Any, args: Any, kwargs: Any) -> Any:
            return model.apply(variables, *args, **kwargs)

        return count_flops(apply, variables, args, kwargs)

    @functools.cached_property
    def _traced(self) -> tuple[nn.Module, Any]:
        """A form of the model that is quick to trace, and its abstract variables: equal layers as a loop, scores as one
        matrix, whose size is known."""
        model = self.constructor(**({"attention": "xla"} if "attention" in self.fields else {}))
        if "scan_layers" in self.fields:
            with contextlib.suppress(ZooError):  # layers that differ
                looped = model.clone(scan_layers=True)
                return looped, abstract_variables(looped, *self.example())
        return model, abstract_variables(model, *self.example())

    @functools.cached_property
    def features(self) -> dict[str, tuple[int, ...]]:
        """Shapes, for one example, of the hidden features that `mutable=["features"]` returns, by name."""
        return features_of(self.constructor(), *self.example())

    def example(self, batch_size: int = 1) -> Example:
        """Abstract inputs of a batch: the positional arguments of the model, and the keyword arguments."""
        return (_abstract(batch_size, self.input_shape, self.input_dtype),), {
            name: _abstract(batch_size, shape, dtype) for name, (shape, dtype) in self.more_inputs.items()
        }


def _abstract(batch_size: int, shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch_size, *shape), jnp.dtype(dtype))


MOST, MOST_LAYERS = 2**31 - 1, 1000  # of any integer field; of layers, which are traced one by one


def register(
    name: str,
    *,
    family: str,
    input_shape: tuple[int, ...],
    input_dtype: str = "float32",
    more_inputs: Mapping[str, tuple[tuple[int, ...], str]] = types.MappingProxyType({}),
    paper: str = "",
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Registers a Linen module class, or a `functools.partial` of one, under `name`; usable as a decorator.

    `input_shape` and `input_dtype` are those of one example of the first input, without the batch axis. `more_inputs`
    gives shape and dtype of each input that the model takes by keyword: `{"source": ((512,), "int32")}`. ZooError for a
    name that another class already has.
    """

    def add(constructor: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        info = ModelInfo(name, family, constructor, input_shape, input_dtype, more_inputs, paper)
        held = _MODELS.get(name)
        if held is not None and held.module_class.__qualname__ != info.module_class.__qualname__:
            raise ZooError(f"the model name {name!r} is taken by {held.module_class.__name__}; choose another")
        _MODELS[name] = info
        return constructor

    return add


def import_modules(package: str, path: Iterable[str]) -> None:
    """Imports every module of a package's folder, sorted by name, so that a new model file registers itself."""
    for name in sorted(found.name for found in pkgutil.iter_modules(path)):
        importlib.import_module(f"{package}.{name}")


def list_models(glob: str = "*", family: str | None = None) -> list[str]:
    """Registered names that match a shell pattern, sorted; only those of a family (`cnn`, ...) if one is given."""
    families = {info.family for info in _MODELS.values()}
    if family is not None and family not in families:
        raise unknown("family", family, families)
    return sorted(n for n, m in _MODELS.items() if fnmatch.fnmatch(n, glob) and family in (None, m.family))


def model_info(name: str) -> ModelInfo:
    """The registered model `name`; ZooError with the nearest names for an unknown one."""
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
    """`value`, converted to a dtype or tuple where the field is one; ZooError if it does not fit the field's type or
    range."""
    if key.endswith("dtype"):
        try:
            return jnp.dtype(value)
        except TypeError:
            raise ZooError(f"{where} must be a dtype such as float32 or bfloat16, not {value!r}") from None
    value = _immutable(value)
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


def _immutable(value: Any) -> Any:
    """Lists as tuples, also inside of dicts, since modules are hashed."""
    if isinstance(value, dict):
        return {key: _immutable(item) for key, item in value.items()}
    return tuple(map(_immutable, value)) if isinstance(value, list) else value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has an annotated type. An int is a valid float; a bool is not a number."""
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
    """An annotated type as error messages print it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("None" if arg is types.NoneType else type_name(arg) for arg in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def example_of(model: nn.Module, input_shape: tuple[int, ...] | None = None, batch_size: int = 1) -> Example:
    """Abstract inputs from which a registered model's module can be initialised.

    They are those of `ModelInfo.example`, with another `input_shape` if one is given, at the module's own `image_size`,
    and of a single token where it has a `max_length` (no parameter depends on the number of tokens). ZooError where
    the module's class is not registered.
    """
    info = next((info for info in _MODELS.values() if info.module_class is type(model)), None)
    if info is None:
        raise ZooError(f"{type(model).__name__} is not registered; give its module to zoo.register first")
    shape = info.input_shape if input_shape is None else tuple(input_shape)
    if input_shape is None and hasattr(model, "image_size"):
        shape = (model.image_size, model.image_size, *shape[2:])
    fitting = dataclasses.replace(info, input_shape=shape).example(batch_size)
    if not hasattr(model, "max_length"):
        return fitting

    def short(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        tokens = len(leaf.shape) == 2 and jnp.issubdtype(leaf.dtype, jnp.integer)
        return jax.ShapeDtypeStruct((batch_size, 1), leaf.dtype) if tokens else leaf

    return jax.tree.map(short, fitting)


def abstract_variables(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Any:
    """Shapes and dtypes of the model's variables for inputs that may be abstract, as `ModelInfo.example` and
    `Inputs.example` give them; nothing is allocated."""
    return jax.eval_shape(model.init, jax.random.key(0), *args, **(kwargs or {}))


def features_of(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> dict[str, tuple[int, ...]]:
    """Shapes, for one example, of the features that the model sows, by name; nothing is computed."""

    def apply(variables: Any, args: Any, kwargs: Any) -> Any:
        return model.apply(variables, *args, **kwargs, mutable=["features"])

    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (tuple(args), dict(kwargs or {})))
    _, changed = jax.eval_shape(apply, abstract_variables(model, *abstract), *abstract)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape[1:]
        for path, leaf in jax.tree_util.tree_leaves_with_path(changed.get("features", {}))
    }


def count_parameters(variables: Mapping[str, Any]) -> int:
    """The number of trainable parameters: those of the collection `params`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
