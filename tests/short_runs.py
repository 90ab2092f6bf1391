"""A few steps of a small model: what tests of several models ask of each."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from pit_jax import step, validation
from pit_jax.lengths import Clock
from pit_jax.parallel import mesh as meshes
from pit_jax.tasks import build

KEY = jax.random.key(0)


def losses(
    config: Any, sizes: dict[str, int], devices: Sequence, batch: Callable, steps: int = 2
) -> list[float]:
    """The losses of training on batch(0), batch(1), ... on a mesh of these sizes, all else 1."""
    config.mesh.update(data=1, fsdp=1, seq=1, model=1)
    config.mesh.update(sizes)
    config = validation.resolve(config)
    mesh = meshes.make_mesh(config.mesh, devices)
    compiled = step.build(build(config), config, mesh, Clock(8, 1437, 10))
    found = []
    with jax.set_mesh(mesh):
        state = compiled.init(KEY)
        for number in range(steps):
            rows = jax.device_put(batch(number), compiled.batch_sharding)
            state, metrics = compiled.train(state, rows)
            found.append(float(metrics["loss"]))
    return found


def losses_by_dtype(config: Any, params: Callable, batch: Callable) -> list[jax.Array]:
    """The loss of batch(0) in float32 and in bfloat16, with params(task) as parameters."""
    found = []
    for dtype in ("float32", "bfloat16"):
        config.model.dtype = dtype
        task = build(validation.resolve(config))
        loss = jax.jit(lambda p, b, t=task: t.loss(p, t.augment(b, KEY), KEY)[0])
        found.append(loss(params(task), batch(0)))
    return found


def change(config: Any, fields: dict[str, Any]) -> None:
    """Sets fields by their dotted names."""
    for name, value in fields.items():
        node, _, leaf = name.rpartition(".")
        (config[node] if node else config)[leaf] = value
