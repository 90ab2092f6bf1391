"""Random crops of one image (H, W, C), as torchvision's, inside the jitted step.

Each output row is a weighted sum of input rows, and each column of columns: two products with
matrices drawn per example. Slices at drawn places would become gathers.
"""

import math

import jax
import jax.numpy as jnp

from pit_jax.data.colour import round_levels

Range = tuple[float, float]
Box = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # top, left, height, width

ATTEMPTS = 10  # torchvision's and timm's, at a random box that fits into the image


def sample_box(key: jax.Array, height: int, width: int, scale: Range, ratio: Range) -> Box:
    """The box of torchvision's RandomResizedCrop: (top, left, height, width), int32 pixels.

    The area is uniform in `scale` (share of the image), width / height log-uniform in
    `ratio`. The first of ten boxes that fits is taken; if none does, the largest centred
    box whose ratio is in range.
    """
    draws = jax.random.uniform(key, (2 * ATTEMPTS + 2,))  # one call: it compiles faster
    hs, ws = sides(draws[:-2], height, width, scale, ratio)
    fits = (hs > 0) & (hs <= height) & (ws > 0) & (ws <= width)
    first = first_fit(fits)
    central_h = min(height, max(1, round(width / ratio[0])))
    central_w = min(width, max(1, round(height * ratio[1])))
    box_h = jnp.where(fits.any(), (hs * first).sum(), central_h)
    box_w = jnp.where(fits.any(), (ws * first).sum(), central_w)

    def place(draw: jax.Array, room: jax.Array) -> jax.Array:
        return jnp.where(fits.any(), (draw * (room + 1)).astype(jnp.int32), room // 2)

    return place(draws[-2], height - box_h), place(draws[-1], width - box_w), box_h, box_w


def sides(
    draws: jax.Array, height: int, width: int, scale: Range, ratio: Range
) -> tuple[jax.Array, jax.Array]:
    """Heights and widths (ATTEMPTS,) of boxes, int32, from twice as many draws in [0, 1)."""
    low, high = (math.log(x) for x in ratio)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[:ATTEMPTS])
    aspect = jnp.exp(low + (high - low) * draws[ATTEMPTS:])
    hs = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    ws = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    return hs, ws


def first_fit(fits: jax.Array) -> jax.Array:
    """(ATTEMPTS,) bool: True at the first that fits, or nowhere."""
    return fits & (jnp.cumsum(fits) == 1)


def resize_crop(
    image: jax.Array, box: Box, interpolation: str, shape: tuple[int, int] | None = None
) -> jax.Array:
    """Cuts a box out and resizes it, as PIL does.

    Equals `image.crop(...).resize(...)`, which is torchvision's resized_crop. PIL's
    `resize(box=...)` is something else: there, pixels around the box bleed in.

    Args:
      image: (H, W, C) in [0, 255].
      box: top, left, height, width, whole pixels inside the image.
      interpolation: "bilinear" or "bicubic" (Keys 1981 with a = −0.5); antialiased: the
        kernel widens with the scale where the box is larger than what it becomes.
      shape: height and width of the result, by default those of the image. A crop then
        only ever enlarges.

    Returns:
      (*shape, C) float32, whole grey levels.
    """
    top, left, box_h, box_w = box
    (in_h, in_w), (out_h, out_w) = image.shape[:2], shape or image.shape[:2]
    rows = _resize_weights(in_h, out_h, top, box_h, interpolation)
    columns = _resize_weights(in_w, out_w, left, box_w, interpolation)
    return round_levels(_resample(image, rows, columns))


def pad_crop(
    image: jax.Array, top: jax.Array, left: jax.Array, pad: int, mirrored: bool = False
) -> jax.Array:
    """The (H, W) window at (top, left) of the image with `pad` pixels around it.

    Args:
      image: (H, W, C).
      top, left: in [0, 2 · pad].
      pad: black pixels, the usual augmentation of CIFAR (He et al. 2016); or
      mirrored: the image's own, mirrored about its outermost row or column (NumPy's
        "reflect"), of which it needs pad + 1: the simple random crop of DeiT III (Touvron et
        al. 2022), once the image is of the model's size.
    """

    def shift(size: int, offset: jax.Array) -> jax.Array:  # (out, in); black rows are zero
        source = jnp.arange(size) + offset - pad
        if mirrored:
            source = size - 1 - jnp.abs(size - 1 - jnp.abs(source))
        return (source[:, None] == jnp.arange(size)).astype(jnp.float32)

    return _resample(image, shift(image.shape[0], top), shift(image.shape[1], left))


def _resize_weights(
    size: int, out: int, start: jax.Array, length: jax.Array, interpolation: str
) -> jax.Array:
    """(out, size): how `length` pixels from `start` on become `out` pixels."""
    scale = length / out
    centre = start + (jnp.arange(out) + 0.5) * scale
    pixel = jnp.arange(size)
    distance = jnp.abs(pixel + 0.5 - centre[:, None]) / jnp.maximum(scale, 1.0)
    inside = (pixel >= start) & (pixel < start + length)
    weights = jnp.where(inside, _kernel(distance, interpolation), 0.0)
    return weights / weights.sum(1, keepdims=True)


def _kernel(x: jax.Array, interpolation: str) -> jax.Array:
    if interpolation == "bilinear":
        return jnp.maximum(1 - x, 0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _resample(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    # Columns first and clipped after each pass, as PIL: clipping once would let the second
    # pass spread what a bicubic kernel overshoots in the first, by up to 28 grey levels.
    # At its default precision a TPU rounds the weights to bfloat16: 2 levels off at most.
    for product, weights in (("ow,hwc->hoc", columns), ("oh,hwc->owc", rows)):
        image = jnp.einsum(product, weights, image, precision=jax.lax.Precision.HIGHEST)
        image = jnp.clip(image, 0, 255)
    return image
