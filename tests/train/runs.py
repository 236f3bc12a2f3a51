"""Runs of `python -m train` in processes of their own, and what they leave behind."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np

import train

ROOT = pathlib.Path(__file__).parents[2]
TINY = ["--model.args", "widths=(4,)", "hidden_size=16", "--steps", "120", "--eval-every", "10", "--log.every", "7"]
TINY += ["--batch-size", "16", "--log.no-tensorboard"]

# Sums over a batch of 16 are taken in another order on eight devices than on one: rounding, not other arithmetic.
TOLERANCE = 2e-5


def assert_close(a, b, tolerance=TOLERANCE):
    """Every array of `b` is that of `a`, to a part of its largest value."""
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
    """All that must be the same after a kill: every array's digest, the metrics, the exported weights."""
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
    metas = {
        step: json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text()) for step in steps
    }
    result = json.loads((workdir / "result.json").read_text())
    del result["seconds"]
    export = (workdir / "export" / "model.safetensors").read_bytes()
    return metas, (workdir / "metrics.jsonl").read_text(), result, export


def resumed_like(whole, config, folder):
    """Trains in two halves what was trained to its end in `whole`; asserts that all is the same to the bit.

    Returns what the last checkpoint says of the undisturbed run.
    """
    half = dataclasses.replace(config, workdir=str(folder))
    decay = dataclasses.replace(config.optimizer, decay_steps=config.steps)
    train.run(dataclasses.replace(half, steps=config.steps // 2, optimizer=decay))
    train.run(dataclasses.replace(half, resume=True, optimizer=decay))
    metas, metrics, _, export = fingerprint(whole)
    again, resumed_metrics, _, resumed_export = fingerprint(folder)
    assert again[config.steps]["digests"] == metas[config.steps]["digests"]
    assert (resumed_metrics, resumed_export) == (metrics, export)
    return metas[config.steps]
