"""Converts models to ONNX, checks them with onnxruntime, and times them beside our forward pass.

A row for each model: whether it converts or why not, the opset, the dynamic axes, the largest error.
"""

import csv
import dataclasses
import functools
import importlib.metadata
import pathlib
from typing import Any

import jax
import numpy as np
from jax import export
from tyro.conf import Positional

import zoo
from benchmarks.timer import RESULTS, append_row, circumstances, in_turn
from train.settings import at_least
from zoo.errors import ZooError, unknown
from zoo.export.onnx import OPSET, arrays_of, convert
from zoo.export.programs import on_any_platform

_RECURRENT: dict[str, Any] = {"hidden_size": 64}
_WORDS: dict[str, Any] = {"hidden_size": 64, "vocab_size": 100, "num_layers": 1}
_PAIRS: dict[str, Any] = {"hidden_size": 64, "embedding_size": 64, "vocab_size": 100}
_BLOCKS: dict[str, Any] = {"hidden_size": 64, "num_heads": 4, "num_layers": 2, "vocab_size": 100, "max_length": 64}
MODELS: dict[str, dict[str, Any]] = {  # one or more of every architecture, with the fields that make it small
    **{name: {} for name in ("simple_cnn", "lenet5", "resnet20", "resnet18", "mobilenet_v2", "mobilenet_v3_small")},
    **{"airbench": {}, "efficientnet_lite0": {}, "alexnet": {"hidden_size": 256}, "vgg11_bn": {"hidden_size": 256}},
    "wide_resnet28_10": {"width": 32, "stage_sizes": (1, 1, 1)},
    "densenet121": {"stage_sizes": (2, 2, 2, 2)},
    "convnext_tiny": {"stage_sizes": (1, 1, 1, 1)},
    "unet_small": {"widths": (8, 16, 32)},
    "deeplabv3_resnet50": {"stage_sizes": (1, 1, 1, 1)},
    **dict.fromkeys(("lstm", "gru", "rnn", "lstm_forecaster", "lstm_encoder"), _RECURRENT),
    **dict.fromkeys(("lstm_sentence_encoder", "lstm_classifier", "lstm_lm"), _WORDS),
    "awd_lstm": {**_WORDS, "num_layers": 2, "embedding_size": 32},
    **{name: {**_PAIRS, "num_layers": 1} for name in ("seq2seq_lstm", "seq2seq_lstm_luong")},
    "seq2seq_gru_attention": _PAIRS,
    **dict.fromkeys(("nanogpt", "bert_base", "mpnet_base", "transformer_base", "t5_small"), _BLOCKS),
    "llama3_1b": {**_BLOCKS, "num_kv_heads": 2},
    "vit_tiny16": {"num_layers": 2},
    "clip_vit_base32": {
        **{"hidden_size": 64, "num_layers": 1, "num_heads": 2, "vocab_size": 100, "image_size": 64},
        **{"text_hidden_size": 64, "text_num_layers": 1, "text_num_heads": 2, "embedding_size": 64},
    },
}
STEPS = 8  # tokens, or rows of a series, where they are not free


@dataclasses.dataclass(frozen=True)
class OnnxConfig:
    """Converts models to ONNX, checks them with onnxruntime, and times them beside our forward pass."""

    models: Positional[tuple[str, ...]] = tuple(MODELS)  # of benchmarks/onnx.py; default: one of every architecture
    batch_size: int = 1  # of the timed calls
    rounds: int = 5  # rounds
    seed: int = 0  # of the weights
    output: str = str(RESULTS / "onnx.csv")  # the CSV to append to


def run(config: OnnxConfig) -> list[dict[str, Any]]:
    """Converts, measures, prints and appends a row for each model; returns them."""
    at_least("batch-size", config.batch_size, 1)
    at_least("rounds", config.rounds, 1)
    for name in config.models:
        if name not in MODELS:
            raise unknown("model of this benchmark", name, MODELS)
    rows = []
    for name in config.models:
        rows.append(_row(name, config))
        append_row(pathlib.Path(config.output), rows[-1])
    return rows


def _row(name: str, config: OnnxConfig) -> dict[str, Any]:
    row: dict[str, Any] = {"model": name, "args": MODELS[name], "converts": "", "opset": "", "axes": "", "error": ""}
    row |= dict.fromkeys(("ours_ms", "onnxruntime_ms", "speedup", "speedup_p10", "speedup_p90", "busy_others"), "")
    row |= {"batch_size": config.batch_size, "rounds": config.rounds, **_versions()}
    problems = []
    for free in _axes(name):
        forward, arguments, largest = forward_of(name, free, config.seed)
        try:
            content, error = convert(forward, arguments, largest)
        except ZooError as problem:
            problems.append(f"{', '.join(free)} free: {problem}")
            continue
        row |= {"converts": "yes", "opset": OPSET, "axes": " ".join(free), "error": error}
        row |= _timed(content, forward, arrays_of(arguments, largest, (config.batch_size, STEPS)), config.rounds)
        break
    else:
        row["converts"] = "; ".join(problems)[:300]
    row |= circumstances()
    said = f"axes {row['axes']}, error {row['error']:.1g}, {row['speedup']:.2f}" if row["converts"] == "yes" else ""
    print(f"{name}: {row['converts']} {said}", flush=True)
    return row


