"""A GPT's training step beside PyTorch's, in turn: from the same weights, on the same tokens, with Adam.

PyTorch's side is nanoGPT's arithmetic: pre-norm blocks without biases, exact GELU, its fused causal attention, a tied
head. Losses at step 0 and parameter counts must agree.
"""

import dataclasses
import pathlib
from typing import Any, Literal

import jax
import numpy as np

import zoo
from benchmarks.recurrent import LEARNING_RATE, our_step
from benchmarks.timer import RESULTS, append_row, circumstances, first_call, in_turn, torch_or_none
from benchmarks.train_step import Step, check_same
from train.config import at_least


@dataclasses.dataclass(frozen=True)
class DecoderStepConfig:
    """Times a GPT's training step beside PyTorch's, eager and compiled."""

    hidden_size: int = 128  # width
    num_layers: int = 4  # blocks
    num_heads: int = 4  # heads of attention
    batch_size: int = 12  # rows
    length: int = 64  # tokens a row
    vocab_size: int = 65  # symbols
    peers: Literal["both", "eager"] = "both"  # PyTorch under torch.compile too, or as it is alone
    rounds: int = 10  # turns of each
    seed: int = 0  # of weights and tokens
    output: str = str(RESULTS / "decoder_step.csv")  # the CSV to append to


def run(config: DecoderStepConfig) -> dict[str, Any]:
    """Measures, prints and appends one row; returns it. The ratio is our seconds over those of the faster peer."""
    for name in ("hidden_size", "num_layers", "num_heads", "batch_size", "length", "vocab_size", "rounds"):
        at_least(name.replace("_", "-"), getattr(config, name), 1)
    names = ("hidden_size", "num_layers", "num_heads", "vocab_size")
    model = zoo.create_model("nanogpt", max_length=config.length, **{name: getattr(config, name) for name in names})
    tokens = np.random.default_rng(config.seed).integers(0, config.vocab_size, (config.batch_size, config.length + 1))
    variables = jax.jit(model.init)(jax.random.key(config.seed), np.zeros((1, 2), np.int32))
    ours, flops, memory = our_step(config, model, variables, tokens)
    steps = {"ours": ours, **torch_steps(config, variables, tokens)}
    for name in steps:
        check_same(ours, steps[name])
    contest = in_turn({name: step.work for name, step in steps.items()}, config.rounds)
    row = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("output", "rounds", "seed", "peers")}
    row |= {"parameters": ours.parameters, "flops": flops, "ours_temporary_mb": memory / 2**20}
    for name in ("ours", "eager", "compile"):
        p10, median, p90 = contest.percentiles(name) if name in steps else (np.nan,) * 3
        row |= {f"{name}_ms": 1e3 * median, f"{name}_p10_ms": 1e3 * p10, f"{name}_p90_ms": 1e3 * p90}
    best = min((name for name in steps if name != "ours"), key=lambda name: contest.percentiles(name)[1], default="")
    row["peer"] = f"torch {best}" if best else ""
    row["ratio_p10"], row["ratio"], row["ratio_p90"] = contest.ratio("ours", best) if best else (np.nan,) * 3
    row |= {**contest.machine(), "rounds": config.rounds, "seed": config.seed, **circumstances()}
    print(
        f"GPT {config.num_layers}x{config.hidden_size} batch {config.batch_size} length {config.length}: ours "
        f"{row['ours_ms']:.1f} ms, torch {row['eager_ms']:.1f}, compiled {row['compile_ms']:.1f}; ratio "
        f"{row['ratio']:.3f} ({row['ratio_p10']:.3f} to {row['ratio_p90']:.3f}); {contest.remark()}"
    )
    append_row(pathlib.Path(config.output), row)
    return row


def torch_steps(config: DecoderStepConfig, variables: Any, tokens: np.ndarray) -> dict[str, Step]:
    """PyTorch's steps by name; {} without torch."""
    torch = torch_or_none()
    if torch is None:
        return {}
    inputs, targets = torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(tokens[:, 1:].copy())

    def step(compiled: bool) -> Step:
        peer = torch_model(config, variables)
        forward = torch.compile(peer) if compiled else peer
        optimizer = torch.optim.Adam(peer.parameters(), lr=LEARNING_RATE)

        def work() -> float:
            optimizer.zero_grad(set_to_none=True)
            logits = forward(inputs)
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, config.vocab_size), targets.reshape(-1))
            loss.backward()
            optimizer.step()
            return loss.item()

        loss, seconds = first_call(work)
        return Step(work, loss, sum(parameter.numel() for parameter in peer.parameters()), seconds)

    return {"eager": step(False), **({"compile": step(True)} if config.peers == "both" else {})}


def torch_model(config: DecoderStepConfig, variables: Any) -> Any:
    """The same model in PyTorch, with our weights."""
    import torch

    from benchmarks.torch_gpt import TorchGPT

    params = jax.tree.map(np.array, variables["params"])
    state = {"embedding.weight": params["embedding"], "positions.weight": params["positions"]}
    state["norm.weight"] = params["norm"]["scale"]
    for i in range(config.num_layers):
        layer = params["layers"][f"layer{i}"]
        attention, mlp = layer["attention"], layer["mlp"]
        fused = np.concatenate([attention[name]["kernel"].T for name in ("query", "key", "value")])
        kernels = {"qkv": fused, "out": attention["out"]["kernel"].T}
        kernels |= {"up": mlp["up"]["kernel"].T, "down": mlp["down"]["kernel"].T}
        kernels |= {name: layer[name]["scale"] for name in ("norm1", "norm2")}
        state |= {f"layers.{i}.{name}.weight": array for name, array in kernels.items()}
    peer = TorchGPT(config.vocab_size, config.length, config.hidden_size, config.num_layers, config.num_heads)
    peer.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()}, strict=True)
    return peer
