"""python -m train evaluate: a model's own inputs, every example counted, and nothing scored that is random."""

import json
import shutil

import jax
import numpy as np
import pytest

import zoo
from train.__main__ import main
from zoo.registry import PRETRAINED
from zoo.weights import read_safetensors, write_safetensors

DIGITS = ["--data.image-size", "28"]
MNIST = ["--mean", "0.130661", "--std", "0.308107"]


def evaluated(capsys, *args):
    """The line that an evaluation prints, from its metrics on."""
    assert main(["evaluate", *map(str, args)]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def alone(tmp_path):
    """The zoo's weights of LeNet-5 in a folder without their config.json."""
    shutil.copy(PRETRAINED / "lenet5" / "model.safetensors", tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_weights_are_evaluated_with_their_own_normalisation(alone, capsys):
    """By name, by the file beside its config.json, and by the file alone and the numbers of its model card."""
    (expected,) = evaluated(capsys, "lenet5", *DIGITS)
    assert "(360 examples)" in expected
    file = PRETRAINED / "lenet5" / "model.safetensors"
    assert evaluated(capsys, "lenet5", "--weights", file, *DIGITS)[-1] == expected
    inputs = zoo.load("lenet5").inputs
    own = ["--mean", *map(str, inputs.mean), "--std", *map(str, inputs.std)]
    note, found = evaluated(capsys, "lenet5", "--weights", alone, *own, *DIGITS)
    assert found == expected
    assert note == (
        "the model's 10 classes have no names: they are matched to the data's by number (0, 1, 2, 3, 4, ...)"
    )
    assert evaluated(capsys, "lenet5", "--weights", alone, "--mean", "0.5", "--std", "0.5", *DIGITS)[-1] != expected


def test_a_normalisation_that_is_not_known_is_asked_for(alone, capsys):
    assert main(["evaluate", "lenet5", "--weights", str(alone), *DIGITS]) == 2
    assert "does not say how its images were normalised; add --mean and --std" in capsys.readouterr().err
    assert main(["evaluate", "lenet5", "--weights", str(alone), "--mean", "0.1", *DIGITS]) == 2
    assert "add --mean and --std" in capsys.readouterr().err
    given = ["--mean", "0.1", "0.2", "--std", "0.1", "0.2"]
    assert main(["evaluate", "lenet5", "--weights", str(alone), *given, *DIGITS]) == 2
    assert "one per channel" in capsys.readouterr().err
    file = PRETRAINED / "lenet5" / "model.safetensors"
    assert main(["evaluate", "lenet5", "--weights", str(file), *MNIST, *DIGITS]) == 2
    assert "give its mean and std; leave --mean and --std out" in capsys.readouterr().err


def test_a_random_head_is_not_scored(alone, capsys):
    tensors = read_safetensors(alone)
    for kept in (
        {name: tensor for name, tensor in tensors.items() if "fc3" not in name},
        {name: tensor[..., :7] if "fc3" in name else tensor for name, tensor in tensors.items()},
    ):
        write_safetensors(kept, alone, overwrite=True)
        assert main(["evaluate", "lenet5", "--weights", str(alone), *MNIST, *DIGITS]) == 2
        error = capsys.readouterr().err
        assert "the head 'fc3' (10) would be random numbers; give weights that have it" in error
        assert error.count("\n") == 1


def test_the_split_train_is_all_of_it(capsys):
    """A tenth of it validates in training; the built-in digits have 1,437 training examples."""
    assert "(1,437 examples)" in evaluated(capsys, "lenet5", "--split", "train", *DIGITS)[-1]
    assert "(143 examples)" in evaluated(capsys, "lenet5", "--split", "validation", *DIGITS)[-1]


def hub(folder, classes):
    fields = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "mlp_size": 8}
    model = zoo.create_model("vit_tiny16", **fields, num_classes=classes, norm_epsilon=1e-12)
    zoo.save_pretrained(model, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32)), folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return folder


def test_a_hubs_folder_names_no_data(tmp_path, capsys):
    folder = hub(tmp_path / "vit", 10)
    assert main(["evaluate", str(folder)]) == 2
    assert "is a Hugging Face folder, which names no data: add --data.name or --data.path" in capsys.readouterr().err


def test_a_vocabulary_that_is_not_known_is_not_learned_from_the_test_data(tmp_path, capsys):
    model = zoo.create_model("lstm_classifier", hidden_size=4, embedding_size=4)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32))
    zoo.save_weights(variables, tmp_path / "w.safetensors")
    args = ["evaluate", "lstm_classifier", "--weights", str(tmp_path / "w.safetensors")]
    assert main(args) == 2
    assert "have no vocabulary beside them, and data.tokenizer char would learn another one" in capsys.readouterr().err


def test_classes_without_names_are_matched_by_number_and_must_be_as_many(tmp_path, capsys):
    digits = ["--data.name", "digits", "--data.image-size", "8", "--data.channels", "3"]
    note, line = evaluated(capsys, hub(tmp_path / "ten", 10), *digits)[-2:]
    assert note.startswith("the model's 10 classes have no names: they are matched to the data's by number (0, 1, 2,")
    assert "(360 examples)" in line
    assert main(["evaluate", str(hub(tmp_path / "four", 4)), *digits]) == 2
    assert "digits has 10 classes, the model 4 without names" in capsys.readouterr().err
