"""A run at one of its checkpoints, ready to be asked: eval, sample and distances start here."""

import dataclasses
import os
from typing import Any

from jax.sharding import Mesh

from pit_jax import checkpoint, rundir, step, tasks
from pit_jax.data import identity
from pit_jax.errors import ConfigError
from pit_jax.lengths import Clock


@dataclasses.dataclass(frozen=True)
class Restored:
    """Attributes:
    config: resolved.
    run: its directory.
    number: the step of the checkpoint.
    task, steps: see tasks/ and `step.build`.
    state: on the devices.
    """

    config: Any
    run: rundir.RunDir
    number: int
    task: Any
    steps: step.Steps
    state: Any


def restore(
    config: Any, workdir: str | os.PathLike, mesh: Mesh, number: int | None = None
) -> Restored:
    """The run in `workdir` at step `number`, or at its newest intact checkpoint.

    Args:
      config: the run's resolved config; what shapes no parameter may have been changed.
      workdir: nothing is written there.
      mesh: the devices that hold the state.
      number: a step that has a checkpoint.

    Raises:
      ConfigError: if there is no such checkpoint, or the config is another run's, or names
        other classes or latents than the run was trained on.
      StorageError: if it is damaged.
    """
    run = rundir.RunDir(workdir)
    run.check_same(config, free=("data.eval_split",))
    task = tasks.build(config)
    origin = identity.check_restored(config, run, task.learns_labels)
    saved = checkpoint.Checkpoints(run)
    if not saved.steps():
        raise ConfigError(f"{workdir} holds no checkpoint yet")
    if number is None:
        number = saved.newest_intact(repair=False)
    elif number not in saved.steps():
        raise ConfigError(f"{workdir} has no checkpoint {number}, but {saved.steps()}")
    else:
        saved.require_intact(number)
    if origin:
        task.restored_from(origin)
    # The schedule's length shapes nothing that is restored.
    steps = step.build(task, config, mesh, Clock(config.train.batch_size, 1, 1))
    return Restored(config, run, number, task, steps, saved.restore(number, steps.shapes))
