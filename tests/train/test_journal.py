"""What a run reports while it trains, the lock on its folder, and how it stops at a signal."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from test_loop import tiny

import train
from runs import ROOT, environment
from train import journal as journal_module
from train.__main__ import main
from train.journal import Journal, lives
from train.loop import Trainer
from train.timing import Phases
from zoo import ZooError


@pytest.fixture
def quick_beats(monkeypatch):
    monkeypatch.setattr(journal_module, "BEAT", 0.02)


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_run_locks_its_folder_for_as_long_as_it_lives(tmp_path):
    journal = Journal(tmp_path, 10, 60.0, Phases())
    assert lives(tmp_path)
    with pytest.raises(ZooError, match=r"another run is at work in .*; stop it first, or name another workdir"):
        Journal(tmp_path, 10, 60.0, Phases())
    journal.close(None)
    assert not lives(tmp_path)
    Journal(tmp_path, 10, 60.0, Phases()).close(None)


def test_a_status_query_does_not_keep_a_run_from_starting(tmp_path):
    """`lives` holds the lock for a moment."""
    with (tmp_path / "train.log").open("a") as other:
        journal_module.fcntl.flock(other, journal_module.fcntl.LOCK_SH)
        threading.Timer(0.2, journal_module.fcntl.flock, (other, journal_module.fcntl.LOCK_UN)).start()
        Journal(tmp_path, 10, 60.0, Phases()).close(None)


def test_a_run_that_ended_before_it_wrote_its_settings_starts_anew(tmp_path):
    Journal(tmp_path, 10, 60.0, Phases()).close(None)
    assert train.run(tiny(tmp_path, steps=10, resume=True))["steps"] == 10


def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(tmp_path):
    workdir = tmp_path / "run"
    train.run(tiny(workdir, steps=10))
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with (workdir / "train.log").open("a") as other:
        journal_module.fcntl.flock(other, journal_module.fcntl.LOCK_EX)
        with pytest.raises(ZooError, match="another run is at work"):
            train.run(tiny(workdir, steps=20, resume=True))
    assert before == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert train.run(tiny(workdir, steps=10, resume=True))["steps"] == 10


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_overtaken_by_another_while_it_starts_is_refused_and_changes_nothing(resume, tmp_path, monkeypatch):
    """The other resumes or starts the same run, and ends, while this one loads its data."""
    workdir = tmp_path / "run"
    if resume:
        train.run(tiny(workdir, steps=10))
    load, before = train.ImageData.load, {}

    def overtaken(*args):
        monkeypatch.undo()
        train.run(tiny(workdir, steps=20, resume=resume))
        before.update({path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()})
        return load(*args)

    monkeypatch.setattr(train.ImageData, "load", overtaken)
    with pytest.raises(ZooError, match=r"another run was at work in .* while this one began; start this one again"):
        train.run(tiny(workdir, steps=30, resume=resume))
    assert before == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert not lives(workdir)


def test_a_run_killed_before_it_wrote_its_settings_starts_anew(tmp_path):
    (tmp_path / "train.log").touch()
    (tmp_path / "status.json").write_text("{}")
    assert train.run(tiny(tmp_path, steps=10, resume=True))["steps"] == 10


@pytest.mark.parametrize("process", [0, 1])
def test_a_stalled_run_shows_where(process, quick_beats, tmp_path, capfd, monkeypatch):
    """Each of two processes by itself; the first one also in the log."""
    monkeypatch.setattr(journal_module.jax, "process_index", lambda: process)
    monkeypatch.setattr(journal_module.jax, "process_count", lambda: 2)
    monkeypatch.setattr(journal_module.processes, "any_says", bool)
    phases, shown = Phases(), []
    journal = Journal(tmp_path, 10, 0.2, phases)

    def a_device_that_never_answers():
        def stack_shown():
            shown.append(capfd.readouterr().err)
            return "a_device_that_never_answers" in "".join(shown)

        wait_for(stack_shown)

    with phases("train"):
        journal.beat(step=7)
        a_device_that_never_answers()
    journal.close(None)
    err = "".join(shown)
    assert f"warning: process {process} of 2 on " in err
    assert "training: no progress for 0" in err
    assert "since step 7; it is at" in err
    assert (tmp_path / "train.log").exists() == (process == 0)
    if process == 0:
        assert "in a_device_that_never_answers" in (tmp_path / "train.log").read_text()


def test_a_run_that_makes_progress_is_not_reported(quick_beats, tmp_path, capsys):
    journal = Journal(tmp_path, 10, 5.0, Phases())
    for step in range(10):
        journal.beat(step=step)
        time.sleep(0.02)
    journal.close(None)
    assert capsys.readouterr().err == ""


def test_warnings_and_what_ended_a_run_are_in_its_log(tmp_path):
    optimizer = train.OptimizerConfig("sgd", 1e38, schedule="constant")
    with pytest.raises(ZooError):
        train.run(tiny(tmp_path / "run", optimizer=optimizer))
    log = (tmp_path / "run" / "train.log").read_text()
    assert "ended by ZooError: " in log
    assert ": stopped; earlier checkpoints are kept" in log
    assert "compiled the step in " in log


def test_status_of_a_finished_a_killed_and_no_run(tmp_path, capsys):
    workdir = tmp_path / "run"
    train.run(tiny(workdir))
    capsys.readouterr()
    assert main(["status", str(workdir)]) == 0
    out = capsys.readouterr().out
    assert f"{workdir}: finished 0:0" in out
    assert "step 30 of 30 (100%), " in out
    row = [json.loads(line) for line in (workdir / "metrics.jsonl").open()][-1]
    assert f"validation at step 30: loss {row['loss']:.4f}" in out
    assert "last checkpoint: step 30, 0:0" in out
    about = json.loads((workdir / "status.json").read_text())
    (workdir / "status.json").write_text(json.dumps({**about, "activity": "training", "step": 12}))
    assert main(["status", str(workdir)]) == 0
    out = capsys.readouterr().out
    assert f"dead: process {os.getpid()} on " in out
    assert "was training at its last sign of life" in out
    assert f"--resume --workdir {workdir}" in out
    for text in ("[]", "{", '{"step": "x"}'):
        (workdir / "status.json").write_text(text)
        assert main(["status", str(workdir)]) == 0
        assert "not at work, and it left no status" in capsys.readouterr().out
    assert main(["status", str(tmp_path)]) == 2


def test_status_of_a_living_run(quick_beats, tmp_path, capsys):
    workdir = tmp_path / "run"
    train.run(tiny(workdir))
    capsys.readouterr()
    phases = Phases()
    journal = Journal(workdir, 30, 60.0, phases)
    with phases("evaluate"):
        journal.beat(step=10, steps_per_second=2.0)
        journal.passing(3, 8)
        wait_for(lambda: "3 of 8" in (workdir / "status.json").read_text())
        assert main(["status", str(workdir)]) == 0
    journal.close(None)
    out = capsys.readouterr().out
    assert f"alive (process {os.getpid()} on " in out
    assert "evaluating, 3 of 8 batches" in out
    assert "step 10 of 30 (33%), 2 steps/s, 0:10 left" in out


SIGNALS = {
    "one": (False, ["TERM"], 0),
    "timeout's two": (False, ["TERM", "TERM"], 0),
    "a second later": (False, ["TERM", 1.2, "TERM"], 143),
    "LSF's": (False, ["INT", 1.2, "TERM"], 0),
    "submitit's": (False, ["TERM", "USR1", 1.2, "USR2"], 0),
    "nothing to save": (True, ["TERM"], 143),
}


@pytest.mark.parametrize(("idle", "signals", "status"), SIGNALS.values(), ids=SIGNALS)
def test_a_signal_waits_for_the_loop_and_the_same_a_second_later_or_an_idle_one_acts_at_once(idle, signals, status):
    """While the main thread is in C code for 60 s, as in a compiler, when Python runs no handler."""
    code = f"""
