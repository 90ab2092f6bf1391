"""`pit-jax eval`: the evaluations of a run's task, from one of its checkpoints."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from pit_jax import checkpoint, rundir, step, tasks
from pit_jax.data import pipeline, sources
from pit_jax.errors import ConfigError
from pit_jax.lengths import Clock
from pit_jax.parallel import mesh as meshes
from pit_jax.validation import check_batch


def evaluate(
    config: Any,
    workdir: str | os.PathLike,
    number: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, float]:
    """Every evaluation of the task on the checkpoint of step `number`, or the newest.

    Args:
      config: the run's resolved config; mesh and evaluation may have been changed.
      workdir: the run directory; nothing is written there.
      number: a step that has a checkpoint.
      devices: those to use; all of them by default.

    Returns:
      {"step": ..., "eval/accuracy": ..., ...}.

    Raises:
      ConfigError: if there is no such checkpoint, or the config is another run's.
      StorageError: if it is damaged.
    """
    run_directory = rundir.RunDir(workdir)
    run_directory.check_same(config)
    saved = checkpoint.Checkpoints(run_directory)
    if not saved.steps():
        raise ConfigError(f"{workdir} holds no checkpoint yet")
    if number is None:
        number = saved.newest_intact(repair=False)
    elif number not in saved.steps():
        raise ConfigError(f"{workdir} has no checkpoint {number}, but {saved.steps()}")
    else:
        saved.require_intact(number)
    mesh = meshes.make_mesh(config.mesh, devices)
    check_batch(config, dict(mesh.shape))
    reader = pipeline.Reader(
        sources.load(config.data, config.data.eval_split), config.data, train=False
    )
    batch_size = config.eval.batch_size or config.train.batch_size
    task = tasks.build(config)
    # The schedule's length shapes nothing that is restored.
    steps = step.build(task, config, mesh, Clock(config.train.batch_size, 1, 1))
    data = pipeline.Pipeline(reader, steps.batch_sharding, batch_size, config.data.workers)
    found: dict[str, float] = {"step": number}
    with jax.set_mesh(mesh):
        state = saved.restore(number, steps.shapes)
        found |= run(task.evaluations(), task, steps, state, data)
    return found


def run(names: Iterable[str], task: Any, steps: Any, state: Any, data: Any) -> dict[str, float]:
    """The task's evaluations of these names, as {"eval/accuracy": ..., ...}."""
    return {
        f"eval/{key}": value
        for name in names
        for key, value in task.evaluations()[name](steps, state, data)
    }
