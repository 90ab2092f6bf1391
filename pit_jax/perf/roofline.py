"""How long a step takes at the least, by the chip's published peaks: an estimate.

Three clocks run side by side, perfectly overlapped, and the slowest bounds the step.

    compute        model and recomputed FLOPs over the bf16 peak
    HBM            a lower bound of what is read and written over the bandwidth:
                   parameters and optimiser once each way in training, parameters once in
                   evaluation, activations (as they stand at the peak) once each way
    interconnect   what the compiled collectives send out over all links of a chip, or,
                   if that takes longer, over its share of the network between slices

Real steps take longer, on today's models often two to three times.
"""

import dataclasses
from collections.abc import Sequence

from pit_jax.perf.collectives import Collective
from pit_jax.perf.topology import Chip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one step by each of the three clocks."""

    compute_s: float
    hbm_s: float
    interconnect_s: float

    @property
    def step_s(self) -> float:
        return max(self.compute_s, self.hbm_s, self.interconnect_s)

    @property
    def bound(self) -> str:
        """ "compute", "HBM" or "interconnect": the slowest."""
        clocks = {
            "compute": self.compute_s,
            "HBM": self.hbm_s,
            "interconnect": self.interconnect_s,
        }
        return max(clocks, key=clocks.get)


def hbm_bytes(params: int, optimizer: int, activations: int, trains: bool) -> int:
    """Bytes a device reads and writes in a step at the least (see above)."""
    state = 2 * (params + optimizer) if trains else params
    return state + 2 * activations


def estimate(
    chip: Chip, device_flops: float, device_bytes: int, collectives: Sequence[Collective]
) -> Estimate:
    """The roofline of one device.

    Args:
      chip: its peaks.
      device_flops: FLOPs of a step on one device, recomputation included.
      device_bytes: what `hbm_bytes` gives.
      collectives: of the compiled step.
    """
    inside = sum(c.traffic for c in collectives if c.between == "chips")
    across = sum(c.traffic for c in collectives if c.between == "slices")
    return Estimate(
        device_flops / chip.peak_flops,
        device_bytes / chip.hbm_bandwidth,
        max(inside / chip.interconnect, across / chip.network),
    )
