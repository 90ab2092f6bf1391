"""Parts of a batch, one after the other, make the step of the whole batch: for every task."""

import jax
import numpy as np
import pytest

from pit_jax import configfile, step, tasks, validation
from pit_jax.config import TASKS
from pit_jax.tasks.means import Mean

SMALL = {
    "classification": ("configs/digits.py:pit", {}),
    "mae": ("configs/digits_mae.py:pit", {}),
    "diffusion": ("configs/digits_diffusion.py:pit", {}),
    "autoencoder": (
        "configs/digits_autoencoder.py",
        {"autoencoder": {"channels": (8,), "attends": False}},
    ),
    "autoregressive": ("configs/digits.py:pit", {"model": {"name": "igpt"}}),
    "depth": ("configs/scenes_depth.py:pit", {}),
}


def small(task: str):
    spec, changes = SMALL[task]
    c = configfile.read(spec)
    c.task = task
    c.model.update(width=8, depth=1, heads=2)
    c.data.image_size = 8
    c.data.augmentation.mixup = 0.5 if task == "classification" else 0.0
    for group, values in changes.items():
        c[group].update(values)
    return tasks.build(validation.resolve(c))


def stored(task, rows: int) -> dict:
    """What comes from the data; of depth as sensors have it, with holes and with none at all."""
    rng = np.random.default_rng(0)
    shapes = task.batch_shapes(rows)
    batch = {"image": rng.integers(0, 256, shapes["image"].shape, dtype=np.uint8)}
    batch["label"] = np.arange(rows, dtype=np.int32) % 10
    batch["index"] = np.arange(rows, dtype=np.int32)
    if "depth" in shapes:
        batch["depth"] = rng.uniform(0.5, 5, shapes["depth"].shape).astype(np.float32)
        batch["depth"][0::2] = 0  # a whole part of two
        batch["depth"][1, :5] = batch["depth"][3, :, 2] = 0
    assert set(batch) == set(shapes)
    return batch


@pytest.mark.parametrize("name", TASKS)
def test_parts_give_the_gradient_and_the_numbers_of_the_whole_batch(name):
    task = small(name)
    key = jax.random.key(1)
    params = jax.jit(task.init)(key)
    noise = jax.random.normal(key, ())  # off the initial zeros, where gradients vanish
    params = jax.tree.map(lambda x: x + 0.02 * noise, params)
    batch = jax.jit(task.augment)(stored(task, 8), key)
    found = {
        parts: jax.jit(lambda p, b, n=parts: step.gradients(task, p, b, key, n))(params, batch)
        for parts in (1, 2)
    }
    (whole, numbers), (added, again) = found[1], found[2]
    assert numbers.keys() == again.keys()
    for one in numbers:
        np.testing.assert_allclose(again[one], numbers[one], rtol=2e-5, err_msg=one)
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(whole))
    assert scale > 1e-3
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(added), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=2e-5 * scale)


def test_means_of_parts_of_different_counts_make_the_mean_of_the_whole():
    values, known = np.float32([1, 2, 3, 9]), np.array([True, False, False, True])
    halves = [Mean.where(known[rows], values[rows], root=True) for rows in (slice(3), slice(3, 4))]
    assert float(jax.tree.map(np.add, *halves).value) == pytest.approx(np.sqrt(5))
    assert float(Mean.where(np.zeros(4, bool), values).value) == 0
    assert float(Mean.of(values).value) == np.mean(values)
