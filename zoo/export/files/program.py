"""The programs of this folder, as functions of arrays: JAX, flatbuffers and NumPy alone."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import export

HERE = pathlib.Path(__file__).parent
ABOUT = json.loads((HERE / "config.json").read_text("utf-8"))
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64", "I8": "int8", "I32": "int32"}


def program(name: str) -> Callable[..., Any]:
    """The function `name` of config.json's `programs`, compiled when it is first called with arrays of some shapes."""
    found = export.deserialize(bytearray((HERE / f"{name}.jax").read_bytes()))
    found = dataclasses.replace(found, nr_devices=1)  # which JAX before 0.8.2 does not find in newer files
    call = jax.jit(found.call)
    return functools.partial(call, weights()) if ABOUT["weights"] == "beside" else call


@functools.cache
def weights() -> dict[str, jax.Array]:
    """The arrays of weights.safetensors by name."""
    with (HERE / "weights.safetensors").open("rb") as file:
        about = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        content = file.read()
    arrays = {}
    for name, array in about.items():
        if name != "__metadata__":
            begin, end = array["data_offsets"]
            values = np.frombuffer(content[begin:end], jax.numpy.dtype(DTYPES[array["dtype"]]))
            arrays[name] = values.reshape(array["shape"])
    return jax.device_put(arrays)
