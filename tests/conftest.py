"""Eight virtual CPU devices in this process, and a compiler that spends its time on nothing but being right."""

import importlib.metadata
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):  # which has no such emitters
    # The older emitters of fusions, in one piece, compile in a third of the time. What runs in a process of its own has
    # neither these flags nor the one above.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

import jax
import pytest

# `python -m train`, called in this process, would turn on the cache on disk for every test after it. XLA crashes in it
# now and then (jax 0.10.2, in get_executable_and_time and put_executable_and_time), and it is the user's.
jax.config.update("jax_enable_compilation_cache", False)


@pytest.fixture(scope="module", autouse=True)
def forgetting():
    """What a file's tests compiled goes with them: 1,700 tests' programs take gigabytes a worker."""
    yield
    jax.clear_caches()
