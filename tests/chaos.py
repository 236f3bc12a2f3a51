"""python -m tests.chaos: runs disturbed at random moments and resumed, compared bit for bit with undisturbed ones.

Every attempt is a process of its own, forked from this one before JAX is asked for devices. A thread in it waits until
a phase of the run begins (the data, the setup with its restore, the first compile, a step, an evaluation, a save, the
report), then for a random while, and then applies one kind of fault to the process or to its folder:

    kill, terminate, terminate twice    SIGKILL, SIGTERM, two SIGTERM
    full disk                           the run lies on a tmpfs of 16 MB, which is filled to a few kB (needs root)
    file limit                          RLIMIT_FSIZE: no file grows beyond a few kB
    read-only folder                    folders lose their write permission; root loses CAP_DAC_OVERRIDE beforehand
    second run                          SIGSTOP, while another run in the same folder must be refused; SIGCONT
    clock                               Python's time.time and the files' times go back by days, then SIGKILL; the run
                                        that resumes has its clock set back as well
    truncate, zero, remove, flip a bit  SIGKILL, and then one file of the newest checkpoint, if there is another

Kinds and moments come from one shuffled deck of all combinations, in which a seed gives the first card; recipe,
occurrence and delay are random. One of the recipes runs on a mesh of eight virtual devices.

Then the run is resumed. It must end with status 0; no attempt may show a traceback or report a step as saved that has
no checkpoint; and the last checkpoint's digests (parameters, optimizer, carried state), metrics.jsonl, result.json
except its seconds, and the exported weights must equal those of the undisturbed run. Exit status 1 if any differs.
"""

import argparse
import collections
import contextlib
import ctypes
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import matplotlib.pyplot  # noqa: F401 - what a run imports, imported once before the forks
import orbax.checkpoint  # noqa: F401
import sklearn.datasets  # noqa: F401
import tyro  # noqa: F401

import train.events
import train.loop  # noqa: F401
from benchmarks.timer import append_row, circumstances
from train.__main__ import main
from train.timing import Phases
from zoo.checkpoints import step_folders

ROOT = pathlib.Path(__file__).parents[1]
OFTEN = ["--steps", "120", "--eval-every", "10", "--log.every", "7", "--batch-size", "16"]
RECIPES = {
    "cnn": ["cnn", "--model.args", "widths=(4,)", "hidden_size=16", *OFTEN],
    "lstm": [
        "lstm",
        "--model.args",
        "hidden_size=16",
        "--data.path",
        str(ROOT / "LICENSE"),
        "--data.context",
        "8",
        "--log.no-tensorboard",
        *OFTEN,
    ],
    "mesh": ["cnn", "--model.args", "widths=(4,)", "hidden_size=1040", "--mesh", "data=2,fsdp=4", *OFTEN],
}  # each device has a part of the last one's first dense kernel
MOMENTS = {"start": 1, "setup": 1, "compile": 1, "train": 150, "evaluate": 12, "checkpoint": 12, "report": 1}  # times
DAMAGES = ("truncate", "zero", "remove", "flip a bit")
SIGNALS = ("kill", "terminate", "terminate twice")
FAULTS = (*SIGNALS, "full disk", "file limit", "read-only folder", "second run", "clock", *DAMAGES)
LIMIT = 600  # seconds that an attempt may take
DRAWS = 20  # of recipe, occurrence and delay, for a combination whose moment did not come


def combinations() -> list[tuple[str, str]]:
    """Every kind of fault at every moment that it goes with, always in the same random order."""
    kinds_of = {"start": SIGNALS, "setup": SIGNALS, "compile": SIGNALS}
    kinds_of["report"] = tuple(kind for kind in FAULTS if kind not in ("second run", *DAMAGES))
    found = [(kind, moment) for moment in MOMENTS for kind in kinds_of.get(moment, FAULTS)]
    random.Random(0).shuffle(found)
    return found


