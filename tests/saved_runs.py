"""Runs that are there without having been trained: random weights in which nothing is zero.

And runs that were stopped without having been: copies of finished ones."""

import shutil

import jax
import numpy as np

from pit_jax import checkpoint, configfile, rundir, step, tasks, validation
from pit_jax.config import base
from pit_jax.lengths import Clock
from pit_jax.parallel import mesh as meshes


def save_run(config, path, number: int = 7) -> None:
    """A run of this resolved config, with one checkpoint."""
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    steps = step.build(tasks.build(config), config, mesh, Clock(32, 1, 1))
    rng = np.random.default_rng(0)

    def random(x: jax.ShapeDtypeStruct) -> jax.Array:
        values = 0.2 * rng.normal(size=x.shape)
        return jax.device_put(values.astype(x.dtype), x.sharding)

    with jax.set_mesh(mesh):
        state = jax.tree.map(random, steps.shapes)
        state = state.replace(step=jax.device_put(np.int32(number), steps.shapes.step.sharding))
        run = rundir.RunDir(path)
        run.create()
        run.write_config(config)
        saved = checkpoint.Checkpoints(run)
        saved.save(number, state, {})
        saved.finish()
        saved.close()


def stopped(path, copy, number: int) -> rundir.RunDir:
    """A copy of a finished run, as if it had been stopped with the checkpoint of this step."""
    shutil.copytree(path, copy)
    run = rundir.RunDir(copy)
    run.write_status(state="preempted")
    for later in checkpoint.Checkpoints(run).steps():
        if later > number:
            shutil.rmtree(run.path / "checkpoints" / str(later))
            (run.path / "manifests" / f"{later}.json").unlink()
    return run


def diffusion(**fields):
    """A resolved config: a diffusion of the digits, with sampling of 12 in batches of 8."""
    c = base()
    c.task = "diffusion"
    c.model.update(name="dit", width=16, depth=2, heads=2)
    c.data.update(name="digits", image_size=8, channels=1, num_classes=10)
    c.sample.update(num=12, steps=3, guidance=1.5, batch_size=8, clip=True)
    c.train.update(batch_size=32, steps=10, tensorboard=False)
    c.optim.ema = 0.9
    for name, value in fields.items():
        group, leaf = name.split("__")
        c[group][leaf] = value
    return validation.resolve(c)


def config_of(path, **fields):
    """The config of a run with other fields, sample__num=9."""
    words = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    return configfile.override(rundir.RunDir(path).config(), words)
