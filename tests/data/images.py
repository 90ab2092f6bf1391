"""Images as the tests of data/ make and turn them."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def to_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pil(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32).reshape(image.height, image.width, -1)


def as_float(image: np.ndarray) -> jax.Array:
    return jnp.asarray(image, jnp.float32)
