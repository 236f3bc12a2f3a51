"""Compares every model that has public weights with timm's or transformers', by way of a file, with drawn weights.

timm's models have their own sizes and small images, transformers' are made small: a file has the same names and forms
whatever its sizes. Nothing is downloaded.
"""

import csv
import dataclasses
import importlib.metadata
import json
import math
import pathlib
import tempfile
import warnings
from typing import Any

import jax
import numpy as np
from tyro.conf import Positional

import zoo
from zoo.errors import unknown
from zoo.registry import abstract_variables, example_of
from zoo.sources import Source

FILE = pathlib.Path(__file__).parent / "parity.csv"
COLUMNS = ("name", "repository", "reference", "difference")
TOKENS = 40  # of a small vocabulary


@dataclasses.dataclass(frozen=True)
class ParityConfig:
    """Compares models of public weights with timm's or transformers', with drawn weights, and writes parity.csv."""

    names: Positional[tuple[str, ...]] = ()  # registered models; default: all with public weights
    output: str = str(FILE)  # the CSV, in which the rows of these models are replaced
    seed: int = 0


def run(config: ParityConfig) -> list[dict[str, Any]]:
    """Measures, prints and writes a row for each repository: the largest difference by the largest value."""
    known = [name for name in zoo.list_models() if zoo.model_info(name).sources]
    for name in config.names:
        if name not in known:
            raise unknown("model with public weights", name, known)
    from benchmarks.peers import torchvision_models

    torchvision_models()  # before transformers and timm, which import it
    found = []
    for name in config.names or known:
        for source in zoo.model_info(name).sources:
            of_timm = source.repository.startswith("timm/")
            with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                folder = pathlib.Path(place, "folder")
                compare = _timm if of_timm else _transformers
                ours, theirs = compare(name, source, folder, np.random.default_rng(config.seed))
            library = "timm" if of_timm else "transformers"
            row = {
                "name": name,
                "repository": source.repository,
                "reference": f"{library} {importlib.metadata.version(library)}",
                "difference": f"{np.abs(ours - theirs).max() / np.abs(theirs).max():.1e}",
            }
            print(*row.values(), flush=True)
            found.append(row)
    path = pathlib.Path(config.output)
    kept = [row for row in read(path) if config.names and row["name"] not in config.names]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *found], key=lambda row: row["name"]))
    return found


def read(path: pathlib.Path = FILE) -> list[dict[str, Any]]:
    """The rows of a file of results; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _timm(name: str, source: Source, folder: pathlib.Path, rng: Any) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of timm's model and ours, for small images."""
    import timm
    import torch
    from safetensors.torch import save_file

    architecture = source.repository.removeprefix("timm/").split(".")[0]
    fields = zoo.create_model(name).__dict__
    patches = "patch_size" in fields
    side = 4 * fields["patch_size"] if patches else 224 if name.startswith("vgg") else 64
    classes = 0 if name.startswith("dinov2") else 7
    more: dict[str, Any] = {"img_size": side} if patches else {}
    model = timm.create_model(architecture, num_classes=classes, **more).eval()
    state = model.state_dict()
    for key, value in state.items():
        if value.dtype.is_floating_point:
            scale = key.endswith("running_var") or (value.ndim == 1 and key.endswith(("weight", "gamma")))
            drawn = rng.uniform(0.5, 1.5, value.shape) if scale else 0.1 * rng.normal(size=value.shape)
            value.copy_(torch.from_numpy(drawn))
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    about = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, side, side]}
    config = {"architecture": architecture, "num_classes": classes, "pretrained_cfg": about}
    (folder / "config.json").write_text(json.dumps(config))
    run = zoo.load(folder)
    x = rng.normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    return np.asarray(run.model.apply(run.variables, x)), theirs


def _transformers(name: str, source: Source, folder: pathlib.Path, rng: Any) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of our model, made small, and of transformers' from the folder that we write."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = zoo.create_model(name, **_small(zoo.create_model(name)))
    shapes = abstract_variables(model, *example_of(model))

    def drawn(path: Any, leaf: Any) -> np.ndarray:
        scale = path[-1].key == "scale" and getattr(model, "norm", "") != "rms_offset"
        return (0.2 * rng.normal(size=leaf.shape) + scale).astype(leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(drawn, shapes)
    zoo.save_pretrained(model, variables, folder)
    if getattr(model, "output", None) == "embedding":
        model = model.clone(output="hidden")
    model, variables = zoo.from_pretrained(folder, **({"output": "hidden"} if hasattr(model, "output") else {}))
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    peer = getattr(transformers, kind).from_pretrained(folder).eval()
    tokens = rng.integers(3, TOKENS - 1, (2, 9)).astype(np.int32)
    images = None
    if hasattr(model, "image_size"):
        images = rng.normal(size=(2, model.image_size, model.image_size, 3)).astype(np.float32)
    given = {}
    if images is not None:
        given["pixel_values"] = torch.from_numpy(images).permute(0, 3, 1, 2)
    if hasattr(model, "encode"):
        given |= {"input_ids": torch.from_numpy(tokens).long(), "decoder_input_ids": torch.from_numpy(tokens).long()}
        ours = model.apply(variables, tokens, source=tokens)
    elif hasattr(model, "encode_text"):
        tokens[:, -1] = TOKENS - 1
        given["input_ids"] = torch.from_numpy(tokens).long()
        ours = model.apply(variables, images, tokens)
    elif images is not None:
        ours = model.apply(variables, images)
    else:
        given["input_ids"] = torch.from_numpy(tokens).long()
        ours = model.apply(variables, tokens)
    with torch.no_grad():
        out = peer(**given)
    for key in ("logits_per_image", "logits"):
        if key in out:
            return np.asarray(ours), out[key].numpy()
    theirs = out.pooler_output if images is not None else out.last_hidden_state
    return np.asarray(ours), theirs.numpy()


def _small(model: Any) -> dict[str, Any]:
    """Fields that make a model of transformers' small, and leave what kind it is."""
    heads = 4
    fields: dict[str, Any] = {"num_heads": heads, "hidden_size": 32, "num_layers": 2, "mlp_size": 48}
    if hasattr(model, "global_every"):
        fields["num_layers"] = max(2, math.lcm(model.global_every or 1, model.unrotated_every or 1))
        fields["num_kv_heads"] = max(1, heads * (model.num_kv_heads or model.num_heads) // model.num_heads)
        fields |= {"head_dim": 16} if model.head_dim else {}
        fields |= {"window": 5} if model.window else {}
    if hasattr(model, "vocab_size"):
        fields |= {"vocab_size": TOKENS, "max_length": 24}
    if getattr(model, "source_vocab_size", None):
        fields["source_vocab_size"] = TOKENS
    if getattr(model, "num_decoder_layers", None):
        fields["num_decoder_layers"] = 1
    if getattr(model, "head_dim", None) and "head_dim" not in fields:
        fields["head_dim"] = 8
    if hasattr(model, "image_size"):
        fields["image_size"] = 2 * model.patch_size
    if hasattr(model, "text_hidden_size"):
        fields |= {"text_hidden_size": 16, "text_num_layers": 2, "text_num_heads": 2, "embedding_size": 10}
        del fields["mlp_size"]
    elif hasattr(model, "image_size"):
        fields["mlp_size"] = 64
    return fields
