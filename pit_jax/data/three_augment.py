"""ThreeAugment of DeiT III (Touvron et al. 2022, section 2.3) of one image.

One of three changes, each equally likely: all colour lost, solarised at 128, or blurred by a
Gaussian. The recipe flips before, and jitters brightness, contrast and saturation by 0.3 after.
"""

import jax
import jax.numpy as jnp

from pit_jax.data.blur import SIGMA, gaussian_blur
from pit_jax.data.colour import gray, solarize

OPERATIONS = ("Grayscale", "Solarize", "GaussianBlur")


def three_augment(image: jax.Array, key: jax.Array) -> jax.Array:
    """A changed copy of the image (H, W, C) in [0, 255], C = 1 or 3.

    One channel has no colour to lose: a third of such images stay as they are.
    """
    return operate(image, *sample(key))


def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws the operation, a place in OPERATIONS, int32, and the blur's sigma, pixels."""
    draws = jax.random.uniform(key, (2,))
    operation = (draws[0] * len(OPERATIONS)).astype(jnp.int32)
    return operation, SIGMA[0] + (SIGMA[1] - SIGMA[0]) * draws[1]


def operate(image: jax.Array, operation: jax.Array, sigma: jax.Array) -> jax.Array:
    """The image after the operation of that number; under vmap all three are computed."""
    results = (gray(image), solarize(image, 128.0), gaussian_blur(image, sigma))
    return jax.lax.select_n(operation, *results)
