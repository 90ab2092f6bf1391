"""Mixup and cutmix of a batch, as timm's Mixup in its mode "batch".

One draw a batch, and the partner of example i is example B − 1 − i. The middle one of an odd
batch is its own partner.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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
    key: jax.Array,
    height: int,
    width: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    probability: float,
    switch: float,
) -> jax.Array:
    """Draws (H, W, 1) for `mix`.

    Args:
      mixup_alpha, cutmix_alpha: lam is from Beta(alpha, alpha), the box's centre uniform over
        the pixels. An alpha of 0 turns its mix off; not both are.
      probability: that the batch is mixed at all; else each example keeps all of itself.
      switch: probability of cutmix where both are on.
    """
    choice_key, lam_key, centre_key, mixed_key = jax.random.split(key, 4)
    cutmix = (switch if mixup_alpha else 1.0) if cutmix_alpha else 0.0
    is_cutmix = jax.random.bernoulli(choice_key, cutmix)
    alpha = jnp.where(is_cutmix, cutmix_alpha, mixup_alpha)
    lam = jax.random.beta(lam_key, alpha, alpha)
    centre = jax.random.randint(centre_key, (2,), 0, np.array([height, width]))
    own = jnp.where(is_cutmix, cutmix_mask(height, width, lam, centre), lam)
    return jnp.where(jax.random.bernoulli(mixed_key, probability), own, 1.0)
