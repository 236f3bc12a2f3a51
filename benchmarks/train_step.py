"""One training step, ours and PyTorch's in turn: the same images, weights, loss and optimizer.

Both sides take a batch of bytes that is already on the device and normalise, run forward and backward in training mode,
and update the weights. Their parameter counts and, from the same weights, their losses at step 0 must agree.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import zoo
from benchmarks.timer import RESULTS, append_row, circumstances, cores, first_call, in_turn
from train.config import Arguments, Config, OptimizerConfig, at_least
from train.optimizer import make_optimizer
from train.sharding import make_layout
from train.step import init_state, make_train_step
from zoo.errors import ZooError
from zoo.inputs.image import ImageInputs
from zoo.registry import count_parameters
from zoo.weights import torchvision


@dataclasses.dataclass(frozen=True)
class TrainStepConfig:
    """Times a training step beside PyTorch's and appends a row to a CSV."""

    model: str = "simple_cnn"  # a registered model of images: python -m zoo list
    args: Arguments = dataclasses.field(default_factory=dict)  # fields of the model, e.g. stem=cifar dtype=bfloat16
    image_size: int | None = None  # side in pixels; default: the model's
    batch_size: int = 64  # examples a step
    optimizer: Literal["adam", "sgd"] = "adam"  # plain, at a constant rate
    learning_rate: float = 1e-3  # that rate
    peer: Literal["eager", "compile", "none"] = "eager"  # PyTorch as it is, under torch.compile, or not at all
    rounds: int = 20  # turns of each
    seed: int = 0  # of weights and data
    output: str = str(RESULTS / "train_step.csv")  # the CSV to append to


class Step(NamedTuple):
    """A step ready to be timed: a callable that ends with the loss of the batch, and what it began with."""

    work: Callable[[], float]
    first_loss: float  # at step 0
    parameters: int
    compile_seconds: float  # of the first call, one run included


def run(config: TrainStepConfig) -> dict[str, Any]:
    """Measures, prints and appends one row; returns it. The ratio is our seconds over the peer's, round by round.

    ZooError where the two do not compute the same, and for a value out of range.
    """
    inputs, model, variables, images, labels = prepare(config)
    peers = {} if config.peer == "none" else torch_steps(config, inputs, variables, images, labels)
    ours, flops = our_step(config, model, inputs, variables, images, labels)
    for peer in peers.values():
        check_same(ours, peer)
    contestants, layout = {"ours": ours.work}, ""
    if peers:
        trial = in_turn({name: peer.work for name, peer in peers.items()}, rounds=3)
        layout = min(peers, key=lambda name: trial.percentiles(name)[1])
        contestants[layout] = peers[layout].work
    contest = in_turn(contestants, config.rounds)

    args = " ".join(f"{key}={value}" for key, value in config.args.items())
    row: dict[str, Any] = {"model": config.model, "args": args, "image": "x".join(map(str, inputs.shape))}
    row |= {"batch_size": config.batch_size, "optimizer": config.optimizer, "learning_rate": config.learning_rate}
    row |= {"parameters": ours.parameters, "flops": flops}
    p10, median, p90 = contest.percentiles("ours")
    row |= {"ours_ms": 1e3 * median, "ours_p10_ms": 1e3 * p10, "ours_p90_ms": 1e3 * p90}
    row |= {"ours_gflops": flops / median / 1e9, "ours_compile_s": ours.compile_seconds}
    columns = ("peer", "peer_layout", "peer_ms", "peer_p10_ms", "peer_p90_ms", "peer_compile_s", "ratio", "ratio_p10")
    row |= dict.fromkeys((*columns, "ratio_p90"), "")
    if layout:
        p10, median, p90 = (1e3 * value for value in contest.percentiles(layout))
        row |= {"peer": f"torch {config.peer}", "peer_layout": layout, "peer_ms": median}
        row |= {"peer_p10_ms": p10, "peer_p90_ms": p90, "peer_compile_s": peers[layout].compile_seconds}
        row["ratio_p10"], row["ratio"], row["ratio_p90"] = contest.ratio("ours", layout)
    row |= {**contest.machine(), "rounds": config.rounds, "seed": config.seed, **circumstances()}
    print(f"{_sentence(row)}; {contest.remark()}")
    append_row(pathlib.Path(config.output), row)
    return row


