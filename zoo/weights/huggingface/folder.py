"""Folders in the form of Hugging Face's `transformers`: config.json beside `.safetensors`.

A config that needs something our models do not have (another activation, another scaling of rotary positions, biases in
a Llama) is refused by name.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from zoo import hub
from zoo.errors import ZooError, unknown
from zoo.files import read_json
from zoo.registry import abstract_variables, create_model, example_of
from zoo.transformer.layers import unstacked
from zoo.weights import huggingface, load_weights, write_safetensors
from zoo.weights.huggingface import sentences


def from_pretrained(folder: str | os.PathLike, **overrides: Any) -> tuple[nn.Module, Mapping[str, Any]]:
    """The model and its variables from a folder with config.json and model.safetensors, single or sharded, or from a
    repository of the Hub, `hf:ORG/NAME` or `hf:ORG/NAME@REVISION`.

    `overrides` are fields of the model, such as dtype, max_length or scan_layers. ZooError, in one line, for a missing
    or damaged file and for an unsupported architecture; weights are never loaded in part. A ViT expects pixels
    preprocessed as in the folder's preprocessor_config.json: x / 127.5 - 1 for x in 0 to 255 in the published ones, at
    its image_size.
    """
    folder = hub.local(folder, read_config) or folder
    name, fields = read_config(folder)
    model = create_model(name, **{**fields, **overrides})
    return model, load_weights(model, weights_file(folder))


def read_config(folder: str | os.PathLike) -> tuple[str, dict[str, Any]]:
    """The registered model that a folder's config.json describes, and its fields."""
    folder = pathlib.Path(folder).expanduser()
    path = folder / "config.json"
    if not path.is_file():
        raise ZooError(f"{str(folder)!r} is not a Hugging Face folder: it has no config.json")
    try:
        config = read_json(path)
    except ValueError as error:
        raise ZooError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ZooError(f"{str(path)!r} must hold an object, not {config!r:.40}")
    try:
        name, fields = _fields(config)
    except Exception as error:  # values may have any type
        raise ZooError(f"{str(path)!r}: {error}") from None
    return name, fields | (sentences.fields(folder) if "output" in fields else {})


def weights_file(folder: str | os.PathLike) -> pathlib.Path:
    """A folder's weights file, or the index of its shards."""
    weights = [
        pathlib.Path(folder).expanduser() / name for name in ("model.safetensors", "model.safetensors.index.json")
    ]
    found = [path for path in weights if path.is_file()]
    if not found:
        raise ZooError(f"{str(folder)!r} has neither {weights[0].name} nor {weights[1].name}")
    return found[0]


def save_pretrained(model: nn.Module, variables: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """Writes config.json and model.safetensors, which `transformers` loads as the same model; for an embedding also the
    files of sentence-transformers.

    ZooError if the folder is not empty, the variables belong to another model, or Hugging Face has no such model.
    """
    folder = pathlib.Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ZooError(f"{str(folder)!r} exists; choose an empty folder or a new one")
    family = next((family for family in huggingface.FAMILIES if family.writes(model)), None)
    if family is None:
        raise ZooError(f"{type(model).__name__} has no Hugging Face layout; use zoo.weights.save_native")
    config = family.config(model)
    embeds = getattr(model, "output", None) == "embedding"
    for key, value in (_fields(config)[1] | ({"output": "embedding"} if embeds else {})).items():
        if (own := getattr(model, "settled", {}).get(key, getattr(model, key))) != value:
            raise ZooError(f"Hugging Face's {config['model_type']} has {key} {value!r}, not {own!r}")
    if jax.tree.map(np.shape, variables) != jax.tree.map(np.shape, abstract_variables(model, *example_of(model))):
        raise ZooError("the variables do not belong to this model: names or shapes differ")
    plain = unstacked(variables)
    layout: Any = huggingface.layout_of(plain, family.LAYOUTS)
    tensors = layout.of(model).to_file(plain)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if embeds:
        sentences.write(model, folder)


def _fields(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered model that a config describes, and its fields; ZooError if there is none."""
    kind = config.get("model_type")
    if kind is None:
        names = config.get("architectures") or ["none"]
        known = {name: kind for f in huggingface.FAMILIES for kind, of in f.ARCHITECTURES.items() for name in of}
        kind = next((known[name] for name in names if name in known), names[0])
    if str(kind) not in huggingface.KINDS:
        raise unknown("model_type", str(kind), huggingface.KINDS)
    return huggingface.KINDS[kind].fields({**config, "model_type": kind})
