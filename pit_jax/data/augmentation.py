"""What happens to a training batch inside the jitted step: crops, changes, mixes.

The order serves all published recipes at once: crop, ThreeAugment, grayscale and colour jitter
(MoCo v1) or jitter and grayscale (MoCo v2), blur, flip, and then timm's: RandAugment, random
erasing, mixup or cutmix, `normalise`. Where a recipe flips does not matter to what is symmetric.
Until the last images are float32 in [0, 255], only the noise of erasing reaches further.
Functions on one image (H, W, C) are vmapped, and example i draws from `fold_in(key, i)`: what
happens to it depends on its row in the global batch, not on its neighbours or on the devices.
docs/augmentation.md lists the operations with ranges and references.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.data.blur import SIGMA, gaussian_blur
from pit_jax.data.colour import gray, jitter, sample_jitter
from pit_jax.data.crop import pad_crop, resize_crop, sample_box
from pit_jax.data.erasing import erase, sample_erasing
from pit_jax.data.mixing import mix, sample_mix
from pit_jax.data.randaugment import randaugment
from pit_jax.data.three_augment import three_augment

MIX_ROW = 2**32 - 1  # no batch has that row; split(key) would repeat the keys of rows 0 and 1
# Likewise below an example's key, whose split into four is its fold_in of 0 to 3.
RANDAUGMENT, ERASING, THREE_AUGMENT, BLUR, JITTERED = (2**32 - n for n in range(1, 6))


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
    changes = (options.three_augment, options.grayscale, *options.jitter, options.blur)
    changes += (options.flip, options.randaugment, options.erasing)
    if options.crop != "none" or any(changes):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(images)))
        images = jax.vmap(lambda x, k: _augment_one(x, k, options, mean, std))(images, keys)
    if options.mixup or options.cutmix:
        mix_key = jax.random.fold_in(key, MIX_ROW)
        own = sample_mix(
            mix_key,
            *images.shape[1:3],
            options.mixup,
            options.cutmix,
            options.mixup_prob,
            options.mixup_switch_prob,
        )
        images, targets = mix(images, targets, own)
    return normalise(images, mean, std), targets


def augment_depth(depth: jax.Array, key: jax.Array, options: Any) -> jax.Array:
    """Depth moved as `augment` moves the images it belongs to, with the same key and options.

    Args:
      depth: (B, H, W) float32, below 255.
      options: with crop "none" or "pad", and without RandAugment, erasing, mixup and cutmix.

    Returns:
      (B, H, W) float32, 0 in what was added around the images.
    """
    if options.crop == "none" and not options.flip:
        return depth

    def one(depth: jax.Array, key: jax.Array) -> jax.Array:
        crop_key, _, _, flip_key = jax.random.split(key, 4)
        if options.crop == "pad":
            top, left = jax.random.randint(crop_key, (2,), 0, 2 * options.pad + 1)
            depth = pad_crop(depth[..., None], top, left, options.pad)[..., 0]
        flipped = jax.random.bernoulli(flip_key, options.flip)
        return jnp.where(flipped, depth[:, ::-1], depth)

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(depth)))
    return jax.vmap(one)(depth, keys)


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
    elif options.crop in ("pad", "simple"):
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * options.pad + 1)
        image = pad_crop(image, top, left, options.pad, mirrored=options.crop == "simple")
    if options.three_augment:
        image = three_augment(image, jax.random.fold_in(key, THREE_AUGMENT))

    def lose_colour(image: jax.Array) -> jax.Array:
        if not options.grayscale:
            return image
        lost = jax.random.bernoulli(gray_key, options.grayscale)
        return jnp.where(lost, gray(image), image)

    def jitter_colour(image: jax.Array) -> jax.Array:
        if not any(options.jitter):
            return image
        adjusts, amounts, order = sample_jitter(jitter_key, options.jitter)
        jittered = jax.random.bernoulli(jax.random.fold_in(key, JITTERED), options.jitter_prob)
        return jnp.where(jittered, jitter(image, adjusts, amounts, order), image)

    if options.grayscale_first:
        image = jitter_colour(lose_colour(image))
    else:
        image = lose_colour(jitter_colour(image))
    if options.blur:
        blurred_key, sigma_key = jax.random.split(jax.random.fold_in(key, BLUR))
        sigma = jax.random.uniform(sigma_key, minval=SIGMA[0], maxval=SIGMA[1])
        blurred = jax.random.bernoulli(blurred_key, options.blur)
        image = jnp.where(blurred, gaussian_blur(image, sigma), image)
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