class Fault:
    """A fault of an attempt: `kind`, `delay` seconds after the phase `moment` begins for the `occurrence`-th time."""

    def __init__(self, kind: str, moment: str, rng: random.Random):
        self.kind, self.moment = kind, moment
        self.occurrence = rng.randint(
            3 if self.kind in DAMAGES and MOMENTS[self.moment] > 1 else 1, MOMENTS[self.moment]
        )
        self.delay, self.left, self.days = rng.uniform(0, 0.08), rng.randint(0, 64) * 1024, rng.uniform(0, 1000)

    def arm(self, workdir: pathlib.Path, fired: pathlib.Path) -> None:
        """Prepares the fault in this process, which is about to train."""
        if self.moment == "start":
            threading.Thread(target=self._strike, args=(workdir, fired), daemon=True).start()
            return
        enter, seen = Phases.__call__, collections.Counter()

        def entering(phases: Phases, name: str):
            seen[name] += 1
            if name == self.moment and seen[name] == self.occurrence:
                threading.Thread(target=self._strike, args=(workdir, fired), daemon=True).start()
            return enter(phases, name)

        Phases.__call__ = entering

    def _strike(self, workdir: pathlib.Path, fired: pathlib.Path) -> None:
        time.sleep(self.delay)
        fired.write_text(str(time.monotonic()))
        if self.kind.startswith("terminate"):
            for _ in range(1 + ("twice" in self.kind)):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.02)
        elif self.kind == "full disk":
            free = os.statvfs(workdir.parent)
            with contextlib.suppress(OSError), (workdir.parent / "ballast").open("wb", 0) as ballast:
                ballast.write(b"x" * max(free.f_bavail * free.f_frsize - self.left, 0))
        elif self.kind == "file limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.left, resource.RLIM_INFINITY))
        elif self.kind == "read-only folder":
            chmod_folders(workdir, 0o555)
        elif self.kind == "second run":
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            if self.kind == "clock":
                self.set_clock_back()
                for folder, _, names in os.walk(workdir):
                    for name in names:
                        with contextlib.suppress(FileNotFoundError):  # the run goes on, and removes temporary files
                            os.utime(os.path.join(folder, name), (0, time.time()))
                time.sleep(self.delay)
            os.kill(os.getpid(), signal.SIGKILL)

    def set_clock_back(self) -> None:
        before = time.time
        time.time = lambda: before() - self.days * 86400


class Campaign:
    """Disturbed runs in a folder, beside an undisturbed one of each recipe."""

    def __init__(self, base: pathlib.Path, seed: int):
        self.base, self.rng, self.disk = base, random.Random(seed), base / "disk"
        self.left_out: collections.Counter = collections.Counter()
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(self.disk)]
        self.mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        self.whole = {}
        for name, args in RECIPES.items():
            status, output = self.attempt(base / name / "run", args, base / "cache")
            assert status == 0, output
            self.whole[name] = fingerprint(base / name / "run")

    def disturbed_run(self, kind: str, moment: str) -> dict[str, str | float] | None:
        """One run with one fault, resumed; drawn anew if its moment did not come. None, which is counted, if it never
        comes."""
        if kind == "full disk" and not self.mounted:
            self.left_out["full disk, since nothing can be mounted here"] += 1
            return None
        for _ in range(DRAWS):
            recipe, fault = self.rng.choice(list(RECIPES)), Fault(kind, moment, self.rng)
            place = (self.disk if kind == "full disk" else self.base) / "disturbed"
            cache = place / "cache" if moment == "compile" else self.base / "cache"
            row = self._disturb(recipe, fault, place, cache)
            shutil.rmtree(place)
            if row is not None:
                return {"recipe": recipe, "fault": kind, "moment": moment, **row}
        self.left_out[f"{kind} at {moment}, which never came"] += 1
        return None

    def _disturb(self, recipe: str, fault: Fault, place: pathlib.Path, cache: pathlib.Path) -> dict | None:
        workdir, args = place / "run", RECIPES[recipe]
        status, output = self.attempt(workdir, args, cache, fault)
        if not (place / "fired").exists():
            return None
        seconds = time.monotonic() - float((place / "fired").read_text())
        reported = re.search(r"stopped by \w+ at step (\d+); saved", output)
        unsaved = reported is not None and not (workdir / "checkpoints" / reported[1]).is_dir()
        if fault.kind in DAMAGES:
            steps = sorted(step_folders(workdir / "checkpoints"))
            if len(steps) < 2:
                return None
            damage(fault.kind, workdir / "checkpoints" / str(steps[-1]), self.rng)
        (place / "ballast").unlink(missing_ok=True)
        chmod_folders(workdir, 0o755)
        again, more = self.attempt(workdir, [*args, "--resume"], cache, fault, resumes=True)
        resumed = [line.split()[3].rstrip(":") for line in more.splitlines() if line.startswith("resumed at step")]
        outcome = "same"
        if again != 0:
            outcome = "lost"
        elif unsaved:
            outcome = "not saved"
        elif "Traceback" in output + more:
            outcome = "traceback"
        elif fingerprint(workdir) != self.whole[recipe]:
            outcome = "different"
        if outcome != "same":
            print(f"{vars(fault)}\n{output}\nstatus {status}, resumed:\n{more}\nstatus {again}")
        ended = f"signal {-status}" if status < 0 else f"status {status}"
        return {"ended": ended, "seconds": seconds, "resumed": resumed[-1] if resumed else "anew", "outcome": outcome}

    def attempt(self, workdir, args, cache, fault=None, resumes=False) -> tuple[int, str]:
        """Trains in a process; returns its exit status (the negative number of a signal) and its output.

        The fault is of this attempt, or, where it `resumes`, of the attempt before it.
        """
        workdir.parent.mkdir(parents=True, exist_ok=True)
        log = workdir.parent / "output"
        behind = fault if resumes and fault.kind == "clock" else None
        fault = None if resumes else fault
        child = fork([*args, "--workdir", str(workdir)], log, cache, fault, behind)
        end, fired = time.monotonic() + LIMIT, log.with_name("fired")
        second_run = fault is not None and fault.kind == "second run"  # a stop of another cause ends by itself
        ended = 0, 0
        while ended[0] == 0 or (os.WIFSTOPPED(ended[1]) and not (second_run and fired.exists())):
            ended = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                print(f"an attempt took more than {LIMIT} s and was killed")
            time.sleep(0.01)
        if os.WIFSTOPPED(ended[1]):
            second = fork([*args, "--resume", "--workdir", str(workdir)], log.with_name("second"), cache, None)
            refusal = os.waitstatus_to_exitcode(os.waitpid(second, 0)[1])
            os.kill(child, signal.SIGCONT)
            ended = os.waitpid(child, 0)
            message = log.with_name("second").read_text()
            assert refusal == 2, message
            assert "another run is at work" in message, message
        return os.waitstatus_to_exitcode(ended[1]), log.read_text()