def _timed(content: bytes, forward: Any, arrays: dict[str, np.ndarray], rounds: int) -> dict[str, Any]:
    """Milliseconds of a call of ours and of onnxruntime's, with NumPy arrays in and out; above 1: ours is faster."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    given = {one.name: arrays[one.name] for one in session.get_inputs()}
    ours = jax.jit(forward)
    works = {
        "ours": lambda: np.asarray(ours(*arrays.values())),
        "onnxruntime": lambda: session.run(None, given),
    }
    contest = in_turn(works, rounds)
    low, ratio, high = contest.ratio("onnxruntime", "ours")
    found = {f"{name}_ms": 1e3 * contest.percentiles(name)[1] for name in works}
    return {**found, "speedup": ratio, "speedup_p10": low, "speedup_p90": high, "busy_others": contest.busy_others}


def read(path: pathlib.Path = RESULTS / "onnx.csv") -> dict[str, dict[str, str]]:
    """The newest row of each model."""
    with path.open(newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def table() -> str:
    """The newest row of each model, in Markdown."""
    lines = [
        "| model | converts | dynamic axes | largest error | ours, ms | onnxruntime, ms | ratio |",
        "|---" * 7 + "|",
    ]
    for name, row in read().items():
        if row["converts"] != "yes":
            lines.append(f"| `{name}` | no: {_reason(row['converts'])} | | | | | |")
            continue
        ours, theirs, ratio = (float(row[key]) for key in ("ours_ms", "onnxruntime_ms", "speedup"))
        cells = row["axes"].replace(" ", ", "), f"{float(row['error']):.0e}", f"{ours:.2f}", f"{theirs:.2f}"
        lines.append(f"| `{name}` | yes | {' | '.join(cells)} | {ratio:.2f} |")
    return "\n".join(lines)


def _reason(text: str) -> str:
    """Why a model does not convert, short and without Markdown's marks."""
    text = text.rsplit("jax2onnx does not convert it: ", 1)[-1].replace("[ONNXRuntimeError] : ", "")
    return text.replace("|", "/").replace("<", "&lt;")[:140]


def _versions() -> dict[str, str]:
    try:
        return {name: importlib.metadata.version(name) for name in ("jax2onnx", "onnxruntime")}
    except importlib.metadata.PackageNotFoundError as error:
        raise ZooError(f"no package {error.name}; in an environment of its own: pip install '.[onnx]'") from None


def _axes(name: str) -> tuple[tuple[str, ...], ...]:
    """The free sizes to try, most first: batch and length, or the batch alone."""
    shape = zoo.model_info(name).input_shape
    return (("b",),) if len(shape) == 3 else (("b", "t"), ("b",))


def forward_of(name: str, free: tuple[str, ...], seed: int = 0) -> tuple[Any, dict[str, Any], dict[str, int]]:
    """A small model's forward pass with drawn weights, its abstract arguments by name, and the ends of whole ones."""
    model, info = on_any_platform(zoo.create_model(name, **MODELS[name])), zoo.model_info(name)
    args, kwargs = info.example(2)
    names = ["x", *kwargs]
    sizes = dict(zip(("b", "t"), export.symbolic_shape("b, t", constraints=["t <= 64"]), strict=True))
    abstract = {}
    for key, leaf in zip(names, [*args, *kwargs.values()], strict=True):
        rest = [*leaf.shape[1:]]
        if key == "x" and hasattr(model, "image_size"):
            rest = [model.image_size, model.image_size, rest[2]]
        elif len(rest) < 3:  # tokens, or rows of a series
            rest = [sizes["t"] if "t" in free else STEPS, *rest[1:]]
        abstract[key] = jax.ShapeDtypeStruct((sizes["b"], *rest), leaf.dtype)
    whole = arrays_of(abstract, dict.fromkeys(names, 100), (2, STEPS))
    variables = jax.jit(model.init)(jax.random.key(seed), *[whole["x"]], **{k: whole[k] for k in kwargs})
    call = functools.partial(model.apply, variables)

    def forward(*arrays: Any) -> Any:
        return call(arrays[0], **dict(zip(names[1:], arrays[1:], strict=True)))

    return forward, abstract, dict.fromkeys(names, 100)
