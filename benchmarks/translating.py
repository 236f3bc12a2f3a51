"""Times greedy decoding and beam search of an encoder-decoder beside a PyTorch loop of the same model, in turn.

Both sides decode the same sources in the same batches with the same weights. Their targets must be equal, except where
the scores agree to 1e-4: rounding decides between targets of about equal score. Ours is one dispatch per batch. With
random weights a target hardly ever ends before `length` tokens; with the weights of a run it ends as trained.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

import zoo
from benchmarks.timer import RESULTS, append_row, circumstances, first_call, in_turn, torch_device, torch_or_none
from train.config import read_settings
from train.data.pairs import PairData
from train.recipes import load_recipe
from train.settings import at_least
from zoo.decode import decode_sources
from zoo.errors import ZooError
from zoo.inputs.pairs import SPECIAL, PairInputs
from zoo.inputs.text import padded, width_for
from zoo.registry import count_parameters
from zoo.run import read_config

TIE = 1e-4  # absolute and relative difference of log probabilities below which two targets are about equal
PENALTY = 0.6  # length penalty
Batch = tuple[np.ndarray, np.ndarray]  # sources int32 [B, S] and their lengths [B]
Decoded = tuple[np.ndarray, np.ndarray]  # tokens int [N, length], padded with `end`, and scores [N]


@dataclasses.dataclass(frozen=True)
class TranslatingConfig:
    """Times decoding of an encoder-decoder, greedy and by beam search, beside a PyTorch loop."""

    recipe: str = "multi30k-gru"  # a recipe of pairs; its model with random weights is timed
    run: str = ""  # a run folder instead, with its weights and the test sources of its data
    beams: tuple[int, ...] = (1, 5)  # beam sizes, 1 is greedy; one row each
    sentences: int = 256  # number of sentences
    batch_size: int = 64  # sentences at a time
    source_length: int = 24  # most tokens of a random source; the least are a third of it
    length: int = 32  # most tokens of a target
    peer: bool = True  # time PyTorch too
    rounds: int = 5  # rounds
    seed: int = 0  # of weights and sources
    output: str = str(RESULTS / "translating.csv")  # the CSV to append to


def run(config: TranslatingConfig) -> list[dict[str, Any]]:
    """Measures, prints and appends a row for each beam size; returns them. ZooError if the peer's targets differ."""
    for name in ("sentences", "batch_size", "source_length", "length", "rounds"):
        at_least(name.replace("_", "-"), getattr(config, name), 1)
    at_least("seed", config.seed, 0)
    at_least("the number of beams", len(config.beams), 1)
    at_least("beams", min(config.beams), 1)
    model, variables, batches = _of_run(config) if config.run else _of_recipe(config)
    rows = []
    for beams in config.beams:
        ours = our_decoding(config, model, variables, batches, beams)
        decoded, first = first_call(ours)
        works, equal = {"ours": ours}, float("nan")
        theirs = peer_decoding(config, model, variables, batches, beams)
        if theirs is not None:
            equal = check_targets(decoded, theirs(), beams)
            works["torch"] = theirs
        contest = in_turn(works, config.rounds)
        row: dict[str, Any] = {"recipe": config.recipe, "run": config.run, "beams": beams}
        row |= {name: getattr(config, name) for name in ("sentences", "batch_size", "source_length", "length")}
        row |= {
            "parameters": count_parameters(variables),
            "tokens": float((decoded[0] != PairInputs.end).sum(1).mean()),
        }
        for name in ("ours", "torch"):
            fast, median, slow = contest.percentiles(name) if name in works else (np.nan,) * 3
            row[f"{name}_sentences_per_s"] = config.sentences / median
            row |= {f"{name}_p10": config.sentences / slow, f"{name}_p90": config.sentences / fast}
        speedup = contest.ratio("torch", "ours") if theirs is not None else (np.nan,) * 3
        row["speedup_p10"], row["speedup"], row["speedup_p90"] = speedup
        row |= {"equal": equal, "warmup_seconds": first - contest.percentiles("ours")[1]}
        row |= {**contest.machine(), "rounds": config.rounds, "seed": config.seed, **circumstances()}
        print(
            f"{config.run or config.recipe}, {f'beam {beams}' if beams > 1 else 'greedy'}: ours "
            f"{row['ours_sentences_per_s']:.1f} sentences/s, torch {row['torch_sentences_per_s']:.1f}; "
            f"{row['speedup']:.2f} times as fast ({row['speedup_p10']:.2f} to {row['speedup_p90']:.2f}); "
            f"{row['tokens']:.1f} tokens each, {equal:.1%} equal; {contest.remark()}"
        )
        append_row(pathlib.Path(config.output), row)
        rows.append(row)
    return rows


