"""One set-up for all tests: the CPU, eight virtual devices, and a cache of compilations."""

import os
import tempfile

# Before jax is imported. Worker processes of pytest-xdist inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
# What runs is tiny: compiling it is most of the time, so the compiler is told to hurry.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/pit_jax_tests_cache")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax
import pytest
from ml_collections import ConfigDict

from pit_jax import config, validation


@pytest.fixture(scope="session")
def one_device() -> list[jax.Device]:
    return jax.devices()[:1]


@pytest.fixture
def tiny() -> ConfigDict:
    """The digits, and a model that trains in seconds; unresolved, to be changed by a test."""
    c = config.base()
    c.model.update(width=16, depth=2, heads=2, position_std=0.5)
    c.data.update(name="digits", image_size=8, channels=1, num_classes=10)
    c.optim.update(lr=2e-3, clip=1.0, weight_decay=0.05)
    c.train.update(batch_size=32, steps=10, log_every=1, tensorboard=False)
    c.eval.every = "10 steps"
    c.checkpoint.every = "5 steps"
    return c


@pytest.fixture
def resolved(tiny: ConfigDict) -> ConfigDict:
    return validation.resolve(tiny)
