"""Several processes train as one: real processes on this machine, over the loopback interface."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest

import zoo
from runs import ROOT, TINY, command, environment, finish
from train import Config
from train.interrupt import AGAIN
from train.processes import parse_distributed

TIMEOUT = 300
# A language model with arrays large enough for fsdp to split.
MODEL = ["transformer", "--data.context", "8", "--steps", "20", "--eval-every", "10", "--batch-size", "16"]
MODEL += ["--model.args", "hidden_size=160", "num_heads=2", "num_layers=1", "--optimizer.warmup-steps", "5"]
MODEL += ["--log.every", "7", "--log.no-tensorboard", "--mesh", "fsdp=2"]
TEXT = [*MODEL, "--data.path", ROOT / "LICENSE"]


def start_all(n, *args, devices=1, slurm=False):
    """`n` processes of one run, their output in pipes, started as by `srun` or with the coordinator's address."""
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


def finish_all(n, *args, status=0, **how):
    """The output of each of `n` processes that have ended; asserts their exit statuses."""
    started = start_all(n, *args, **how)
    try:
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [status] * n, "\n".join(outputs)
    return outputs


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
    outputs = finish_all(2, "cnn", "--workdir", tmp_path / "run", "--mesh", "fsdp=2", *TINY)
    assert_same_run(tmp_path / "run", alone)
    assert "best step" in outputs[0]
    assert "best step" not in outputs[1]  # only the first one prints and writes
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (stored["mesh"], stored["distributed"]) == ("fsdp=2", None)  # distributed is given to each run


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """A language model that two processes trained, and their output."""
    workdir = tmp_path_factory.mktemp("text") / "run"
    return workdir, finish_all(2, *TEXT, "--workdir", workdir)


@pytest.mark.slow
def test_two_processes_end_a_language_model_with_a_sample(text_run):
    workdir, outputs = text_run
    assert "a sample:" in outputs[0]
    assert "a sample:" not in outputs[1]
    assert json.loads((workdir / "result.json").read_text())["steps"] == 20
    assert zoo.generate(zoo.load(workdir), "The", length=3)


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_is_restored_by_none(text_run, tmp_path):
    """The file of shards that the second process wrote is truncated."""
    workdir = tmp_path / "run"
    shutil.copytree(text_run[0], workdir)
    written = (workdir / "checkpoints" / "20" / "model" / "ocdbt.process_1" / "d").iterdir()
    os.truncate(max(written, key=lambda path: path.stat().st_size), 100)
    outputs = finish_all(2, *TEXT, "--workdir", workdir, "--resume")
    assert "checkpoint 20 is broken" in outputs[0]
    assert "resumed at step 10" in outputs[0]
    assert (workdir / "checkpoints" / "20.broken").is_dir()
    assert rows(workdir) == rows(text_run[0])


def test_all_processes_are_refused_a_folder_that_a_run_has_locked(text_run):
    with (text_run[0] / "train.log").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        outputs = finish_all(2, *TEXT, "--workdir", text_run[0], "--resume", status=2)
    assert all("error: another run is at work in" in each for each in outputs)


@pytest.mark.slow
def test_the_tasks_of_a_slurm_step_find_one_another(alone, tmp_path):
    finish_all(2, "cnn", "--workdir", tmp_path / "run", "--mesh", "fsdp=2", *TINY, slurm=True)
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_four_processes_of_two_devices_train_as_one(alone, tmp_path):
    finish_all(4, "cnn", "--workdir", tmp_path / "run", "--mesh", "data=2,fsdp=4", *TINY, devices=2)
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_killed_and_resumed_by_another_number_of_processes(alone, tmp_path):
    """Two, then four, then one; all killed at once each time, as when a machine fails."""
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
def test_a_wrong_setting_of_distributed_is_refused(setting, message):
    with pytest.raises(zoo.ZooError, match=message):
        Config("x", 1, 8, distributed=setting).check()


def test_auto_is_left_to_jax():
    assert parse_distributed("auto") == {}
    found = parse_distributed("coordinator=10.0.0.1:8476,num=4,id=3")
    assert found == {"coordinator_address": "10.0.0.1:8476", "num_processes": 4, "process_id": 3}


