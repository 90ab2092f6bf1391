"""Random erasing (Zhong et al. 2020) of one image, as timm's RandomErasing.

Rows and columns are compared with the box: nothing is written at drawn places.
"""

import jax
import jax.numpy as jnp

from pit_jax.data.crop import ATTEMPTS, Box, first_fit, sides

ERASED_AREA, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # Zhong et al. 2020; s_h as in timm


def sample_erasing(key: jax.Array, height: int, width: int, probability: float) -> Box:
    """The rectangle of timm's RandomErasing: (top, left, height, width), int32 pixels.

    Its area is uniform in 2 % to 1/3 of the image, its width / height log-uniform in 0.3 to
    1 / 0.3. The first of ten that is smaller than the image both ways is taken. If none is,
    or with 1 − `probability`, it is empty: nothing is erased.
    """
    draws = jax.random.uniform(key, (2 * ATTEMPTS + 3,))
    hs, ws = sides(draws[:-3], height, width, ERASED_AREA, ERASED_RATIO)
    first = first_fit((hs < height) & (ws < width)) & (draws[-3] < probability)
    box_h, box_w = (hs * first).sum(), (ws * first).sum()
    top = (draws[-2] * (height - box_h + 1)).astype(jnp.int32)
    left = (draws[-1] * (width - box_w + 1)).astype(jnp.int32)
    return top, left, box_h, box_w


def erase(image: jax.Array, box: Box, noise: jax.Array) -> jax.Array:
    """The image (H, W, C) with what lies in the box replaced by the noise (H, W, C).

    Random erasing (Zhong et al. 2020), a value a pixel and channel: timm's mode "pixel"
    draws N(0, 1) after normalising, so here the noise is not clipped to grey levels.
    """
    top, left, height, width = box
    row, column = jnp.arange(image.shape[0])[:, None], jnp.arange(image.shape[1])
    inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    return jnp.where(inside[..., None], noise, image)
