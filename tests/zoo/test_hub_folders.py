"""Folders of hubs, with what they say of their inputs: read by `zoo.load`, or refused in a line."""

import json
import random
import shutil

import jax
import numpy as np
import pytest

import zoo
from zoo.__main__ import main
from zoo.errors import ZooError
from zoo.inputs import ImageInputs
from zoo.inputs.text import learn
from zoo.run import origin_of
from zoo.weights import save_native

BERT = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 24, "max_length": 16}
TEXT = "the cat sat on the mat. the dog lay by the door. " * 20
VIT = {"image_size": 32, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 24}


def saved(folder, name, labels=(), **fields):
    model = zoo.create_model(name, **fields)
    shape = (1, 32, 32, 3) if "vit" in name else (1, 4)
    dtype = np.float32 if "vit" in name else np.int32
    variables = jax.jit(model.init)(jax.random.key(1), np.zeros(shape, dtype))
    zoo.save_pretrained(model, variables, folder)
    change(folder, id2label={str(i): label for i, label in enumerate(labels)}) if labels else None
    return model, variables


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.fixture(scope="module")
def tokenizer():
    return learn("wordpiece", [TEXT], 64, 16)


def test_a_text_classifier_is_loaded_with_tokenizer_and_labels(tokenizer, tmp_path, capsys):
    fields = {**BERT, "vocab_size": tokenizer.vocab_size + 9, "num_classes": 2}  # rows that no token has
    _, variables = saved(tmp_path / "bert", "bert_base", ("good", "bad"), **fields)
    with pytest.raises(ZooError, match="is a Hugging Face folder that does not say how its model reads data"):
        zoo.load(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_text(tokenizer.vocabulary)
    run = zoo.load(tmp_path / "bert")
    assert (run.inputs.labels, run.inputs.length, run.model.vocab_size) == (("good", "bad"), 16, fields["vocab_size"])
    jax.tree.map(np.testing.assert_array_equal, run.variables, variables)
    np.testing.assert_array_equal(run.inputs.encode("the cat"), tokenizer.encode("the cat"))
    assert main(["predict", str(tmp_path / "bert"), "the cat"]) == 0
    assert "good" in capsys.readouterr().out
    change(tmp_path / "bert", vocab_size=9)
    with pytest.raises(ZooError, match=r"tokens in its vocabulary, more than the model, which has 9"):
        zoo.load(tmp_path / "bert")


def test_a_head_that_is_not_in_the_folder_is_not_predicted_with(tokenizer, tmp_path, capsys):
    saved(tmp_path / "bert", "bert_base", **BERT, vocab_size=tokenizer.vocab_size)
    (tmp_path / "bert" / "tokenizer.json").write_text(tokenizer.vocabulary)
    change(tmp_path / "bert", architectures=["BertForSequenceClassification"], id2label={"0": "a", "1": "b"})
    assert main(["predict", str(tmp_path / "bert"), "the cat"]) == 2
    assert "the head 'head' (2) would be random numbers" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="drawn anew"):
        assert zoo.load(tmp_path / "bert", num_classes=3).model.num_classes == 3


def test_pretraining_heads_of_bert_are_those_of_masked_language_models(tokenizer, tmp_path):
    model, variables = saved(tmp_path / "b", "bert_base", **BERT, vocab_size=tokenizer.vocab_size, output="tokens")
    change(tmp_path / "b", architectures=["BertForPreTraining"])
    again, loaded = zoo.from_pretrained(tmp_path / "b")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_a_language_model_generates_from_the_command_line(tokenizer, tmp_path, capsys):
    vocabulary = learn("bpe", [TEXT], 270, 16)
    fields = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_length": 32, "vocab_size": vocabulary.vocab_size}
    saved(tmp_path / "gpt2", "gpt2", **fields)
    (tmp_path / "gpt2" / "tokenizer.json").write_text(vocabulary.vocabulary)
    assert main(["generate", str(tmp_path / "gpt2"), "--prompt", "the cat", "--length", "3"]) == 0
    assert capsys.readouterr().out.startswith("the cat")


