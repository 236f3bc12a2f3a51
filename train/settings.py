"""Settings: frozen dataclasses that tyro turns into flags, and JSON into a run folder and back."""

import ast
import dataclasses
import importlib
import pkgutil
import typing
from typing import Annotated, Any, ClassVar, Self

import tyro

from zoo.errors import ZooError, unknown
from zoo.registry import fits, type_name


def _parse_pairs(items: list[str]) -> dict[str, Any]:
    pairs = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not (key and equals):
            raise ValueError(f"{item!r} is not of the form name=value")
        try:
            pairs[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            pairs[key] = text  # a plain word, such as bfloat16
    return pairs


# name=value pairs, values as Python literals or plain words: --model.args width=2 dtype=bfloat16
Arguments = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE ...",
        instance_from_str=_parse_pairs,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{key}={item}" for key, item in value.items()],
    ),
]


class Registered:
    """A family of dataclasses of settings, of which a run has one: tasks, sources.

    The family is the direct subclass, which names its `package`: a class of it that is not known yet is looked for in
    the package's files. Every further subclass registers itself by its name, which config.json holds as `kind`; so does
    one in a user's own recipe file. `abstract=True` keeps a class that only others build on out of the family.
    """

    package: ClassVar[str]  # whose modules hold the built-in classes
    renamed: ClassVar[dict[str, str]] = {}  # names that earlier versions wrote into config.json
    _kinds: ClassVar[dict[str, type]]

    def __init_subclass__(cls, abstract: bool = False) -> None:
        if Registered in cls.__bases__:
            cls._kinds = {}
        if abstract or Registered in cls.__bases__:
            return
        held = cls._kinds.get(cls.__name__)
        if held is not None and (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ZooError(f"the name {cls.__name__!r} is taken by {held.__module__}; choose another")
        cls._kinds[cls.__name__] = cls

    @classmethod
    def kind(cls, name: str) -> type[Self]:
        """The registered class of a name; ZooError with the nearest ones where there is none."""
        name = cls.renamed.get(name, name)
        if name not in cls._kinds:
            package = importlib.import_module(cls.package)
            for found in pkgutil.iter_modules(package.__path__, f"{cls.package}."):
                importlib.import_module(found.name)
        if name not in cls._kinds:
            error = unknown(cls.__name__.lower(), name, cls._kinds)
            raise ZooError(f"{error}; a class of your own recipe file is found with --recipe FILE")
        return cls._kinds[name]

    def check(self) -> None:
        """ZooError for a value out of range."""


def at_least(name: str, value: float, least: float) -> None:
    """ZooError unless `value` is a number of at least `least`."""
    if not value >= least:
        raise ZooError(f"{name} must be at least {least}, not {value}")


def to_json(settings: Any) -> dict[str, Any]:
    """Settings as plain JSON data; those of a registered family with their `kind`."""
    data: dict[str, Any] = {"kind": type(settings).__name__} if isinstance(settings, Registered) else {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        data[field.name] = to_json(value) if dataclasses.is_dataclass(value) else value
    return data


def from_json(data: Any, cls: Any) -> Any:
    """The inverse of `to_json`, a `cls`; ZooError for an unknown field or kind, and for a value of another type."""
    if not isinstance(data, dict):
        raise ZooError(f"settings must be an object, not {data!r:.80}")
    data = dict(data)
    if issubclass(cls, Registered):
        cls = cls.kind(str(data.pop("kind", None)))
    hints = typing.get_type_hints(cls)
    known = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    fields = {}
    for name, value in data.items():
        if name not in known:
            raise unknown(f"setting of {cls.__name__}", name, known)
        hint = known[name]
        if dataclasses.is_dataclass(hint):
            value = from_json(value, hint)
        elif not fits(tuple(value) if typing.get_origin(hint) is tuple else value, hint):
            raise ZooError(f"{name} of {cls.__name__} must be {type_name(hint)}, not {value!r:.80}")
        elif type(value) is int and fits(0.5, hint):
            value = float(value)  # JAX takes no whole number beyond 32 bits
        fields[name] = value
    try:
        return cls(**fields)
    except TypeError as error:
        raise ZooError(f"settings of {cls.__name__} are incomplete: {error}") from None


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields in which two settings differ, by dotted name: (old, new)."""
    if type(old) is not type(new):
        return {f"{prefix}kind": (type(old).__name__, type(new).__name__)}
    found: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(old):
        was, now, name = getattr(old, field.name), getattr(new, field.name), prefix + field.name
        if dataclasses.is_dataclass(was):
            found |= differences(was, now, f"{name}.")
        elif was != now:
            found[name] = was, now
    return found
