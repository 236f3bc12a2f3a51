"""`python -m benchmarks run`: measures the cases that the docs quote."""

import dataclasses
import fnmatch
import shlex
import subprocess
import sys

from tyro.conf import Positional

from benchmarks import cases
from benchmarks.suite import benchmarks
from zoo.errors import ZooError, unknown


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Measures the quoted cases of one or several benchmarks, each case in its own process."""

    names: Positional[tuple[str, ...]]  # benchmarks, or shell patterns: python -m benchmarks run '*'
    dry: bool = False  # only print the commands


def run(config: RunConfig) -> None:
    """ZooError for a name that matches no benchmark with cases, and at the end if a case failed."""
    known = [name for name in benchmarks() if cases.of(name)]
    chosen: dict[str, None] = {}
    for pattern in config.names or ("",):
        matching = fnmatch.filter(known, pattern)
        if not matching:
            raise unknown("benchmark with cases", pattern, known)
        chosen |= dict.fromkeys(matching)
    found = [command for name in chosen for command in cases.of(name)]
    failed = []
    print(f"{len(found)} commands", flush=True)
    for command in found:
        print(f"python -m benchmarks {command}", flush=True)
        if not config.dry:
            done = subprocess.run([sys.executable, "-m", "benchmarks", *shlex.split(command)], check=False)
            failed += [command] if done.returncode else []
    if failed:
        raise ZooError(f"{len(failed)} failed: {'; '.join(failed)}")
