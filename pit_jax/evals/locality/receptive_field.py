"""The effective receptive field: which pixels a token's last representation depends on.

Luo et al. 2016: a token of the middle is taken after the last block, and its gradient to the
pixels of the image. A token here has d numbers, so the energy of a pixel is the squared norm
of the Jacobian d × C between the two. It is estimated without making the Jacobian
(Hutchinson 1990): the squared gradient of the token's product with random signs, other ones
for every image, has that energy as its mean.

The token is taken as any head reads it: brought to mean 0 and variance 1 over its numbers, so
that images whose tokens are long do not count more. Pixels are those of the model's input: of
a run with `data.permutation` they are where the permutation put them. [CLS] is no part of it;
where a head reads it alone, the token's last layer is up to weights learned for [CLS].
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SIGNS = 0x10CA1  # folded into an image's key, beside what tasks draw from it
_EPSILON = 1e-6


def centre(side: int) -> tuple[int, int]:
    """Row and column of the token that is asked, in a square of tokens; past the middle of
    an even number."""
    return side // 2, side // 2


def reader(task: Any, token: int):
    """The function of a batch that measures it, for `steps.read`.

    Args:
      task: its `tokens` are computed and differentiated.
      token: number of the token in the sequence of patches.

    Returns:
      function(params, batch, extra) → {"energy": (S, S) float32, the sum over the batch's
      real images, "examples": their number}.
    """

    def measure(params: Any, batch: dict, extra: jax.Array) -> dict[str, jax.Array]:
        del extra
        images = task.normalise(batch)
        width = jax.eval_shape(lambda x: task.tokens(params, x, batch), images).shape[-1]
        keys = jax.vmap(lambda key: jax.random.fold_in(key, _SIGNS))(task.keys(batch))
        signs = jax.vmap(lambda key: jax.random.rademacher(key, (width,), jnp.float32))(keys)
        energies = energy(lambda x: task.tokens(params, x, batch)[:, token], images, signs)
        real = batch["mask"] > 0
        # where, not a product: a filling row may hold anything
        energies = jnp.where(real[:, None, None], energies, 0)
        return {"energy": energies.sum(0), "examples": real.sum()}

    return measure


def energy(represent: Any, images: jax.Array, signs: jax.Array) -> jax.Array:
    """Squared gradients (B, S, S), summed over channels, of signs · standardised token.

    Args:
      represent: images (B, S, S, C) → (B, d), each a function of its own image.
      images: as the model sees them, float32.
      signs: (B, d), +1 or −1.
    """

    def said(images: jax.Array) -> jax.Array:
        token = represent(images).astype(jnp.float32)
        token = token - token.mean(-1, keepdims=True)
        token = token * jax.lax.rsqrt(token.var(-1, keepdims=True) + _EPSILON)
        return (token * signs).sum()

    return jnp.square(jax.grad(said)(images)).sum(-1)


def distances(size: int, patch: int, place: tuple[int, int]) -> np.ndarray:
    """Of every pixel's centre from the centre of the patch in this row and column: (S, S)."""
    row, column = ((index + 0.5) * patch - 0.5 for index in place)
    pixels = np.arange(size)
    return np.hypot((pixels - row)[:, None], pixels - column)


def summary(energies: np.ndarray, patch: int, place: tuple[int, int]) -> dict[str, float]:
    """Three numbers of a map (S, S).

    "radius": of the smallest disc around the patch's centre that holds half of the energy;
    "distance": the energy-weighted mean distance from there; both in pixels. "own": the share
    of the energy on the patch's own pixels.
    """
    apart = distances(len(energies), patch, place)
    share = energies.astype(np.float64) / energies.sum(dtype=np.float64)
    steps, where = np.unique(apart.round(9), return_inverse=True)
    within = np.cumsum(np.bincount(where.ravel(), share.ravel()))
    row, column = (patch * index for index in place)
    return {
        "radius": float(steps[np.searchsorted(within, 0.5 - 1e-9)]),
        "distance": float((share * apart).sum()),
        "own": float(share[row : row + patch, column : column + patch].sum()),
    }
