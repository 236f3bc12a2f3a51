"""What tests of training share: runs of `python -m train` in processes of their own, their folders, one loss."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import train
from train.evaluate import Evaluator
from train.forward import Forward
from train.tasks.task import Extra

ROOT = pathlib.Path(__file__).parents[2]
TINY = ["--model.args", "widths=(4,)", "hidden_size=16", "--steps", "120", "--eval-every", "10", "--log.every", "7"]
TINY += ["--batch-size", "16", "--log.no-tensorboard"]

# Sums over a batch of 16 are taken in another order on eight devices than on one: rounding, not other arithmetic.
TOLERANCE = 2e-5


def assert_close(a, b, tolerance=TOLERANCE):
    """Asserts that arrays are equal; `tolerance` is relative to the largest value of each of `a`."""
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        scale = max(np.abs(x).max(), 1e-3)
        assert np.abs(x - y).max() <= tolerance * scale, jax.tree_util.keystr(path)


def command(*args):
    return [sys.executable, "-m", "train", *map(str, args)]


def environment(devices=1):
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": str(ROOT)}


def start(*args, devices=1):
    """A run in the background, its output in pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*args), env=environment(devices), **pipes)


def finish(*args, devices=1, status=0):
    """A run to its end; asserts its exit status and returns the finished process."""
    done = subprocess.run(command(*args), env=environment(devices), capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def fingerprint(workdir):
    """What must not change by a kill and a resume: digests of all arrays, metrics, result, exported weights."""
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
    metas = {
        step: json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text()) for step in steps
    }
    result = json.loads((workdir / "result.json").read_text())
    del result["seconds"]
    export = (workdir / "export" / "model.safetensors").read_bytes()
    return metas, (workdir / "metrics.jsonl").read_text(), result, export


def assert_resumes(whole, config, folder):
    """Trains in two halves what `whole` trained at once; asserts that digests, metrics and exports are equal, bit for
    bit.

    Returns the meta of the undisturbed run's last checkpoint.
    """
    half = dataclasses.replace(config, workdir=str(folder))
    decay = dataclasses.replace(config.optimizer, decay_steps=config.steps)
    train.run(dataclasses.replace(half, steps=config.steps // 2, optimizer=decay))
    train.run(dataclasses.replace(half, resume=True, optimizer=decay))
    metas, metrics, _, export = fingerprint(whole)
    resumed_metas, resumed_metrics, _, resumed_export = fingerprint(folder)
    assert resumed_metas[config.steps]["digests"] == metas[config.steps]["digests"]
    assert (resumed_metrics, resumed_export) == (metrics, export)
    return metas[config.steps]


class Constant(nn.Module):
    """A model whose output is its parameter `logits`, whatever its input."""

    def __call__(self, *args, **kwargs):
        return self.get_variable("params", "logits")


def loss_of(task, inputs, logits, batch, train):
    """The task's loss of a batch, by a model that returns `logits`."""
    key = jax.random.key(0)
    forward = Forward(Constant(), inputs, {"params": {"logits": jnp.asarray(logits)}}, key=key if train else None)
    return task.loss(forward, batch, Extra(), key, train)


def evaluated(task, model, inputs, layout, batch_size, variables, split):
    """The task's metrics of plain `variables` on a split."""
    evaluator = Evaluator(task, model, inputs, layout, batch_size)
    return evaluator(layout.put_state(variables), split, final=False, passing=lambda done, total: None)