def test_images_are_normalised_as_the_folder_says(tmp_path):
    saved(tmp_path / "vit", "vit_tiny16", ("a", "b", "c"), **VIT, num_classes=3, norm_epsilon=1e-12)
    image = np.arange(32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    unit = image / 255.0
    for config, expected in [
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, (unit - 0.5) / 0.25),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5}, (unit * 2 - 0.5) / 0.5),
        ({"image_mean": [9.0] * 3, "image_std": [3.0] * 3, "do_rescale": False}, (image - 9.0) / 3.0),
        ({"do_normalize": False}, unit),
    ]:
        (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(config))
        run = zoo.load(tmp_path / "vit")
        assert (run.inputs.shape, run.inputs.labels) == ((32, 32, 3), ("a", "b", "c"))
        np.testing.assert_allclose(run.inputs.encode(image), expected, rtol=1e-5, atol=1e-4)
    for broken in ("{", "[]", '{"image_mean": 3, "image_std": 4}', '{"image_mean": [0], "image_std": [0]}'):
        (tmp_path / "vit" / "preprocessor_config.json").write_text(broken)
        with pytest.raises(ZooError, match=r"preprocessor_config.json' describes no images"):
            zoo.load(tmp_path / "vit")


def test_a_timm_folder(tmp_path):
    model = zoo.create_model("resnet8", num_classes=2)
    variables = jax.jit(model.init)(jax.random.key(1), np.zeros((1, 32, 32, 3), np.float32))
    zoo.save_weights(variables, tmp_path / "model.safetensors")
    about = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 40, 40], "tag": "x"}
    config = {"architecture": "resnet8", "num_classes": 2, "label_names": ["cat", "dog"], "pretrained_cfg": about}
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = zoo.load(tmp_path)
    cut = {"crop": 0.875, "interpolation": "bicubic"}  # timm's defaults
    assert run.inputs == ImageInputs((40, 40, 3), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ("cat", "dog"), **cut)
    jax.tree.map(np.testing.assert_array_equal, run.variables, variables)
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "resnet9t"}))
    with pytest.raises(ZooError, match="unknown architecture 'resnet9t'; did you mean"):
        zoo.load(tmp_path)
    for broken in ({"input_size": 3}, {"mean": "x"}, {"std": [0, 0, 0]}, {"input_size": ["a", 1, 2]}):
        (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {**about, **broken}}))
        with pytest.raises(ZooError, match=r"config.json': "):
            zoo.load(tmp_path)


def test_where_weights_come_from(tokenizer, tmp_path):
    """A file in a folder that describes it, one whose name says that it is another, and one alone."""
    fields = {**BERT, "vocab_size": tokenizer.vocab_size}
    _, variables = saved(tmp_path / "bert", "bert_base", **fields)
    (tmp_path / "bert" / "tokenizer.json").write_text(tokenizer.vocabulary)
    folder, file = (origin_of(tmp_path / path, "bert_base") for path in ("bert", "bert/model.safetensors"))
    assert (folder.maker, folder.name, folder.args["hidden_size"]) == ("Hugging Face", "bert_base", 16)
    assert folder.inputs.vocab_size == tokenizer.vocab_size
    assert file == folder._replace(path=tmp_path / "bert" / "model.safetensors")
    save_native(variables, tmp_path / "bert" / "mine.safetensors")
    for path in ("bert/mine.safetensors", "alone.safetensors"):
        if not (tmp_path / path).exists():
            save_native(variables, tmp_path / path)
        alone = origin_of(tmp_path / path, "bert_base")
        assert (alone.maker, alone.name, alone.inputs) == ("", None, None)
    for path, match in [
        ("absent", "does not exist: give a .safetensors file"),
        (".", "is not a run folder: it has no config.json"),
    ]:
        with pytest.raises(ZooError, match=match):
            origin_of(tmp_path / path, "bert_base")


JUNK = (None, -1, 0, 10**12, 1.5, "x", "", [], {}, [1, "a"], {"0": 3}, True, [[]], 10**400)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_descriptions_load_or_are_a_line(seed, tmp_path_factory, hubs):
    """A few values of the JSON files are replaced by others, of any type."""
    drawn = random.Random(seed)
    folder = tmp_path_factory.mktemp("hub")
    shutil.copytree(hubs / drawn.choice(["vit", "timm", "bert"]), folder, dirs_exist_ok=True)
    for path in folder.glob("*config.json"):
        config = json.loads(path.read_text())
        places = [config, *(value for value in config.values() if isinstance(value, dict))]
        for _ in range(drawn.randint(1, 2)):
            place = drawn.choice([place for place in places if place])
            place[drawn.choice(sorted(place))] = drawn.choice(JUNK)
        path.write_text(json.dumps(config))
    message = ""
    try:
        zoo.load(folder)
    except ZooError as error:
        message = str(error)
    assert "\n" not in message


