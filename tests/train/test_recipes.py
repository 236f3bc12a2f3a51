"""Recipes: docstrings agree with the measured results, large ones compile for their devices, settings exist."""

import csv
import dataclasses
import functools
import re
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from runs import ROOT
from train import AugmentConfig, Classification
from train.__main__ import main
from train.config import Config
from train.data.streams import Stream
from train.data.text import TextData
from train.optimizer import OptimizerConfig, make_optimizer
from train.recipes import describe, load_recipe, recipe_files, table
from train.setup import initial_variables, make_model
from train.sharding import make_layout
from train.step import init_state, make_train_step
from zoo.inputs.image import ImageInputs
from zoo.inputs.text import TextInputs
from zoo.partition import rules_of
from zoo.registry import abstract_variables

# Docstrings.


@functools.cache
def measured():
    """The newest row of quality.csv of each recipe and seed."""
    with (ROOT / "benchmarks" / "results" / "quality.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["framework"] == "flaxzoo"]
    return {recipe: {row["seed"]: row for row in rows if row["recipe"] == recipe} for recipe in recipe_files()}


# A number of a result: its split, its quantity and its unit; split and quantity may be those of the number before.
PART = r"(?:(test|validation)\w*)? ?([A-Za-z ]*?) ?([\d.]+)(?: (%|nats|bits per character|BLEU))?"
COLUMNS = {"nats": "loss", "bits per character": "bits_per_character", "BLEU": "bleu", "phone error": "error_rate"}


def stated(result):
    """The numbers of a `Result:` line, each with its column in quality.csv and the factor that it has there; and the
    seeds."""
    found = re.fullmatch(r"(.*) \(seeds? ([\d, to]+)\)", result)
    assert found, f"{result!r} names no seeds"
    ends = re.fullmatch(r"(\d+) to (\d+)", found[2])
    seeds = [*map(str, range(int(ends[1]), int(ends[2]) + 1))] if ends else found[2].split(", ")
    numbers, split, quantity = [], "", ""
    for part in found[1].split(", "):
        if re.search(r"\d", part):
            match = re.fullmatch(PART, part)
            assert match, f"{part!r} is no split, quantity, number and unit"
            split, quantity = match[1] or split, match[2] or quantity
            column = COLUMNS.get(match[4]) or COLUMNS.get(quantity) or quantity.lower().replace(" ", "_")
            numbers.append((f"validation_{column}" if split == "validation" else column, match[3], match[4] == "%"))
    assert numbers, f"{result!r} has no number"
    return numbers, seeds


def value(row, column):
    if column == "word_error":
        return 1 - float(row["exact_match"])
    return float(row[column])


def rounds_to(x, number):
    """Whether a number as it is written is `x` rounded to as many digits, either way at a half."""
    unit = 10.0 ** -len(number.partition(".")[2])
    return abs(float(number.replace(",", "")) - x) <= 0.5 * unit + 1e-9


def check_docstring(about, rows):
    """Asserts that a recipe's data, result and time are those of its rows, by seed."""
    assert about["Data"]
    if not rows:
        assert (about["Result"], about["Time"]) == ("not run", "not run")
        return
    numbers, seeds = stated(about["Result"])
    assert seeds == sorted(rows)  # all that were measured
    for column, number, percent in numbers:
        mean = statistics.fmean(value(rows[seed], column) for seed in seeds) * (100 if percent else 1)
        assert rounds_to(mean, number), (column, mean)
    seconds = [float(rows[seed]["seconds"]) for seed in seeds]
    time = re.fullmatch(r"(?:([\d,]+) to )?([\d,]+) s", about["Time"])
    assert time, f"{about['Time']!r} is no time in seconds"
    if time[1]:
        assert rounds_to(min(seconds), time[1])
        assert rounds_to(max(seconds), time[2])
    else:
        assert rounds_to(statistics.fmean(seconds), time[2])


@pytest.mark.parametrize("name", recipe_files())
def test_a_docstring_gives_command_data_result_and_time_as_measured(name):
    assert f"python -m train {name}" in load_recipe(name).__doc__
    check_docstring(describe(name), measured()[name])


ROWS = {seed: {"accuracy": a, "validation_loss": "1.5", "seconds": "9.6"} for seed, a in (("0", "0.9"), ("1", "0.912"))}
RIGHT = {"Data": "x", "Result": "test accuracy 90.6 %, validation 1.50 nats (seeds 0, 1)", "Time": "10 s"}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("Result", "test accuracy 90.7 %, validation 1.50 nats (seeds 0, 1)"),
        ("Result", "test accuracy 90.6 %, validation 1.51 nats (seeds 0, 1)"),
        ("Result", "test accuracy 91.2 % (seed 1)"),  # the better of two
        ("Result", "test accuracy 90.6 % (seeds 0 to 2)"),
        ("Result", "test accuracy 90.6 %"),
        ("Result", "well above 90.6 % (seeds 0, 1)"),
        ("Result", "not run"),
        ("Time", "9 s"),
        ("Time", ""),
        ("Data", ""),
    ],
)
def test_that_check_fails_for_a_docstring_that_disagrees(line, text):
    check_docstring(RIGHT, ROWS)
    with pytest.raises((AssertionError, KeyError)):
        check_docstring({**RIGHT, line: text}, ROWS)
    with pytest.raises(AssertionError):
        check_docstring(RIGHT, {})


