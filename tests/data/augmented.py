"""Batches through `augment` with the options of a test, back in grey levels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax import config
from pit_jax.data import augmentation

MEAN, STD = (0.5,), (0.25,)
CLASSES = 7


def keys(n: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


@functools.cache
def jitted(**options):
    """`augment` with these options, from images, labels and a key or a row of keys."""
    chosen = config.base().data.augmentation
    chosen.update(options)

    def augment(images, labels, key):
        return augmentation.augment(images, labels, key, chosen, MEAN, STD, CLASSES)

    def over_keys(images, labels, key):
        vmapped = jax.vmap(augment, (None, None, 0)) if key.ndim else augment
        return vmapped(images, labels, key)

    return jax.jit(over_keys)


def run(images: np.ndarray, key: jax.Array | None = None, **options):
    """Augmented images in grey levels again, and targets; image i is of class i."""
    labels = np.arange(len(images), dtype=np.int32) % CLASSES
    key = jax.random.key(0) if key is None else key
    images, targets = jitted(**options)(images, labels, key)
    assert images.dtype == targets.dtype == jnp.float32
    return (np.asarray(images) * STD[0] + MEAN[0]) * 255, np.asarray(targets)
