"""What happens to a training batch inside the jitted step: crops, changes, mixes.

The order is MoCo v1's (He et al. 2020), crop, grayscale, colour jitter, flip, and then
timm's: RandAugment, random erasing, mixup or cutmix, `normalise`. Until then images are
float32 in [0, 255], only the noise of erasing reaches further. Functions on one image
(H, W, C) are vmapped, and example i draws from `fold_in(key, i)`: what happens to it
depends on its row in the global batch, not on its neighbours or on the devices.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.data.colour import gray, jitter, round_levels, sample_jitter
from pit_jax.data.randaugment import randaugment

Range = tuple[float, float]
Box = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # top, left, height, width

ATTEMPTS = 10  # torchvision's and timm's, at a random box that fits into the image
MIX_ROW = 2**32 - 1  # no batch has that row; split(key) would repeat the keys of rows 0 and 1
# Likewise below an example's key, whose split into four is its fold_in of 0 to 3.
RANDAUGMENT, ERASING = 2**32 - 1, 2**32 - 2
ERASED_AREA, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # Zhong et al. 2020; s_h as in timm


def augment(
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    options: Any,
    mean: Sequence[float],
    std: Sequence[float],
    num_classes: int,
) -> tuple[jax.Array, jax.Array]:
    """What the model sees of a training batch.

    Args:
      images: (B, H, W, C) uint8, C = 1 or 3. One channel has neither saturation nor hue.
      labels: (B,) int32.
      key: of this step.
      options: config.data.augmentation; static, what is off costs nothing.
      mean, std: as `normalise` takes them. What RandAugment moves in from outside is of
        the mean's colour, and erasing's noise has this mean and deviation.
      num_classes: length of a target.

    Returns:
      Normalised images (B, H, W, C) float32 and targets (B, num_classes) float32, one-hot
      or mixed from two; labels are not smoothed here.
    """
    images = images.astype(jnp.float32)
    targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    changes = (options.grayscale, *options.jitter, options.flip)
    if options.crop != "none" or any(changes) or options.randaugment or options.erasing:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(images)))
        images = jax.vmap(lambda x, k: _augment_one(x, k, options, mean, std))(images, keys)
    if options.mixup or options.cutmix:
        mix_key = jax.random.fold_in(key, MIX_ROW)
        own = sample_mix(mix_key, *images.shape[1:3], options.mixup, options.cutmix)
        images, targets = mix(images, targets, own)
    return normalise(images, mean, std), targets


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(x / 255 − mean) / std in float32.

    Args:
      images: (..., C) uint8 or float in [0, 255].
      mean, std: of images in [0, 1]; one value, or one a channel.
    """
    mean, std = (np.asarray(x, np.float32) for x in (mean, std))
    return (jnp.asarray(images, jnp.float32) / 255 - mean) / std


def _augment_one(
    image: jax.Array, key: jax.Array, options: Any, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    # Always four keys: turning one change on or off leaves the others as they were.
    crop_key, gray_key, jitter_key, flip_key = jax.random.split(key, 4)
    if options.crop == "resized":
        box = sample_box(crop_key, *image.shape[:2], options.scale, options.ratio)
        image = resize_crop(image, box, options.interpolation)
    elif options.crop == "pad":
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * options.pad + 1)
        image = pad_crop(image, top, left, options.pad)
    if options.grayscale:
        lost = jax.random.bernoulli(gray_key, options.grayscale)
        image = jnp.where(lost, gray(image), image)
    if any(options.jitter):
        adjusts, amounts, order = sample_jitter(jitter_key, options.jitter)
        image = jitter(image, adjusts, amounts, order)
    if options.flip:
        flipped = jax.random.bernoulli(flip_key, options.flip)
        image = jnp.where(flipped, image[:, ::-1], image)
    if options.randaugment:
        own_key = jax.random.fold_in(key, RANDAUGMENT)
        fill = [min(255, round(255 * x)) for x in mean]
        image = randaugment(
            image,
            own_key,
            options.randaugment,
            options.randaugment_std,
            options.randaugment_layers,
            fill,
        )
    if options.erasing:
        box_key, noise_key = jax.random.split(jax.random.fold_in(key, ERASING))
        noise = jax.random.normal(noise_key, image.shape)
        noise = 255 * (np.asarray(mean, np.float32) + np.asarray(std, np.float32) * noise)
        image = erase(image, sample_erasing(box_key, *image.shape[:2], options.erasing), noise)
    return image


# Crops. Each output row is a weighted sum of input rows, and each column of columns: two
# products with matrices drawn per example. Slices at drawn places would become gathers.