def prepare(config: TrainStepConfig) -> tuple[ImageInputs, Any, Any, np.ndarray, np.ndarray]:
    """Inputs, model, its initial variables, random images uint8 [B, H, W, C] and labels int32 [B]."""
    for name in ("batch_size", "rounds"):
        at_least(name.replace("_", "-"), getattr(config, name), 1)
    at_least("seed", config.seed, 0)
    info = zoo.model_info(config.model)
    if len(info.input_shape) != 3:
        raise ZooError(f"train-step times models of images; {config.model} takes {info.input_shape}")
    height, width, channels = info.input_shape
    if config.image_size is not None:
        at_least("image-size", config.image_size, 1)
        height = width = config.image_size
    model = zoo.create_model(config.model, **config.args)
    if config.peer != "none" and {np.dtype(model.dtype), np.dtype(model.param_dtype)} != {np.dtype(np.float32)}:
        raise ZooError("the PyTorch peer computes in float32; add --peer none to time another dtype alone")
    labels = tuple(map(str, range(model.num_classes)))
    inputs = ImageInputs((height, width, channels), (0.5,) * channels, (0.25,) * channels, labels)
    variables = jax.jit(model.init)(jax.random.key(config.seed), np.zeros((1, *inputs.shape), np.float32))
    rng = np.random.default_rng(config.seed)
    images = rng.integers(0, 256, (config.batch_size, *inputs.shape), np.uint8)
    return inputs, model, variables, images, rng.integers(0, len(labels), config.batch_size, np.int32)


def our_step(
    config: TrainStepConfig, model: Any, inputs: ImageInputs, variables: Any, images: np.ndarray, labels: np.ndarray
) -> tuple[Step, int]:
    """Our step and its FLOPs, which are the gradient's: neither the input nor the update multiplies matrices."""
    optimizer_config = OptimizerConfig(config.optimizer, config.learning_rate, schedule="constant")
    settings = Config("", 1, config.batch_size, seed=config.seed, optimizer=optimizer_config)
    optimizer = make_optimizer(optimizer_config, 1)
    layout = make_layout("jit", config.batch_size, 1)
    pure = make_train_step(settings, model, inputs, optimizer)
    rows, weight = np.arange(config.batch_size, dtype=np.int32), np.ones(config.batch_size, np.float32)
    batch = layout.put_batch({"image": images, "label": labels, "row": rows, "weight": weight})
    state = layout.put_state(init_state(variables, optimizer, ema=False))
    step = layout.compile_train(pure, state)

    def work() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        return float(metrics["loss"]) / config.batch_size

    jax.config.update("jax_enable_compilation_cache", False)  # seconds to compile, not to look up
    loss, seconds = first_call(work)
    return Step(work, loss, count_parameters(variables), seconds), zoo.count_flops(pure, state, batch)


def torch_steps(
    config: TrainStepConfig, inputs: ImageInputs, variables: Any, images: np.ndarray, labels: np.ndarray
) -> dict[str, Step]:
    """PyTorch's step by memory layout; {} without torch."""
    try:
        import torch
    except ImportError:
        print("torch is not installed: ours alone is timed (pip install '.[benchmarks]')")
        return {}
    from benchmarks.peers import torch_model

    torch.set_num_threads(cores())
    make_optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.optimizer]
    scale = torch.tensor([1 / (255 * std) for std in inputs.std]).view(1, -1, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(inputs.mean, inputs.std, strict=True)]).view(1, -1, 1, 1)
    target = torch.from_numpy(labels.astype(np.int64))
    weights = {name: torch.from_numpy(array.copy()) for name, array in torchvision.to_file(variables).items()}
    steps: dict[str, Step] = {}
    for layout, memory_format in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        peer = torch_model(config.model, inputs.shape, **config.args).train()
        peer.load_state_dict(weights, strict=True)
        peer = peer.to(memory_format=memory_format)  # type: ignore[call-overload]
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=memory_format)
        optimizer = make_optimizer(peer.parameters(), lr=config.learning_rate)

        def batch_loss(pixels: Any, peer: Any = peer) -> Any:
            return torch.nn.functional.cross_entropy(peer(pixels.float() * scale - shift), target)

        compiled = torch.compile(batch_loss) if config.peer == "compile" else batch_loss

        def work(batch_loss: Any = compiled, optimizer: Any = optimizer, pixels: Any = pixels) -> float:
            optimizer.zero_grad(set_to_none=True)
            loss = batch_loss(pixels)
            loss.backward()
            optimizer.step()
            return loss.item()

        loss, seconds = first_call(work)
        steps[layout] = Step(work, loss, sum(p.numel() for p in peer.parameters() if p.requires_grad), seconds)
    return steps


def check_same(ours: Step, peer: Step) -> None:
    """ZooError unless both sides have as many parameters and, to 1e-4, the same loss at step 0."""
    if ours.parameters != peer.parameters:
        raise ZooError(f"not the same model: ours has {ours.parameters:,} parameters, the peer {peer.parameters:,}")
    if not abs(ours.first_loss - peer.first_loss) <= 1e-4 * abs(peer.first_loss):
        raise ZooError(
            f"not the same arithmetic: the loss at step 0 is {ours.first_loss:.6f}, the peer's {peer.first_loss:.6f}"
        )


def _sentence(row: dict[str, Any]) -> str:
    ours = f"{row['model']} batch {row['batch_size']}: ours {row['ours_ms']:.2f} ms ({row['ours_gflops']:.0f} GFLOP/s)"
    if not row["peer"]:
        return ours
    ratio = f"ratio {row['ratio']:.3f} ({row['ratio_p10']:.3f} to {row['ratio_p90']:.3f})"
    return f"{ours}, {row['peer']} {row['peer_layout']} {row['peer_ms']:.2f} ms, {ratio}"
