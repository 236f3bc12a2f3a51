"""Settings: flags, JSON and back, those of 0.1.0, ranges, registered kinds; and no setting that nothing reads."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import typing

import pytest
from reads import Sources

from runs import environment
from train import (
    AugmentConfig,
    Classification,
    Config,
    ImageData,
    LabelledTextData,
    LanguageModel,
    LogConfig,
    MaskedLanguageModel,
    ModelConfig,
    OptimizerConfig,
    PairData,
    Source,
    Task,
    TextData,
    Translation,
)
from train.commands.evaluate import EvaluateConfig
from train.commands.sweep import SweepOptions
from train.config import read_settings
from train.recipes import load_recipe, recipe_files
from train.report.page import Options
from train.settings import Registered, differences, to_json
from zoo import ZooError


def replaced(config, dotted, value):
    first, _, rest = dotted.partition(".")
    value = replaced(getattr(config, first), rest, value) if rest else value
    return dataclasses.replace(config, **{first: value})


def kinds():
    """Every task and source of `train/`."""
    for family in Registered.__subclasses__():
        with pytest.raises(ZooError):
            family.kind("none")  # looks for it in every file of the family's package
        yield from (kind for kind in family._kinds.values() if kind.__module__.startswith("train."))


def parts(cls):
    """A settings class, and those of its fields that are settings classes."""
    yield cls
    for hint in typing.get_type_hints(cls).values():
        if dataclasses.is_dataclass(hint):
            yield from parts(hint)


def test_every_setting_is_read():
    roots = [Config, EvaluateConfig, Options, SweepOptions, *kinds()]
    classes = {part for root in roots for part in parts(root)}
    assert {AugmentConfig, Classification, ImageData, LogConfig, ModelConfig, OptimizerConfig, Translation} <= classes
    sources = Sources()
    named = {base.__name__ for root in roots for base in root.__mro__}
    assert {"Config", "EvaluateConfig", "Options", "SweepOptions"} <= sources.commands <= named
    unread = {cls.__name__: fields for cls in classes if (fields := sources.unread(cls))}
    assert unread == {}


@dataclasses.dataclass(frozen=True)
class Unread(OptimizerConfig):
    """Has fields that nothing reads, though `.shape` and `.batch_size` of other objects are read everywhere."""

    unread: int = 0
    shape: int = 0
    batch_size: int = 0
    checked: int = 0
    used: int = 0

    def check(self):
        assert self.checked >= 0

    def uncalled(self):
        return self.unread


def reader(settings: Unread) -> int:
    return settings.used


def test_a_setting_that_nothing_reads_is_found(monkeypatch):
    assert Sources(__file__).unread(Unread) == ["unread", "shape", "batch_size", "checked"]

    monkeypatch.setattr(Source, "_kinds", {**Source._kinds})

    @dataclasses.dataclass(frozen=True)
    class Padded(ImageData):
        padding: int = 0
        method_of_a_base: int = 0

        def load(self, model_shape, inputs=None):
            return super().load((*model_shape, self.method_of_a_base), inputs)

    @dataclasses.dataclass(frozen=True)
    class Fixed(ImageData):
        def load(self, model_shape, inputs=None):
            return self.image_size

    sources = Sources(__file__)
    assert sources.unread(Padded) == ["padding"]
    assert sources.unread(Fixed) == [
        "validation_fraction",
        "dir",
        "channels",
        "range",
        "most_unreadable",
        "train_examples",
        "balanced",
    ]  # which ImageData.load reads


@pytest.mark.parametrize("name", recipe_files())
def test_recipes_are_valid_and_survive_json(name):
    config = load_recipe(name).config()
    config.check()
    stored = json.loads(json.dumps(to_json(config)))
    assert json.loads(json.dumps(to_json(read_settings(stored)))) == stored
    assert config.workdir == f"runs/{name}"


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
        ("task.augment.shift", -1, "task.augment.shift must be at least 0"),
        ("task.augment.rotate", 200.0, "task.augment.rotate must be between 0 and 180"),
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
        ("patience", 0, "patience must be at least 1, not 0"),
        ("task.class_weights", {"3": 0}, "task.class-weights 3 must be a number above 0, not 0"),
        ("task.class_weights", {"3": "much"}, "task.class-weights 3 must be a number above 0, not 'much'"),
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
    read = read_settings({"workdir": "x", "steps": 1, "batch_size": 1, "optimizer": {"clip_norm": 2**31}})
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
        read_settings(data)


# Settings of 0.1.0, as that version wrote them into config.json.

OLD = json.loads((pathlib.Path(__file__).parent / "settings_0_1_0.json").read_text())
AUGMENT = AugmentConfig(shift=1, rotate=10.0, scale=0.1, mixup=0.2)
RATES = {"warmup_steps": 100, "decay_steps": 1500, "weight_decay": 0.05, "ema": 0.998, "rates": {"fc2": 2.0}}
NEW = {
    "images": Config(
        "runs/cnn", 1500, 64, eval_every=250, mesh="data=2", model=ModelConfig("simple_cnn", {"hidden_size": 128}),
        data=ImageData("digits", train_examples=100), task=Classification(0.1, test_flip=True, augment=AUGMENT),
        optimizer=OptimizerConfig("adamw", 3e-3, **RATES),
    ),
    "text": Config(
        "runs/gpt", 100, 8, model=ModelConfig("bert_base", {"dtype": "bfloat16"}), task=MaskedLanguageModel(0.2),
        data=TextData(path="plays", packed=True, tokenizer="bpe", context=32, newlines="unix"),
    ),
    "language model": Config(
        "runs/lstm", 800, 64, model=ModelConfig("lstm_lm"), data=TextData("stdlib"), task=LanguageModel(reset_state=0.0)
    ),
    "labelled text": Config(
        "runs/sst2", 900, 32, model=ModelConfig("lstm_classifier"),
        data=LabelledTextData("sst2", tokenizer="word", vocab_size=20000),
    ),
    "pairs": Config(
        "runs/dates", 1600, 64, model=ModelConfig("seq2seq_gru_attention"),
        data=PairData("dates", seed=3, lowercase=True), task=Translation(sampling_rate=0.25, beam_size=4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_settings_of_0_1_0_are_read(name):
    config = read_settings(OLD[name])
    assert config == NEW[name]
    config.check()
    assert read_settings(json.loads(json.dumps(to_json(config)))) == config


def test_wrong_settings_of_0_1_0_are_refused_like_todays():
    wrong = {**OLD["images"], "augment": {"shfit": 1}}
    with pytest.raises(ZooError, match="unknown setting of AugmentConfig 'shfit'; did you mean shift"):
        read_settings(wrong)
    for augment in (None, [], 3):
        with pytest.raises(ZooError, match="settings must be an object, not"):
            read_settings({**OLD["images"], "augment": augment})


# Registered kinds: tasks and sources.


def stored(**parts):
    return {"workdir": "x", "steps": 1, "batch_size": 1, **parts}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"task": {"kind": "Clasification"}}, "unknown task 'Clasification'; did you mean Classification"),
        ({"data": {"kind": "ImageDate"}}, "unknown source 'ImageDate'; did you mean ImageData"),
        ({"data": {"kind": "PairConfig"}}, "unknown source 'PairConfig'"),
        (
            {"task": {"kind": "Mine"}},
            "unknown task 'Mine'.*a class of your own recipe file is found with --recipe FILE",
        ),
        ({"task": {"kind": "ImageData"}}, "unknown task 'ImageData'"),  # a source's name
        ({"task": {"kind": "Task"}}, "unknown task 'Task'"),
        ({"data": {"kind": "NamedSource"}}, "unknown source 'NamedSource'"),  # only a base of others
        ({"task": {"label_smoothing": 0.1}}, "unknown task 'None'"),
        ({"data": {"kind": ["ImageData"]}}, "unknown source"),
    ],
)
def test_an_unknown_kind_is_refused_with_the_nearest(parts, message):
    with pytest.raises(ZooError, match=message):
        read_settings(stored(**parts))


def test_a_kind_is_looked_for_in_the_files_of_its_package():
    """In a process that has not imported them, also by the name that 0.1.0 gave it."""
    code = (
        "import sys\n"
        "from train.config import read_settings\n"
        "assert not {'train.data.pairs', 'train.tasks.translation'} & {*sys.modules}\n"
        "parts = {'task': {'kind': 'Translation'}, 'data': {'kind': 'PairsConfig'}}\n"
        "found = read_settings({'workdir': 'x', 'steps': 1, 'batch_size': 1, **parts})\n"
        "print(type(found.task).__name__, type(found.data).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "Translation PairData\n"


def test_a_name_is_registered_once(monkeypatch):
    for family in (Task, Source):
        monkeypatch.setattr(family, "_kinds", {**family._kinds})
    with pytest.raises(ZooError, match=r"^the name 'Classification' is taken by train\.tasks\.classification; choose"):
        type("Classification", (Task,), {})
    again = type("Classification", (Task,), {"__module__": Classification.__module__})  # its file, executed again
    assert Task.kind("Classification") is again
    other = type("Classification", (Source,), {})  # sources are another family
    assert Source.kind("Classification") is other
    mine = type("Mine", (type("Base", (Task,), {}, abstract=True),), {})
    assert Task.kind("Mine") is mine
    with pytest.raises(ZooError, match="unknown task 'Base'"):
        Task.kind("Base")
