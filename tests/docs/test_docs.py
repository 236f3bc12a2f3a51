"""What README and the docs show works: code runs, commands parse, links lead somewhere.

A fenced `python` block is run; what needs files that are not here is fenced as `py`.
"""

import argparse
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import pytest
import tyro

from benchmarks.__main__ import main as benchmarks_main
from train.__main__ import main as train_main
from zoo.__main__ import main as zoo_main

ROOT = pathlib.Path(__file__).parents[2]
README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```(\w+)(?: title=\"([\w.]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAINS = {"train": train_main, "zoo": zoo_main, "benchmarks": benchmarks_main}
PLACEHOLDERS = {"train": "cnn", "benchmarks": "loop", "zoo": "resnet8"}  # what NAME may stand for


def blocks(path, *languages):
    """(language, title, text, line) of the fenced blocks of a page."""
    text = path.read_text()
    found = [(m[1], m[2], m[3], text.count("\n", 0, m.start(3))) for m in FENCED.finditer(text)]
    return [block for block in found if not languages or block[0] in languages]


def name(path):
    return str(path.relative_to(ROOT))


def test_readme_has_at_most_120_lines():
    for path in (README, CHINESE):
        assert len(path.read_text().splitlines()) <= 120, path


def test_both_readmes_have_the_same_blocks():
    assert [block[:3] for block in blocks(README)] == [block[:3] for block in blocks(CHINESE)]
    assert len(blocks(README)) >= 4


def test_both_readmes_have_the_same_numbers():
    tables = (re.findall(r"^\|.*", path.read_text(), re.MULTILINE) for path in (README, CHINESE))
    english, chinese = ([re.findall(r"\d+(?:\.\d+)?", line) for line in lines] for lines in tables)
    assert english == chinese


@pytest.mark.parametrize("path", [README, CHINESE], ids=name)
def test_the_two_commands_stand_after_their_marks(path):
    commands = dict(re.findall(r"^<!-- (\w+) -->\n```sh\n(.+)\n```$", path.read_text(), re.MULTILINE))
    assert commands == {
        "train": "pip install '.[train]' && flaxzoo train cnn",
        "tests": "pip install '.[test]' && python -m pytest -n auto",
    }


SLOW = ("deployment.md", "your-own-model.md", "your-own-task.md")  # the nightly workflow runs their code
CODE = [path for path in PAGES if blocks(path, "python")]


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=pytest.mark.slow if p.name in SLOW else (), id=name(p)) for p in CODE]
)
def test_code_runs(path, tmp_path):
    code = blocks(path, "python")
    lines = []  # each block at the lines of the page that it is on
    for _, title, text, line in code:
        if title:
            (tmp_path / title).write_text(text)
        else:
            lines += [""] * (line - len(lines)) + text.splitlines()
    (tmp_path / "page.py").write_text("\n".join(lines))
    flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")  # one device, as users have
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def as_module(found):
    """The form `python -m ...` of the first words of `flaxzoo ...`."""
    module = {"train": "train", "benchmark": "benchmarks"}.get(found[1])
    return f"python -m {module}" if module else f"python -m zoo {found[1]}"


def commands():
    """Each `python -m train | zoo | benchmarks` of the pages with its page: shell blocks, and inline code; of the same
    in the form `flaxzoo train | benchmark | list ...` too."""
    for path in PAGES:
        text = re.sub(r"\\\n\s*", "", path.read_text())
        shell = "\n".join(match[3] for match in FENCED.finditer(text) if match[1] == "sh")
        inline = "\n".join(re.findall(r"`((?:python -m|flaxzoo) [^`]+)`", FENCED.sub("", text)))
        shell, inline = (re.sub(r"flaxzoo (\w+)", as_module, each) for each in (shell, inline))
        for module, rest in re.findall(rf"python3? -m ({'|'.join(MAINS)})\b([^\n&]*)", f"{shell}\n{inline}"):
            rest = rest if rest.count('"') % 2 == 0 else rest[: rest.rindex('"')]  # the end of a quoted command
            if rest.strip():
                yield path, f"{module} {rest.strip()}"


class Parsed(Exception):
    """The flags were accepted."""


COMMANDS = [pytest.param(path, command, id=f"{name(path)}: {command}") for path, command in dict.fromkeys(commands())]


@pytest.mark.parametrize(("path", "command"), COMMANDS)
def test_command_parses(path, command, tmp_path, monkeypatch, capsys):
    module, *args = shlex.split(command)
    args = [PLACEHOLDERS[module] if arg == "NAME" else arg for arg in args]

    def stops(parse):
        def wrapper(*args, **kwargs):
            parse(*args, **kwargs)
            raise Parsed

        return wrapper

    for _, title, text, _ in blocks(path, "python"):
        if title:
            (tmp_path / title).write_text(text)
    if "./my_recipe.py" in args and not (tmp_path / "my_recipe.py").exists():
        (tmp_path / "my_recipe.py").write_text("from train.recipes.cnn import config\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tyro, "cli", stops(tyro.cli))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stops(argparse.ArgumentParser.parse_args))
    before = jax.config.jax_enable_compilation_cache
    try:
        if args[0] == "list" and module != "zoo":
            assert MAINS[module](args) == 0
        elif args[0] == "status":
            assert len(args) == 2
        elif "--help" in args:
            with pytest.raises(SystemExit, match="0"):
                MAINS[module](args)
        else:
            with pytest.raises(Parsed):
                MAINS[module](args)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


@pytest.mark.parametrize("path", [*PAGES, CHINESE], ids=name)
def test_links_lead_to_files(path):
    links = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", path.read_text()))
    files = [link.split("#")[0] for link in links if not link.startswith(("http:", "https:", "#"))]
    missing = [file for file in files if not (path.parent / file).exists() and file != "ratios.png"]
    assert not missing  # ratios.png is put there when the site is built


def test_every_generated_table_is_one_of_ours():
    marks = re.findall(r"^<!-- generated: (.+) -->$", "\n".join(path.read_text() for path in PAGES), re.MULTILINE)
    tables = (ROOT / "docs" / "tables.py").read_text().split("TABLES: ")[1]
    assert sorted(marks) == sorted(re.findall(r'^    "([^"]+)": ', tables, re.MULTILINE))
