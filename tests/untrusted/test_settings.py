"""Settings that somebody changed: settings, or a ZooError."""

import contextlib
import json
from functools import partial

import jax
import numpy as np
import pytest
from hostile import changed
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from train import Config, LanguageModel, ModelConfig, OptimizerConfig, TextData
from train.config import read_settings
from train.mesh import check_model
from train.optimizer import make_optimizer
from train.settings import to_json
from train.setup import initial_state, make_model
from train.sharding import make_layout
from train.step import make_train_step
from zoo import ZooError
from zoo.registry import abstract_variables

SETTINGS = [
    Config("runs/x", 10, 8, model=ModelConfig("simple_cnn", {"widths": [4]}), optimizer=OptimizerConfig(ema=0.9)),
    Config("runs/x", 10, 4, model=ModelConfig("lstm_lm"), data=TextData(path="x"), task=LanguageModel()),
]


@pytest.mark.parametrize("config", SETTINGS, ids=["images", "text"])
@given(data=st.data())
def test_changed_settings_are_settings_or_refused(config, data):
    stored = json.loads(json.dumps(to_json(config)))
    with contextlib.suppress(ZooError):
        found = read_settings(data.draw(changed(stored)))
        found.check()
        json.dumps(to_json(found))


@settings(max_examples=25)
@given(data=st.data())
def test_changed_settings_make_a_step_or_are_refused(data):
    """The parts that a Trainer is of, up to the step's shapes; on data as they are."""
    dataset, stored = SETTINGS[0].data.load((8, 8, 1)), json.loads(json.dumps(to_json(SETTINGS[0])))
    parts = ["seed", "parallel", "mesh", "profile", "model", "augment", "task", "optimizer"]
    change = data.draw(changed({part: stored[part] for part in parts}))
    with contextlib.suppress(ZooError):
        config = read_settings({**stored, **change} if isinstance(change, dict) else change)
        config.check()
        layout = make_layout(config.parallel, config.batch_size, config.optimizer.accumulate, config.mesh)
        _, model = make_model(config, dataset)
        check_model(model, zoo.model_info(config.model.name).family, dataset.inputs.shape, layout.sizes)
        optimizer = make_optimizer(config.optimizer, config.steps)
        jax.random.key(config.seed)
        state = jax.eval_shape(
            partial(initial_state, config, model, optimizer), abstract_variables(model, *dataset.inputs.example())
        )
        batch = dataset.train.batches(config.batch_size, config.seed, np.arange(config.batch_size))(0)
        jax.eval_shape(
            make_train_step(config.task, model, dataset.inputs, optimizer, config.optimizer, config.seed), state, batch
        )
