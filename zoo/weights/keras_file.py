"""Keras's models (`.keras`, `.h5`) as tensors in torch's form, named by their layers; no layer is deserialised.

A `.keras` file is a zip archive of config.json and weights in HDF5, a `.h5` file has both in itself. Kernels are
transposed to torch's; gates of an LSTM have torch's order, those of a GRU another; a dense layer over a flattened map
reads channels last in Keras, first in torch.
"""

import io
import math
import pathlib
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from zoo.errors import ZooError, first_line
from zoo.files import MOST_BYTES, parse_json
from zoo.weights.files import MOST_MADE

_WEIGHTS = {  # of each class, in the order of its variables
    **{"Dense": ("kernel", "bias"), "Conv2D": ("kernel", "bias"), "DepthwiseConv2D": ("kernel", "bias")},
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Embedding": ("embeddings",),
    **dict.fromkeys(("LSTM", "GRU"), ("kernel", "recurrent_kernel", "bias")),
}
_OFF = {"bias": "use_bias", "gamma": "scale", "beta": "center"}  # settings without which a layer lacks a variable
_OLD = {"depthwise_kernel": "kernel"}
Arrays = dict[str, np.ndarray]
ANY = "*"  # all parts of a layer, to see whether there are any


def is_keras(path: pathlib.Path) -> bool:
    """Whether a file has the ending of one of Keras's."""
    return path.suffix in (".keras", ".h5", ".hdf5")


def read(path: pathlib.Path) -> Arrays:
    """The tensors of a model's file. ZooError, in one line, for a damaged file, and for a layer with weights of a kind,
    or with settings, that torch does not have."""
    try:
        import h5py
    except ImportError:
        raise ZooError("reading Keras's files needs h5py: pip install 'flaxzoo[keras]'") from None
    try:
        most = path.stat().st_size + MOST_MADE
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                weights = archive.getinfo("model.weights.h5")
                if archive.getinfo("config.json").file_size > MOST_BYTES or weights.file_size > most:
                    raise ValueError("its records are larger than the file could hold")
                config = parse_json(archive.read("config.json").decode("utf-8"))
                with h5py.File(io.BytesIO(archive.read(weights)), "r") as file:
                    return _tensors(config, _by_class(h5py, file, most))
        with h5py.File(path, "r") as file:
            if "model_config" not in file.attrs:
                raise ZooError(f"{str(path)!r} has weights alone; give the file of the whole model, of model.save")
            return _tensors(parse_json(str(file.attrs["model_config"])), _by_name(h5py, file, most))
    except ZooError:
        raise
    except Exception as error:  # h5py raises many types for damaged files
        raise ZooError(f"{str(path)!r} is no model of Keras's, or is damaged: {first_line(error)}") from None


def _by_class(h5py: Any, file: Any, most: int) -> Callable[[str, str, str, int], Arrays]:
    """The variables of a part of a layer, by its class and its number among layers of that class."""

    def variables(kind: str, name: str, part: str, number: int) -> Arrays:
        snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
        place = f"layers/{snake}" + (f"_{number}" if number else "")
        if part == ANY:
            arrays: list[str] = []
            _group(h5py, file, place).visititems(
                lambda key, item: arrays.append(key) if hasattr(item, "shape") else None
            )
            return dict.fromkeys(arrays, np.zeros(0))
        place += part
        held = _group(h5py, file, f"{place}/vars")
        return {key: _array(h5py, held, key, most) for key in sorted(held, key=int)}

    return variables


def _by_name(h5py: Any, file: Any, most: int) -> Callable[[str, str, str, int], Arrays]:
    """The variables of a part of a layer, by the layer's name."""

    def variables(kind: str, name: str, part: str, number: int) -> Arrays:
        held = _group(h5py, file, f"model_weights/{name}")
        way = part.split("_layer")[0].strip("/")  # forward, backward
        names = [str(one) for one in held.attrs["weight_names"]]
        own = [one for one in names if f"/{way}_" in f"/{one}" or way not in ("forward", "backward")]
        return {one.split("/")[-1].split(":")[0]: _array(h5py, held, one, most) for one in own}

    return variables


