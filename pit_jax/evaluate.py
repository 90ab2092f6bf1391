"""`pit-jax eval`: the evaluations of a run's task, or probes, from one of its checkpoints."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from pit_jax import checkpoint, rundir, step, tasks
from pit_jax.data import pipeline, sources
from pit_jax.errors import ConfigError
from pit_jax.evals.context import Context
from pit_jax.evals.probes import PROBES
from pit_jax.lengths import Clock
from pit_jax.parallel import mesh as meshes
from pit_jax.validation import check_batch


def evaluate(
    config: Any,
    workdir: str | os.PathLike,
    number: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    which: Sequence[str] = (),
) -> dict[str, float]:
    """Evaluations on the checkpoint of step `number`, or the newest.

    Args:
      config: the run's resolved config; mesh and evaluation may have been changed.
      workdir: the run directory; nothing but pictures is written there.
      number: a step that has a checkpoint.
      devices: those to use; all of them by default.
      which: of the task's evaluations and of evals/probes.py; all of the task's by default.

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
    batch_size = config.eval.batch_size or config.train.batch_size
    task = tasks.build(config)
    # The schedule's length shapes nothing that is restored.
    steps = step.build(task, config, mesh, Clock(config.train.batch_size, 1, 1))

    def read(source: sources.Source) -> pipeline.Pipeline:
        reader = pipeline.Reader(source, config.data, train=False)
        return pipeline.Pipeline(reader, steps.batch_sharding, batch_size, config.data.workers)

    def draw(name: str, picture: Any) -> None:
        if jax.process_index() == 0:
            run_directory.write_picture(number, name, picture)

    with jax.set_mesh(mesh):
        context = Context(
            config=config,
            task=task,
            steps=steps,
            state=saved.restore(number, steps.shapes),
            held_out=read(sources.load(config.data, config.data.eval_split)),
            training=lambda: read(sources.training(config.data)),
            draw=draw,
        )
        return {"step": number} | run(which or task.evaluations(), context)


def offered(task: Any) -> dict[str, Callable[[Context], Iterable[tuple[str, float]]]]:
    """Every evaluation that `eval.what` may name: the task's own, and the probes."""
    return task.evaluations() | PROBES


def run(names: Iterable[str], context: Context) -> dict[str, float]:
    """The evaluations of these names, as {"eval/accuracy": ..., ...}."""
    return {
        f"eval/{key}": value
        for name in names
        for key, value in offered(context.task)[name](context)
    }
