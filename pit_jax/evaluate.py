"""`pit-jax eval`: the evaluations of a run's task, or probes, from one of its checkpoints."""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from pit_jax import classifier, demands
from pit_jax.data import pipeline, sources
from pit_jax.evals.context import Context
from pit_jax.evals.locality import evaluation as locality
from pit_jax.evals.probes import PROBES, require_room
from pit_jax.models.transformer import compute_dtype
from pit_jax.parallel import mesh as meshes
from pit_jax.restored import restore
from pit_jax.validation import check_batch, resolve


def evaluate(
    config: Any,
    workdir: str | os.PathLike,
    number: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    which: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Evaluations on the checkpoint of step `number`, or the newest.

    Args:
      config: the run's; mesh and evaluation may have been changed.
      workdir: the run directory; nothing but pictures and records is written there.
      number: a step that has a checkpoint.
      devices: those to use; all of them by default.
      which: of the task's evaluations, of evals/probes.py, and "locality". By default all of
        the task's, without "generation" where no `eval.features` are named to measure it by.
      say: takes what there is to say beside the numbers.

    Returns:
      {"step": ..., "eval/accuracy": ..., ...}.

    Raises:
      ConfigError: if there is no such checkpoint, the config is another run's, or what probes
        ask for does not fit into memory.
      StorageError: if it is damaged.
    """
    config = resolve(config)
    mesh = meshes.make_mesh(config.mesh, devices)
    check_batch(config, dict(mesh.shape))
    found = restore(config, workdir, mesh, number)
    task, steps, writes = found.task, found.steps, jax.process_index() == 0
    batch_size = config.eval.batch_size or config.train.batch_size

    def read(source: sources.Source) -> pipeline.Pipeline:
        reader = pipeline.Reader(source, config.data, train=False)
        return pipeline.Pipeline(reader, steps.batch_sharding, batch_size, config.data.workers)

    unmeasured = () if config.eval.features else ("generation",)
    names = which or [name for name in task.evaluations() if name not in unmeasured]
    labelled = demands.reads_labels(config, names) is not False
    held_out = sources.load(config.data, config.data.eval_split, labelled)
    for line in held_out.passed_over:
        if writes:
            say(line)
    with jax.set_mesh(mesh):
        require_room(names, config, task, steps)
        context = Context(
            config=config,
            task=task,
            steps=steps,
            state=found.state,
            held_out=read(held_out),
            training=lambda: read(sources.training(config.data, labelled)),
            draw=functools.partial(found.run.write_picture, found.number) if writes else None,
            record=functools.partial(found.run.write_record, found.number) if writes else None,
            say=say if writes else None,
            network=classifier.network,
        )
        measured = run(names, context)
        if writes:  # samples may be of another, which their record says
            say(f"step {found.number} in {compute_dtype(config.model.dtype).name}")
    return {"step": found.number} | measured


def offered(task: Any) -> dict[str, Callable[[Context], Iterable[tuple[str, float]]]]:
    """Every evaluation that `eval.what` may name: the task's own, the probes, and locality."""
    return task.evaluations() | PROBES | {"locality": locality.evaluate}


def run(names: Iterable[str], context: Context) -> dict[str, float]:
    """The evaluations of these names, as {"eval/accuracy": ..., ...}."""
    return {
        f"eval/{key}": value
        for name in names
        for key, value in offered(context.task)[name](context)
    }
