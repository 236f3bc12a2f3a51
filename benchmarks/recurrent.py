"""A recurrent language model's training step, and its sampling, beside torch.nn.LSTM and flax.linen.RNN, in turn.

All sides have an embedding, the same layers and a head, from the same weights, on the same tokens; a step is forward,
backward through all of the length, and Adam. Their losses at step 0 must agree. PyTorch's second bias is frozen at
zero, so that parameter counts agree as well.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import zoo
from benchmarks.timer import RESULTS, append_row, circumstances, cores, first_call, in_turn, torch_or_none
from benchmarks.train_step import Step, check_same
from train.config import Config, OptimizerConfig, TextConfig, at_least
from train.optimizer import make_optimizer
from train.sharding import make_layout
from train.step import init_state, make_train_step
from train.tasks.language_model import LanguageModel
from zoo.inputs.text import TextInputs
from zoo.ops.recurrence import Cell
from zoo.registry import count_parameters
from zoo.weights import recurrent

LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class RecurrentStepConfig:
    """Times a recurrent language model's training step beside PyTorch's and flax.linen.RNN's."""

    cell: Cell = "lstm"  # lstm, gru or rnn
    num_layers: int = 2  # layers
    hidden_size: int = 512  # width of layers and embedding
    batch_size: int = 50  # rows
    length: int = 50  # tokens a row, through which the gradient goes
    vocab_size: int = 65  # symbols
    dtype: Literal["float32", "bfloat16"] = "float32"  # of our arithmetic; the peers' is float32
    rounds: int = 10  # turns of each
    seed: int = 0  # of weights and tokens
    output: str = str(RESULTS / "recurrent_step.csv")  # the CSV to append to


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


def run(config: RecurrentStepConfig) -> dict[str, Any]:
    """Measures, prints and appends one row; returns it. Ratios are our seconds over the peer's, round by round."""
    for name in ("num_layers", "hidden_size", "batch_size", "length", "vocab_size", "rounds"):
        at_least(name.replace("_", "-"), getattr(config, name), 1)
    model = _model(config, dtype=config.dtype)
    tokens = np.random.default_rng(config.seed).integers(0, config.vocab_size, (config.batch_size, config.length + 1))
    variables = jax.jit(model.init)(jax.random.key(config.seed), np.zeros((1, 2), np.int32))
    ours, flops, memory = our_step(config, model, variables, tokens)
    flax_step, flax_memory = linen_step(config, variables, tokens)
    steps = {"ours": ours, "flax.linen.RNN": flax_step, **torch_step(config, variables, tokens)}
    if config.dtype == "float32":
        for name in steps:
            check_same(ours, steps[name])
    contest = in_turn({name: step.work for name, step in steps.items()}, config.rounds)

    row = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("output", "rounds", "seed")}
    row |= {"parameters": ours.parameters, "flops": flops}
    for name in ("ours", "flax.linen.RNN", "torch"):
        short = name.split(".")[0]
        there = name in contest.seconds
        p10, median, p90 = contest.percentiles(name) if there else (np.nan,) * 3
        row |= {f"{short}_ms": 1e3 * median, f"{short}_p10_ms": 1e3 * p10, f"{short}_p90_ms": 1e3 * p90}
        if name != "ours":
            low, ratio, high = contest.ratio("ours", name) if there else (np.nan,) * 3
            row |= {f"ratio_{short}": ratio, f"ratio_{short}_p10": low, f"ratio_{short}_p90": high}
    row |= {"ours_temporary_mb": memory / 2**20, "flax_temporary_mb": flax_memory / 2**20}
    row |= {**contest.machine(), "rounds": config.rounds, "seed": config.seed, **circumstances()}
    print(
        f"{config.cell} {config.num_layers}x{config.hidden_size} batch {config.batch_size} length {config.length} "
        f"{config.dtype}: ours {row['ours_ms']:.1f} ms, torch {row['torch_ms']:.1f}, flax {row['flax_ms']:.1f}; ratio "
        f"to torch {row['ratio_torch']:.3f} ({row['ratio_torch_p10']:.3f} to {row['ratio_torch_p90']:.3f}), to flax "
        f"{row['ratio_flax']:.3f}; temporaries {memory / 2**20:.0f} MB, flax's {flax_memory / 2**20:.0f}; "
        f"{contest.remark()}"
    )
    append_row(pathlib.Path(config.output), row)
    return row