import ctypes, os, signal, sys, threading, time
from train.interrupt import Stop
def send():
    time.sleep(0.2)
    for each in {signals}:
        if isinstance(each, str):
            os.kill(os.getpid(), signal.Signals["SIG" + each])
            time.sleep(0.01)  # the kernel merges what is pending
        else:
            time.sleep(each)
    time.sleep(0.2)
    os._exit(0 if stop.signal == signal.Signals["SIG" + {signals}[0]] and stop.reached() else 1)
with Stop() as stop:
    stop.idle = {idle}
    threading.Thread(target=send).start()
    away = ctypes.CDLL(None).sleep
    left = 60
    while left:
        left = away(left)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, cwd=ROOT, timeout=50
    )
    assert done.returncode == status, done.stderr
    assert done.stderr.count("stopped by SIGTERM") == (status == 143)


def test_a_signal_interrupts_an_evaluation_that_the_resumed_run_makes(tmp_path, monkeypatch):
    """A signal within the evaluation of step 20: the step is saved at once, and evaluated on resume."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train.run(tiny(whole))
    passing, calls = Journal.passing, []

    def interrupted(self, done, total):
        passing(self, done, total)
        calls.append(done)
        if calls.count(0) == 2 and done == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # the thread that reads signals notes it

    monkeypatch.setattr(Journal, "passing", interrupted)
    with pytest.raises(SystemExit) as left:
        train.run(tiny(broken))
    monkeypatch.undo()
    assert left.value.code == 128 + signal.SIGTERM
    assert calls[-1] == 2
    meta = json.loads((broken / "checkpoints" / "20" / "meta" / "metadata").read_text())
    assert (meta["score"], meta["unevaluated"]) == (None, True)
    assert '"step": 20, "split": "validation"' not in (broken / "metrics.jsonl").read_text()
    train.run(tiny(broken, resume=True))
    assert (broken / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    for step in ("20", "30"):
        metas = [json.loads((run / "checkpoints" / step / "meta" / "metadata").read_text()) for run in (broken, whole)]
        assert metas[0] == metas[1]
    assert (broken / "export" / "model.safetensors").read_bytes() == (
        whole / "export" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(("asked", "saved"), [(5, 6), (30, 30)])
def test_a_signal_during_a_log_line_stops_at_the_next_save(asked, saved, tmp_path, monkeypatch, capsys):
    """Step 5 logs without saving, so step 6 is saved; the last step is saved in any case."""
    log = Trainer._log

    def interrupted(self, *args):
        log(self, *args)
        if self.step == asked:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # the thread that reads signals notes it

    monkeypatch.setattr(Trainer, "_log", interrupted)
    with pytest.raises(SystemExit) as left:
        train.run(tiny(tmp_path / "run"))
    assert left.value.code == 128 + signal.SIGTERM
    assert f"stopped by SIGTERM at step {saved}; saved" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / f"{saved}").is_dir()


def test_only_the_main_thread_handles_signals():
    """A run in another thread, where Python allows no handlers, does without."""
    from train.interrupt import Stop

    before = signal.getsignal(signal.SIGTERM)
    found = []

    def elsewhere():
        with Stop() as stop:
            found.append(stop.reached())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False]
    assert signal.getsignal(signal.SIGTERM) is before
