"""Runs that start from weights: with their vocabulary, their normalisation, the fields of their model; or refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import zoo
from train import recipes
from train.config import Config, ModelConfig
from train.data.images import ImageData
from train.data.labelled_text import LabelledTextData
from train.data.source import ArraySplit, Dataset, Source
from train.data.text import TextData
from train.first_weights import load_data, model_fields, without_defaults
from train.loop import run
from train.optimizer import OptimizerConfig, check_patterns, make_optimizer
from train.setup import initial_variables, make_model
from train.sharding import make_layout
from train.tasks.language_model import LanguageModel
from zoo.errors import ZooError
from zoo.inputs import ImageInputs
from zoo.inputs.text import learn

GRU = ModelConfig("gru_lm", {"hidden_size": 8, "num_layers": 1})
WORDS = ["four", "score", "and", "seven", "years", "ago", "our", "fathers", "brought", "forth", "a", "new", "nation"]


def text_file(path, symbols, size=600, between=""):
    rng = np.random.default_rng(0)
    path.write_text(between.join(rng.choice(list(symbols), size)))
    return str(path)


def language_model(workdir, path, weights=None, tokenizer="char", **changes):
    data = TextData(path=path, context=8, tokenizer=tokenizer, vocab_size=270)
    model = dataclasses.replace(GRU, weights=None if weights is None else str(weights))
    optimizer = OptimizerConfig("sgd", 0.1, "constant")
    config = Config(
        str(workdir), 1, 4, parallel="jit", model=model, data=data, task=LanguageModel(), optimizer=optimizer
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Runs on characters and on byte pairs of a text, as `folder/char` and `folder/bpe`."""
    folder = tmp_path_factory.mktemp("first")
    run(language_model(folder / "char", text_file(folder / "a.txt", "abcdefgh ")))
    run(language_model(folder / "bpe", text_file(folder / "w.txt", WORDS, between=" "), tokenizer="bpe"))
    return folder


def starts_from(config, expected):
    """Asserts that the run's first embedding is the other run's."""
    dataset = load_data(config, None)
    _, model = make_model(config, dataset)
    layout = make_layout("jit", config.batch_size, 1)
    variables = initial_variables(config.model, config.seed, model, dataset, layout)
    jax.tree.map(np.testing.assert_array_equal, variables, zoo.load(expected).variables)
    return dataset


@pytest.mark.parametrize("place", [".", "export", "export/model.safetensors"])
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_vocabulary_of_a_run_comes_with_its_weights(tokenizer, place, first, tmp_path):
    """In another text, with as many tokens to learn, every token is still the one that the weights know."""
    words = ["habit", "faced", "cab"] if tokenizer == "char" else ["the", "best", "of", "times", "was"]
    path = text_file(tmp_path / "b.txt", [word.replace("it", "") for word in words], between=" ")
    config = language_model(tmp_path / "run", path, first / tokenizer / place, tokenizer)
    dataset = starts_from(config, first / tokenizer)
    assert dataset.inputs == zoo.load(first / tokenizer).inputs
    assert f"tokens of a {tokenizer} vocabulary, as model.weights" in dataset.notes[-1]


def test_a_text_that_the_vocabulary_does_not_have_is_refused(first, tmp_path):
    for symbols in ("bcdefghi ", "abcdefghij "):  # as many others, and more
        config = language_model(tmp_path / "run", text_file(tmp_path / "b.txt", symbols), first / "char" / "export")
        with pytest.raises(ZooError, match="not among the 9 characters of the vocabulary"):
            load_data(config, None)


def test_weights_without_a_vocabulary_need_a_known_one(first, tmp_path):
    file = tmp_path / "alone.safetensors"
    shutil.copy(first / "bpe" / "export" / "model.safetensors", file)
    path = str(first / "w.txt")
    for tokenizer in ("char", "bpe"):
        with pytest.raises(
            ZooError, match=f"have no vocabulary beside them, and data.tokenizer {tokenizer} would learn"
        ):
            load_data(language_model(tmp_path / "run", path, file, tokenizer), None)
    known = tmp_path / "tokenizer.json"
    known.write_text(zoo.load(first / "bpe").inputs.vocabulary)
    for tokenizer in (str(known), "byte"):
        with pytest.warns(UserWarning, match="have no vocabulary beside them; they must have been trained with"):
            load_data(language_model(tmp_path / "run", path, file, tokenizer), None)