def _model(config: RecurrentStepConfig | SamplingConfig, **fields: Any) -> Any:
    names = ("vocab_size", "hidden_size", "num_layers")
    return zoo.create_model(f"{config.cell}_lm", **{name: getattr(config, name) for name in names}, **fields)


def our_step(config: Any, model: Any, variables: Any, tokens: np.ndarray) -> tuple[Step, int, int]:
    """A language model's step as the loop runs it, its FLOPs, its temporary bytes; `config` has the sizes."""
    step, pure, state, batch = prepared(config, model, variables, tokens)
    memory = step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes
    flops = zoo.count_flops(pure, state, batch)

    def work() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        return float(metrics["loss"]) / tokens[:, 1:].size

    loss, seconds = first_call(work)
    return Step(work, loss, count_parameters(variables), seconds), flops, memory


def prepared(config: Any, model: Any, variables: Any, tokens: np.ndarray) -> tuple[Any, Any, Any, Any]:
    """The step with Adam, compiled when first called and as it is, and its state and batch on the device."""
    optimizer_config = OptimizerConfig("adam", LEARNING_RATE, schedule="constant")
    settings = Config("", 1, config.batch_size, data=TextConfig(), task=LanguageModel(), optimizer=optimizer_config)
    optimizer, layout = make_optimizer(optimizer_config, 1), make_layout("jit", config.batch_size, 1)
    rows, length = tokens[:, 1:].shape
    inputs = TextInputs("char", "".join(map(chr, range(config.vocab_size))), length)
    ones = np.ones((rows, length), np.float32)
    batch: dict[str, Any] = {"tokens": tokens[:, :-1].astype(np.int32), "targets": tokens[:, 1:].astype(np.int32)}
    batch |= {"weight": ones, "characters": ones, "row": np.arange(rows, dtype=np.int32)}
    carry = settings.task.initial_carry(model, config.batch_size)
    state = layout.put_state(init_state(variables, optimizer, ema=False, carry=carry))
    pure = make_train_step(settings, model, inputs, optimizer)
    return layout.compile_train(pure, state), pure, state, layout.put_batch(batch)


class LinenLM(nn.Module):
    """The same model of flax.linen's own layers, as its examples use them."""

    cell: Cell
    vocab_size: int
    hidden_size: int
    num_layers: int

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        cells = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell, "rnn": nn.SimpleCell}
        x = nn.Embed(self.vocab_size, self.hidden_size, name="embedding")(tokens)
        for i in range(self.num_layers):
            x = nn.RNN(cells[self.cell](self.hidden_size, name=f"layer{i}"))(x)
        return nn.Dense(self.vocab_size, name="head")(x)


def linen_params(config: RecurrentStepConfig, variables: Any) -> Any:
    """Our weights as flax.linen's cells have them."""
    params = variables["params"]
    gates = {"lstm": "ifgo", "gru": "rzn", "rnn": "i"}[config.cell]
    layers = {}
    for i in range(config.num_layers):
        layer = params["layers"][f"layer{i}"]
        kernels, recurrents, biases = (
            jnp.split(layer[name], len(gates), axis=-1) for name in ("kernel", "recurrent_kernel", "bias")
        )
        cell: dict[str, Any] = {}
        for gate, kernel, recurrent_kernel, bias in zip(gates, kernels, recurrents, biases, strict=True):
            if config.cell == "lstm":
                cell |= {f"i{gate}": {"kernel": kernel}, f"h{gate}": {"kernel": recurrent_kernel, "bias": bias}}
            elif config.cell == "gru":
                both = {f"i{gate}": {"kernel": kernel, "bias": bias}, f"h{gate}": {"kernel": recurrent_kernel}}
                if gate == "n":  # the candidate's bias is behind the reset gate, and it has one more
                    both["hn"]["bias"], both["in"]["bias"] = bias, layer["candidate_bias"]
                cell |= both
            else:
                cell |= {"i": {"kernel": kernel, "bias": bias}, "h": {"kernel": recurrent_kernel}}
        layers[f"layer{i}"] = cell
    return {"embedding": params["embedding"], "head": params["head"], **layers}