@pytest.fixture(scope="module")
def hubs(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("hubs")
    saved(root / "vit", "vit_tiny16", ("a", "b"), **VIT, num_classes=2, norm_epsilon=1e-12)
    (root / "vit" / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}')
    saved(root / "bert", "bert_base", ("a", "b"), **BERT, vocab_size=tokenizer.vocab_size, num_classes=2)
    (root / "bert" / "tokenizer.json").write_text(tokenizer.vocabulary)
    (root / "timm").mkdir()
    model = zoo.create_model("lenet5", num_classes=2)
    variables = jax.jit(model.init)(jax.random.key(1), np.zeros((1, 32, 32, 1), np.float32))
    zoo.save_weights(variables, root / "timm" / "model.safetensors")
    about = {"mean": [0.1], "std": [0.4], "input_size": [1, 32, 32]}
    config = {"architecture": "lenet5", "num_classes": 2, "label_names": ["cat", "dog"], "pretrained_cfg": about}
    (root / "timm" / "config.json").write_text(json.dumps(config))
    return root


def test_a_chat_template_comes_with_the_tokenizer(tmp_path):
    model = zoo.create_model("smollm2_135m", vocab_size=8, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1)
    zoo.save_pretrained(model, model.init(jax.random.key(0), np.zeros((1, 2), np.int32)), tmp_path / "chat")
    words = {"<s>": 0, "</s>": 1, "hi": 2, "you": 3}
    added = [{"id": i, "content": token, "special": True} for token, i in words.items() if i < 2]
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": words, "unk_token": "hi"}}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer |= {"added_tokens": [{**token, **plain} for token in added], "pre_tokenizer": {"type": "Whitespace"}}
    (tmp_path / "chat" / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    }
    path = tmp_path / "chat" / "tokenizer_config.json"
    path.write_text(json.dumps(config))
    inputs = zoo.load(tmp_path / "chat").inputs
    assert inputs.chat([{"role": "user", "content": "you"}]).tolist() == [0, 3, 1]
    assert inputs.end == 1
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": "hi you"}]
    path.write_text(json.dumps({**config, "chat_template": named}))
    assert zoo.load(tmp_path / "chat").inputs.chat([]).tolist() == [2, 3]
    (tmp_path / "chat" / "chat_template.jinja").write_text("you")
    assert zoo.load(tmp_path / "chat").inputs.chat([]).tolist() == [3]
    path.write_text(json.dumps({**config, "eos_token": "<end>"}))
    with pytest.raises(zoo.ZooError, match="its eos_token '<end>' is not in the vocabulary"):
        zoo.load(tmp_path / "chat")


def test_a_file_with_its_config_inside_is_enough(tmp_path):
    model = zoo.create_model("lenet5", num_classes=3)
    variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32))
    inputs = zoo.inputs.ImageInputs((32, 32, 1), (0.5,), (0.5,), ("a", "b", "c"))
    config = {"model": {"name": "lenet5", "args": {"num_classes": 3}}, "inputs": inputs.to_json()}
    zoo.weights.save_native(variables, tmp_path / "x.safetensors", config=config)
    run = zoo.load(tmp_path / "x.safetensors")
    assert run.inputs == inputs
    assert run.model == model
    jax.tree.map(np.testing.assert_array_equal, run.variables, variables)
    for broken, message in (
        ({"model": {"name": "lenet5"}}, "describes no run"),
        ({"model": {"name": "lenet6", "args": {}}, "inputs": inputs.to_json()}, "unknown model 'lenet6'"),
        (
            {"model": {"name": "lenet5", "args": {"num_classes": 3}}},
            r"zoo.load_weights\('lenet5', FILE, num_classes=3\)",
        ),
        (None, "has no config inside, and no config.json beside it"),
    ):
        zoo.weights.save_native(variables, tmp_path / "y.safetensors", overwrite=True, config=broken)
        with pytest.raises(ZooError, match=message):
            zoo.load(tmp_path / "y.safetensors")
