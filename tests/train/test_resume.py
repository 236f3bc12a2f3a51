"""A run killed anywhere and resumed equals the undisturbed one, bit for bit."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

import zoo
from runs import ROOT, TINY, environment, fingerprint, finish, start
from zoo.checkpoints import BrokenCheckpoint, read_arrays, read_meta
from zoo.run import described, read_config

MODES = {"jit": 1, "mesh": 2}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The finished run of each mode, made when first asked for."""
    folders = {}

    def get(mode):
        if mode not in folders:
            folders[mode] = tmp_path_factory.mktemp(f"undisturbed-{mode}") / "run"
            finish("cnn", "--workdir", folders[mode], "--parallel", mode, *TINY, devices=MODES[mode])
        return folders[mode]

    return get


def kill_when(process, ready, delay=0.0, timeout=120):
    """kill -9 `delay` seconds after `ready()` holds; False if the process ended before."""
    end = time.monotonic() + timeout
    while not ready():
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[1]
            return False
        assert time.monotonic() < end, "the run never got there"
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.communicate()
    return True


def assert_same_after_kills(mode, undisturbed, workdir, seed, kills):
    rng = random.Random(seed)
    args = ["cnn", "--workdir", workdir, "--parallel", mode, "--resume", *TINY]
    checkpoints = workdir / "checkpoints"
    survived = 0
    for kill in range(kills):
        process = start(*args, devices=MODES[mode])
        have = set(checkpoints.glob("*"))
        if kill % 2:  # in the middle of a save, while Orbax's temporary folder is there
            killed = kill_when(process, lambda: any(checkpoints.glob("*.orbax-checkpoint-tmp*")))
        else:  # a random moment after the first new checkpoint
            new = lambda have=have: set(checkpoints.glob("[0-9]*")) - have  # noqa: E731
            killed = kill_when(process, new, delay=rng.uniform(0, 0.05))
        survived += killed
        if not killed:
            break
    assert survived, "every run ended before it could be killed"
    finish(*args, devices=MODES[mode])
    assert fingerprint(workdir) == fingerprint(undisturbed(mode))


@pytest.mark.parametrize("mode", ["jit", pytest.param("mesh", marks=pytest.mark.slow)])
def test_resume_after_kill_is_bit_exact(mode, undisturbed, tmp_path):
    assert_same_after_kills(mode, undisturbed, tmp_path / "run", seed=0, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mode", MODES)
def test_resume_after_many_kills_is_bit_exact(mode, seed, undisturbed, tmp_path):
    assert_same_after_kills(mode, undisturbed, tmp_path / "run", seed=seed, kills=6)


def test_a_running_run_can_be_loaded(undisturbed, tmp_path):
    """Checkpoints come and go under the reader; it gets a whole one, or the error that there is none yet."""
    workdir = tmp_path / "run"
    process = start("cnn", "--workdir", workdir, *TINY)
    loaded, refusals = 0, set()
    while process.poll() is None:
        try:
            loaded += zoo.load(workdir, step="last").inputs.labels == tuple("0123456789")
        except zoo.ZooError as error:
            refusals.add(str(error))
    assert process.returncode == 0, process.communicate()[1]
    assert loaded
    known = "does not exist", "is not a run folder", "no checkpoint yet"
    assert [refusal for refusal in refusals if not any(words in refusal for words in known)] == []
    assert fingerprint(workdir) == fingerprint(undisturbed("jit"))


def truncate(checkpoint):
    largest = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip_a_bit(checkpoint):
    data = [path for path in checkpoint.joinpath("model").rglob("d/*") if path.is_file()]
    largest = max(data, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def remove_a_file(checkpoint):
    (checkpoint / "optimizer" / "manifest.ocdbt").unlink()


def truncate_meta(checkpoint):
    (checkpoint / "meta" / "metadata").write_text("{")


@pytest.mark.parametrize(
    "damage", [flip_a_bit, *(pytest.param(d, marks=pytest.mark.slow) for d in (truncate, remove_a_file, truncate_meta))]
)
def test_a_broken_newest_checkpoint_falls_back(damage, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed("jit"), workdir)
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    damage(workdir / "checkpoints" / str(newest))
    done = finish("cnn", "--workdir", workdir, "--resume")
    assert f"warning: checkpoint {newest} is broken" in done.stderr
    assert "Traceback" not in done.stderr
    assert fingerprint(workdir) == fingerprint(undisturbed("jit"))
    assert (workdir / "checkpoints" / f"{newest}.broken").is_dir()


def read_damaged_copies(workdir, times):
    """Reads the newest checkpoint's averaged weights as the trainer does, files of its arrays damaged at random."""
    rng, whole, copy = random.Random(0), max((workdir / "checkpoints").glob("[0-9]*")), workdir / "copy"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = described(workdir, read_config(workdir))[2]
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), template)
    refused = 0
    for _ in range(times):
        shutil.copytree(whole, copy)
        for path in rng.sample(sorted(copy.glob("ema/**/d/*")), 3):
            content = bytearray(path.read_bytes())
            content[rng.randrange(len(content))] ^= 1
            path.write_bytes(rng.choice([bytes(len(content)), content[: len(content) // 2], content]))
        try:
            read_arrays(copy, "ema", template, read_meta(copy))
        except BrokenCheckpoint:
            refused += 1
        shutil.rmtree(copy)
    print(refused)


def test_a_failed_read_prints_nothing(undisturbed, tmp_path):
    """Orbax reads arrays concurrently; it awaits one failed read, and Python would complain of the others."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed("jit"), workdir)
    code = f"import pathlib, test_resume; test_resume.read_damaged_copies(pathlib.Path({str(workdir)!r}), 20)"
    places = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/train'}"}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env={**environment(), **places}, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 10


def test_if_every_checkpoint_is_broken_no_run_starts(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed("jit"), workdir)
    for checkpoint in list((workdir / "checkpoints").iterdir()):
        truncate(checkpoint)
    for _ in range(2):
        done = finish("cnn", "--workdir", workdir, "--resume", status=2)
        assert "every checkpoint" in done.stderr
    assert (workdir / "metrics.jsonl").read_text() == (undisturbed("jit") / "metrics.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_leaves(number, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    process = start("cnn", "--workdir", workdir, *TINY)
    while not any((workdir / "checkpoints").glob("[0-9]*")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the run ended before the signal arrived")
    assert process.returncode == 128 + number, err
    step = out.split(f"stopped by {number.name} at step ")[1].split("; saved")[0]
    assert (workdir / "checkpoints" / step).is_dir()
    finish("cnn", "--workdir", workdir, "--resume")
    assert fingerprint(workdir)[1:] == fingerprint(undisturbed("jit"))[1:]


@pytest.mark.slow
def test_a_run_resumes_in_another_layout(undisturbed, tmp_path):
    """jit to mesh and to pmap: the same data and schedule, so the same metrics up to rounding."""
    for mode in ("mesh", "pmap"):
        workdir = tmp_path / mode
        shutil.copytree(undisturbed("jit"), workdir)
        shutil.rmtree(workdir / "checkpoints" / "120")
        finish("cnn", "--workdir", workdir, "--resume", "--parallel", mode, devices=2)
        rows = [
            [json.loads(line) for line in (folder / "metrics.jsonl").open()] for folder in (workdir, undisturbed("jit"))
        ]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
        for ours, theirs in zip(*rows, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
