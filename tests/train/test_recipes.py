"""Recipes that are too large to run here are compiled for what they are meant for; fine-tuning starts where it says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from train.__main__ import load_recipe, recipe_files
from train.config import Config, TextConfig
from train.data import load_dataset
from train.data.text import Stream
from train.loop import initial_variables, make_model
from train.optimizer import make_optimizer
from train.sharding import make_layout
from train.step import init_state, make_train_step
from zoo.inputs.image import ImageInputs
from zoo.inputs.text import TextInputs
from zoo.partition import rules_of
from zoo.registry import abstract_variables


def parts(config):
    """Model, inputs and the shapes of an example of a recipe whose data are not here."""
    if isinstance(config.data, TextConfig):
        vocabulary = "".join(map(chr, range(config.data.vocab_size)))
        inputs = TextInputs("char", vocabulary, config.data.context)
        stream = Stream(np.zeros(2, np.int32), config.data.context, inputs.characters, np.zeros(1, int))
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
    step = layout.compile_train(make_train_step(config, model, inputs, optimizer), state)
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
    args, model = make_model(config, load_dataset(config.data, (224, 224, 3)))
    assert args == {**config.model.args, "image_size": 8, "num_classes": 10}
    variables = abstract_variables(model, [jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)])
    assert variables["params"]["positions"].shape == (1, 1 + 4, 128)


def test_fine_tuning_begins_with_the_given_weights_and_a_new_head(tmp_path):
    model = zoo.create_model("lenet5", num_classes=7)
    variables = jax.jit(model.init)(jax.random.key(5), np.zeros((1, 28, 28, 1), np.float32))
    zoo.save_weights(variables, tmp_path / "seven.safetensors")
    config = load_recipe("digits-finetune").config()
    dataset = load_dataset(config.data, (32, 32, 1))
    weights = dataclasses.replace(config.model, weights=str(tmp_path / "seven.safetensors"))
    config, layout = dataclasses.replace(config, model=weights), make_layout("mesh", 8, 1)
    with pytest.warns(UserWarning, match="the head 'fc3' \\(10\\) is drawn anew"):
        params = initial_variables(config, zoo.create_model("lenet5"), dataset, layout)["params"]
    for name in ("conv1", "conv2", "fc1", "fc2"):
        np.testing.assert_array_equal(params[name]["kernel"], variables["params"][name]["kernel"])
    assert params["fc3"]["kernel"].shape == (84, 10)


def test_mixing_goes_with_accumulation_and_not_with_pmap():
    config = Config("x", 10, 8)
    mixing = dataclasses.replace(config.augment, mixup=0.2)
    dataclasses.replace(config, augment=mixing).check()
    with pytest.raises(zoo.ZooError, match="pmap: mixup and cutmix pair examples across devices; use mesh"):
        dataclasses.replace(config, augment=mixing, parallel="pmap").check()
