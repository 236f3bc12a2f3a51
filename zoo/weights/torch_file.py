"""Files of torch (`.pth`, `.pt`, `.bin`, `.ckpt`) and of Keras as `.safetensors`; no code in them is run."""

import json
import os
import pathlib
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.errors import ZooError, first_line
from zoo.weights import keras_file, torch_pickle
from zoo.weights.files import MOST_MADE, some, write_safetensors
from zoo.weights.names import is_counter, shared_prefix, unwrapped
from zoo.weights.torch_pickle import Unusable

# Where training scripts keep the weights in a checkpoint, the plain ones before averaged ones.
_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "weights", "params"),
    *("model_ema", "ema_state_dict", "state_dict_ema", "ema_model", "ema", "shadow_params"),
)
_PREFIXES = ("module", "model", "network", "net", "backbone", "encoder")  # attributes that hold the model
_LEVELS = 4
_NANOGPT = {  # its fields to ours
    **{"vocab_size": "vocab_size", "n_embd": "hidden_size", "n_layer": "num_layers", "n_head": "num_heads"},
    **{"block_size": "max_length", "bias": "use_bias"},
}


def convert_torch(source: str | os.PathLike, target: str | os.PathLike) -> int:
    """Converts torch's weights to `.safetensors` with the same names and dtypes; returns the number of tensors. A model
    of Keras's (`.keras`, `.h5`) gets torch's form of each layer, `NAME.weight`, as `zoo.weights.keras_file` has it.

    A checkpoint's state dict is found under the usual keys (`state_dict`, `model`, ...). A prefix of wrappers that all
    names share (`module.`, `_orig_mod.`, `model.`) and torch's step counters are left out; sparse tensors become dense.
    A file that names Python objects other than tensors is refused, and none of its code is run. ZooError, in one line,
    also for tensors without values (meta), quantised and complex ones. Of a checkpoint of nanoGPT's the file says, as
    `zoo.load` reads it, which model it is for.
    """
    source = pathlib.Path(source).expanduser()
    _check_file(source)
    if keras_file.is_keras(source):
        found = keras_file.read(source)
        write_safetensors(found, target)
        return len(found)
    content = _read(source)
    state = _state_dict(content, str(source))
    plain = {unwrapped(name): tensor for name, tensor in state.items() if not is_counter(name)}
    if len(plain) < sum(not is_counter(name) for name in state):
        raise ZooError(f"{str(source)!r} has tensors with and without a wrapper's prefix under the same name")
    prefix = ""
    for part in shared_prefix(plain):
        if part not in _PREFIXES:
            break
        prefix += f"{part}."
    _refuse_huge(plain, source)
    found = {name.removeprefix(prefix): _array(name, tensor) for name, tensor in plain.items()}
    write_safetensors(found, target, metadata=_nanogpt(content))
    return len(plain)


def _nanogpt(content: Any) -> dict[str, str] | None:
    """The metadata for a checkpoint of nanoGPT's: the model that its `model_args` describe."""
    about = content.get("model_args") if isinstance(content, Mapping) else None
    if not isinstance(about, Mapping) or not _NANOGPT.keys() <= about.keys():
        return None
    args = {ours: about[theirs] for theirs, ours in _NANOGPT.items()}
    return {"config": json.dumps({"model": {"name": "nanogpt", "args": args}})}


def _check_file(source: pathlib.Path) -> None:
    if source.is_dir():
        raise ZooError(f"{str(source)!r} is a folder; give the file of weights in it")
    if not source.is_file():
        raise ZooError(f"no file {str(source)!r}")
    if source.stat().st_size == 0:
        raise ZooError(f"{str(source)!r} is empty")
    if source.name.endswith((".safetensors", ".safetensors.index.json")):
        raise ZooError(f"{str(source)!r} is a .safetensors file already; load it as it is")


def _read(source: pathlib.Path) -> Any:
    """What `torch.save` saved."""
    if _is_torchscript(source):
        raise ZooError(f"{str(source)!r} is a TorchScript archive, which holds code; save its state_dict() instead")
    try:
        return torch_pickle.read(source)
    except torch_pickle.Foreign as error:
        raise ZooError(
            f"{str(source)!r} holds Python objects ({error!s:.80}), not only tensors; save the model's state_dict() "
            "with torch.save and convert that"
        ) from None
    except Exception as error:  # an unpickler raises many types for damaged files
        raise ZooError(
            f"{str(source)!r} is no file of torch's weights, or is damaged: {first_line(error) or type(error).__name__}"
        ) from None


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
        raise ZooError(f"{source!r} holds no state dict of tensors by name, but {_named(content)}")
    if not content:
        raise ZooError(f"{source!r} holds no tensors")
    others = [str(name) for name, value in content.items() if not isinstance(value, np.ndarray | Unusable)]
    others += [str(name) for name in content if not isinstance(name, str)]
    if others:
        raise ZooError(
            f"{source!r} holds no state dict of tensors: not all under its keys are tensors ({some(others)}), and none "
            f"of its keys is one of {', '.join(_KEYS)} with tensors below it"
        )
    return dict(content)


def _has_tensors(value: Any, levels: int = _LEVELS) -> bool:
    """Whether a mapping has tensors, itself or further down."""
    found: list[Any] = [value]
    for _ in range(levels):
        maps = {id(one): one for one in found if isinstance(one, Mapping)}  # a file may refer to one many times
        found = [one for mapping in maps.values() for one in mapping.values()]
        if any(isinstance(one, np.ndarray | Unusable) for one in found):
            return True
    return False


def _named(content: Any) -> str:
    return "Tensor" if isinstance(content, np.ndarray | Unusable) else type(content).__name__


def _array(name: str, tensor: Any) -> np.ndarray:
    """A tensor's numbers; ZooError, by name, for one without values or of a kind that files lack."""
    if isinstance(tensor, Unusable):
        raise ZooError(f"tensor {name!r} is {tensor.kind}; only tensors of real numbers can be converted")
    return tensor


def _refuse_huge(tensors: Mapping[str, Any], source: pathlib.Path) -> None:
    """ZooError where sparse or expanded tensors would take far more memory than the file has."""
    size = sum(tensor.size * tensor.itemsize for tensor in tensors.values() if isinstance(tensor, np.ndarray))
    if size > (most := source.stat().st_size + MOST_MADE):
        raise ZooError(f"the tensors of {str(source)!r} would take {size:,} bytes, more than {most:,}")
