"""Colour changes of one image, as PIL's, and the random jitter made of them.

Images are (H, W, C) float32 in [0, 255], C = 1 or 3. Results stay float between changes;
PIL cuts the fraction off after each.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np


def gray(image: jax.Array) -> jax.Array:
    """ITU-R 601 luma 0.299 R + 0.587 G + 0.114 B in whole levels, as PIL's mode "L".

    (H, W, C) → (H, W, C), all channels equal; one channel is its own luma.
    """
    if image.shape[-1] == 1:
        return image
    red, green, blue = (image[..., c : c + 1] for c in range(3))
    # PIL's fixed point. Below 2²⁴, so float32 is exact and halves fall the same way.
    luma = (19595 * red + 38470 * green + 7471 * blue) / 65536
    return jnp.broadcast_to(round_levels(luma), image.shape)


def adjust_brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with black: 0 is black, 1 the image, 2 twice as bright (PIL ImageEnhance)."""
    return blend(0.0, image, factor)


def adjust_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the mean luma of the whole image (PIL ImageEnhance.Contrast)."""
    return blend(round_levels(gray(image).mean()), image, factor)


def adjust_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the grayscale image (PIL ImageEnhance.Color); 3 channels."""
    return blend(gray(image), image, factor)


def adjust_hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Turns the hue of HSV by `shift` full circles; value and saturation stay; 3 channels.

    Exact, as colorsys. PIL holds H, S and V in 8 bits each, so torchvision on PIL images
    differs from this by about 1 grey level on average and up to 15 on pure noise.
    """
    red, green, blue = (image[..., c] for c in range(3))
    value = image.max(-1)
    chroma = value - image.min(-1)
    safe = jnp.where(chroma > 0, chroma, 1.0)
    hue = jnp.where(  # in sixths of a circle
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    # Back in closed form: channel = V − V · S · clip(min(k, 4 − k), 0, 1), V · S = chroma,
    # k = (n + hue) mod 6 with n = 5, 3, 1 for red, green, blue.
    k = (hue[..., None] + 6 * shift + np.array([5.0, 3.0, 1.0], np.float32)) % 6  # (H, W, 3)
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def solarize(image: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """Levels from the threshold on inverted (PIL ImageOps)."""
    return jnp.where(image < threshold, image, 255 - image)


def sample_jitter(
    key: jax.Array, strengths: tuple[float, float, float, float]
) -> tuple[list[Callable], jax.Array, jax.Array]:
    """Draws torchvision's ColorJitter.

    Args:
      strengths: s of brightness, contrast and saturation, whose factors are uniform in
        [max(0, 1 − s), 1 + s]; h of hue, whose shift is uniform in [−h, h] circles.

    Returns:
      The n changes of nonzero strength, their amounts (n,), and the order (n,) in which
      to make them, a uniform permutation.
    """
    *factors, hue = strengths
    ranges = [(max(0.0, 1 - s), 1 + s) for s in factors] + [(-hue, hue)]
    adjusts = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    on = [i for i, strength in enumerate(strengths) if strength]
    low, high = np.array([ranges[i] for i in on], np.float32).T
    draws = jax.random.uniform(key, (2, len(on)))
    return [adjusts[i] for i in on], low + (high - low) * draws[0], jnp.argsort(draws[1])


def jitter(
    image: jax.Array, adjusts: Sequence[Callable], amounts: jax.Array, order: jax.Array
) -> jax.Array:
    """Makes the n changes `adjusts` by `amounts` in `order`.

    Under vmap every example computes all of them in each of the n turns and keeps one: at
    most 16 elementwise changes, little beside a layer of the model. As a loop they compile
    in a fifth of the time that they take unrolled.
    """
    branches = [lambda x, a, i=i: adjusts[i](x, a[i]) for i in range(len(adjusts))]

    def turn(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        return jax.lax.switch(i, branches, x, amounts), None

    return jax.lax.scan(turn, image, order)[0]


def blend(other: jax.Array | float, image: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(other + factor * (image - other), 0, 255)


def round_levels(x: jax.Array) -> jax.Array:
    return jnp.floor(x + 0.5)  # halves go up, as in PIL
