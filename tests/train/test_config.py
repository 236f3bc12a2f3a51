"""Settings: flags, JSON and back, ranges; and no setting that nothing reads."""

import dataclasses
import json
import pathlib
import re

import pytest

import train
from train.__main__ import load_recipe, main, recipe_files
from train.config import Config, differences, from_json, to_json
from zoo import ZooError

SOURCE = pathlib.Path(train.__file__).parent


def replaced(config, dotted, value):
    first, _, rest = dotted.partition(".")
    value = replaced(getattr(config, first), rest, value) if rest else value
    return dataclasses.replace(config, **{first: value})


def test_every_field_is_read():
    text = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))

    def names(config):
        for field in dataclasses.fields(config):
            yield field.name
            if dataclasses.is_dataclass(getattr(config, field.name)):
                yield from names(getattr(config, field.name))

    unread = [name for name in names(Config("", 1, 1)) if not re.search(rf"\.{name}\b", text)]
    assert unread == []


@pytest.mark.parametrize("name", recipe_files())
def test_recipes_are_valid_and_survive_json(name):
    config = load_recipe(name).config()
    config.check()
    stored = json.loads(json.dumps(to_json(config)))
    assert json.loads(json.dumps(to_json(from_json(stored)))) == stored
    assert config.workdir == f"runs/{name}"


@pytest.mark.parametrize("name", recipe_files())
def test_a_recipes_docstring_gives_command_cost_and_result(name):
    text = load_recipe(name).__doc__
    assert f"python -m train {name}" in text
    assert re.search(r"%|nats", text)
    assert re.search(r"second|minute", text)


def test_list_prints_every_recipe(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(f"python -m train {name}" in out for name in recipe_files())


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("steps", 0, "steps must be at least 1, not 0"),
        ("batch_size", -1, "batch-size must be at least 1"),
        ("optimizer.learning_rate", float("nan"), "optimizer.learning-rate must be at least 0, not nan"),
        ("optimizer.ema", 1.0, "optimizer.ema must be between 0 and 1"),
        ("optimizer.clip_norm", 0.0, "optimizer.clip-norm must be above 0"),
        ("optimizer.decay_fraction", 0.0, r"optimizer.decay-fraction must be in \(0, 1\], not 0.0"),
        ("optimizer.accumulate", 3, "batch-size 64 is not divisible by optimizer.accumulate 3"),
        ("data.validation_fraction", 1.0, r"data.validation-fraction must be in \[0, 1\)"),
        ("data.image_size", 0, "data.image-size must be at least 1"),
        ("augment.shift", -1, "augment.shift must be at least 0"),
        ("augment.rotate", 200.0, "augment.rotate must be between 0 and 180"),
        ("task.label_smoothing", 1.0, r"task.label-smoothing must be in \[0, 1\)"),
        ("profile", "5", "profile must be START:STOP"),
        ("profile", "9:5", "profile must be START:STOP"),
        ("profile", "5:11", "two of the 10 steps, not '5:11'"),
        ("profile", "1:" + "5" * 5000, r"profile must be START:STOP, .*, not '1:5{70,77}$"),
        ("mesh", "data=1" + "0" * 5000, r"'data=10{70,73} does not$"),
        ("distributed", f"coordinator=a:1,num=2{'0' * 5000},id=1", "distributed must be auto, or coordinator=HOST"),
        ("seed", -1, r"seed must be at least 0 and below 2\*\*63, not -1"),
        ("seed", 2**63, r"seed must be at least 0 and below 2\*\*63, not 9223372036854775808"),
        ("optimizer.rates", {"fc": 10**400}, "optimizer.rates fc must be a number of at least 0, not 10000"),
        ("log.every", 0, "log.every must be at least 1"),
        ("keep", 0, "keep must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(setting, value, message):
    with pytest.raises(ZooError, match=message):
        replaced(Config("run", 10, 64), setting, value).check()


def test_differences_are_found_by_dotted_name():
    config = Config("run", 10, 64)
    other = replaced(replaced(config, "optimizer.learning_rate", 0.5), "steps", 20)
    assert differences(config, other) == {"steps": (10, 20), "optimizer.learning_rate": (1e-3, 0.5)}


def test_a_whole_number_where_a_fraction_may_be_is_read_as_one():
    """JAX takes no whole number beyond 32 bits."""
    read = from_json({"workdir": "x", "steps": 1, "batch_size": 1, "optimizer": {"clip_norm": 2**31}})
    assert isinstance(read.optimizer.clip_norm, float)
    assert isinstance(read.steps, int)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"workdir": "x", "steps": 1, "batch_sise": 1},
            "unknown setting of Config 'batch_sise'; did you mean batch_size",
        ),
        ({"steps": 1}, "incomplete"),
        ([], "must be an object"),
        ({"workdir": "x", "steps": 1, "batch_size": 1, "model": {"nam": 1}}, "unknown setting of ModelConfig 'nam'"),
    ],
)
def test_wrong_stored_settings_are_refused(data, message):
    with pytest.raises(ZooError, match=message):
        from_json(data)
