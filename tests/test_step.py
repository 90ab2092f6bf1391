"""The step itself: what it costs to compile, and that nothing unread is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import step, tasks, validation
from pit_jax.lengths import Clock
from pit_jax.models.transformer import Trunk
from pit_jax.parallel import mesh as meshes


def compiled(tiny, depth: int, device: list[jax.Device]):
    tiny.model.update(width=32, depth=depth, remat="full", drop_path=0.1)
    config = validation.resolve(tiny)
    mesh = meshes.make_mesh(config.mesh, device)
    task = tasks.build(config)
    steps = step.build(task, config, mesh, Clock(32, 320, 10))
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=steps.batch_sharding)
        for name, x in task.batch_shapes(32).items()
    }
    with jax.set_mesh(mesh):
        lowered = steps.train.lower(steps.shapes, batch)
    return lowered.as_text(), lowered.compile().as_text()


def test_compiling_does_not_grow_with_depth(tiny, one_device):
    """24 layers (Large) against 12 (Base) of the same width: the same program, longer loops."""
    base, large = compiled(tiny, 12, one_device), compiled(tiny, 24, one_device)
    for shallow, deep in zip(base, large, strict=True):
        assert len(deep) < 1.3 * len(shallow)
    assert base != large


@pytest.mark.parametrize("rows", [1, 5])
def test_the_last_block_computes_no_row_that_nobody_reads(rows):
    """The same result, and gradients, as computing all rows and dropping the rest."""
    trunk = Trunk(depth=2, heads=2, mlp=64)
    x = jax.random.normal(jax.random.key(0), (2, 130, 32))
    params = trunk.init(jax.random.key(1), x)

    def read(some: int | None):
        def loss(params, x):
            return (trunk.apply(params, x, some)[:, :rows] ** 2).sum()

        return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, x).compile()

    whole, part = read(None), read(rows)
    found, expected = (jax.tree.leaves(f(params, x)[1]) for f in (part, whole))
    biggest = max(float(jnp.abs(leaf).max()) for leaf in expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6 * biggest, rtol=1e-4)
    np.testing.assert_allclose(part(params, x)[0], whole(params, x)[0], rtol=1e-6)
    assert part.cost_analysis()["flops"] < 0.8 * whole.cost_analysis()["flops"]


def test_the_average_forgets_slowly_and_every_step_draws_anew(tiny, one_device):
    """The same weights and batch at steps 0 and 1: what is drawn differs."""
    tiny.optim.update(ema=0.9, lr=0.5, warmup="0 steps")
    tiny.data.augmentation.flip = 0.5
    config = validation.resolve(tiny)
    mesh = meshes.make_mesh(config.mesh, one_device)
    task = tasks.build(config)
    steps = step.build(task, config, mesh, Clock(32, 320, 10))
    rng = np.random.default_rng(0)
    shapes = task.batch_shapes(32)
    batch = {name: rng.integers(0, 9, x.shape).astype(x.dtype) for name, x in shapes.items()}
    with jax.set_mesh(mesh):
        begun = steps.init(jax.random.key(0))
        before = jax.device_get(begun.params)
        other = jax.tree.map(jnp.copy, begun).replace(step=begun.step + 1)
        state, first = steps.train(begun, batch)
        _, second = steps.train(other, batch)
    trees = before, *jax.device_get((state.params, state.ema))
    for old, new, average in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(average, 0.9 * old + 0.1 * new, rtol=1e-5, atol=1e-7)
    assert float(first["loss"]) != float(second["loss"])
