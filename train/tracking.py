"""Weights & Biases: the metrics, settings and pictures of a run. What fails here is a warning and ends no training."""

import importlib.util
import pathlib
import secrets
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from zoo.errors import ZooError, first_line

ID = "wandb_id"  # the file of the run's id in its folder


def check_wandb() -> None:
    """ZooError where the package is missing."""
    if importlib.util.find_spec("wandb") is None:
        raise ZooError("log.wandb needs the extra: pip install 'flaxzoo[wandb]'; --log.wandb None does without")


class Tracking:
    """A run of W&B, which a resumed run continues by the id in its folder. `config` is what it shows as settings."""

    def __init__(self, project: str, workdir: pathlib.Path, config: Mapping[str, Any]):
        self._run: Any = None
        self._guarded(lambda: self._start(project, workdir, config))

    def _start(self, project: str, workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
        import wandb

        path = workdir / ID
        known = path.read_text().split() if path.is_file() else []
        if len(known) != 2 or known[0] != project:
            known = [project, secrets.token_hex(4)]
            path.write_text(" ".join(known) + "\n")
        self._run = wandb.init(
            project=project,
            id=known[1],
            name="/".join(workdir.parts[-2:]),
            dir=workdir,
            config=dict(config),
            resume="allow",
            reinit="create_new",  # several runs in one process, as in a sweep
            settings=wandb.Settings(console="off", silent=True),
        )
        self._first = self._run.step  # a resumed run has the steps before it

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Metrics of a step; those that the run has from before it was resumed are equal and left out."""
        if self._run is not None and step >= self._first:
            self._guarded(lambda: self._run.log(dict(metrics), step=step))

    def pictures(self, paths: Mapping[str, pathlib.Path]) -> None:
        """Pictures by name, after the last step."""

        def send() -> None:
            import wandb

            self._run.log({name: wandb.Image(str(path)) for name, path in paths.items()})

        if self._run is not None and paths:
            self._guarded(send)

    def close(self, failed: bool) -> None:
        if self._run is not None:
            self._guarded(lambda: self._run.finish(exit_code=int(failed)))

    def _guarded(self, call: Callable[[], None]) -> None:
        """Calls; the first failure is a warning and the last call."""
        try:
            call()
        except Exception as error:
            self._run = None
            warnings.warn(f"Weights & Biases is off from here on: {first_line(error)}", stacklevel=4)
