"""python -m train sweep: real trainings of some steps on one storage, disturbed in the ways that sweeps are."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import optuna
import pytest
from optuna.trial import TrialState

from runs import ROOT, command
from train.__main__ import main
from train.config import recipe_config
from train.space import parse_space, with_values
from train.sweep import MOST_DEATHS, open_storage
from zoo.errors import ZooError

SMALL = ["--steps", "20", "--eval-every", "5", "--log.every", "5", "--batch-size", "16", "--log.no-tensorboard"]
SMALL += ["--parallel", "jit", "--model.args", "widths=(4,)", "hidden_size=16"]
SPACE = ["optimizer.learning-rate=log:1e-6:1e-1", "model.args.hidden_size=choice:8,16"]


def arguments(folder, trials, *more, space=SPACE):
    return ["sweep", "cnn", "--space", *space, "--trials", str(trials), "--workdir", str(folder), *SMALL, *more]


def worker(folder, trials, *more):
    """A sweep in a process of its own, with this process's compiler, so that the numbers are the same."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(*arguments(folder, trials, *more)), env=environment, **pipes)


def study_of(path):
    return optuna.load_study(study_name="sweep", storage=open_storage(path))


def trials_of(folder):
    return study_of(folder / "sweep.journal").get_trials()


def results(trials):
    """What must not depend on how a sweep was disturbed."""
    return [(trial.number, trial.state, trial.params, trial.intermediate_values, trial.value) for trial in trials]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """An undisturbed sweep, whose later trials are pruned where they are worse than the median."""
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    assert main(arguments(folder, 8)) == 0
    return folder


def test_every_trial_is_a_run_and_worse_ones_are_pruned(swept):
    trials = trials_of(swept)
    assert len(trials) == 8
    assert all(trial.state.is_finished() for trial in trials)
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert pruned
    for trial in trials:
        folder = swept / "trials" / f"{trial.number:04d}"
        result = json.loads((folder / "result.json").read_text())
        assert result["steps"] == trial.last_step == trial.user_attrs.get("pruned", 20)
        assert (folder / "export" / "model.safetensors").is_file()
        assert "test" not in result  # which belongs to the best settings alone
    assert all(trial.last_step < 20 for trial in pruned)


def test_the_same_command_again_runs_nothing(swept, capsys):
    before = results(trials_of(swept))
    assert main(arguments(swept, 8)) == 0
    assert results(trials_of(swept)) == before
    assert "trial 8" not in capsys.readouterr().out


def test_the_reports_command_is_that_of_the_best_trial(swept, capsys):
    assert main(["report", str(swept)]) == 0
    page = capsys.readouterr().out.strip()
    text = (swept / "report" / "report.html").read_text()
    assert page == str(swept / "report" / "report.html")
    assert text.count("<img") == 3
    assert "pruned" in text
    flags = shlex.split(re.search(r"<pre>(.*?)</pre>", text, re.DOTALL)[1].replace("&#x27;", "'"))
    assert flags[:4] == ["python", "-m", "train", "cnn"]
    best = study_of(swept / "sweep.journal").best_trial
    stored = json.loads((swept / "trials" / f"{best.number:04d}" / "config.json").read_text())["config"]
    assert main([*flags[3:], "--steps", "1"]) == 0
    again = json.loads((swept.with_name("whole-best") / "config.json").read_text())["config"]
    for part in ("model", "batch_size", "eval_every"):
        assert again[part] == stored[part]
    assert again["optimizer"]["learning_rate"] == stored["optimizer"]["learning_rate"]


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_worker_is_resumed_and_nothing_counts_twice(swept, tmp_path, number):
    process = worker(tmp_path / "sweep", 2)
    metrics, end = tmp_path / "sweep" / "trials" / "0001" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and "validation" in metrics.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(number)
    out = process.communicate()[0]
    if trials_of(tmp_path / "sweep")[1].state == TrialState.RUNNING:  # else it was done before the signal came
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), out
    assert main(arguments(tmp_path / "sweep", 3)) == 0
    trials = trials_of(tmp_path / "sweep")
    assert results(trials) == results(trials_of(swept)[:3])
    assert [len(trial.user_attrs["starts"]) for trial in trials] == [1, 2, 1]


def test_two_workers_share_one_storage(tmp_path):
    storage = tmp_path / "shared.journal"
    workers = [worker(tmp_path / "sweep", 3, "--storage", storage) for _ in range(2)]
    outs = [process.communicate(timeout=200)[0] for process in workers]
    assert [process.returncode for process in workers] == [0, 0], outs
    ran = [re.findall(r"^trial (\d+): score", out, re.MULTILINE) for out in outs]
    assert all(ran)
    assert sorted(ran[0] + ran[1]) == ["0", "1", "2"]
    trials = study_of(storage).get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert len({trial.params["optimizer.learning-rate"] for trial in trials}) == 3


