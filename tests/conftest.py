"""Eight virtual CPU devices in this process, and a compiler that spends its time on nothing but being right."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

import jax

# `python -m train`, called in this process, would turn on the cache on disk for every test after it. XLA crashes in it
# now and then (jax 0.10.2, in get_executable_and_time and put_executable_and_time), and it is the user's.
jax.config.update("jax_enable_compilation_cache", False)
