"""Files of a user's that have the names of our packages: the command `flaxzoo` ignores them, `python -m` says so."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "flaxzoo" / "__main__.py"  # a script's own folder is searched, as a console script's is


def run(folder, *args):
    command, environment = [sys.executable, *map(str, args)], {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path):
    """A folder with scripts and data of our packages' names."""
    for name in ("train", "zoo", "benchmarks"):
        (tmp_path / f"{name}.py").write_text("print('my own script')\n")
    (tmp_path / "data").mkdir()
    for name in ("train", "zoo", "benchmarks"):
        (tmp_path / "data" / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("place", "args", "shown"),
    [
        (".", ["train", "list"], "shakespeare-lstm"),
        ("data", ["train", "list"], "shakespeare-lstm"),
        (".", ["list", "lstm_lm"], "lstm_lm"),
        (".", ["benchmark", "list"], "train-step"),
        (".", ["--help"], "flaxzoo train"),
    ],
)
def test_the_command_does_not_look_into_the_current_folder(folder, place, args, shown):
    done = run(folder / place, SCRIPT, *args)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert "my own script" not in done.stdout


@pytest.mark.parametrize(("module", "file"), [("train", "zoo"), ("benchmarks", "train"), ("benchmarks", "zoo")])
def test_a_file_in_place_of_a_package_is_one_line_and_is_not_run(tmp_path, module, file):
    (tmp_path / f"{file}.py").write_text("print('my own script')\n")
    done = run(tmp_path, "-m", module, "list")
    assert (done.returncode, done.stdout) == (2, "")
    line = f"error: '{tmp_path / file}.py' has the name of our package {file} and comes before it: rename it, or use"
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_an_unknown_command_is_one_line():
    done = run(ROOT, SCRIPT, "fly")
    assert done.returncode == 2
    assert "invalid choice: 'fly'" in done.stderr
