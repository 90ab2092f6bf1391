"""Gaussian blur of one image, as PIL's: three box blurs along each axis.

PIL's ImageFilter.GaussianBlur is no sampled Gaussian, but it is what published recipes blur
with: boxes of fractional width whose variances add up to the Gaussian's (Gwosdek et al. 2011),
rounded to grey levels after each, with the border repeated outwards. Weights are in PIL's
fixed point: at some sigmas, 1 among them, every sixth sum is a half, and falls as PIL's does.
"""

import jax
import jax.numpy as jnp

from pit_jax.data.colour import round_levels

SIGMA = (0.1, 2.0)  # pixels; drawn uniformly in MoCo v2 (Chen et al. 2020) and DeiT III
_PASSES = 3
_REACH = 2  # pixels that a box reaches to either side, enough up to sigma √6
_BITS = 24  # of a weight; 255 · 2²⁴ + 2²³ still is below 2³²


def gaussian_blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """The image (H, W, C) blurred, float32 in whole grey levels.

    Args:
      image: in [0, 255]; fractions are rounded first.
      sigma: standard deviation in pixels, above 0 and at most √6.
    """
    weights = box(sigma)
    levels = round_levels(image).astype(jnp.uint32)
    for axis in (1, 0):  # PIL's order
        # As a loop no pass is fused into the next, which would compute it five times over.
        levels = jax.lax.fori_loop(0, _PASSES, lambda _, x, a=axis: _blur(x, weights, a), levels)
    return levels.astype(jnp.float32)


def box(sigma: jax.Array) -> jax.Array:
    """Weights (5,) uint32 of the box that three times over has this standard deviation.

    In units of 2⁻²⁴. Whole pixels weigh the same, those at its two ends what is left of 1.
    """
    variance = sigma**2 / _PASSES
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)  # pixels to either side
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    radius = whole + fraction / (6 * (variance - (whole + 1) ** 2))
    inner = (2**_BITS / (2 * radius + 1)).astype(jnp.uint32)
    reach = whole.astype(jnp.uint32)
    outer = (2**_BITS - (2 * reach + 1) * inner) // 2
    distance = jnp.abs(jnp.arange(-_REACH, _REACH + 1))
    return jnp.where(distance <= reach, inner, jnp.where(distance == reach + 1, outer, 0))


def _blur(levels: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    size, border = levels.shape[axis], [(0, 0)] * levels.ndim
    border[axis] = (_REACH, _REACH)
    padded = jnp.pad(levels, border, mode="edge")
    taps = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(2 * _REACH + 1)]
    total = sum(w * tap for w, tap in zip(weights, taps, strict=True))
    return (total + 2 ** (_BITS - 1)) >> _BITS
