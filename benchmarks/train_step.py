"""One training step, ours and PyTorch's in turn: the same images, weights, loss and optimizer.

Both sides take a batch of bytes that is already on the device and normalise, run forward and backward in training mode,
and update with Adam. Their parameter counts and, from the same weights, their losses at step 0 must agree.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import zoo
from benchmarks.timer import RESULTS, append_row, circumstances, in_turn, timed_first_call
from train.config import Arguments, Config, OptimizerConfig
from train.optimizer import make_optimizer
from train.sharding import make_layout
from train.step import init_state, make_train_step
from zoo.errors import ZooError
from zoo.inputs.image import ImageInputs
from zoo.weights import torchvision


@dataclasses.dataclass(frozen=True)
class TrainStepConfig:
    """Times a training step beside PyTorch's and appends a row to a CSV."""

    model: str = "simple_cnn"  # a registered model: python -m zoo list
    args: Arguments = dataclasses.field(default_factory=dict)  # fields of the model, e.g. stem=cifar
    image_size: int | None = None  # side in pixels; default: the model's
    batch_size: int = 64  # examples a step
    peer: Literal["eager", "compile", "none"] = "eager"  # PyTorch as it is, under torch.compile, or not at all
    rounds: int = 20  # turns of each
    seed: int = 0  # of weights and data
    output: str = str(RESULTS / "train_step.csv")  # the CSV to append to


class Peer(NamedTuple):
    """A peer's step as a callable that ends with the loss, its loss at step 0, its size, its first call's seconds."""

    work: Callable[[], Any]
    first_loss: float
    parameters: int
    compile_seconds: float


def run(config: TrainStepConfig) -> dict[str, Any]:
    """Measures, prints and appends one row; returns it. ZooError where the two do not compute the same."""
    info = zoo.model_info(config.model)
    height, width, channels = info.input_shape
    shape = (config.image_size or height, config.image_size or width, channels)
    model = zoo.create_model(config.model, **config.args)
    classes = model.num_classes  # type: ignore[attr-defined]
    inputs = ImageInputs(shape, (0.5,) * channels, (0.25,) * channels, tuple(map(str, range(classes))))
    rng = np.random.default_rng(config.seed)
    images = rng.integers(0, 256, (config.batch_size, *shape), np.uint8)
    labels = rng.integers(0, classes, config.batch_size).astype(np.int32)
    variables = jax.jit(model.init)(jax.random.key(config.seed), np.zeros((1, *shape), np.float32))

    ours, flops, loss = our_step(config, model, inputs, variables, images, labels)
    compile_seconds = timed_first_call(ours)
    contestants, layout = {"ours": ours}, ""
    steps: dict[str, Peer] = {}
    if config.peer != "none":
        steps = torch_steps(config, inputs, variables, images, labels)
        for peer in steps.values():
            check_same(loss, peer.first_loss, zoo.registry.count_parameters(variables), peer.parameters)
        if steps:
            trial = in_turn({name: peer.work for name, peer in steps.items()}, rounds=3)
            layout = min(steps, key=lambda name: trial.percentiles(name)[1])
            contestants[layout] = steps[layout].work
    contest = in_turn(contestants, config.rounds)

    row: dict[str, Any] = {"model": config.model, "args": str(config.args or ""), "image": "x".join(map(str, shape))}
    row |= {"batch_size": config.batch_size, "parameters": zoo.registry.count_parameters(variables), "flops": flops}
    p10, median, p90 = contest.percentiles("ours")
    row |= {"ours_ms": 1e3 * median, "ours_p10_ms": 1e3 * p10, "ours_p90_ms": 1e3 * p90}
    row |= {"ours_gflops": flops / median / 1e9, "ours_compile_s": compile_seconds}
    columns = ("peer", "peer_layout", "peer_ms", "peer_p10_ms", "peer_p90_ms", "peer_compile_s", "ratio", "ratio_p10")
    row |= dict.fromkeys((*columns, "ratio_p90"), "")
    if layout:
        p10, median, p90 = (1e3 * value for value in contest.percentiles(layout))
        row |= {"peer": f"torch {config.peer}", "peer_layout": layout, "peer_ms": median}
        row |= {"peer_p10_ms": p10, "peer_p90_ms": p90, "peer_compile_s": steps[layout].compile_seconds}
        row["ratio_p10"], row["ratio"], row["ratio_p90"] = contest.ratio("ours", layout)
    row |= dict(zip(("gflops_before", "gflops_halfway", "gflops_after"), contest.gflops, strict=True))
    row |= {"rounds": config.rounds, "seed": config.seed, **circumstances()}
    append_row(pathlib.Path(config.output), row)
    print(_sentence(row))
    return row