def check_targets(ours: Decoded, theirs: Decoded, beams: int) -> float:
    """The share of equal targets; ZooError if others differ in score.

    Greedy targets have no score in PyTorch and must be equal.
    """
    same = (ours[0] == theirs[0]).all(axis=1)
    tied = np.isclose(ours[1], theirs[1], rtol=TIE, atol=TIE)
    if not (same | tied).all():
        raise ZooError(f"{(~same & ~tied).sum()} of {len(same)} targets of beam size {beams} differ from PyTorch's")
    return float(same.mean())


def _of_recipe(config: TranslatingConfig) -> tuple[Any, Any, list[Batch]]:
    """A recipe's model with its largest vocabularies, random variables and random sources."""
    settings = load_recipe(config.recipe).config()
    if not isinstance(settings.data, PairData):
        raise ZooError(f"translating needs a recipe of pairs, such as multi30k-gru, not {config.recipe}")
    sizes = {"vocab_size": settings.data.vocab_size + SPECIAL}
    if not settings.data.shared_vocabulary:
        sizes["source_vocab_size"] = sizes["vocab_size"]
    model = zoo.create_model(settings.model.name, **{**settings.model.args, **sizes})
    variables = jax.jit(model.init)(jax.random.key(config.seed), np.zeros((1, 2), np.int32))
    rng = np.random.default_rng(config.seed)
    longest, many = config.source_length, config.sentences
    lengths = rng.integers(-(-longest // 3), longest + 1, many)
    return model, variables, _batches(config, [rng.integers(SPECIAL, sizes["vocab_size"], n) for n in lengths])


def _of_run(config: TranslatingConfig) -> tuple[Any, Any, list[Batch]]:
    """A run's model and variables, and the first test sources of its data."""
    found = zoo.load(config.run)
    settings = read_settings(read_config(pathlib.Path(config.run))["config"])
    if not isinstance(found.inputs, PairInputs) or not isinstance(settings.data, PairData):
        raise ZooError(f"{config.run!r} must be a run on pairs, not on {found.inputs.kind}s")
    test: Any = settings.data.load((), found.inputs).test
    if test is None:
        raise ZooError(f"the data of {config.run!r} have no test split")
    sources = [found.inputs.encode(source) for source, _ in test.texts[: config.sentences]]
    return found.model, found.variables, _batches(config, sources)


def _batches(config: TranslatingConfig, sources: list[np.ndarray]) -> list[Batch]:
    """Batches of sources of about the same length, as in `zoo.translate`."""
    sources, size = sorted(sources, key=len), config.batch_size
    parts = [sources[i : i + size] for i in range(0, len(sources), size)]
    return [(padded(part, width_for(len(part[-1]))), np.array([*map(len, part)], np.int32)) for part in parts]


def our_decoding(config: TranslatingConfig, model: Any, variables: Any, batches: list[Batch], beams: int) -> Any:
    """A callable that decodes all batches."""
    options: dict[str, Any] = {"first": PairInputs.first, "end": PairInputs.end, "max_length": config.length}
    options |= {"beam_size": beams, "length_penalty": PENALTY}

    def work() -> Decoded:
        found = [decode_sources(model, variables, *batch, **options) for batch in batches]
        tokens, scores = zip(*((np.asarray(beams.tokens), np.asarray(beams.scores)) for beams in found), strict=True)
        return np.concatenate(tokens)[:, 0], np.concatenate(scores)[:, 0]

    return work


def peer_decoding(config: TranslatingConfig, model: Any, variables: Any, batches: list[Batch], beams: int) -> Any:
    """The same in PyTorch; None without torch."""
    torch = torch_or_none() if config.peer else None
    if torch is None:
        return None
    from benchmarks.torch_seq2seq import beam_search, greedy, torch_model

    device = torch_device()
    peer = torch_model(model, variables).eval().to(device)
    batches = [(source[:, : lengths.max()], lengths) for source, lengths in batches]  # PyTorch needs no fixed widths
    arrays: list[Any] = [[torch.from_numpy(array.astype(np.int64)).to(device) for array in batch] for batch in batches]
    options: dict[str, Any] = {"first": PairInputs.first, "end": PairInputs.end, "most": config.length}

    def work() -> Decoded:
        if beams == 1:
            tokens = torch.cat([greedy(peer, *batch, **options) for batch in arrays]).cpu().numpy()
            return tokens, np.full(len(tokens), np.nan)
        more = {**options, "beams": beams, "penalty": PENALTY}
        found = [beam_search(peer, *batch, **more) for batch in arrays]
        tokens, scores = (torch.cat(leaves).cpu().numpy() for leaves in zip(*found, strict=True))
        return tokens, scores

    return work
