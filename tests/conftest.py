"""One set-up for all tests: the CPU, eight virtual devices, and a cache of compilations."""

import os
import pathlib
import tempfile
from importlib import metadata

# Before jax is imported. Worker processes of pytest-xdist inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
# What runs is tiny: compiling it is most of the time, so the compiler is told to hurry.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if metadata.version("jaxlib").startswith("0.10."):
    # Half the time of compiling; later versions have one way of emitting code, and no such flag.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/pit_jax_tests_cache")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax
import pytest
from etils.epath import backend
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from pit_jax import config, validation

from .gcs import bucket as bucket

LONGEST = (
    "test_train.py",
    "perf/test_preflight.py",
    "parallel/test_processes.py",
    "parallel/test_mesh.py",
    "test_cifar_recipe.py",
    "tasks/test_mae.py",
    "test_cli.py",
    "parallel/test_sequence.py",
    "test_latent_path.py",
    "tasks/test_diffusion.py",
    "tasks/test_autoencoder.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: handed out whole, they would keep one worker busy at the end."""
    tests = pathlib.Path(__file__).parent
    rank = {tests / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(autouse=True)
def nobody_has_a_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """epath asks for the names of a file's owner and group, which need not have any."""
    if "owners" not in request.node.name:
        monkeypatch.setattr(
            backend._OsPathBackend, "stat", lambda self, path: {}[f"stat of {path}: use os.stat"]
        )


@pytest.fixture
def cache_again():
    """Preflight switches the compilation cache off, for the rest of the process."""
    before = jax.config.jax_enable_compilation_cache
    compilation_cache.reset_cache()  # JAX asks once whether there is one
    yield
    compilation_cache.reset_cache()
    jax.config.update("jax_enable_compilation_cache", before)


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