def our_step(
    config: TrainStepConfig, model: Any, inputs: ImageInputs, variables: Any, images: np.ndarray, labels: np.ndarray
) -> tuple[Callable[[], Any], int, float]:
    """One step of ours as a callable that blocks, its FLOPs, and the loss at step 0."""
    optimizer_config = OptimizerConfig("adam", 1e-3, schedule="constant")
    settings = Config("", 1, config.batch_size, seed=config.seed, optimizer=optimizer_config)
    optimizer = make_optimizer(optimizer_config, 1)
    layout = make_layout("jit", config.batch_size, 1)
    pure = make_train_step(settings, model, inputs, optimizer)
    rows, weight = np.arange(config.batch_size, dtype=np.int32), np.ones(config.batch_size, np.float32)
    batch = layout.put_batch({"image": images, "label": labels, "row": rows, "weight": weight})
    state = layout.put_state(init_state(variables, optimizer, ema=False))
    flops = zoo.count_flops(pure, state, batch)
    step = layout.compile_train(pure)
    loss = jax.jit(pure)(state, batch)[1]["loss"] / config.batch_size

    def work() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return work, flops, float(loss)


def torch_steps(
    config: TrainStepConfig, inputs: ImageInputs, variables: Any, images: np.ndarray, labels: np.ndarray
) -> dict[str, Peer]:
    """PyTorch's step by memory layout; {} without torch."""
    try:
        import torch

        from benchmarks.peers import torch_model
    except ImportError:
        print("torch is not installed: ours alone is timed (pip install '.[benchmarks]')")
        return {}
    torch.set_num_threads(os.cpu_count() or 1)
    scale = torch.tensor([1 / (255 * std) for std in inputs.std]).view(1, -1, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(inputs.mean, inputs.std, strict=True)]).view(1, -1, 1, 1)
    target = torch.from_numpy(labels.astype(np.int64))
    weights = {name: torch.from_numpy(array.copy()) for name, array in torchvision.to_file(variables).items()}
    steps: dict[str, Peer] = {}
    for layout, memory_format in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        peer = torch_model(config.model, inputs.shape, **config.args).train()
        peer.load_state_dict(weights, strict=True)
        peer = peer.to(memory_format=memory_format)  # type: ignore[call-overload]
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=memory_format)
        optimizer = torch.optim.Adam(peer.parameters(), lr=1e-3, eps=1e-8)
        forward = torch.compile(peer) if config.peer == "compile" else peer

        def work(forward: Any = forward, optimizer: Any = optimizer, pixels: Any = pixels) -> float:
            optimizer.zero_grad(set_to_none=True)
            logits = forward(pixels.float() * scale - shift)
            loss = torch.nn.functional.cross_entropy(logits, target)
            loss.backward()
            optimizer.step()
            return loss.item()

        start = time.perf_counter()
        first_loss = work()
        seconds = time.perf_counter() - start
        steps[layout] = Peer(work, first_loss, sum(p.numel() for p in peer.parameters()), seconds)
    return steps


def check_same(loss: float, peer_loss: float, parameters: int, peer_parameters: int) -> None:
    """ZooError unless both sides have the same parameters and, to 1e-4, the same loss."""
    if parameters != peer_parameters:
        raise ZooError(f"not the same model: ours has {parameters:,} parameters, the peer {peer_parameters:,}")
    if abs(loss - peer_loss) > 1e-4 * abs(peer_loss):
        raise ZooError(f"not the same arithmetic: the loss at step 0 is {loss:.6f}, the peer's {peer_loss:.6f}")


def _sentence(row: dict[str, Any]) -> str:
    ours = f"{row['model']} batch {row['batch_size']}: ours {row['ours_ms']:.2f} ms ({row['ours_gflops']:.0f} GFLOP/s)"
    if not row["peer"]:
        return ours
    ratio = f"ratio {row['ratio']:.3f} ({row['ratio_p10']:.3f} to {row['ratio_p90']:.3f})"
    return f"{ours}, {row['peer']} {row['peer_layout']} {row['peer_ms']:.2f} ms, {ratio}"
