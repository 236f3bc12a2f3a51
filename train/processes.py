"""Several processes that train as one, over `jax.distributed`: how they meet, and which of them writes."""

import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from zoo.errors import ZooError


def parse_distributed(text: str) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`: none for "auto", else of `coordinator=HOST:PORT,num=N,id=I`."""
    if text == "auto":
        return {}
    found = dict(item.partition("=")[::2] for item in text.split(","))
    numbers = found.get("num", ""), found.get("id", "")
    if set(found) != {"coordinator", "num", "id"} or not all(re.fullmatch(r"\d{1,9}", number) for number in numbers):
        raise ZooError(f"distributed must be auto, or coordinator=HOST:PORT,num=N,id=I, not {text!r:.160}")
    if not int(numbers[1]) < int(numbers[0]):
        raise ZooError(f"distributed id={numbers[1]} must be below num={numbers[0]}: processes count from 0")
    address = found["coordinator"]
    if not address.rpartition(":")[2].isdecimal():
        raise ZooError(f"distributed coordinator={address} must end in a port, such as {address}:1234")
    return {"coordinator_address": address, "num_processes": int(numbers[0]), "process_id": int(numbers[1])}


def start(setting: str | None) -> None:
    """Joins the other processes if the setting asks for it; call it before JAX looks for its devices."""
    if setting is None or jax.distributed.is_initialized():
        return
    arguments = parse_distributed(setting)
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        hint = "; auto needs SLURM, Kubernetes, Open MPI or a TPU pod" if setting == "auto" else ""
        line = (str(error).strip().splitlines() or [""])[0][:160]
        raise ZooError(f"distributed {setting} did not start ({line}){hint}") from None


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def meet(where: str) -> None:
    """Returns when every process has called it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def any_says(flag: bool) -> bool:
    """Whether the flag is up in any process; all must ask."""
    return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if jax.process_count() > 1 else flag