def test_another_tokenizer_than_that_of_the_weights_is_refused(first, tmp_path):
    ours, other = tmp_path / "ours.json", tmp_path / "other.json"
    vocabulary = json.loads(zoo.load(first / "bpe").inputs.vocabulary)
    ours.write_text(json.dumps({**vocabulary, "truncation": None}, indent=1))
    other.write_text(learn("bpe", ["it was the age of wisdom"] * 9, 270, 8).vocabulary)
    path, weights = str(first / "w.txt"), first / "bpe"
    load_data(language_model(tmp_path / "run", path, weights, str(ours)), None)
    with pytest.raises(ZooError, match=r"data.tokenizer '.*other.json' has another vocabulary than model.weights"):
        load_data(language_model(tmp_path / "run", path, weights, str(other)), None)


def test_a_table_may_have_more_rows_than_the_tokenizer_has_tokens(first, tmp_path):
    inputs = zoo.load(first / "bpe").inputs
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "max_length": 16, "vocab_size": inputs.vocab_size + 50}
    model = zoo.create_model("gpt2", **sizes)
    zoo.save_pretrained(model, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32)), tmp_path / "hub")
    (tmp_path / "hub" / "tokenizer.json").write_text(inputs.vocabulary)
    config = language_model(tmp_path / "run", str(first / "w.txt"))
    config = dataclasses.replace(config, model=ModelConfig("gpt2", weights=str(tmp_path / "hub")))
    dataset = load_data(config, None)
    _, made = make_model(config, dataset)
    assert (made.vocab_size, dataset.inputs.vocab_size) == (sizes["vocab_size"], inputs.vocab_size)
    assert made.hidden_size == 8
    small = dataclasses.replace(config.model, args={"vocab_size": 9}, weights=None)
    with pytest.raises(ZooError, match=r"model.args vocab_size=9, but .* has \d+ tokens in its vocabulary"):
        make_model(dataclasses.replace(config, model=small), dataset)


def test_the_weights_fields_go_before_a_recipes_but_not_before_a_users(tmp_path):
    inputs = learn("wordpiece", [" ".join(WORDS)] * 9, 64, 16)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 24, "max_length": 32}
    model = zoo.create_model("bert_base", vocab_size=inputs.vocab_size, **sizes, dropout_rate=0.3)
    zoo.save_pretrained(model, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32)), tmp_path / "hub")
    default = recipes.load_recipe("bert-sst2").config()

    def fields(**changes):
        model = dataclasses.replace(default.model, weights=str(tmp_path / "hub"), **changes)
        config = without_defaults(dataclasses.replace(default, workdir=str(tmp_path / "no"), model=model), default)
        return {**model_fields(config), **config.model.args}

    assert default.model.args["hidden_size"] == 256
    assert fields().items() >= {**sizes, "dropout_rate": 0.3}.items()
    assert fields(args={"dropout_rate": 0.1}).items() >= {**sizes, "dropout_rate": 0.1}.items()
    assert fields(args={"hidden_size": 256})["hidden_size"] == 256  # as the user says, and then refused by the weights
    assert without_defaults(default, default) is default


def test_weights_of_another_model_are_refused(first, tmp_path):
    config = language_model(tmp_path / "run", str(first / "a.txt"), first / "char")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, name="gpt2"))
    with pytest.raises(ZooError, match=r"the weights '.*' are of gru_lm, not of gpt2"):
        load_data(config, None)


def test_a_run_resumes_without_the_weights_that_it_started_from(first, tmp_path):
    shutil.copytree(first / "char", tmp_path / "weights")
    path = text_file(tmp_path / "b.txt", "abc ")
    config = language_model(tmp_path / "run", path, tmp_path / "weights")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, args={}))
    run(config)
    assert zoo.load(tmp_path / "run").model.hidden_size == 8
    shutil.rmtree(tmp_path / "weights")
    assert run(dataclasses.replace(config, steps=2, resume=True))["steps"] == 2


@dataclasses.dataclass(frozen=True)
class Colours(Source):
    """Two images of one colour each, whose labels come in the order of the settings."""

    labels: str = "red green"

    def load(self, model_shape, inputs=None):
        labels, order = tuple(self.labels.split()), np.arange(2)
        if inputs is None:
            known = ImageInputs((32, 32, 3), (0.5,) * 3, (0.25,) * 3, labels)
        elif inputs.labels:
            known, order = inputs, np.array([inputs.labels.index(label) for label in labels])
        else:
            known = dataclasses.replace(inputs, labels=labels)
        split = ArraySplit({"image": np.zeros((2, *known.shape), np.uint8), "label": order.astype(np.int32)})
        return Dataset("colours", split, split, split, known)


