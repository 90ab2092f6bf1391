"""Classifier-free guidance (Ho and Salimans 2022): away from what the network says unasked."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pit_jax.diffusion.flow import Flow
from pit_jax.diffusion.gaussian import Gaussian

# (B, H, W, C) images, (B,) network times, (B,) labels → (B, H, W, outputs)
Denoiser = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_ROUNDING = 1e-5  # of a noise level: a step on the end of an interval counts as inside


def guided(
    process: Gaussian | Flow,
    denoise: Denoiser,
    null: int,
    scale: float,
    channels: int = 0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Denoiser:
    """The denoiser that says u + scale · (c − u), with c for the label and u for `null`.

    Both are computed in one batch of 2B rows. A learned variance is that of c. Scale 1 is the
    denoiser itself and costs one pass; steps outside of the interval cost two, all the same.

    Args:
      null: the label that stands for none.
      channels: how many channels of the prediction are guided, the rest being c's; 0 is all.
        Public DiT guides the first 3 of a latent's 4, and its published figures have it so.
      interval: the noise levels with guidance, both ends included, as fractions of sampling
        time from the image (0) to noise (1) (Kynkäänniemi et al. 2024).
    """
    if scale == 1:
        return denoise
    low, high = interval[0] - _ROUNDING, interval[1] + _ROUNDING

    def run(x: jax.Array, time: jax.Array, labels: jax.Array) -> jax.Array:
        both = jnp.stack([labels, jnp.full_like(labels, null)], axis=1)  # (B, 2)
        said = denoise(_twice(x), _twice(time), both.reshape(-1))
        said = said.astype(jnp.float32).reshape(len(x), 2, *said.shape[1:])
        label, unasked = said[:, 0], said[:, 1]
        predicted = x.shape[-1]
        count = min(channels, predicted) if channels else predicted
        level = process.noise_level(time)
        weight = jnp.where((low <= level) & (level <= high), scale, 1.0)[:, None, None, None]
        # Not (1 − w)·u + w·c, nor u + w·(c − u): a weight of 1 has to give c to the bit.
        away = (weight - 1) * (label - unasked)[..., :count]
        return jnp.concatenate([label[..., :count] + away, label[..., count:]], axis=-1)

    return run


def _twice(x: jax.Array) -> jax.Array:
    """(B, ...) → (2B, ...), each row next to its copy.

    The copies one after the other, as [x, x], would lie on other devices than their rows
    where a batch is split, and every step would have to send them there and back.
    """
    return jnp.stack([x, x], axis=1).reshape(2 * len(x), *x.shape[1:])
