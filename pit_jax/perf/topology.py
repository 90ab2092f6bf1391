"""TPU topologies that are not here: what a chip can do, and devices to compile for.

A topology is named as Cloud TPU names it: v5e-N and v6e-N count chips; v4-N, v5p-N and
tpu7x-N count TensorCores, two a chip. The PyPI package libtpu compiles for all of them on
any x86-64 Linux CPU.
"""

import dataclasses
import difflib
import importlib.util
import os
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from pit_jax import installation
from pit_jax.errors import ConfigError
from pit_jax.parallel import mesh as meshes
from pit_jax.perf import flops

GIB = 1 << 30

# Before libtpu is loaded. The first keeps it from asking the cloud where it runs, the
# second lets two processes compile at once; without the rest it logs, on a machine that
# has no TPU, a dozen lines about workers that it cannot find.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}

_FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8)} | {
    128: (8, 16),
    256: (16, 16),
}
_CUBE = {8: (2, 2, 1), 16: (2, 2, 2), 32: (2, 2, 4), 64: (2, 4, 4), 128: (4, 4, 4)} | {
    256: (4, 4, 8),
    512: (4, 8, 8),
    1024: (8, 8, 8),
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as jax counts devices; bandwidths in bytes/s.

    `interconnect` is what leaves a device over all its links inside a slice, one way:
    half of the bidirectional figure in the tables. `network` is its share of the data
    centre's network between slices.
    """

    kind: str  # jax's device_kind
    prefix: str  # libtpu's name
    hbm_limit: int  # what the compiler grants a program, bytes; read off its own messages
    hbm_bandwidth: float
    interconnect: float
    network: float
    shapes: Mapping[int, tuple[int, ...]]
    devices_a_chip: int = 1
    network_assumed: bool = False

    @property
    def peak_flops(self) -> float:
        """Published dense bf16 peak, FLOP/s."""
        return flops.peak(self.kind)


# Published figures: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}. Older pages
# give v4 1228 and v6e 1640 GB/s of HBM, and v6e 3584 Gbit/s of interconnect. The network
# of v5e and v6e is a pod's (6.4 and 25.6 Tbit/s) over its 256 chips, v5p's 50 Gbit/s a
# chip. Assumed: v4's interconnect of six 50 GB/s links (the pages give none), and the
# networks marked so. tpu7x counts two devices a chip: halves of the chip's figures.
CHIPS = {
    "v4": Chip(
        "TPU v4", "v4", int(30.75 * GIB), 1200e9, 300e9, 3.125e9, _CUBE, network_assumed=True
    ),
    "v5e": Chip("TPU v5 lite", "v5e", int(15.75 * GIB), 819e9, 200e9, 3.125e9, _FLAT),
    "v5p": Chip("TPU v5", "v5p", int(95.74 * GIB), 2765e9, 600e9, 6.25e9, _CUBE),
    "v6e": Chip("TPU v6 lite", "v6e", int(31.25 * GIB), 1600e9, 400e9, 12.5e9, _FLAT),
    "tpu7x": Chip(
        "TPU7x",
        "tpu7x",
        int(94.75 * GIB),
        3690e9,
        300e9,
        6.25e9,
        _CUBE,
        devices_a_chip=2,
        network_assumed=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A named topology: `slices` times the same slice of one kind of chip."""

    name: str
    chip: Chip
    shape: tuple[int, ...]  # chips a slice
    slices: int = 1

    @property
    def chips(self) -> int:
        return int(np.prod(self.shape)) * self.slices

    def devices(self) -> list[jax.Device]:
        """Devices to compile for; nothing can run on them.

        Raises:
          ConfigError: if libtpu is not installed.
        """
        if not has_libtpu():
            raise ConfigError(
                "preflight compiles with libtpu, which is not installed here:"
                f" {installation.extra('tpu')} (x86-64 Linux)"
            )
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # JAX can store what was compiled for absent devices, but not read it back.
        jax.config.update("jax_enable_compilation_cache", False)
        from jax.experimental import topologies

        options = {}
        if self.chip.prefix == "v4":  # as jax sees it on a TPU VM: a chip is one device
            options = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
        elif self.chips == self.slices:
            options = {"chips_per_host_bounds": (1, 1, 1)}
        if self.slices > 1:
            options["num_slices"] = self.slices
        layout = "x".join(map(str, self.shape))
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{self.chip.prefix}:{layout}", **options
        ).devices

    def mesh(self, sizes: Mapping[str, int]) -> Mesh:
        """The mesh of a config over this topology; only `data` reaches across slices.

        Raises:
          ConfigError: if the axes do not multiply to the devices, or `data` does not
            divide over the slices.
        """
        return meshes.make_mesh(sizes, self.devices())


def has_libtpu() -> bool:
    """Whether libtpu is installed; it exists for x86-64 Linux only."""
    return importlib.util.find_spec("libtpu") is not None


def find(name: str, slices: int = 1) -> Topology:
    """The topology that a name such as "v5e-256" stands for.

    Raises:
      ConfigError: listing all names, if there is none of this one; for slices below 1.
    """
    if slices < 1:
        raise ConfigError(f"--slices {slices}: one slice or more")
    generation, _, count = name.partition("-")
    chip = CHIPS.get(generation)
    shape = {str(n): s for n, s in chip.shapes.items()}.get(count) if chip else None
    if shape is None:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        listed = "; ".join(
            f"{kind}-{', -'.join(map(str, chip.shapes))}" for kind, chip in CHIPS.items()
        )
        raise ConfigError(f"there is no topology {name!r}{hint}. There are {listed}")
    return Topology(name, chip, shape, slices)


def names() -> list[str]:
    """Every topology's name."""
    return [f"{kind}-{count}" for kind, chip in CHIPS.items() for count in chip.shapes]
