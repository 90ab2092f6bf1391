"""Random crops, colour changes and mixes of a batch, inside the jitted training step.

The order is MoCo v1's (He et al. 2020): crop, grayscale, colour jitter, flip, then mixup
or cutmix, then `normalise`. Until then images are float32 in [0, 255]. Functions on one
image (H, W, C) are vmapped, and example i draws from `fold_in(key, i)`: what happens to it
depends on its row in the global batch, not on its neighbours or on the devices.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Range = tuple[float, float]
Box = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # top, left, height, width

ATTEMPTS = 10  # torchvision's, at a random box that fits into the image
MIX_ROW = 2**32 - 1  # no batch has that row; split(key) would repeat the keys of rows 0 and 1


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
      mean, std: as `normalise` takes them.
      num_classes: length of a target.

    Returns:
      Normalised images (B, H, W, C) float32 and targets (B, num_classes) float32, one-hot
      or mixed from two; labels are not smoothed here.
    """
    images = images.astype(jnp.float32)
    targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    if options.crop != "none" or options.grayscale or any(options.jitter) or options.flip:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(images)))
        images = jax.vmap(lambda x, k: _augment_one(x, k, options))(images, keys)
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


def _augment_one(image: jax.Array, key: jax.Array, options: Any) -> jax.Array:
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
    low, high = (math.log(x) for x in ratio)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[:ATTEMPTS])
    aspect = jnp.exp(low + (high - low) * draws[ATTEMPTS:-2])
    hs = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    ws = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    fits = (hs > 0) & (hs <= height) & (ws > 0) & (ws <= width)
    first = fits & (jnp.cumsum(fits) == 1)  # one-hot, or all False
    central_h = min(height, max(1, round(width / ratio[0])))
    central_w = min(width, max(1, round(height * ratio[1])))
    box_h = jnp.where(fits.any(), (hs * first).sum(), central_h)
    box_w = jnp.where(fits.any(), (ws * first).sum(), central_w)

    def place(draw: jax.Array, room: jax.Array) -> jax.Array:
        return jnp.where(fits.any(), (draw * (room + 1)).astype(jnp.int32), room // 2)

    return place(draws[-2], height - box_h), place(draws[-1], width - box_w), box_h, box_w


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
    return _round(_resample(image, rows, columns))


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


# Colour. Results stay float between changes; PIL cuts the fraction off after each.


def gray(image: jax.Array) -> jax.Array:
    """ITU-R 601 luma 0.299 R + 0.587 G + 0.114 B in whole levels, as PIL's mode "L".

    (H, W, C) → (H, W, C), all channels equal; one channel is its own luma.
    """
    if image.shape[-1] == 1:
        return image
    red, green, blue = (image[..., c : c + 1] for c in range(3))
    # PIL's fixed point. Below 2²⁴, so float32 is exact and halves fall the same way.
    luma = (19595 * red + 38470 * green + 7471 * blue) / 65536
    return jnp.broadcast_to(_round(luma), image.shape)


def adjust_brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with black: 0 is black, 1 the image, 2 twice as bright (PIL ImageEnhance)."""
    return _blend(0.0, image, factor)


def adjust_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the mean luma of the whole image (PIL ImageEnhance.Contrast)."""
    return _blend(_round(gray(image).mean()), image, factor)


def adjust_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the grayscale image (PIL ImageEnhance.Color); 3 channels."""
    return _blend(gray(image), image, factor)


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


def _blend(other: jax.Array | float, image: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(other + factor * (image - other), 0, 255)


def _round(x: jax.Array) -> jax.Array:
    return jnp.floor(x + 0.5)  # halves go up, as in PIL


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
