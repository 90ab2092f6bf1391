"""How patient a supervisor is."""

import dataclasses
from typing import Any

from pit_jax import files
from pit_jax.rundir import RunDir

_HEARTBEAT_S, _HEARTBEAT_S_IN_A_BUCKET = 10.0, 60.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long and how often; all times in seconds.

    Attributes:
      retries: crashes without a new checkpoint between them that are still tried again.
      hang_s: without a beat, until a run counts as hung; 0 for never.
      heartbeat_s: between heartbeats in the run directory.
      grace_s: for the checkpoint after a signal was passed on.
      settle_s: for the other processes when one has failed.
      finish_s: the same when it was done or has saved, as the others are about to.
      stacks_s: for the stacks of all threads to be printed.
      pause_s, longest_pause_s: before the first retry, doubled each time, and at most.
      poll_s: between looks at the processes.
      ask_s: between looks at status.json, for what the leader says.
    """

    retries: int
    hang_s: float
    heartbeat_s: float = _HEARTBEAT_S
    grace_s: float = 600.0
    settle_s: float = 2.0
    finish_s: float = 120.0
    stacks_s: float = 2.0
    pause_s: float = 1.0
    longest_pause_s: float = 60.0
    poll_s: float = 0.1
    ask_s: float = 5.0

    @classmethod
    def of(cls, config: Any, run: RunDir) -> "Limits":
        """Those of a config's `launch` fields."""
        remote = files.in_bucket(run.path)
        every = _HEARTBEAT_S_IN_A_BUCKET if remote else _HEARTBEAT_S
        return cls(config.launch.retries, config.launch.hang_s, every)
