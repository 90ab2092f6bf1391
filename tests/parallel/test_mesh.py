"""The mesh: every layout of the same run gives the same losses; fsdp splits the bytes."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pit_jax import step, tasks, validation
from pit_jax.data import pipeline
from pit_jax.errors import ConfigError
from pit_jax.lengths import Clock
from pit_jax.parallel import mesh as meshes
from pit_jax.parallel.rules import map_with_path, partition

STEPS = 10


def sizes(**given: int) -> dict[str, int]:
    return dict.fromkeys(meshes.AXES, 1) | given


def build(config: ConfigDict, **given: int):
    config = validation.resolve(config)
    count = int(np.prod(list(given.values()))) if given else 1
    mesh = meshes.make_mesh(sizes(**given), jax.devices()[:count])
    return mesh, step.build(tasks.build(config), config, mesh, Clock(32, 640, STEPS))


def losses(config: ConfigDict, **given: int) -> list[float]:
    mesh, steps = build(config, **given)
    rng = np.random.default_rng(0)
    rows = pipeline.local_rows(steps.batch_sharding, 32)
    found = []
    with jax.set_mesh(mesh):
        state = steps.init(jax.random.key(0))
        for _ in range(STEPS):
            batch = {
                "image": rng.integers(0, 256, (32, 8, 8, 1), np.uint8),
                "label": rng.integers(0, 10, 32, np.int32),
            }
            batch = pipeline.to_devices(batch, rows, steps.batch_sharding, 32)
            state, metrics = steps.train(state, batch)
            found.append(float(metrics["loss"]))
    return found


@pytest.fixture(scope="module")
def wide() -> ConfigDict:
    from pit_jax import config

    c = config.base()
    c.model.update(width=32, depth=3, heads=2, drop_path=0.1, dropout=0.1)
    c.data.update(image_size=8, channels=1)
    c.data.augmentation.update(crop="pad", pad=1, flip=0.5, mixup=0.5)
    c.optim.update(lr=2e-3, clip=1.0, weight_decay=0.05, ema=0.99)
    c.train.update(batch_size=32, steps=STEPS)
    return c


@pytest.fixture(scope="module")
def on_one_device(wide: ConfigDict) -> list[float]:
    return losses(wide)


@pytest.mark.parametrize(
    "layout", [{"data": 8}, {"fsdp": 4, "seq": 2}, {"data": 2, "fsdp": 2, "model": 2}]
)
def test_losses_are_the_same_on_any_mesh(wide, on_one_device, layout):
    """Augmentation, dropout and drop path included: they do not depend on the mesh."""
    np.testing.assert_allclose(losses(wide, **layout), on_one_device, rtol=1e-4)
    assert len(set(on_one_device)) == STEPS


def test_accumulated_gradients_equal_the_big_batch(wide):
    plain = ConfigDict(wide.to_dict()).lock()
    plain.model.update(drop_path=0.0, dropout=0.0)  # drawn anew for each part
    parts = ConfigDict(plain.to_dict()).lock()
    parts.train.accumulate = 4
    np.testing.assert_allclose(losses(parts), losses(plain), rtol=1e-5)
    np.testing.assert_allclose(losses(parts, data=4), losses(plain), rtol=1e-4)


def test_fsdp_splits_parameters_and_optimiser(wide):
    config = ConfigDict(wide.to_dict()).lock()
    config.model.width = 64
    mesh, steps = build(config, fsdp=8)
    with jax.set_mesh(mesh):
        state = steps.init(jax.random.key(0))
    leaves = jax.tree.leaves((state.params, state.opt_state, state.ema))
    held = sum(x.addressable_shards[3].data.nbytes for x in leaves)
    whole = sum(x.nbytes for x in leaves)
    assert held <= whole * (1 / 8 + 0.01)


def test_optimiser_state_is_laid_out_like_its_parameter(wide):
    _, steps = build(wide, fsdp=4, model=2)
    shapes = steps.shapes
    kernel = shapes.params["trunk"]["blocks"]["up"]["kernel"].sharding.spec
    assert tuple(kernel) == (None, "fsdp", "model")
    moments = jax.tree_util.tree_leaves_with_path(shapes.opt_state)
    specs = {
        tuple(x.sharding.spec)
        for path, x in moments
        if "blocks" in str(path) and "'up'" in str(path) and "kernel" in str(path)
    }
    assert specs == {tuple(kernel)}


def test_every_parameter_of_a_masked_autoencoder_is_split(tiny):
    """Over fsdp, all but what one row or one number an output makes too small to matter."""
    tiny.task = "mae"
    tiny.mae.update(decoder_width=16, decoder_heads=2)
    tiny.model.update(width=32)
    task = tasks.build(validation.resolve(tiny))
    params = jax.eval_shape(task.init, jax.random.key(0))
    whole = []

    def look(path, x):
        if "fsdp" not in str(partition(path, x.shape, sizes(fsdp=4))):
            whole.append(path)

    map_with_path(look, params)
    assert whole == ["decoder/head/bias"]


def test_axes_that_do_not_divide_are_left_out():
    spec = partition("trunk/last/up/kernel", (30, 64), sizes(fsdp=4, model=2))
    assert tuple(spec) == (None, "model")
    assert tuple(partition("step", (), sizes(fsdp=4))) == ()


def test_minus_one_takes_what_is_left():
    assert meshes.mesh_shape(sizes(data=-1, fsdp=2), 8) == (4, 2, 1, 1)


@pytest.mark.parametrize("given", [{"data": 3}, {"data": -1, "model": 3}, {"data": 16}])
def test_a_mesh_that_cannot_be_is_refused(given):
    with pytest.raises(ConfigError, match=r"does not multiply to the 8 device"):
        meshes.mesh_shape(sizes(**given), 8)


def test_a_batch_that_does_not_divide_is_refused(tiny):
    tiny.train.update(batch_size=36, accumulate=3)
    config = validation.resolve(tiny)
    with pytest.raises(ConfigError, match=r"accumulate=3 = 12 does not divide over mesh data 8"):
        validation.check_batch(config, sizes(data=8))


def test_constrain_does_nothing_without_a_mesh():
    x = np.ones((3, 5))
    assert meshes.constrain(x, "batch", None) is x
