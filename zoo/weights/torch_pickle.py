"""What `torch.save` wrote, read without torch: plain containers with arrays for tensors, and no code that is run.

A file is a zip archive with a pickle, `data.pkl`, and the bytes of each storage beside it; before torch 1.6 all of that
was in one stream. The pickle may only name what tensors need (`_globals`). Its operations are checked first: those of
torch's own files, and no memo beyond the file's size, for which the unpickler would reserve memory.
"""

import collections
import functools
import io
import math
import pathlib
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from zoo.weights.files import MOST_MADE

_DTYPES = {
    **{"float": np.float32, "double": np.float64, "half": np.float16, "bfloat16": ml_dtypes.bfloat16},
    **{"long": np.int64, "int": np.int32, "short": np.int16, "char": np.int8, "byte": np.uint8, "bool": np.bool_},
    **{"uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64},
    **{"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2},
    **{"complexfloat": np.complex64, "complexdouble": np.complex128},
}
_NAMES = {  # torch's dtypes by their own names
    **{"float32": "float", "float64": "double", "float16": "half", "int64": "long", "int32": "int", "int16": "short"},
    **{"int8": "char", "uint8": "byte", "complex64": "complexfloat", "complex128": "complexdouble"},
    **{name: name for name in ("bfloat16", "bool", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")},
}
_OPERATIONS = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT"),
        *("BININT1", "BININT2", "LONG", "LONG1", "BINFLOAT", "FLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "STRING", "BINSTRING", "SHORT_BINSTRING", "EMPTY_DICT"),
        *("EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET", "DICT", "LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SETITEM"),
        *("SETITEMS", "APPEND", "APPENDS", "ADDITEMS", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT"),
        *("MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
    }
)
_OLD_MAGIC = 0x1950A86A20F9469CFC6C  # torch's number for files of before 1.6
_MOST_PICKLE = 2**28  # bytes


class Foreign(Exception):
    """A file names a Python object that tensors do not need."""


class Unusable(NamedTuple):
    """A tensor that has no array of real numbers."""

    kind: str


class _Storage(NamedTuple):
    dtype: Any  # None: bytes
    data: Any  # a buffer; None until an old file's storages are read
    key: str


class _Pending(NamedTuple):
    """A tensor of a storage that comes later in the file."""

    storage: _Storage
    make: Callable[[bytes], Any]


def read(path: pathlib.Path) -> Any:
    """The content of a file, with arrays for tensors, which may share memory, or Unusable.

    Foreign for a file with other Python objects; any other exception for one that is damaged.
    """
    return _read_zip(path) if zipfile.is_zipfile(path) else _read_stream(path)


def _read_zip(path: pathlib.Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > path.stat().st_size:
                raise ValueError(f"its record {info.filename!r} is compressed")
        (about,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = about.removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"its byte order is {order!r:.40}")
        held: dict[str, bytes] = {}

        def storage(kind: Any, key: Any) -> _Storage:
            if key not in held:
                held[key] = archive.read(f"{root}data/{key}")
            dtype = None if kind is None else np.dtype(kind).newbyteorder("<" if order == b"little" else ">")
            return _Storage(dtype, held[key], key)

        return _unpickled(archive.read(about), storage)


def _read_stream(path: pathlib.Path) -> Any:
    """A file of before torch 1.6: magic number, protocol, system, content, keys of storages; then their bytes."""
    content = path.read_bytes()
    stream, parts, place = io.BytesIO(content), [], 0
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        parts.append(content[place : stream.tell()])
        place = stream.tell()
    plain = [_unpickled(part, None) for part in (*parts[:3], parts[4])]
    if plain[0] != _OLD_MAGIC or not isinstance(plain[3], list):
        raise ValueError("it does not begin as torch's files do")
    if plain[2].get("little_endian") is not True:
        raise ValueError("it is of a machine with the other byte order")
    kinds: dict[str, Any] = {}

    def named(kind: Any, key: Any) -> _Storage:
        kinds[key] = kind
        return _Storage(None if kind is None else np.dtype(kind), None, key)

    found = _unpickled(parts[3], named)
    held = {}
    for key in plain[3]:
        (number,) = struct.unpack_from("<q", content, place)
        size = number * (1 if kinds[key] is None else np.dtype(kinds[key]).itemsize)
        place += 8
        if not 0 <= size <= len(content) - place:
            raise ValueError(f"its storage {key!r:.40} has {size:,} bytes, of {len(content) - place:,} that are left")
        held[key] = content[place : place + size]
        place += size
    return _filled(found, held)


def _filled(found: Any, held: Mapping[str, bytes]) -> Any:
    """Content with arrays for the tensors whose storages came later."""
    if isinstance(found, _Pending):
        return found.make(held[found.storage.key])
    if isinstance(found, dict):
        for name, value in found.items():
            if isinstance(value, dict | _Pending):
                found[name] = _filled(value, held)
    return found


def _unpickled(content: bytes, storage: Callable[[Any, Any], _Storage] | None) -> Any:
    if len(content) > _MOST_PICKLE:
        raise ValueError(f"its pickle has {len(content):,} bytes, more than {_MOST_PICKLE:,}")
    for operation, argument, _ in pickletools.genops(content):
        if operation.name not in _OPERATIONS:
            raise Foreign(f"the operation {operation.name}")
        if operation.name.endswith("PUT") and int(argument or 0) > len(content):
            raise ValueError(f"its pickle has a memo {argument}")
    return _Unpickler(io.BytesIO(content), storage).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, storage: Callable[[Any, Any], _Storage] | None):
        super().__init__(file, encoding="utf-8")
        self.storage, self.known = storage, _globals()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise Foreign(f"{module.replace('__builtin__', 'builtins')}.{name}")
        return self.known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, of, key = pid[:3]
        if kind != "storage" or self.storage is None or not isinstance(of, _Kind) or not isinstance(key, str):
            raise ValueError(f"its pickle refers to {kind!r:.40}")
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("it has a view of a storage, as torch wrote before 0.4")
        return self.storage(of.dtype, key)


class _Kind(NamedTuple):
    """A kind of storage or a dtype; None for bytes."""

    dtype: Any


def _globals() -> dict[tuple[str, str], Any]:
    """What a pickle may name, made anew for each file, which may set attributes."""

    class Namespace:
        """argparse's settings, which reference scripts keep beside the weights."""

    found: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("argparse", "Namespace"): Namespace,
        ("torch", "Size"): functools.partial(tuple),
        ("torch", "device"): functools.partial(_text),
        ("torch.serialization", "_get_layout"): functools.partial(_text),
        ("torch.storage", "UntypedStorage"): _Kind(None),
        ("torch._utils", "_rebuild_tensor_v2"): functools.partial(_tensor),
        ("torch._utils", "_rebuild_tensor_v3"): functools.partial(_tensor_of),
        ("torch._utils", "_rebuild_parameter"): functools.partial(_parameter),
        ("torch._utils", "_rebuild_parameter_with_state"): functools.partial(_parameter),
        ("torch._utils", "_rebuild_sparse_tensor"): functools.partial(_dense),
        ("torch._utils", "_rebuild_sparse_csr_tensor"): functools.partial(_dense),
        ("torch._utils", "_rebuild_qtensor"): functools.partial(_unusable, "quantised"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"): functools.partial(_unusable, "without values (meta)"),
        ("torch", "per_tensor_affine"): None,
        ("torch", "per_channel_affine"): None,
    }
    for name, dtype in _DTYPES.items():
        title = {"bfloat16": "BFloat16", "complexfloat": "ComplexFloat", "complexdouble": "ComplexDouble"}
        found["torch", f"{title.get(name, name.capitalize())}Storage"] = _Kind(dtype)
    found |= {("torch", f"{name}Storage"): _Kind(np.int8) for name in ("QInt8", "QUInt8", "QInt32")}
    found |= {("torch", name): _Kind(_DTYPES[own]) for name, own in _NAMES.items()}
    return found


def _text(text: Any, *_: Any) -> str:
    return str(text)


def _unusable(kind: str, *_: Any) -> Unusable:
    return Unusable(kind)


def _parameter(tensor: Any, *_: Any) -> Any:
    if not isinstance(tensor, np.ndarray | Unusable | _Pending):
        raise TypeError("a parameter must be a tensor")
    return tensor


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    return _strided(storage, storage.dtype, offset, size, stride)


def _tensor_of(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, kind: Any, *_: Any) -> Any:
    return _strided(storage, np.dtype(kind.dtype), offset, size, stride)


def _strided(storage: Any, dtype: Any, offset: Any, size: Any, stride: Any) -> Any:
    """A view of a storage; ValueError where it would leave the storage."""
    numbers = [offset, *size, *stride]
    if not isinstance(storage, _Storage) or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise ValueError("a tensor's sizes are no numbers")
    if len(size) != len(stride):
        raise ValueError(f"a tensor has {len(size)} sizes and {len(stride)} strides")
    if dtype.kind == "c":
        return Unusable("complex")

    def make(data: bytes) -> np.ndarray:
        if len(data) % dtype.itemsize:
            raise ValueError(f"a storage of {len(data)} bytes has no whole number of {dtype}")
        flat = np.frombuffer(data, dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 not in size and last >= len(flat):
            raise ValueError(f"a tensor ends at {last} of a storage with {len(flat)} numbers")
        flat = flat[min(offset, len(flat)) :]
        steps = tuple(step * dtype.itemsize for step in stride)
        shape = tuple(size)
        found = np.zeros(shape, dtype) if 0 in size else np.lib.stride_tricks.as_strided(flat, shape, steps)
        if dtype.isnative:
            return found
        if found.nbytes > len(data) + MOST_MADE:
            raise ValueError(f"a tensor would take {found.nbytes:,} bytes")
        return found.astype(dtype.newbyteorder("="))

    return _Pending(storage, make) if storage.data is None else make(storage.data)


def _dense(layout: Any, parts: Any, *_: Any) -> Any:
    """A sparse tensor of two forms, filled with zeros: by coordinates, and compressed by rows."""
    if layout == "torch.sparse_coo":
        indices, values, size = parts[:3]
        places = tuple(indices)
    elif layout == "torch.sparse_csr":
        rows, columns, values, size = parts[:4]
        places = np.repeat(np.arange(len(rows) - 1), np.diff(rows)), columns
    else:
        return Unusable(f"sparse ({layout!s:.40})")
    if math.prod(size) * values.itemsize > MOST_MADE:
        raise ValueError(f"a sparse tensor would take {math.prod(size) * values.itemsize:,} bytes as a dense one")
    found = np.zeros(size, values.dtype)
    np.add.at(found, places, values)
    return found