def wait_until(condition, started, seconds=60):
    """Returns when the condition holds; asserts that all processes live until then."""
    end = time.monotonic() + seconds
    while not condition():
        assert all(process.poll() is None for process in started), [p.communicate() for p in started]
        assert time.monotonic() < end, [process.kill() or process.communicate() for process in started]
        time.sleep(0.01)


def leave(started, seconds=30):
    """Their exit statuses and outputs, after at most the time that clouds grant."""
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], outputs


@pytest.mark.slow
def test_a_stalled_process_is_named_and_ctrl_c_to_one_saves(tmp_path):
    """The second process is stopped for a while; the first one, which waits for it, reports it. Then both leave."""
    workdir = tmp_path / "run"
    args = [*TEXT, "--steps", "100000", "--eval-every", "100000", "--workdir", workdir, "--log.stall", "1"]
    started = start_all(2, *args)
    log = workdir / "train.log"
    wait_until(lambda: log.exists() and "step 70/" in log.read_text(), started)
    started[1].send_signal(signal.SIGSTOP)
    wait_until(lambda: "recorded nothing for" in log.read_text(), started)
    started[1].send_signal(signal.SIGCONT)
    stall = log.read_text().split("process 0 of 2 on ")[-1]
    assert f"process 1 on {socket.gethostname()}, step " in stall
    started[1].send_signal(signal.SIGINT)
    statuses, outputs = leave(started)
    assert statuses == [143, 130], "\n".join(outputs)
    step = int(outputs[0].split("stopped by SIGTERM at step ")[1].split(";")[0])
    assert (workdir / "checkpoints" / str(step)).is_dir()
    assert "Traceback" not in "".join(outputs)
    assert not (workdir / ".beats").exists()


@pytest.mark.slow
def test_a_signal_interrupts_the_evaluation_of_all_processes(tmp_path):
    """On the standard library's sources, whose evaluation takes some seconds."""
    workdir = tmp_path / "run"
    args = [*MODEL, "--steps", "100000", "--workdir", workdir]
    started = start_all(2, *args)
    status = workdir / "status.json"
    wait_until(lambda: status.exists() and "evaluating, " in status.read_text(), started)
    started[1].send_signal(signal.SIGTERM)
    statuses, outputs = leave(started)
    assert statuses == [143, 143], "\n".join(outputs)
    meta = json.loads((workdir / "checkpoints" / "10" / "meta" / "metadata").read_text())
    assert meta["unevaluated"]


@pytest.mark.slow
def test_a_signal_before_the_first_step_and_a_second_one_act_at_once(tmp_path):
    workdir = tmp_path / "run"
    args = [*TEXT, "--steps", "100000", "--workdir", workdir]
    started = start_all(2, *args)
    wait_until((workdir / "train.log").exists, started)
    for process in started:
        process.send_signal(signal.SIGTERM)
    statuses, outputs = leave(started, seconds=5)
    assert statuses == [143, 143], "\n".join(outputs)
    assert all("stopped by SIGTERM: nothing to save" in each for each in outputs)
    started = start_all(2, *args, "--resume")
    wait_until(lambda: "step 7/" in (workdir / "train.log").read_text(), started)
    for _ in range(2):
        started[1].send_signal(signal.SIGTERM)
        time.sleep(AGAIN + 0.1)
    output = started[1].communicate(timeout=5)[0]
    started[0].kill()  # it would end when it misses the other one
    started[0].communicate()
    assert started[1].returncode == 143, output
    assert "stopped by SIGTERM: asked twice, nothing saved" in output


@pytest.mark.slow
def test_a_preempted_process_saves_and_ends_all(alone, tmp_path):
    """SIGTERM to one of two: both leave at the same step, which is saved, within the 30 s that clouds grant."""
    workdir = tmp_path / "run"
    args = ["cnn", "--workdir", workdir, *TINY]
    started, end = start_all(2, *args), time.monotonic() + TIMEOUT
    while not any((workdir / "checkpoints").glob("[0-9]*")):
        assert all(process.poll() is None for process in started), [p.communicate() for p in started]
        assert time.monotonic() < end
        time.sleep(0.002)
    started[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=30)[0] for process in started]
    assert [process.returncode for process in started] == [143, 143], "\n".join(outputs)
    step = int(outputs[0].split("stopped by SIGTERM at step ")[1].split(";")[0])
    assert (workdir / "checkpoints" / str(step)).is_dir()
    finish_all(2, *args, "--resume")
    assert_same_run(workdir, alone)
