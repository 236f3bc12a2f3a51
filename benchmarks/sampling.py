"""A recurrent language model's sampling, token by token, beside a PyTorch loop of the same model, in turn."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

import zoo
from benchmarks.timer import RESULTS, append_row, circumstances, cores, in_turn
from train.config import at_least
from zoo.ops.recurrence import Cell


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Times sampling, batch 1 and one token after the other, beside a PyTorch loop of the same model."""

    cell: Cell = "lstm"  # lstm, gru or rnn
    num_layers: int = 2  # layers
    hidden_size: int = 512  # width of layers and embedding
    vocab_size: int = 65  # symbols
    length: int = 500  # tokens a call
    rounds: int = 10  # turns of each
    seed: int = 0  # of weights and draws
    output: str = str(RESULTS / "sampling.csv")  # the CSV to append to


def run(config: SamplingConfig) -> dict[str, Any]:
    """Measures, prints and appends one row; returns it."""
    for name in ("num_layers", "hidden_size", "vocab_size", "length", "rounds"):
        at_least(name.replace("_", "-"), getattr(config, name), 1)
    import torch

    from benchmarks.torch_recurrent import torch_model
    from zoo.decode import sample

    names = ("vocab_size", "hidden_size", "num_layers")
    model = zoo.create_model(f"{config.cell}_lm", **{name: getattr(config, name) for name in names})
    variables = jax.jit(model.init)(jax.random.key(config.seed), np.zeros((1, 2), np.int32))
    peer = torch_model(model, variables).eval()
    torch.set_num_threads(cores())
    generator = torch.Generator().manual_seed(config.seed)

    def ours() -> None:
        for _ in sample(model, variables, np.zeros((1, 1), np.int32), config.length, seed=config.seed):
            pass

    @torch.inference_mode()
    def theirs() -> None:
        token, state = torch.zeros((1, 1), dtype=torch.int64), None
        for _ in range(config.length):
            logits, state = peer.step(token, state)
            token = torch.multinomial(torch.softmax(logits[:, 0], dim=-1), 1, generator=generator)

    contest = in_turn({"ours": ours, "torch": theirs}, config.rounds)
    row = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("output", "rounds", "seed")}
    for name in contest.seconds:
        fast, median, slow = (config.length / seconds for seconds in contest.percentiles(name))
        row |= {f"{name}_tokens_per_s": median, f"{name}_p10": slow, f"{name}_p90": fast}
    low, ratio, high = contest.ratio("torch", "ours")
    row |= {"speedup": ratio, "speedup_p10": low, "speedup_p90": high}
    row |= {**contest.machine(), "rounds": config.rounds, "seed": config.seed, **circumstances()}
    print(
        f"{config.cell} {config.num_layers}x{config.hidden_size} sampling: ours {row['ours_tokens_per_s']:,.0f} "
        f"characters/s, torch {row['torch_tokens_per_s']:,.0f}; {ratio:.2f} times as fast ({low:.2f} to {high:.2f}); "
        f"{contest.remark()}"
    )
    append_row(pathlib.Path(config.output), row)
    return row
