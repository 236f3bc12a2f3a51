"""Settings that somebody changed: settings, or a ZooError."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from hostile import changed
from hypothesis import given, settings
from hypothesis import strategies as st

from train import (
    BoxAugmentConfig,
    Classification,
    Config,
    Detection,
    DetectionData,
    Distillation,
    Forecasting,
    ImageData,
    LabelledTextData,
    LanguageModel,
    MaskedLanguageModel,
    ModelConfig,
    MultiLabel,
    MultiLabelData,
    OptimizerConfig,
    PairData,
    Segmentation,
    SegmentationData,
    SeriesData,
    TextData,
    Translation,
)
from train.config import read_settings
from train.evaluate import make_eval_step
from train.settings import to_json
from train.setup import Parts
from train.step import make_train_step

IMAGES = Config("runs/x", 10, 8, model=ModelConfig("simple_cnn", {"widths": [4]}), optimizer=OptimizerConfig(ema=0.9))
PAIRS = [
    (ImageData(), Classification(class_weights={"3": 2.0}, extra_metrics=["top5", "auc"])),
    (ImageData(), Distillation(teacher="runs/cnn")),
    (TextData(path="x"), LanguageModel()),
    (TextData(path="x", packed=True), MaskedLanguageModel()),
    (LabelledTextData(path="x"), Classification()),
    (PairData(path="x"), Translation()),
    (MultiLabelData(), MultiLabel()),
    (SeriesData(), Forecasting()),
    (DetectionData(image_size="24x32"), Detection(augment=BoxAugmentConfig(flip=True, zoom=0.5))),
    (SegmentationData("x", tile="8x16", range=[0.0, 4095.0]), Segmentation(class_weights={"cell": 2.0})),
]
SETTINGS = {
    f"{type(task).__name__} of {type(data).__name__}": to_json(dataclasses.replace(IMAGES, data=data, task=task))
    for data, task in PAIRS
}
OLD = pathlib.Path(__file__).parents[1] / "train" / "settings_0_1_0.json"
SETTINGS |= {f"0.1.0 {name}": stored for name, stored in json.loads(OLD.read_text()).items()}


@pytest.mark.parametrize("name", SETTINGS)
@given(data=st.data())
def test_changed_settings_are_settings_or_refused(accepting, name, data):
    stored = json.loads(json.dumps(SETTINGS[name]))
    with accepting("settings"):
        found = read_settings(data.draw(changed(stored)))
        found.check()
        json.dumps(to_json(found))


@settings(max_examples=25)
@given(data=st.data())
def test_changed_settings_make_a_step_or_are_refused(accepting, data):
    """The parts of a run, up to the shapes of a step and of an evaluation, on real data."""
    dataset, stored = IMAGES.data.load((8, 8, 1)), json.loads(json.dumps(to_json(IMAGES)))
    names = ["seed", "parallel", "mesh", "profile", "best", "patience", "model", "task", "optimizer"]
    change = data.draw(changed({name: stored[name] for name in names}))
    with accepting("step"):
        config = read_settings({**stored, **change} if isinstance(change, dict) else change)
        config.check()
        parts, task = Parts.of(config, dataset), config.task
        jax.random.key(config.seed)
        state = parts.abstract_state()
        extra = dataclasses.replace(state.extra, constants=task.constants(dataset))
        state = dataclasses.replace(state, extra=extra)
        batch = dataset.train.batches(config.batch_size, config.seed, np.arange(config.batch_size))(0)
        step = make_train_step(task, parts.model, dataset.inputs, parts.optimizer, config.optimizer, config.seed)
        jax.eval_shape(step, state, batch)
        evaluate = make_eval_step(task, parts.model, dataset.inputs)
        jax.eval_shape(evaluate, state.eval_variables(), task.carry(parts.model, config.batch_size), batch)
