"""The space of a sweep: settings of a recipe, and the values that each may have."""

import contextlib
import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from train.config import Config
from zoo.errors import ZooError, unknown
from zoo.registry import model_info

KINDS = ("log", "linear", "int", "choice")
FORM = "name=log:LOW:HIGH, linear:LOW:HIGH, int:LOW:HIGH or choice:A,B,C"
OF_THE_SWEEP = ("workdir", "resume", "distributed")  # what a trial cannot choose
Value = float | int | str


@dataclasses.dataclass(frozen=True)
class Values:
    """What one setting may be: numbers from `low` to `high`, or `choices`, each as on the command line."""

    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()

    def suggest(self, trial: Any, name: str) -> Value:
        """The value of a trial of Optuna: the one that it has, or a new one."""
        if self.kind == "choice":
            return trial.suggest_categorical(name, self.choices)
        if self.kind == "int":
            return trial.suggest_int(name, int(self.low), int(self.high))
        return trial.suggest_float(name, self.low, self.high, log=self.kind == "log")

    def grid(self, name: str) -> list[Value]:
        """All values; ZooError for a range of floats."""
        if self.kind == "choice":
            return list(self.choices)
        if self.kind == "int":
            return list(range(int(self.low), int(self.high) + 1))
        raise ZooError(f"sampler grid needs choice or int, not {name}={self.kind}:{self.low:g}:{self.high:g}")

    def ends(self) -> Sequence[Value]:
        """The values whose form stands for that of all."""
        if self.kind == "choice":
            return self.choices
        return [int(self.low), int(self.high)] if self.kind == "int" else [self.low, self.high]


Space = Mapping[str, Values]


def parse_space(items: Mapping[str, str] | Sequence[str]) -> dict[str, Values]:
    """The space of items `name=KIND:...`; ZooError for an item of another form."""
    space: dict[str, Values] = {}
    for item in items:
        name, _, text = item.partition("=")
        kind, _, rest = text.partition(":")
        name = _spelled(name)
        if not (name and rest) or kind not in KINDS:
            raise ZooError(f"space must be {FORM}, not {item!r:.160}")
        if name in space:
            raise ZooError(f"space names {name} twice")
        space[name] = _choices(item, rest) if kind == "choice" else _range(item, kind, rest)
    if not space:
        raise ZooError(f"a sweep needs --space {FORM}")
    return space


def _spelled(name: str) -> str:
    """Flags have hyphens, fields of a model underscores."""
    name = name.removeprefix("--")
    if found := re.fullmatch(r"model\.args\.(.+)", name):
        return f"model.args.{found[1].replace('-', '_')}"
    return name.replace("_", "-")


def _choices(item: str, text: str) -> Values:
    """Commas within brackets separate no choices: choice:(16,32),(32,64)."""
    choices = re.split(r",(?![^(\[]*[)\]])", text)
    if len(set(choices)) != len(choices) or "" in choices:
        raise ZooError(f"the choices of {item!r:.160} must be different and not empty")
    return Values("choice", choices=tuple(choices))


def _range(item: str, kind: str, text: str) -> Values:
    try:
        low, high = map(int if kind == "int" else float, text.split(":"))
    except ValueError:
        raise ZooError(f"space must be {FORM}, not {item!r:.160}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ZooError(f"{item!r:.160} must go from a lower number to a higher one")
    if kind == "log" and low <= 0:
        raise ZooError(f"{item!r:.160}: log needs numbers above 0")
    return Values(kind, low, high)


def settings_of(config: Any, prefix: str = "") -> dict[str, Any]:
    """The values of all settings by their flags' names; those of pairs (model.args) as they are."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name.replace("_", "-")
        found |= settings_of(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found


def check_space(space: Space, config: Config) -> None:
    """ZooError for an unknown setting, or field of the model, and for a value that its flag does not take."""
    known = settings_of(config)
    models = space["model.name"].choices if "model.name" in space else (config.model.name,)
    fields = {field for name in models for field in model_info(name).fields}
    for name, values in space.items():
        group, _, key = name.rpartition(".")
        if group == "model.args":
            if key not in fields:
                raise unknown(f"field of {', '.join(models)} in the space", key, fields)
        elif name in OF_THE_SWEEP:
            raise ZooError(f"{name} cannot be in the space: the sweep sets it")
        elif name not in known and not isinstance(known.get(group), dict):
            raise unknown("setting in the space", name, known)
        for value in values.ends():
            with_values(config, {name: value})


def flags_of(config: Config, values: Mapping[str, Value]) -> list[str]:
    """Values as flags; those of pairs together with the other pairs that the settings have."""
    known, flags = settings_of(config), []
    pairs: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        group, _, key = name.rpartition(".")
        if name not in known and isinstance(known.get(group), dict):
            pairs.setdefault(group, dict(known[group]))[key] = value
        elif isinstance(known.get(name), bool):
            if str(value).lower() not in ("true", "false"):
                raise ZooError(f"{name} in the space must be choice:true,false, not {value!r}")
            flags.append(f"--{name}" if str(value).lower() == "true" else f"--{group}{'.' * bool(group)}no-{key}")
        else:
            flags.append(f"--{name}={value}")
    for group, items in pairs.items():
        flags += [f"--{group}", *(f"{key}={value}" for key, value in items.items())]
    return flags


def with_values(config: Config, values: Mapping[str, Value]) -> Config:
    """The settings with those of a trial, which go through the command line's own parser."""
    options: dict[str, Any] = {"config": (tyro.conf.AvoidSubcommands,)}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # tyro's box of several lines
            return tyro.cli(Config, args=flags_of(config, values), default=config, **options)
    except SystemExit:
        listed = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ZooError(f"the command line does not take {listed} of the space") from None
