"""What can be booked: accelerator names, and what Cloud TPU and GKE give for each.

An accelerator is named as Cloud TPU names it: v5litepod-N and v6e-N count chips; v4-N,
v5p-N and tpu7x-N count TensorCores, two a chip. v5e-N, preflight's name, is taken too.

Facts from docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x,runtimes} and
docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus. Two chips of v5e and v6e
fit no host; 1, 4 and 8 are one host, and more are hosts of four. The Cloud TPU API does not
offer tpu7x: it is for GKE. Assumed: on GKE eight chips of v5e and v6e are taken as the
machine of eight (ct5lp-hightpu-8t, ct6e-standard-8t), not as two of four.
"""

import dataclasses
import difflib
import math
import re

from pit_jax.errors import ConfigError
from pit_jax.perf import topology
from pit_jax.perf.topology import Topology


@dataclasses.dataclass(frozen=True)
class Generation:
    """What all sizes of one generation share."""

    prefix: str  # of Cloud TPU's names
    kind: str  # in perf/topology.py
    gke_accelerator: str  # label cloud.google.com/gke-tpu-accelerator
    runtime_version: str | None  # image of a TPU VM; None where there are none


GENERATIONS = (
    Generation("v4", "v4", "tpu-v4-podslice", "tpu-ubuntu2204-base"),
    Generation("v5litepod", "v5e", "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite"),
    Generation("v5p", "v5p", "tpu-v5p-slice", "v2-alpha-tpuv5"),
    Generation("v6e", "v6e", "tpu-v6e-slice", "v2-alpha-tpuv6e"),
    Generation("tpu7x", "tpu7x", "tpu7x", None),
)


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One slice: `name` as Cloud TPU says it, `topology` with all slices of a launch."""

    name: str
    generation: Generation
    topology: Topology

    @property
    def chips(self) -> int:
        """A slice."""
        return math.prod(self.topology.shape)

    @property
    def chips_a_host(self) -> int:
        flat = len(self.topology.shape) == 2
        return self.chips if flat and self.chips <= 8 else 4

    @property
    def hosts(self) -> int:
        """A slice; a host is one process of jax."""
        return self.chips // self.chips_a_host

    @property
    def shape(self) -> str:
        """Chips a slice, as the label cloud.google.com/gke-tpu-topology says it: 4x4, 2x2x1."""
        return "x".join(map(str, self.topology.shape))

    @property
    def gke_accelerator(self) -> str:
        return self.generation.gke_accelerator

    @property
    def runtime_version(self) -> str | None:
        return self.generation.runtime_version

    @property
    def hbm_bytes(self) -> int:
        """A chip, as far as a program is granted it."""
        return self.topology.chip.hbm_limit * self.topology.chip.devices_a_chip


def find(name: str | None, slices: int = 1) -> Accelerator:
    """The accelerator of a name, `slices` times.

    Raises:
      ConfigError: if there is none of this name, listing the sizes of its generation or else
        the generations; for slices below 1.
    """
    if not name:
        raise ConfigError("--accelerator is missing: e.g. v5litepod-64, v5p-128, v6e-8")
    prefix, _, count = name.lower().partition("-")
    none = f"there is no accelerator {ascii(name)[:40]}"
    for generation in GENERATIONS:
        if prefix not in (generation.prefix, generation.kind):
            continue
        shapes = topology.CHIPS[generation.kind].shapes
        if count in map(str, shapes):
            where = topology.find(f"{generation.kind}-{count}", slices)
            return Accelerator(f"{generation.prefix}-{count}", generation, where)
        hint, sizes = "", sorted(shapes)
        if re.fullmatch("[0-9]{1,9}", count):
            sizes.sort(key=lambda size: abs(size - int(count)))
            hint = f" (did you mean {generation.prefix}-{sizes[0]}?)"
        raise ConfigError(f"{none}{hint}: {generation.prefix} has -{', -'.join(map(str, sizes))}")
    near = difflib.get_close_matches(name[:40].lower(), names(), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    listed = ", ".join(f"{generation.prefix}-N" for generation in GENERATIONS)
    raise ConfigError(f"{none}{hint}: there are {listed}, such as v5litepod-8")


def names() -> list[str]:
    """Every accelerator's name."""
    return [f"{g.prefix}-{count}" for g in GENERATIONS for count in topology.CHIPS[g.kind].shapes]