def sample_box(key: jax.Array, height: int, width: int, scale: Range, ratio: Range) -> Box:
    """The box of torchvision's RandomResizedCrop: (top, left, height, width), int32 pixels.

    The area is uniform in `scale` (share of the image), width / height log-uniform in
    `ratio`. The first of ten boxes that fits is taken; if none does, the largest centred
    box whose ratio is in range.
    """
    draws = jax.random.uniform(key, (2 * ATTEMPTS + 2,))  # one call: it compiles faster
    hs, ws = _sides(draws[:-2], height, width, scale, ratio)
    fits = (hs > 0) & (hs <= height) & (ws > 0) & (ws <= width)
    first = _first(fits)
    central_h = min(height, max(1, round(width / ratio[0])))
    central_w = min(width, max(1, round(height * ratio[1])))
    box_h = jnp.where(fits.any(), (hs * first).sum(), central_h)
    box_w = jnp.where(fits.any(), (ws * first).sum(), central_w)

    def place(draw: jax.Array, room: jax.Array) -> jax.Array:
        return jnp.where(fits.any(), (draw * (room + 1)).astype(jnp.int32), room // 2)

    return place(draws[-2], height - box_h), place(draws[-1], width - box_w), box_h, box_w


def _sides(
    draws: jax.Array, height: int, width: int, scale: Range, ratio: Range
) -> tuple[jax.Array, jax.Array]:
    """Heights and widths (ATTEMPTS,) of boxes, int32, from twice as many draws in [0, 1)."""
    low, high = (math.log(x) for x in ratio)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[:ATTEMPTS])
    aspect = jnp.exp(low + (high - low) * draws[ATTEMPTS:])
    hs = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    ws = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    return hs, ws


def _first(fits: jax.Array) -> jax.Array:
    return fits & (jnp.cumsum(fits) == 1)  # one-hot, or all False


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


def pad_crop(image: jax.Array, top: jax.Array, left: jax.Array, pad: int) -> jax.Array:
    """The (H, W) window at (top, left) of the image with `pad` black pixels around it.

    The usual augmentation of CIFAR (He et al. 2016); top and left are in [0, 2 · pad].
    """

    def shift(size: int, offset: jax.Array) -> jax.Array:  # (out, in); black rows are zero
        source = jnp.arange(size) + offset - pad
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


# Erasing. Rows and columns are compared with the box: nothing is written at drawn places.


def sample_erasing(key: jax.Array, height: int, width: int, probability: float) -> Box:
    """The rectangle of timm's RandomErasing: (top, left, height, width), int32 pixels.

    Its area is uniform in 2 % to 1/3 of the image, its width / height log-uniform in 0.3 to
    1 / 0.3. The first of ten that is smaller than the image both ways is taken. If none is,
    or with 1 − `probability`, it is empty: nothing is erased.
    """
    draws = jax.random.uniform(key, (2 * ATTEMPTS + 3,))
    hs, ws = _sides(draws[:-3], height, width, ERASED_AREA, ERASED_RATIO)
    first = _first((hs < height) & (ws < width)) & (draws[-3] < probability)
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


# Mixes, as timm's Mixup in batch mode: one draw a batch, and the partner of example i is
# example B − 1 − i. The middle one of an odd batch is its own partner.


def mix(images: jax.Array, targets: jax.Array, own: Any) -> tuple[jax.Array, jax.Array]:
    """Blends every example with its partner.

    Args:
      images: (B, H, W, C).
      targets: (B, num_classes).
      own: share of each pixel that the example keeps: one number lam for mixup (Zhang et
        al. 2018), a `cutmix_mask` (H, W, 1) for cutmix (Yun et al. 2019).

    Returns:
      Images and targets. An example keeps the mean of `own` of its target, for cutmix the
      exact area outside the box.
    """
    own = jnp.asarray(own, jnp.float32)
    share = own.mean()
    mixed = own * images + (1 - own) * images[::-1]
    return mixed, share * targets + (1 - share) * targets[::-1]


def cutmix_mask(height: int, width: int, lam: jax.Array, centre: jax.Array) -> jax.Array:
    """timm's rand_bbox as (H, W, 1) float32: 0 in the box, 1 around it.

    The box spans √(1 − lam) of each side about `centre` (row, column), rounded down to an
    even number of pixels; the border cuts off what lies beyond it.
    """
    side = jnp.sqrt(1 - lam)

    def inside(size: int, middle: jax.Array) -> jax.Array:
        half = jnp.floor(size * side).astype(jnp.int32) // 2
        pixel = jnp.arange(size)
        return (pixel >= middle - half) & (pixel < middle + half)

    box = inside(height, centre[0])[:, None] & inside(width, centre[1])
    return 1 - box[..., None].astype(jnp.float32)


def sample_mix(
    key: jax.Array, height: int, width: int, mixup_alpha: float, cutmix_alpha: float
) -> jax.Array:
    """Draws (H, W, 1) for `mix`: mixup or cutmix, evenly where both alphas are above 0.

    lam is from Beta(alpha, alpha), the box's centre uniform over the pixels.
    """
    choice_key, lam_key, centre_key = jax.random.split(key, 3)
    probability = (0.5 if mixup_alpha else 1.0) if cutmix_alpha else 0.0
    is_cutmix = jax.random.bernoulli(choice_key, probability)
    alpha = jnp.where(is_cutmix, cutmix_alpha, mixup_alpha)
    lam = jax.random.beta(lam_key, alpha, alpha)
    centre = jax.random.randint(centre_key, (2,), 0, np.array([height, width]))
    return jnp.where(is_cutmix, cutmix_mask(height, width, lam, centre), lam)