def linen_step(config: RecurrentStepConfig, variables: Any, tokens: np.ndarray) -> tuple[Step, int]:
    """The step of flax's layers, and its temporary bytes."""
    model = LinenLM(config.cell, config.vocab_size, config.hidden_size, config.num_layers)
    optimizer = optax.adam(LEARNING_RATE)
    params = jax.tree.map(jnp.array, linen_params(config, variables))
    state = params, optimizer.init(params)
    inputs, targets = jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:])

    def loss_of(params: Any) -> jax.Array:
        logits = model.apply({"params": params}, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()  # type: ignore[arg-type]

    def update(state: Any) -> Any:
        params, opt_state = state
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    step = jax.jit(update, donate_argnums=0)

    def work() -> float:
        nonlocal state
        state, loss = step(state)
        jax.block_until_ready((state, loss))
        return float(loss)

    analysis: Any = step.lower(state).compile().memory_analysis()
    loss, seconds = first_call(work)
    return Step(work, loss, count_parameters({"params": params}), seconds), analysis.temp_size_in_bytes


def torch_model(config: RecurrentStepConfig | SamplingConfig, variables: Any) -> Any:
    """The same model in PyTorch, with our weights."""
    import torch

    class TorchLM(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kinds: dict[str, Callable] = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
            size = config.hidden_size
            self.embedding = torch.nn.Embedding(config.vocab_size, size)
            self.layers = kinds[config.cell](size, size, config.num_layers, batch_first=True)
            self.head = torch.nn.Linear(size, config.vocab_size)

        def forward(self, tokens: Any, state: Any = None) -> Any:
            outputs, state = self.layers(self.embedding(tokens), state)
            return self.head(outputs), state

    peer = TorchLM()
    weights = recurrent.to_file(variables)
    peer.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()}, strict=True)
    for name, parameter in peer.named_parameters():
        if "bias_hh" in name and config.cell != "gru":
            parameter.requires_grad_(False)
    return peer


def torch_step(config: RecurrentStepConfig, variables: Any, tokens: np.ndarray) -> dict[str, Step]:
    """PyTorch's step; {} without torch."""
    torch = torch_or_none()
    if torch is None:
        return {}
    peer = torch_model(config, variables)
    inputs, targets = torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(tokens[:, 1:].copy())
    trained = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)

    def work() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = peer(inputs)[0]
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, config.vocab_size), targets.reshape(-1))
        loss.backward()
        optimizer.step()
        return loss.item()

    loss, seconds = first_call(work)
    count = sum(parameter.numel() for parameter in trained)
    if config.cell == "gru":  # of PyTorch's two biases ours has one, but for the candidate's
        count -= 2 * config.hidden_size * config.num_layers
    return {"torch": Step(work, loss, count, seconds)}


def run_sampling(config: SamplingConfig) -> dict[str, Any]:
    """Measures, prints and appends one row; returns it."""
    for name in ("num_layers", "hidden_size", "vocab_size", "length", "rounds"):
        at_least(name.replace("_", "-"), getattr(config, name), 1)
    import torch

    from zoo.decode import sample

    model = _model(config)
    variables = jax.jit(model.init)(jax.random.key(config.seed), np.zeros((1, 2), np.int32))
    peer = torch_model(config, variables).eval()
    torch.set_num_threads(cores())
    generator = torch.Generator().manual_seed(config.seed)

    def ours() -> None:
        for _ in sample(model, variables, np.zeros((1, 1), np.int32), config.length, seed=config.seed):
            pass

    @torch.inference_mode()
    def theirs() -> None:
        token, state = torch.zeros((1, 1), dtype=torch.int64), None
        for _ in range(config.length):
            logits, state = peer(token, state)
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
