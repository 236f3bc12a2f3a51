"""Times sampling from a recurrent language model, token by token, beside a PyTorch loop of the same model."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import zoo
from benchmarks.timer import (
    RESULTS,
    append_row,
    circumstances,
    fastest,
    in_turn,
    synchronized,
    torch_device,
    torch_or_none,
)
from train.settings import at_least
from zoo.decode import sample
from zoo.errors import ZooError
from zoo.ops.recurrence import Cell

CHECKED = 32  # tokens whose logits must agree
TOLERANCE = 1e-3  # relative to the largest logit; a GPU multiplies float32 with less precision


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Times sampling at batch 1, token by token, beside a PyTorch loop of the same model."""

    cell: Cell = "lstm"  # lstm, gru or rnn
    num_layers: int = 2  # layers
    hidden_size: int = 512  # width of layers and embedding
    vocab_size: int = 65  # vocabulary
    length: int = 500  # tokens per call
    rounds: int = 10  # rounds
    seed: int = 0  # of weights and sampling
    output: str = str(RESULTS / "sampling.csv")  # the CSV to append to


def run(config: SamplingConfig) -> dict[str, Any]:
    """Measures, prints and appends one row; returns it."""
    for name in ("num_layers", "hidden_size", "vocab_size", "length", "rounds"):
        at_least(name.replace("_", "-"), getattr(config, name), 1)
    at_least("seed", config.seed, 0)
    names = ("vocab_size", "hidden_size", "num_layers")
    model = zoo.create_model(f"{config.cell}_lm", **{name: getattr(config, name) for name in names})
    variables = jax.jit(model.init)(jax.random.key(config.seed), np.zeros((1, 2), np.int32))

    def ours() -> None:
        for _ in sample(model, variables, np.zeros((1, 1), np.int32), config.length, seed=config.seed):
            pass

    peers = peer_sampling(config, model, variables)
    works = {"ours": ours} | ({"torch": peers[fastest(peers)]} if peers else {})
    contest = in_turn(works, config.rounds)
    row: dict[str, Any] = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("output", "rounds", "seed")}
    for name in ("ours", "torch"):
        fast, median, slow = contest.percentiles(name) if name in works else (np.nan,) * 3
        row[f"{name}_tokens_per_s"] = config.length / median
        row |= {f"{name}_p10": config.length / slow, f"{name}_p90": config.length / fast}
    low, ratio, high = contest.ratio("torch", "ours") if "torch" in works else (np.nan,) * 3
    row |= {"speedup": ratio, "speedup_p10": low, "speedup_p90": high}
    row |= {**contest.machine(), "rounds": config.rounds, "seed": config.seed, **circumstances()}
    print(
        f"{config.cell} {config.num_layers}x{config.hidden_size} sampling: ours {row['ours_tokens_per_s']:,.0f} "
        f"characters/s, torch {row['torch_tokens_per_s']:,.0f}; {ratio:.2f} times as fast ({low:.2f} to {high:.2f}); "
        f"{contest.remark()}"
    )
    append_row(pathlib.Path(config.output), row)
    return row


def peer_sampling(config: SamplingConfig, model: Any, variables: Any) -> dict[str, Callable[[], Any]]:
    """PyTorch loops, one over its layers and one over its cells; {} without torch, ZooError if the logits differ."""
    torch = torch_or_none()
    if torch is None:
        return {}
    from benchmarks.torch_recurrent import Cells, torch_model

    device = torch_device()
    peer = torch_model(model, variables).eval().to(device)
    generator = torch.Generator(device).manual_seed(config.seed)
    tokens = np.random.default_rng(config.seed).integers(0, config.vocab_size, (1, CHECKED))
    logits_of_ours, ways = model.apply(variables, tokens), {"layers": peer.step, "cells": Cells(peer).step}

    @torch.inference_mode()
    def sampled(step: Callable) -> None:
        token, state = torch.zeros((1, 1), dtype=torch.int64, device=device), None
        for _ in range(config.length):
            logits, state = step(token, state)
            token = torch.multinomial(torch.softmax(logits[:, 0], dim=-1), 1, generator=generator)
        synchronized(token)

    for step in ways.values():
        found, state = [], None
        with torch.inference_mode():
            for token in torch.from_numpy(tokens).to(device).T[:, :, None]:
                logits, state = step(token, state)
                found.append(logits.cpu().numpy())
        check_logits(logits_of_ours, np.concatenate(found, 1))
    return {name: functools.partial(sampled, step) for name, step in ways.items()}


def check_logits(ours: Any, theirs: np.ndarray) -> None:
    """ZooError unless the logits agree to TOLERANCE of the largest."""
    ours = np.asarray(ours)
    if not np.abs(ours - theirs).max() <= TOLERANCE * np.abs(ours).max():
        raise ZooError(f"not the same computation: logits differ from PyTorch's by {np.abs(ours - theirs).max():.3g}")