def test_images_are_normalised_as_for_the_weights_and_the_same_classes_keep_their_places(tmp_path):
    model = ModelConfig("lenet5")
    run(Config(str(tmp_path / "a"), 1, 2, parallel="jit", model=model, data=Colours()))
    inputs = zoo.load(tmp_path / "a").inputs
    for labels, expected in [("green red", ("red", "green")), ("blue red", ("blue", "red"))]:
        data = Colours(labels)
        dataset = load_data(
            Config("x", 1, 2, model=ModelConfig("lenet5", weights=str(tmp_path / "a")), data=data), None
        )
        assert (dataset.inputs.mean, dataset.inputs.std, dataset.inputs.shape) == (
            inputs.mean,
            inputs.std,
            inputs.shape,
        )
        assert dataset.inputs.labels == expected
        form = "images are 32x32x3, normalised by mean 0.5, 0.5, 0.5 and deviation 0.25, 0.25, 0.25"
        assert dataset.notes == (f"{form}, as model.weights {str(tmp_path / 'a')!r} were trained on",)
    file = tmp_path / "alone.safetensors"
    shutil.copy(tmp_path / "a" / "export" / "model.safetensors", file)
    with pytest.warns(UserWarning, match="name no mean and deviation; the data's own normalise them"):
        load_data(Config("x", 1, 2, model=ModelConfig("lenet5", weights=str(file)), data=Colours()), None)


def test_weights_of_texts_are_none_for_images(first, tmp_path):
    with pytest.raises(ZooError, match="are of gru_lm, not of lenet5"):
        load_data(Config("x", 1, 2, model=ModelConfig("lenet5", weights=str(first / "char")), data=ImageData()), None)
    config = language_model(tmp_path / "run", "", first / "char", data=ImageData())
    with pytest.raises(ZooError, match="the run takes texts, not images such as digits"):
        load_data(config, None)


def test_masked_pretraining_begins_a_classifier_of_the_same_vocabulary(tmp_path):
    """The order of a user: pre-train by masked tokens, then classify from that run's folder."""
    from train.tasks.masked_language_model import MaskedLanguageModel

    path = text_file(tmp_path / "w.txt", WORDS, between=" ")
    table = tmp_path / "table.tsv"
    table.write_text("".join(f"{word} and {word}\t{'ab'[i % 2]}\n" for i, word in enumerate(WORDS * 8)))
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 24, "max_length": 16, "dropout_rate": 0.0}
    data = TextData(path=path, context=8, tokenizer="wordpiece", vocab_size=60)
    optimizer = OptimizerConfig("sgd", 0.1, "constant")
    shared = {"optimizer": optimizer, "parallel": "jit"}
    model = ModelConfig("bert_base", sizes)
    run(Config(str(tmp_path / "mlm"), 1, 4, model=model, data=data, task=MaskedLanguageModel(), **shared))
    data = LabelledTextData(path=str(table), context=8, tokenizer="wordpiece", vocab_size=60)
    model = ModelConfig("bert_base", weights=str(tmp_path / "mlm"))
    with pytest.warns(UserWarning, match=r"the head 'head' \(2\) and 'pooler' are drawn anew"):
        run(Config(str(tmp_path / "cls"), 1, 4, model=model, data=data, **shared))
    before, after = (zoo.load(tmp_path / name) for name in ("mlm", "cls"))
    assert after.inputs.vocabulary == before.inputs.vocabulary
    assert (after.inputs.labels, after.model.num_classes, after.model.output) == (("a", "b"), 2, "hidden")
    np.testing.assert_allclose(
        after.variables["params"]["positions"], before.variables["params"]["positions"], atol=0.1
    )


@pytest.mark.parametrize("name", ["gpt2", "llama3_1b"])
def test_low_rank_updates_need_no_head_in_a_tied_model(name):
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "mlp_size": 8, "max_length": 8}
    sizes |= {"num_kv_heads": 2} if "llama" in name else {}
    for tied in (True, False):
        model = zoo.create_model(name, **sizes, tied=tied)
        params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
        config = OptimizerConfig("sgd", 0.1, "constant", lora_rank=2)
        check_patterns(config, params)
        optimizer = make_optimizer(config, 10)
        updates, _ = optimizer.update(jax.tree.map(np.ones_like, params), optimizer.init(params), params)
        moved = {name for name, value in updates.items() if any(np.any(leaf) for leaf in jax.tree.leaves(value))}
        assert moved == ({"layers"} if tied else {"layers", "head"})
        with pytest.raises(ZooError, match=r"unknown pattern in optimizer.lora-whole 'haed'"):
            check_patterns(dataclasses.replace(config, lora_whole=["haed"]), params)


def test_a_context_beyond_that_of_the_weights_names_the_setting(tmp_path):
    (tmp_path / "a.txt").write_text("abc " * 200)
    fields = {"num_layers": 1, "num_heads": 1, "hidden_size": 8, "max_length": 16}
    config = Config(
        str(tmp_path / "run"), 2, 2, model=ModelConfig("nanogpt", fields), task=LanguageModel(),
        data=TextData(path=str(tmp_path / "a.txt"), context=32),
    )  # fmt: skip
    with pytest.raises(ZooError, match=r"^data\.context 32 is more than the model's max_length of 16$"):
        run(config)