def fork(
    args: list[str], log: pathlib.Path, cache: pathlib.Path, fault: Fault | None, behind: Fault | None = None
) -> int:
    """The id of a process that runs `python -m train` with these arguments and its output in `log`; with the fault
    `behind`, its clock is set back."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        devices = 8 if "--mesh" in args else 1
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        if behind is not None:
            behind.set_clock_back()
        if fault is not None:
            if fault.kind == "read-only folder":
                drop_root_powers()
            fault.arm(pathlib.Path(args[-1]), log.with_name("fired"))
        status = main(args)
    except SystemExit as leaving:
        status = leaving.code
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def drop_root_powers() -> None:
    """Makes write permissions of folders hold for root's process too, and for the threads that it starts."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    words = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.capget(header, words)
    words[0] &= ~(1 << 1)  # effective: CAP_DAC_OVERRIDE
    libc.capset(header, words)


def damage(kind: str, checkpoint: pathlib.Path, rng: random.Random) -> None:
    """Damages a random file of a checkpoint that is not empty."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    if kind == "remove":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "zero":
        path.write_bytes(bytes(len(content)))
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


def chmod_folders(workdir: pathlib.Path, mode: int) -> None:
    for folder, _, _ in os.walk(workdir):
        with contextlib.suppress(FileNotFoundError):
            os.chmod(folder, mode)


def fingerprint(workdir: pathlib.Path) -> tuple:
    """What must be the same: digests of the last state, metrics, result, exported weights."""
    last = workdir / "checkpoints" / str(max(step_folders(workdir / "checkpoints")))
    digests = json.loads((last / "meta" / "metadata").read_text())["digests"]
    result = json.loads((workdir / "result.json").read_text())
    del result["seconds"]
    export = (workdir / "export" / "model.safetensors").read_bytes()
    return last.name, digests, (workdir / "metrics.jsonl").read_text(), result, export


def campaign(runs: int, seed: int, output: str | None) -> int:
    """Runs and prints; with `output`, appends a row per recipe, fault and moment to a CSV. 1 if any run differs."""
    rows, deck = [], combinations()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(pathlib.Path(folder), seed)
        try:
            for number in range(seed * runs, (seed + 1) * runs):
                row = campaign.disturbed_run(*deck[number % len(deck)])
                if row is None:
                    continue
                rows.append(row)
                print(
                    f"{len(rows)}/{runs}  "
                    + "  ".join(
                        f"{name} {value:.4}" if isinstance(value, float) else value for name, value in row.items()
                    ),
                    flush=True,
                )
        finally:
            if campaign.mounted:
                subprocess.run(["umount", str(campaign.disk)], check=True)
    same = sum(row["outcome"] == "same" for row in rows)
    print(f"{same} of {len(rows)} runs ended as the undisturbed ones (seed {seed})")
    for what, times in campaign.left_out.items():
        print(f"left out, {times} times: {what}")
    if output:
        about = {**circumstances(), "command": f"python -m tests.chaos --runs {runs} --seed {seed}"}
        kinds = sorted({(row["recipe"], row["fault"], row["moment"]) for row in rows})
        for kind in kinds:
            found = [row for row in rows if (row["recipe"], row["fault"], row["moment"]) == kind]
            counts = {"runs": len(found), "same": sum(row["outcome"] == "same" for row in found)}
            counts |= {"ended": "; ".join(sorted({row["ended"] for row in found}))}
            longest = max(row["seconds"] for row in found)
            named = dict(zip(("recipe", "fault", "moment"), kind, strict=True))
            append_row(pathlib.Path(output), {**named, **counts, "longest_s": longest, "seed": seed, **about})
    return int(same < len(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="disturbed runs")
    parser.add_argument("--seed", type=int, default=0, help="of the first card and of all draws")
    parser.add_argument("--output", help="the CSV to append the table to; default: only print")
    options = parser.parse_args()
    sys.exit(campaign(options.runs, options.seed, options.output))