def test_failures_are_recorded_and_the_sweep_goes_on(tmp_path, capsys):
    space = ["optimizer.learning-rate=choice:1e-3,1e30", "optimizer.accumulate=choice:1,3"]
    assert main(arguments(tmp_path, 30, "--sampler", "grid", "--pruner", "none", space=space)) == 0
    trials = trials_of(tmp_path)
    found = {tuple(trial.params.values()): trial for trial in trials}
    assert len(found) == len(trials) == 4  # the whole grid, each once
    for (rate, accumulate), trial in found.items():
        assert (trial.state == TrialState.COMPLETE) == (rate == "1e-3" and accumulate == "1")
        if accumulate == "3":
            assert "not divisible by optimizer.accumulate 3" in trial.user_attrs["reason"]
        elif rate == "1e30":
            assert "finite" in trial.user_attrs["reason"]
    assert capsys.readouterr().err.count("failed: ") == 3


def test_a_trial_whose_workers_die_at_one_step_fails(swept, tmp_path):
    """As where the system ends a process that takes too much memory."""
    assert main(arguments(tmp_path, 1)) == 0
    trial = study_of(tmp_path / "sweep.journal").ask()
    trial.set_user_attr("starts", [0] * MOST_DEATHS)
    assert main(arguments(tmp_path, 2)) == 0
    assert trials_of(tmp_path)[1].state == TrialState.FAIL
    assert f"died {MOST_DEATHS} times at step 0" in trials_of(tmp_path)[1].user_attrs["reason"]


def test_a_line_that_a_kill_cut_short_is_cut_off(swept):
    before = results(trials_of(swept))
    with (swept / "sweep.journal").open("ab") as journal:
        journal.write(b'{"op_code":4,"worker')
    assert main(arguments(swept, 8)) == 0
    study_of(swept / "sweep.journal").set_user_attr("note", "a later line")
    assert results(trials_of(swept)) == before


MISTAKES = [
    (["optimizer.learning-rat=log:1e-4:1e-1"], [], "did you mean optimizer.learning-rate"),
    (["model.args.hidden_siz=int:4:8"], [], "did you mean hidden_size"),
    (["optimizer.learning-rate=log:0:1"], [], "log needs numbers above 0"),
    (["optimizer.learning-rate=choice:a,b"], [], "does not take optimizer.learning-rate=a"),
    (["optimizer.learning-rate=0.1"], [], "space must be name=log:LOW:HIGH"),
    (["workdir=choice:a,b"], [], "workdir cannot be in the space"),
    (SPACE, ["--sampler", "grid"], "sampler grid needs choice or int"),
    (SPACE, ["--trials", "0"], "trials must be at least 1"),
    (SPACE, ["--batch-size", "8"], "batch_size was 16, not 8"),
    (SPACE[:1], [], "is of another search"),
    (SPACE, ["--data.name", "no-such-set"], "no-such-set"),
]


@pytest.mark.parametrize(("space", "more", "message"), MISTAKES, ids=[mistake[2] for mistake in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_the_study_as_it_was(swept, capsys, space, more, message):
    before = (swept / "sweep.journal").read_bytes()
    assert main([*arguments(swept, 9, space=space), *more]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert (swept / "sweep.journal").read_bytes() == before


def test_a_storage_of_another_recipe_is_refused(swept, tmp_path, capsys):
    flags = ["--space", SPACE[0], "--storage", str(swept / "sweep.journal"), "--workdir", str(tmp_path / "other")]
    assert main(["sweep", "vit", *flags]) == 2
    assert "is of another recipe: cnn, not vit" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"SQLite format 3\0", b'{"a": 1}\n', b"[1]\n"])
def test_a_storage_that_is_no_journal_is_refused(tmp_path, capsys, content):
    (tmp_path / "sweep.db").write_bytes(content)
    assert main(arguments(tmp_path / "sweep", 1, "--storage", str(tmp_path / "sweep.db"))) == 2
    assert "is no journal of a sweep" in capsys.readouterr().err
    assert (tmp_path / "sweep.db").read_bytes() == content


def test_settings_of_the_space_go_through_the_command_line():
    base = recipe_config("cnn")[1]
    values = {"model.args.widths": "(4,8)", "optimizer.learning-rate": 0.5, "task.balance-classes": "true"}
    config = with_values(base, values | {"patience": 3, "log.tensorboard": "false"})
    assert config.model.args == {"hidden_size": 128, "widths": (4, 8)}
    assert (config.optimizer.learning_rate, config.patience) == (0.5, 3)
    assert config.task.balance_classes
    assert not config.log.tensorboard
    assert config.data == base.data


def test_choices_may_have_commas_in_brackets():
    assert parse_space(["model.args.widths=choice:(16,32),(8,)"])["model.args.widths"].choices == ("(16,32)", "(8,)")
    with pytest.raises(ZooError, match="twice"):
        parse_space(["a=int:1:2", "a=int:1:3"])


def test_optuna_and_wandb_load_only_where_they_are_asked_for():
    code = "import sys, train, train.loop, train.commands.report, train.commands.sweep; from train.__main__ import main"
    code += "; print([name for name in ('optuna', 'wandb') if name in sys.modules])"
    code += "; sys.modules['optuna'] = None; sys.exit(main(['sweep', 'cnn', '--space', 'steps=int:1:2']))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "[]"
    assert done.returncode == 2
    assert done.stderr == "error: a sweep needs the extra: pip install 'flaxzoo[sweep]'\n"