def _group(h5py: Any, file: Any, place: str) -> Any:
    """A group, reached by links within the file."""
    for part in place.split("/"):
        if not isinstance(file.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{place!r} is not in the file")
        file = file[part]
    return file


def _array(h5py: Any, group: Any, name: str, most: int) -> np.ndarray:
    *folders, last = name.split("/")
    group = _group(h5py, group, "/".join(folders)) if folders else group
    found = group[last] if isinstance(group.get(last, getlink=True), h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise ValueError(f"{name!r} is no array in the file")
    if found.dtype.kind not in "fiub" or found.nbytes > most:
        raise ValueError(f"{name!r} is {found.dtype} of {found.nbytes:,} bytes")
    return np.asarray(found[()])


def _tensors(config: Any, variables: Callable[[str, str, str, int], Arrays]) -> Arrays:
    found: Arrays = {}
    numbers: Counter[str] = Counter()
    flat: tuple[int, ...] = ()  # height, width and channels of the map that was flattened last
    for layer in config["config"]["layers"]:
        kind, about = layer["class_name"], layer["config"]
        number, name = numbers[kind], about["name"]
        numbers[kind] += 1
        shape = (layer.get("build_config") or {}).get("input_shape") or ()
        if kind == "Flatten":
            flat = tuple(shape[1:]) if len(shape) == 4 and None not in shape[1:] else ()
        wrapped = about["layer"]["config"] if kind == "Bidirectional" else about
        own = about["layer"]["class_name"] if kind == "Bidirectional" else kind
        if kind in ("Sequential", "Functional", "TimeDistributed") or (kind == "Bidirectional" and own not in _GATED):
            raise ZooError(f"layer {name!r} is a {kind}; the layers that are read are {', '.join(_WEIGHTS)}")
        if own not in _WEIGHTS:
            if _has_weights(variables, kind, name, number):
                raise ZooError(f"layer {name!r} is a {kind}; the layers that are read are {', '.join(_WEIGHTS)}")
            continue
        parts = {"": ""} if own not in _GATED else {"": "/cell"}
        if kind == "Bidirectional":
            parts = {"": "/forward_layer/cell", "_reverse": "/backward_layer/cell"}
        for suffix, part in parts.items():
            values = _named(own, wrapped, variables(kind, name, part, number))
            if own == "Dense" and flat and math.prod(flat) == len(values["kernel"]):
                width = values["kernel"].shape[1]  # theirs reads rows, columns, channels
                values["kernel"] = values["kernel"].reshape(*flat, width).transpose(2, 0, 1, 3).reshape(-1, width)
                flat = ()
            found |= {f"{name}.{key}": array for key, array in _FORMS[own](values, wrapped, suffix, name)}
    return found


def _has_weights(variables: Callable[[str, str, str, int], Arrays], kind: str, name: str, number: int) -> bool:
    try:
        return bool(variables(kind, name, ANY, number))
    except (KeyError, ValueError):
        return False


def _named(kind: str, about: Mapping[str, Any], values: Arrays) -> Arrays:
    """A layer's variables by name, from those by name or by number."""
    names = [name for name in _WEIGHTS[kind] if name not in _OFF or about.get(_OFF[name], True)]
    if len(values) != len(names):
        raise ValueError(f"layer {about['name']!r} has {len(values)} variables, not {', '.join(names)}")
    if all(key.isdigit() for key in values):
        return dict(zip(names, values.values(), strict=True))
    return {_OLD.get(key, key): array for key, array in values.items()}


Named = Iterator[tuple[str, np.ndarray]]


def _dense(values: Arrays, about: Mapping[str, Any], suffix: str, name: str) -> Named:
    yield "weight", values["kernel"].T
    if "bias" in values:
        yield "bias", values["bias"]


def _conv(values: Arrays, about: Mapping[str, Any], suffix: str, name: str) -> Named:
    if about.get("data_format", "channels_last") != "channels_last":
        raise ZooError(f"layer {name!r} must have its channels last")
    yield "weight", values["kernel"].transpose(3, 2, 0, 1)
    if "bias" in values:
        yield "bias", values["bias"]


def _depthwise(values: Arrays, about: Mapping[str, Any], suffix: str, name: str) -> Named:
    kernel = values["kernel"]  # [height, width, channels, 1]
    if kernel.shape[3] != 1:
        raise ZooError(f"layer {name!r} must have a depth_multiplier of 1, not {kernel.shape[3]}")
    yield "weight", kernel.transpose(2, 3, 0, 1)
    if "bias" in values:
        yield "bias", values["bias"]


def _norm(values: Arrays, about: Mapping[str, Any], suffix: str, name: str) -> Named:
    mean = values["moving_mean"]
    yield "weight", values.get("gamma", np.ones_like(mean))
    yield "bias", values.get("beta", np.zeros_like(mean))
    yield "running_mean", mean
    yield "running_var", values["moving_variance"]


def _embedding(values: Arrays, about: Mapping[str, Any], suffix: str, name: str) -> Named:
    yield "weight", values["embeddings"]


def _lstm(values: Arrays, about: Mapping[str, Any], suffix: str, name: str) -> Named:
    _check_gates(about, name)
    yield f"weight_ih_l0{suffix}", values["kernel"].T
    yield f"weight_hh_l0{suffix}", values["recurrent_kernel"].T
    bias = values.get("bias", np.zeros(values["kernel"].shape[1], values["kernel"].dtype))
    yield f"bias_ih_l0{suffix}", bias
    yield f"bias_hh_l0{suffix}", np.zeros_like(bias)


def _gru(values: Arrays, about: Mapping[str, Any], suffix: str, name: str) -> Named:
    """Theirs has the gates update, reset, candidate; torch has reset first."""
    _check_gates(about, name)
    if about.get("reset_after", True) is not True:
        raise ZooError(f"layer {name!r} must have reset_after, as torch's GRU")

    def ordered(array: np.ndarray) -> np.ndarray:
        update, reset, candidate = np.split(array, 3, axis=-1)
        return np.concatenate([reset, update, candidate], axis=-1)

    yield f"weight_ih_l0{suffix}", ordered(values["kernel"]).T
    yield f"weight_hh_l0{suffix}", ordered(values["recurrent_kernel"]).T
    bias = values.get("bias", np.zeros((2, values["kernel"].shape[1]), values["kernel"].dtype))
    yield f"bias_ih_l0{suffix}", ordered(bias[0])
    yield f"bias_hh_l0{suffix}", ordered(bias[1])


def _check_gates(about: Mapping[str, Any], name: str) -> None:
    for key, right in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        if about.get(key, right) != right:
            raise ZooError(f"layer {name!r} must have the {key} {right}, not {about[key]}")


_FORMS: dict[str, Callable[[Arrays, Mapping[str, Any], str, str], Named]] = {
    **{"Dense": _dense, "Conv2D": _conv, "DepthwiseConv2D": _depthwise, "BatchNormalization": _norm},
    **{"Embedding": _embedding, "LSTM": _lstm, "GRU": _gru},
}
_GATED = ("LSTM", "GRU")
