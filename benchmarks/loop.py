"""Times the training loop against its compiled step alone: batches, transfers, metrics and log lines."""

import contextlib
import dataclasses
import io
import pathlib
import tempfile
from typing import Any

import jax

from benchmarks.timer import RESULTS, append_row, circumstances, in_turn
from train import run_folder
from train.first_weights import load_data
from train.interrupt import Stop
from train.loop import Trainer
from train.recipes import load_recipe
from train.settings import at_least
from train.timing import Phases


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Times a recipe's loop, with logging, against its step alone on one batch that is already on the device."""

    recipe: str = "cnn"  # a recipe: python -m train list
    steps: int = 300  # per block, without evaluation; rounded up to end with a log line
    rounds: int = 10  # rounds
    output: str = str(RESULTS / "loop.csv")  # the CSV to append to


def run(config: LoopConfig) -> dict[str, Any]:
    """Measures, prints and appends one row; returns it. `overhead` is the loop's seconds over the step's."""
    at_least("steps", config.steps, 1)
    never = 10**9
    with tempfile.TemporaryDirectory() as workdir:
        settings = dataclasses.replace(
            load_recipe(config.recipe).config(), workdir=workdir + "/run", steps=never, eval_every=never
        )
        settings, path, _ = run_folder.take(settings)
        steps = -(-config.steps // settings.log.every) * settings.log.every
        dataset = load_data(settings, None)
        with Trainer(settings, path, dataset, Phases()) as trainer, Stop() as stop:
            batch = trainer.layout.put_batch(trainer.batches(0))

            def bare() -> None:
                for _ in range(steps):
                    trainer.state, metrics = trainer.train_step(trainer.state, batch)
                jax.block_until_ready((trainer.state, metrics))

            def loop() -> None:
                with contextlib.redirect_stdout(io.StringIO()):
                    trainer.train(stop, until=trainer.step + steps)
                jax.block_until_ready(trainer.state)

            contest = in_turn({"loop": loop, "bare": bare}, config.rounds)
    low, median, high = contest.ratio("loop", "bare")
    row: dict[str, Any] = {"recipe": config.recipe, "batch_size": settings.batch_size, "steps": steps}
    for name in contest.seconds:
        fastest, typical, slowest = (steps * settings.batch_size / value for value in contest.percentiles(name))
        row |= {f"{name}_examples_per_s": typical, f"{name}_p10": slowest, f"{name}_p90": fastest}
    row |= {"overhead": median, "overhead_p10": low, "overhead_p90": high, **contest.machine()}
    row |= {"rounds": config.rounds, "seed": settings.seed, **circumstances()}
    print(
        f"{config.recipe}: loop {row['loop_examples_per_s']:,.0f} examples/s, step alone "
        f"{row['bare_examples_per_s']:,.0f}; the loop's time is {median:.3f} of the step's ({low:.3f} to {high:.3f}); "
        f"{contest.remark()}"
    )
    append_row(pathlib.Path(config.output), row)
    return row
