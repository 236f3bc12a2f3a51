"""python -m train as a newcomer meets it, mistakes included."""

import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

import train
import zoo.__main__
from runs import ROOT, TINY, finish
from train.__main__ import main


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cli") / "run"
    return workdir, finish("cnn", "--workdir", workdir, *TINY)


def test_the_last_line_is_a_command_that_works(run_folder, capsys):
    workdir, done = run_folder
    last = done.stdout.strip().splitlines()[-1]
    assert last == f"use it: python -m zoo predict {workdir} {workdir}/example.png"
    assert zoo.__main__.main(last.split()[5:]) == 0
    assert capsys.readouterr().out.startswith(f"{workdir}/example.png: ")


def test_progress_has_step_loss_accuracy_rate_and_time_left(run_folder):
    line = next(line for line in run_folder[1].stdout.splitlines() if line.startswith("step 7/120"))
    for part in ("loss ", "accuracy ", "examples/s", "left"):
        assert part in line


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["cnn", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for flag in ("workdir", "steps", "model.name", "optimizer.learning-rate", "task.augment.shift", "profile"):
        assert f"--{flag}" in out


def test_resume_keeps_the_folders_settings_when_flags_are_left_out(run_folder):
    workdir, _ = run_folder
    done = finish("cnn", "--workdir", workdir, "--resume")
    assert "resumed at step 120" in done.stdout
    assert json.loads((workdir / "config.json").read_text())["config"]["steps"] == 120
    done = finish("cnn", "--workdir", workdir, "--resume", "--seed", "4", status=2)
    assert "seed was 0, not 4" in done.stderr


@pytest.mark.slow
def test_a_run_on_a_mesh_resumes_with_another_number_of_devices(tmp_path, monkeypatch, recwarn):
    """From eight to one: the mesh of its settings is dropped, one that a flag gives is kept."""
    model = train.ModelConfig("simple_cnn", {"widths": (4,), "hidden_size": 16})
    train.run(train.Config(str(tmp_path), 10, 16, mesh="data=2,fsdp=4", model=model))
    configs = []
    monkeypatch.setattr("train.loop.run", lambda config, *_, **__: configs.append((config.parallel, config.mesh)))
    command = ["cnn", "--workdir", str(tmp_path), "--resume"]
    for flags in ([], ["--parallel", "jit"], ["--mesh", "fsdp=3"], ["--mesh", "None"]):
        assert main([*command, *flags]) == 0
    assert configs == [("auto", "data=2,fsdp=4"), ("jit", None), ("auto", "fsdp=3"), ("auto", None)]
    done = finish(*command, "--steps", "20")
    assert "resumed at step 10" in done.stdout
    assert "the run's mesh data=2,fsdp=4 is left out: it does not fit (parallel auto, devices: 1)\n" in done.stderr


def test_evaluate_gives_the_runs_own_metrics(run_folder, capsys):
    workdir, _ = run_folder
    expected = json.loads((workdir / "result.json").read_text())
    for split in ("test", "validation"):
        assert main(["evaluate", str(workdir), "--split", split, "--batch-size", "64"]) == 0
        assert f"accuracy {expected[split]['accuracy']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_evaluation_is_the_same_in_every_layout_and_batch_size(run_folder, parallel, capsys):
    """360 test images in batches of 112: the last is padded, and none counts twice."""
    workdir, _ = run_folder
    expected = json.loads((workdir / "result.json").read_text())["test"]["accuracy"]
    assert main(["evaluate", str(workdir), "--batch-size", "112", "--parallel", parallel]) == 0
    assert f"accuracy {expected:.4f}" in capsys.readouterr().out


def test_evaluation_refuses_other_classes(run_folder, tmp_path, capsys):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.new("L", (9, 9)).save(tmp_path / label / "x.png")
    assert main(["evaluate", str(run_folder[0]), "--data.path", str(tmp_path), "--split", "train"]) == 2
    assert "has 2 labels that the model does not have (a, b); it has 0, 1" in capsys.readouterr().err


def test_evaluate_a_named_model_with_weights(run_folder, capsys):
    """The file in the run's export has its config.json beside it, which gives fields and inputs."""
    expected = json.loads((run_folder[0] / "result.json").read_text())["test"]["accuracy"]
    weights = run_folder[0] / "export" / "model.safetensors"
    assert main(["evaluate", "simple_cnn", "--weights", str(weights)]) == 0
    assert f"accuracy {expected:.4f}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_recipe_of_a_users_own(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "import flax.linen as nn, zoo, train\n"
        "@zoo.register('mine', family='cnn', input_shape=(8, 8, 1))\n"
        "class Mine(nn.Module):\n"
        "    num_classes: int = 10\n"
        "    @nn.compact\n"
        "    def __call__(self, x, train=False):\n"
        "        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))\n"
        "def config():\n"
        f"    return train.Config('{tmp_path}/run', 20, 16, model=train.ModelConfig('mine'))\n"
    )
    done = finish(recipe, "--steps", "10")
    assert "test loss" in done.stdout
    expected = json.loads((tmp_path / "run" / "result.json").read_text())["test"]["accuracy"]
    for flags in (["--recipe", recipe], [f"--recipe={recipe}"]):
        assert f"accuracy {expected:.4f}" in finish("evaluate", tmp_path / "run", *flags).stdout
    assert "unknown model 'mine'" in finish("evaluate", tmp_path / "run", status=2).stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["cn"], "error: unknown recipe 'cn'; did you mean cnn"),
        (["./absent.py"], "error: no recipe file './absent.py'"),
        (["cnn", "--model.name", "resnet_8"], "error: unknown model 'resnet_8'; did you mean resnet8"),
        (["cnn", "--model.args", "hidden_size=0"], "error: simple_cnn: hidden_size must be at least 1, not 0"),
        (["cnn", "--model.args", "hidden=3"], "error: simple_cnn has no field 'hidden'; did you mean hidden_size"),
        (["cnn", "--data.name", "digitz"], "error: unknown data set 'digitz'; did you mean digits"),
        (["cnn", "--batch-size", "0"], "error: batch-size must be at least 1, not 0"),
        (["cnn", "--distributed", "x"], "error: distributed must be auto, or coordinator=HOST:PORT"),
        (["evaluate", "resnet18"], "error: resnet18 is a model's name; add --weights FILE"),
        (["evaluate", "no-such-model"], "error: unknown model 'no-such-model'"),
        (["evaluate", "runs/no-such-run"], "error: no run folder 'runs/no-such-run'"),
    ],
)
def test_mistakes_get_one_line_and_status_2(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith(message), err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [
        ["cnn", "--stepz", "3"],
        ["cnn", "--steps", "many"],
        ["cnn", "--model.args", "width"],
        ["cnn", "--parallel", "tpu"],
    ],
)
def test_flags_that_do_not_parse_get_status_2(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2


def test_a_missing_extra_is_named():
    code = "import runpy, sys; sys.modules['tyro'] = None; sys.argv = ['train', 'cnn']; "
    code += "runpy.run_module('train', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "pip install 'flaxzoo[train]'" in done.stderr


def test_predict_names_a_file_that_is_no_image_and_goes_on(run_folder, tmp_path, capsys):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (30, 20)).save(good)
    bad.write_text("no image")
    assert zoo.__main__.main(["predict", str(run_folder[0]), str(good), str(bad)]) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"{good}: ")
    assert "bad.png' is not a readable image" in err
    assert len(err.splitlines()) == 1
    assert zoo.__main__.main(["predict", str(run_folder[0]), str(good), "--top-k", "2"]) == 0
    assert capsys.readouterr().out.count("%") == 2


@pytest.mark.parametrize("command", ["zoo list", "train list", "train --help", "benchmarks list"])
def test_a_closed_pipe_ends_a_command_without_a_word(command):
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", *command.split()]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
