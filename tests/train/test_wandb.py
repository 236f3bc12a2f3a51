"""--log.wandb in W&B's offline mode: real runs of W&B, read back from its files."""

import json
import subprocess
import sys

import pytest

import train
from runs import ROOT, fingerprint
from train.__main__ import main

pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")

TINY = ["--model.args", "widths=(4,)", "hidden_size=16", "--eval-every", "10", "--log.every", "5", "--batch-size", "16"]
TINY += ["--parallel", "jit"]
BLOCK = 2**15  # bytes of a block of W&B's files, which are LevelDB's logs behind a header of 7 bytes


def records(path):
    """The records of a .wandb file."""
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, last
            yield pb.Record.FromString(whole)
            whole = b""


def read(workdir):
    """Of each run in a folder: its id, its settings, its rows and how it ended."""
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        found = {"id": None, "rows": [], "config": {}, "exit": None}
        for record in records(path):
            if record.HasField("run"):
                found["id"] = record.run.project, record.run.run_id
                found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.HasField("history"):
                items = record.history.item
                names = [item.key or "/".join(item.nested_key) for item in items]
                found["rows"].append(dict(zip(names, (json.loads(item.value_json) for item in items), strict=True)))
            elif record.HasField("exit"):
                found["exit"] = record.exit.exit_code
        yield found


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "run"


def test_metrics_settings_and_pictures_go_to_one_run_also_when_resumed(offline):
    assert main(["cnn", "--workdir", str(offline), "--steps", "20", "--log.wandb", "zoo", *TINY]) == 0
    assert main(["cnn", "--workdir", str(offline), "--steps", "30", "--resume"]) == 0
    first, second = read(offline)
    assert first["id"] == second["id"] == ("zoo", (offline / "wandb_id").read_text().split()[1])
    assert first["exit"] == second["exit"] == 0
    assert first["config"]["config"]["optimizer"]["name"] == "adamw"
    tracked = {}
    for row in first["rows"] + second["rows"]:
        tracked |= {(row["_step"], name): value for name, value in row.items()}
    lines = [json.loads(line) for line in (offline / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        step, split = line.pop("step"), line.pop("split")
        for name, value in line.items():
            assert tracked[step, f"{split}/{name}"] == value
    names = [name for row in first["rows"] for name in row]
    for picture in ("curves", "report/confusion"):
        assert f"{picture}/path" in names


def test_a_failure_of_wandb_is_a_warning_and_changes_nothing(offline, tmp_path, capsys):
    plain, blocked = tmp_path / "plain", tmp_path / "blocked"
    assert main(["cnn", "--workdir", str(plain), "--steps", "10", *TINY]) == 0
    blocked.mkdir()
    (blocked / ".hidden").touch()
    flags = ["--workdir", str(blocked), "--steps", "10", "--log.wandb", "no/such:project", *TINY]
    assert main(["cnn", *flags]) == 0
    assert "warning: Weights & Biases is off from here on" in capsys.readouterr().err
    assert fingerprint(blocked)[1:] == fingerprint(plain)[1:]


def test_a_run_that_fails_is_marked_so(offline):
    flags = ["--optimizer.learning-rate", "1e30", "--workdir", str(offline), "--steps", "20"]
    assert main(["cnn", *flags, "--log.wandb", "zoo", *TINY]) == 2
    (found,) = read(offline)
    assert found["exit"] == 1


def test_a_missing_package_is_one_line():
    code = "import importlib.util as u, sys; find = u.find_spec; "
    code += "u.find_spec = lambda name, *args: None if name == 'wandb' else find(name, *args); "
    code += "from train.__main__ import main; sys.exit(main(['cnn', '--log.wandb', 'zoo']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: log.wandb needs the extra: pip install 'flaxzoo[wandb]'")
    assert len(done.stderr.splitlines()) == 1


def test_nothing_of_wandb_is_there_without_the_setting(tmp_path):
    assert train.LogConfig().wandb is None
    assert main(["cnn", "--workdir", str(tmp_path / "run"), "--steps", "5", *TINY]) == 0
    assert not (tmp_path / "run" / "wandb").exists()