def test_list_shows_every_recipe_with_data_result_and_time(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert out == table() + "\n"
    for name in recipe_files():
        (line,) = [line for line in out.splitlines() if line.split("  ")[0] == name]
        assert all(text in line for text in describe(name).values())
    assert main(["list", "cnn"]) == 0
    assert capsys.readouterr().out == load_recipe("cnn").__doc__ + "\n"


# Steps, compiled from shapes.


def parts(config):
    """Model, inputs and the shapes of an example of a recipe whose data are not here."""
    if isinstance(config.data, TextData):
        vocabulary = "".join(map(chr, range(config.data.vocab_size)))
        inputs = TextInputs("char", vocabulary, config.data.context)
        stream = Stream(np.zeros(2, np.int32), config.data.context, np.ones(2, np.uint8), np.zeros(1, int))
        example = {**stream.read(np.zeros(1, int)), "row": np.zeros(1, np.int32)}
        shapes = {key: (array.shape[1:], array.dtype) for key, array in example.items()}
    else:
        shape, labels = zoo.model_info(config.model.name).input_shape, tuple(map(str, range(1000)))
        inputs = ImageInputs(shape, (0.5,) * 3, (0.25,) * 3, labels)
        shapes = {"image": (shape, "uint8"), "label": ((), "int32"), "row": ((), "int32"), "weight": ((), "float32")}
    return zoo.create_model(config.model.name, **{**config.model.args, **inputs.model_args()}), inputs, shapes


@functools.cache
def lowered(name, batch_size, platform, **model_args):
    """The step of a recipe, from shapes alone, on a mesh of the devices there are."""
    config = dataclasses.replace(load_recipe(name).config(), batch_size=batch_size)
    model, inputs, shapes = parts(config)
    model = model.clone(**model_args)
    optimizer = make_optimizer(config.optimizer, config.steps)
    variables = abstract_variables(model, *inputs.example())
    state = jax.eval_shape(lambda v: init_state(v, optimizer, config.optimizer.ema is not None), variables)
    layout = make_layout("mesh", batch_size, config.optimizer.accumulate, rules=rules_of(model))
    place = functools.partial(jax.tree.map, lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to))
    state = place(state, layout.shardings(state))
    batch = {
        key: jax.ShapeDtypeStruct((batch_size, *rest), jnp.dtype(dtype), sharding=layout.split)
        for key, (rest, dtype) in shapes.items()
    }
    step = layout.compile_train(
        make_train_step(config.task, model, inputs, optimizer, config.optimizer, config.seed), state
    )
    return step.trace(state, batch).lower(lowering_platforms=(platform,))


def test_the_imagenet_recipe_lowers_for_a_tpu_at_its_own_batch_size():
    program = lowered("imagenet-resnet50", 1024, "tpu").as_text()
    assert "1024x224x224x3xui8" in program
    assert "bf16" in program


@pytest.mark.slow
def test_the_imagenet_recipe_compiles_on_eight_devices():
    memory = lowered("imagenet-resnet50", 64, "cpu").compile().memory_analysis()
    assert 0 < memory.temp_size_in_bytes < 16 << 30


def test_the_gpt2_medium_recipe_lowers_for_a_tpu_at_its_own_batch_size():
    program = lowered("gpt2-medium", 512, "tpu", attention="pallas").as_text()
    assert "512x1024xi32" in program
    assert "tpu_custom_call" in program  # the attention kernel, which each device runs on its own rows
    assert "bf16" in program


@pytest.mark.slow
def test_the_gpt2_medium_recipe_compiles_on_eight_devices():
    memory = lowered("gpt2-medium", 64, "cpu").compile().memory_analysis()
    assert 0 < memory.temp_size_in_bytes < 16 << 30


@pytest.mark.parametrize("name", [name for name in recipe_files() if "imagenet" not in name])
def test_every_recipe_names_a_model_and_settings_that_exist(name):
    config = load_recipe(name).config()
    config.check()
    make_optimizer(config.optimizer, config.steps)
    zoo.create_model(config.model.name, **config.model.args)


def test_a_vit_is_as_large_as_the_images():
    config = load_recipe("vit").config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, name="digits"))
    args, model = make_model(config, config.data.load((224, 224, 3)))
    assert args == {**config.model.args, "image_size": 8, "num_classes": 10}
    variables = abstract_variables(model, [jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)])
    assert variables["params"]["positions"].shape == (1, 1 + 4, 128)


def test_fine_tuning_begins_with_the_given_weights_and_a_new_head(tmp_path):
    model = zoo.create_model("lenet5", num_classes=7)
    variables = jax.jit(model.init)(jax.random.key(5), np.zeros((1, 28, 28, 1), np.float32))
    zoo.save_weights(variables, tmp_path / "seven.safetensors")
    config = load_recipe("digits-finetune").config()
    dataset = config.data.load((32, 32, 1))
    settings = dataclasses.replace(config.model, weights=str(tmp_path / "seven.safetensors"))
    layout = make_layout("mesh", 8, 1)
    with pytest.warns(UserWarning, match="the head 'fc3' \\(10\\) is drawn anew"):
        params = initial_variables(settings, 0, zoo.create_model("lenet5"), dataset, layout)["params"]
    for name in ("conv1", "conv2", "fc1", "fc2"):
        np.testing.assert_array_equal(params[name]["kernel"], variables["params"][name]["kernel"])
    assert params["fc3"]["kernel"].shape == (84, 10)


@pytest.mark.parametrize("mixing", [{"mixup": 0.2}, {"cutmix": 1.0}])
def test_mixing_goes_with_accumulation_and_not_with_pmap(mixing):
    accumulating = OptimizerConfig(accumulate=2)
    config = Config("x", 10, 8, task=Classification(augment=AugmentConfig(**mixing)), optimizer=accumulating)
    config.check()
    with pytest.raises(zoo.ZooError, match=r"pmap: the task mixes examples across devices \(mixup, cutmix\); use mesh"):
        dataclasses.replace(config, parallel="pmap").check()
