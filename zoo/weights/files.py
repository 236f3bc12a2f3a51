"""`.safetensors` files, single and sharded: mapped within bounds of memory, written completely or not at all."""

import json
import mmap
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from zoo.errors import ZooError
from zoo.files import MOST_BYTES, parse_json, read_json

MOST_MADE = 2**28  # bytes of arrays made beyond a file's own: a head drawn anew, resized positions, a sparse tensor
DTYPES: dict[str, Any] = {  # of the format, to those of NumPy
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_},
    **{"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2},
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
}


def read_safetensors(path: str | os.PathLike, most: int | None = None) -> dict[str, np.ndarray]:
    """All tensors of a `.safetensors` file by name, read-only: views of the file, which are read where they are used.

    ZooError if the file is missing, damaged, or larger than `most` bytes.
    """
    from safetensors import SafetensorError, safe_open

    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise ZooError(f"no weights file {str(path)!r}")
    _refuse_larger([path], most, path)
    try:
        with safe_open(path, "numpy"):  # checks the header, and that the tensors are the rest of the file
            return _mapped(path)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "; convert it first: python -m zoo convert x.pth x.safetensors" if _is_torch_file(path) else ""
        raise ZooError(f"{str(path)!r} is not a readable .safetensors file: {error}{hint}") from None


def _mapped(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Views of the tensors of a file with a valid header: its length in 8 bytes, JSON, and the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        about = json.loads(file.read(length))
        whole = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    about.pop("__metadata__", None)
    found = {}
    for name, tensor in about.items():
        begin, end = tensor["data_offsets"]
        kind = DTYPES.get(tensor["dtype"])
        if kind is None:
            raise ValueError(f"tensor {name!r} is {tensor['dtype']}; there are {', '.join(DTYPES)}")
        part = whole[8 + length + begin : 8 + length + end]
        found[name] = part.view(kind).reshape(tensor["shape"])
    return found


def config_inside(path: pathlib.Path) -> dict[str, Any] | None:
    """What a `.safetensors` file says of its model: the JSON at `config` in its metadata, in the form of a run's
    config.json. None where it says nothing, or is no such file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(MOST_BYTES, path.stat().st_size):
                return None
            about = parse_json(file.read(length).decode("utf-8"))
        config = parse_json(about["__metadata__"]["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return config if isinstance(config, dict) else None


def read_sharded(index: str | os.PathLike, most: int | None = None) -> dict[str, np.ndarray]:
    """All tensors of a `.safetensors.index.json`, from the files beside it. ZooError if a file is missing, or all
    together are larger than `most` bytes."""
    index = pathlib.Path(index).expanduser()
    if not index.is_file():
        raise ZooError(f"no weights index {str(index)!r}")
    try:
        places = dict(read_json(index)["weight_map"])
        if not all(isinstance(shard, str) for shard in places.values()):
            raise TypeError("its weight_map gives tensors no file names")
    except (ValueError, KeyError, TypeError) as error:
        raise ZooError(f"{str(index)!r} is not a weights index: {error!r:.120}") from None
    for shard in sorted(set(places.values())):
        if shard in ("", ".", "..") or re.search(r"[/\\\0]", shard):
            raise ZooError(f"{str(index)!r} names {shard!r}; a shard must be a file beside the index")
    _refuse_larger([index.parent / shard for shard in set(places.values())], most, index)
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(places.values())):
        found = read_safetensors(index.parent / shard)
        wanted = [name for name, place in places.items() if place == shard]
        if lacking := sorted(set(wanted) - set(found)):
            raise ZooError(f"{str(index.parent / shard)!r} lacks tensors that its index lists: {some(lacking)}")
        tensors |= {name: found[name] for name in wanted}
    return tensors


def write_safetensors(
    tensors: Mapping[str, Any],
    path: str | os.PathLike,
    overwrite: bool = False,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes tensors, with the dtypes that they have, under a temporary name; reads names, shapes and dtypes back; and
    renames the file, so that it is complete or absent. ZooError for a tensor that is no array of numbers."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = pathlib.Path(path).expanduser()
    if path.exists() and not overwrite:
        raise ZooError(f"{str(path)!r} exists; remove it or choose another name")
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biufV" or array.dtype.names:  # V: bfloat16 and other dtypes of ml_dtypes
            raise ZooError(f"{name} is no array of real numbers: {array.dtype}")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(arrays, str(temporary), metadata)
        _check_written(arrays, temporary)
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:  # a full disk, a read-only folder
        raise ZooError(f"could not write {str(path)!r}: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def some(names: list[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _check_written(arrays: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        written = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        shapes = {name: tuple(part.get_shape()) for name, part in written.items()}
    if shapes != {name: array.shape for name, array in arrays.items()}:
        raise ZooError(f"the file holds {len(shapes)} tensors of {len(arrays)}, or of other shapes; it is not kept")


def _refuse_larger(files: list[pathlib.Path], most: int | None, path: str | os.PathLike) -> None:
    """A sparse file of zeros takes little space on disk but its full size in memory."""
    size = sum(file.stat().st_size for file in files if file.is_file())
    if most is not None and size > most:
        raise ZooError(f"{str(path)!r} has {size:,} bytes, more than the {most:,} that this model can need")


def _is_torch_file(path: str | os.PathLike) -> bool:
    return pathlib.Path(path).suffix in (".pth", ".pt", ".bin", ".ckpt")
