"""A step as it is compiled ahead of time: what preflight asks a task for."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Program:
    """One jitted step of a task and what it works on.

    Attributes:
      function: jitted; compiled by `function.lower(*arguments).compile()`.
      arguments: trees of ShapeDtypeStructs that carry their shardings.
      params: the parameters among the arguments.
      optimizer: everything else of the run's state that lies on the devices meanwhile,
        passed or not: an evaluation leaves the optimiser's state where it is.
      model_flops: FLOPs of one call over all devices, counted analytically.
      recompute_flops: what rematerialisation adds to them.
      trains: whether the state is written as well as read.
    """

    function: Callable
    arguments: tuple
    params: Any
    optimizer: Any
    model_flops: float
    recompute_flops: float = 0.0
    trains: bool = False
