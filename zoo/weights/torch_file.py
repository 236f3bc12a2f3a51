"""Files of torch (`.pth`, `.pt`, `.bin`, `.ckpt`) as `.safetensors`; no code in them is run."""

import argparse
import os
import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.errors import ZooError, first_line
from zoo.weights.files import some, write_safetensors
from zoo.weights.names import is_counter, shared_prefix, unwrapped

# Where training scripts keep the weights in a checkpoint, the plain ones before averaged ones.
_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "weights", "params"),
    *("model_ema", "ema_state_dict", "state_dict_ema", "ema_model", "ema", "shadow_params"),
)
_PREFIXES = ("module", "model", "network", "net", "backbone", "encoder")  # attributes that hold the model
_LEVELS = 4
_MOST_MADE = 2**28  # bytes beyond the file's own that sparse and expanded tensors may take


def convert_torch(source: str | os.PathLike, target: str | os.PathLike) -> int:
    """Converts torch's weights to `.safetensors` with the same names and dtypes; returns the number of tensors. Needs
    torch.

    A checkpoint's state dict is found under the usual keys (`state_dict`, `model`, ...). A prefix of wrappers that all
    names share (`module.`, `_orig_mod.`, `model.`) and torch's step counters are left out; sparse tensors become dense.
    The file is read with `weights_only=True`: a file that contains code is refused, and the code is not run. ZooError,
    in one line, also for tensors without values (meta), quantised and complex ones.
    """
    source = pathlib.Path(source).expanduser()
    state = _state_dict(_read(source), str(source))
    plain = {unwrapped(name): tensor for name, tensor in state.items() if not is_counter(name)}
    if len(plain) < sum(not is_counter(name) for name in state):
        raise ZooError(f"{str(source)!r} has tensors with and without a wrapper's prefix under the same name")
    prefix = ""
    for part in shared_prefix(plain):
        if part not in _PREFIXES:
            break
        prefix += f"{part}."
    _refuse_huge(plain, source)
    write_safetensors({name.removeprefix(prefix): _array(name, tensor) for name, tensor in plain.items()}, target)
    return len(plain)


def _read(source: pathlib.Path) -> Any:
    """What `torch.save` saved; argparse's settings, which reference scripts keep beside the weights, are plain data."""
    try:
        import torch
    except ImportError:
        raise ZooError("reading torch's files needs torch; install it with: pip install torch") from None
    if source.is_dir():
        raise ZooError(f"{str(source)!r} is a folder; give the file of weights in it")
    if not source.is_file():
        raise ZooError(f"no file {str(source)!r}")
    if source.stat().st_size == 0:
        raise ZooError(f"{str(source)!r} is empty")
    if source.name.endswith((".safetensors", ".safetensors.index.json")):
        raise ZooError(f"{str(source)!r} is a .safetensors file already; load it as it is")
    if _is_torchscript(source):
        raise ZooError(f"{str(source)!r} is a TorchScript archive, which holds code; save its state_dict() instead")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch's, about its own internals
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for foreign or hostile files
        raise ZooError(f"{str(source)!r} {_why(error)}") from None


def _why(error: Exception) -> str:
    """Why torch read no weights, in our words: its own advice is to run the code in the file."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"holds Python objects ({found[1]}), not only tensors; save the model's state_dict() with torch.save and "
            "convert that"
        )
    if "legacy .tar" in text:
        return "has torch's old tar format, which is read by running code; save it anew with torch.save"
    if "weights_only" in text or not text:
        return "is no file of torch's weights, or is damaged"
    return f"is no file of torch's weights, or is damaged: {first_line(error)}"


def _is_torchscript(source: pathlib.Path) -> bool:
    if not zipfile.is_zipfile(source):
        return False
    try:
        with zipfile.ZipFile(source) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return False


def _state_dict(content: Any, source: str) -> dict[str, Any]:
    """The tensors by name in what was saved, under the usual keys; ZooError if there are none."""
    import torch

    for _ in range(_LEVELS):
        if not isinstance(content, Mapping):
            break
        found = [key for key in _KEYS if _has_tensors(content.get(key))]
        if not found:
            break
        if len(found) > 1:
            rest = ", ".join(map(repr, found[1:]))
            warnings.warn(f"{source!r} has weights under {found[0]!r}, which are taken, and {rest}", stacklevel=3)
        content = content[found[0]]
    if not isinstance(content, Mapping):
        raise ZooError(f"{source!r} holds no state dict of tensors by name, but {type(content).__name__}")
    if not content:
        raise ZooError(f"{source!r} holds no tensors")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    others += [str(name) for name in content if not isinstance(name, str)]
    if others:
        raise ZooError(
            f"{source!r} holds no state dict of tensors: not all under its keys are tensors ({some(others)}), and none "
            f"of its keys is one of {', '.join(_KEYS)} with tensors below it"
        )
    return dict(content)


def _has_tensors(value: Any, levels: int = _LEVELS) -> bool:
    """Whether a mapping has tensors, itself or further down."""
    import torch

    if not isinstance(value, Mapping):
        return False
    return any(isinstance(v, torch.Tensor) or (levels > 1 and _has_tensors(v, levels - 1)) for v in value.values())


def _array(name: str, tensor: Any) -> np.ndarray:
    """A tensor's numbers with its dtype; ZooError, by name, for one without values or of a kind that files lack."""
    import ml_dtypes
    import torch

    kind = "without values (meta)" if tensor.is_meta else "quantised" if tensor.is_quantized else ""
    kind = kind or ("complex" if tensor.is_complex() else "")
    if kind:
        raise ZooError(f"tensor {name!r} is {kind}; only tensors of real numbers can be converted")
    try:
        tensor = tensor.detach()
        tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.int16).numpy(force=True).view(ml_dtypes.bfloat16)
        return tensor.numpy(force=True)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ZooError(f"tensor {name!r} ({tensor.dtype}) cannot be converted: {first_line(error)}") from None


def _refuse_huge(tensors: Mapping[str, Any], source: pathlib.Path) -> None:
    """ZooError where sparse or expanded tensors would take far more memory than the file has."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values() if not tensor.is_meta)
    if size > (most := source.stat().st_size + _MOST_MADE):
        raise ZooError(f"the tensors of {str(source)!r} would take {size:,} bytes, more than {most:,}")
