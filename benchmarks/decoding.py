"""Times a decoder's greedy decoding beside Hugging Face's transformers, in turn, from the same random weights.

Ours is one dispatch per call: the whole loop is compiled. Theirs is `generate` with its faster cache, dynamic or
static. The first tokens of both must agree.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from benchmarks.step_peers import transformers_model
from benchmarks.timer import (
    RESULTS,
    append_row,
    circumstances,
    fastest,
    first_call,
    in_turn,
    torch_device,
    torch_or_none,
)
from train.settings import Arguments, at_least
from zoo.decode import Sampling, sample
from zoo.errors import ZooError
from zoo.registry import count_parameters

CHECKED = 8  # tokens of each row that must agree; later ones may differ by rounding, where two are about equally likely
CACHES = ("dynamic", "static")


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """Times greedy decoding beside transformers in float32, and ours in bfloat16."""

    model: str = "smollm2_135m"  # a registered decoder
    args: Arguments = dataclasses.field(default_factory=dict)  # fields of the model
    batch_size: int = 1  # rows
    prompt: int = 16  # tokens of the prompt
    length: int = 64  # tokens to generate
    peer: bool = True  # time transformers too
    rounds: int = 5  # rounds
    seed: int = 0  # of weights and prompts
    output: str = str(RESULTS / "decoding.csv")  # the CSV to append to


def run(config: DecodingConfig) -> dict[str, Any]:
    """Measures, prints and appends one row; returns it.

    Tokens per second are those of all rows together; the time includes the prompts. ZooError if the peer generates
    other tokens.
    """
    for name in ("batch_size", "prompt", "length", "rounds"):
        at_least(name.replace("_", "-"), getattr(config, name), 1)
    at_least("seed", config.seed, 0)
    model, variables, prompts = prepared(config)
    ours = our_decoding(config, model, variables, prompts)
    generated, first = first_call(ours)
    works: dict[str, Callable[[], Any]] = {"ours": ours}
    if config.peer:
        works |= peer_decoding(config, model, variables, prompts, generated)
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    small = zoo.create_model(config.model, **{**config.args, "dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16})
    works["bfloat16"] = our_decoding(config, small, halves, prompts)
    contest = in_turn(works, config.rounds)

    tokens, peer = config.batch_size * config.length, next((name for name in works if "transformers" in name), "")
    row: dict[str, Any] = {"model": config.model, "args": " ".join(f"{k}={v}" for k, v in config.args.items())}
    row |= {name: getattr(config, name) for name in ("batch_size", "prompt", "length")}
    row["parameters"] = count_parameters(variables)
    for name, column in (("ours", "ours"), (peer, "peer"), ("bfloat16", "bfloat16")):
        slow, median, fast = contest.percentiles(name)[::-1] if name else (np.nan,) * 3
        row |= {
            f"{column}_tokens_per_s": tokens / median,
            f"{column}_p10": tokens / slow,
            f"{column}_p90": tokens / fast,
        }
    row["peer"] = peer
    row["speedup_p10"], row["speedup"], row["speedup_p90"] = contest.ratio(peer, "ours") if peer else (np.nan,) * 3
    row["warmup_seconds"] = first - contest.percentiles("ours")[1]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    row["weights_gb_per_s"] = size * row["ours_tokens_per_s"] / config.batch_size / 1e9
    row |= {**contest.machine(), "rounds": config.rounds, "seed": config.seed, **circumstances()}
    print(
        f"{config.model} batch {config.batch_size}: ours {row['ours_tokens_per_s']:.1f} tokens/s "
        f"({row['weights_gb_per_s']:.0f} GB/s of weights), {peer or 'no peer'} {row['peer_tokens_per_s']:.1f}; "
        f"{row['speedup']:.2f} times as fast ({row['speedup_p10']:.2f} to {row['speedup_p90']:.2f}); bfloat16 "
        f"{row['bfloat16_tokens_per_s']:.1f}; first call {row['warmup_seconds']:.1f} s longer; {contest.remark()}"
    )
    append_row(pathlib.Path(config.output), row)
    return row


def prepared(config: DecodingConfig) -> tuple[Any, Any, np.ndarray]:
    """The model, random variables, and random prompts int32 [B, prompt]."""
    model: Any = zoo.create_model(config.model, **config.args)
    variables = jax.jit(model.init)(jax.random.key(config.seed), np.zeros((1, 2), np.int32))
    shape = config.batch_size, config.prompt
    return model, variables, np.random.default_rng(config.seed).integers(0, model.vocab_size, shape).astype(np.int32)


def our_decoding(config: DecodingConfig, model: Any, variables: Any, prompts: np.ndarray) -> Callable[[], np.ndarray]:
    """A callable that generates `length` tokens for each row, int32 [B, length]."""
    greedy = Sampling(temperature=0.0)
    return lambda: np.concatenate(list(sample(model, variables, prompts, config.length, greedy)), axis=1)


def peer_decoding(
    config: DecodingConfig, model: Any, variables: Any, prompts: np.ndarray, generated: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """transformers with its faster cache, by name; {} if it is not installed or has no such model."""
    torch = torch_or_none()
    if torch is None:
        return {}
    try:
        device = torch_device()
        peer = transformers_model(model, variables).eval().to(device)
    except (ModuleNotFoundError, ZooError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != "transformers":
            raise
        print(f"transformers is left out: {error}")
        return {}
    tokens = torch.from_numpy(prompts.astype(np.int64)).to(device)
    options: dict[str, Any] = {"max_new_tokens": config.length, "min_new_tokens": config.length, "do_sample": False}
    options |= {"attention_mask": torch.ones_like(tokens), "pad_token_id": 0, "eos_token_id": None}

    def work(cache: str) -> Callable[[], Any]:
        @torch.inference_mode()
        def generate() -> np.ndarray:
            return peer.generate(tokens, cache_implementation=cache, **options)[:, config.prompt :].cpu().numpy()

        return generate

    works = {f"transformers, {cache} cache": work(cache) for cache in CACHES}
    for theirs in works.values():
        if not np.array_equal(first := theirs()[:, :CHECKED], generated[:, :CHECKED]):
            raise ZooError(f"transformers generates {first[0].tolist()} first, ours {generated[0, :CHECKED].tolist()}")
    best = fastest(works)
    return {best: works[best]}
