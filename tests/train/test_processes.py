"""Several processes train as one: real ones, on this machine, that speak over the loopback."""

import json
import shutil
import signal
import socket
import subprocess
import time

import pytest

import zoo
from runs import TINY, command, environment, finish
from train import Config
from train.processes import parse_distributed

TIMEOUT = 300


def start_all(n, *args, devices=1, slurm=False):
    """`n` processes of one run, their output in pipes; as `srun` starts them, or told where the others are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    step = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(n)}
    started = []
    for i in range(n):
        setting, variables = f"coordinator=127.0.0.1:{port},num={n},id={i}", environment(devices)
        if slurm:
            task = {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "JAX_COORDINATOR_PORT": str(port)}
            setting, variables = "auto", {**variables, **step, **task}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": variables}
        started.append(subprocess.Popen(command(*args, "--distributed", setting), **pipes))
    return started


def finish_all(n, *args, **how):
    """What each of them said, all to their end."""
    started = start_all(n, *args, **how)
    try:
        said = [process.communicate(timeout=TIMEOUT)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * n, "\n".join(said)
    return said


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


def assert_same_run(workdir, alone):
    """The same data in the same order, so the same metrics but for rounding; every example counted once."""
    ours, theirs = rows(workdir), rows(alone)
    assert [(row["step"], row["split"]) for row in ours] == [(row["step"], row["split"]) for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    results = [json.loads((folder / "result.json").read_text()) for folder in (workdir, alone)]
    assert results[0]["test"]["loss"] == pytest.approx(results[1]["test"]["loss"], rel=1e-3)
    assert zoo.load(workdir).inputs.labels == tuple("0123456789")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run in one process on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish("cnn", "--workdir", workdir, "--parallel", "jit", *TINY)
    return workdir


def test_two_processes_train_as_one(alone, tmp_path):
    said = finish_all(2, "cnn", "--workdir", tmp_path / "run", "--mesh", "fsdp=2", *TINY)
    assert_same_run(tmp_path / "run", alone)
    assert "best step" in said[0]
    assert "best step" not in said[1]  # the first one speaks and writes
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (stored["mesh"], stored["distributed"]) == ("fsdp=2", None)  # where the others are is said anew


@pytest.mark.slow
def test_the_tasks_of_a_slurm_step_find_one_another(alone, tmp_path):
    finish_all(2, "cnn", "--workdir", tmp_path / "run", "--mesh", "fsdp=2", *TINY, slurm=True)
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_four_processes_of_two_devices_train_as_one(alone, tmp_path):
    finish_all(4, "cnn", "--workdir", tmp_path / "run", "--mesh", "data=2,fsdp=4", *TINY, devices=2)
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_killed_and_taken_up_by_another_number_of_processes(alone, tmp_path):
    """Two, then four, then one; all killed at once each time, as a machine that goes down."""
    workdir = tmp_path / "run"
    args = ["cnn", "--workdir", workdir, "--resume", *TINY]
    for n in (2, 4):
        have = set((workdir / "checkpoints").glob("[0-9]*"))
        started, end = start_all(n, *args), time.monotonic() + TIMEOUT
        while not set((workdir / "checkpoints").glob("[0-9]*")) - have:
            assert all(process.poll() is None for process in started), [p.communicate() for p in started]
            assert time.monotonic() < end
            time.sleep(0.002)
        for process in started:
            process.kill()
        for process in started:
            process.communicate()
    done = finish(*args)
    assert "resumed at step" in done.stdout
    assert_same_run(workdir, alone)


@pytest.mark.slow
def test_two_processes_set_a_broken_checkpoint_aside_once(alone, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(alone, workdir)
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    (workdir / "checkpoints" / str(newest) / "meta" / "metadata").write_text("{")
    finish_all(2, "cnn", "--workdir", workdir, "--resume", "--parallel", "mesh")
    assert (workdir / "checkpoints" / f"{newest}.broken").is_dir()
    assert_same_run(workdir, alone)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("slurm", "must be auto, or coordinator=HOST:PORT,num=N,id=I, not 'slurm'"),
        ("coordinator=a:1,num=2", "not 'coordinator=a:1,num=2'"),
        ("coordinator=a:1,num=2,id=x", "must be auto"),
        ("coordinator=a:1,num=2,id=2", "id=2 must be below num=2"),
        ("coordinator=a,num=2,id=0", "must end in a port, such as a:1234"),
    ],
)
def test_a_setting_that_names_no_processes_is_refused(setting, message):
    with pytest.raises(zoo.ZooError, match=message):
        Config("x", 1, 8, distributed=setting).check()


def test_auto_is_left_to_jax():
    assert parse_distributed("auto") == {}
    found = parse_distributed("coordinator=10.0.0.1:8476,num=4,id=3")
    assert found == {"coordinator_address": "10.0.0.1:8476", "num_processes": 4, "process_id": 3}


@pytest.mark.slow
def test_a_process_that_is_preempted_takes_all_along_after_a_save(alone, tmp_path):
    """SIGTERM to one of two: both leave at the same step, which is saved, within the 30 s that clouds grant."""
    workdir = tmp_path / "run"
    args = ["cnn", "--workdir", workdir, *TINY]
    started, end = start_all(2, *args), time.monotonic() + TIMEOUT
    while not any((workdir / "checkpoints").glob("[0-9]*")):
        assert all(process.poll() is None for process in started), [p.communicate() for p in started]
        assert time.monotonic() < end
        time.sleep(0.002)
    started[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=30)[0] for process in started]
    assert [process.returncode for process in started] == [143, 143], "\n".join(said)
    step = int(said[0].split("stopped by SIGTERM at step ")[1].split(";")[0])
    assert (workdir / "checkpoints" / str(step)).is_dir()
    finish_all(2, *args, "--resume")
    assert_same_run(workdir, alone)
