"""Pixels or patches to tokens, and the positions they carry.

With `patch=1` every pixel is a token (the Pixel Transformer): one linear layer maps a
pixel's channels to the width, nothing mixes two pixels before attention does, and the
learned positions start at random. Larger patches give the ViT of the same paper.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.models import order
from pit_jax.models.initialisation import SCHEMES

IN_BOUNDS = "promise_in_bounds"  # of indices we drew ourselves: nothing to check or fill in


def patchify(images: jax.Array, patch: int) -> jax.Array:
    """Cuts images into non-overlapping squares, row by row.

    Args:
      images: (B, H, W, C); H and W are multiples of `patch`.

    Returns:
      (B, H/p · W/p, p · p · C), each patch flattened row, column, channel.
    """
    b, h, w, c = images.shape
    if patch == 1:
        return images.reshape(b, h * w, c)
    x = images.reshape(b, h // patch, patch, w // patch, patch, c)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # (B, H/p, W/p, p, p, C)
    return x.reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(patches: jax.Array, size: int, patch: int) -> jax.Array:
    """The images (B, size, size, C) that `patchify` cut into (B, N, p·p·C)."""
    side = size // patch
    x = patches.reshape(len(patches), side, side, patch, patch, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(patches), size, size, -1)


def draw(key: jax.Array, patches: int, kept: int) -> jax.Array:
    """`kept` of `patches` numbers without repetition, ascending, all subsets alike: (kept,)."""
    shuffled = jnp.argsort(jax.random.uniform(key, (patches,)))
    return jnp.sort(shuffled[:kept]).astype(jnp.int32)


def sincos2d(grid: tuple[int, int], width: int) -> np.ndarray:
    """The fixed 2-D sine-cosine table of MAE (He et al. 2021), one row a grid cell.

    The first half of the width encodes the column, the second half the row; within each,
    sines come before cosines and frequencies fall from 1 to 1/10000.

    Returns:
      (rows · columns, width) float32.
    """
    rows, columns = np.mgrid[: grid[0], : grid[1]].reshape(2, -1)
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width / 4))

    def encode(positions: np.ndarray) -> np.ndarray:
        angles = positions[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    return np.concatenate([encode(columns), encode(rows)], axis=1).astype(np.float32)


def sincos2d_with_cls(grid: tuple[int, int], width: int, cls: bool) -> np.ndarray:
    """`sincos2d` with a row of zeros in front for [CLS], which has no place in the image."""
    return np.pad(sincos2d(grid, width), ((int(cls), 0), (0, 0)))


class ColourDictionary(nn.Module):
    """A learned vector for every colour, instead of a linear map of the colour's channels.

    The Pixel Transformer paper's second version tries it with all 256³ colours. `bits` a
    channel sets how many there are: the table has 2^(bits · channels) rows.

    Input (B, N, C) with values in [0, 1]; output (B, N, width).
    """

    width: int
    bits: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        channels = pixels.shape[-1]
        table = self.param(
            "table",
            nn.initializers.normal(0.02),
            (2 ** (self.bits * channels), self.width),
            jnp.float32,
        )
        levels = jnp.clip(jnp.round(pixels.astype(jnp.float32) * 255), 0, 255).astype(jnp.int32)
        levels = levels >> (8 - self.bits)
        index = jnp.zeros(levels.shape[:-1], jnp.int32)
        for channel in range(channels):
            index = (index << self.bits) | levels[..., channel]
        return table[index].astype(self.dtype)  # (B, N, width)


class Embed(nn.Module):
    """Images (B, H, W, C) to tokens (B, [1 +] N, width), positions added, [CLS] first.

    With `keep` (B, K) int32 only these places of the sequence become tokens: what is masked
    is left out before anything is computed of it. Patches stand in the sequence as `order`
    (models/order.py) says; learned positions belong to places, the fixed table to patches.
    """

    width: int
    patch: int
    position: str = "learned"
    position_std: float = 0.02
    order: str = "raster"
    order_seed: int = 0
    cls: bool = True
    embed: str = "linear"
    dictionary_bits: int = 8
    initial: str = "xavier"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        b, h, w, _ = images.shape
        x = patchify(images, self.patch)  # (B, N, p·p·C)
        count = x.shape[1]
        standing = None  # the patch at each place, where that is not simply its number
        if self.order != "raster":
            standing = order.indices(self.order, h // self.patch, self.order_seed)
            if keep is None:
                x = x.at[:, standing].get(mode=IN_BOUNDS, unique_indices=True)
            else:
                patches = jnp.asarray(standing).at[keep].get(mode=IN_BOUNDS)
                x = jnp.take_along_axis(x, patches[..., None], axis=1, mode=IN_BOUNDS)
        elif keep is not None:
            x = jnp.take_along_axis(x, keep[..., None], axis=1, mode=IN_BOUNDS)  # (B, K, p·p·C)
        if self.embed == "dictionary":
            x = ColourDictionary(self.width, self.dictionary_bits, self.dtype, name="colour")(x)
        else:
            scheme, numbers = SCHEMES[self.initial], x.shape[-1]
            x = nn.Dense(
                self.width,
                dtype=self.dtype,
                kernel_init=scheme.patch(numbers),
                bias_init=scheme.patch_bias(numbers),
                name="patch",
            )(x)  # (B, N, width)
        if self.cls:
            cls = self.param("cls", nn.initializers.normal(0.02), (1, self.width), jnp.float32)
            cls = jnp.broadcast_to(cls.astype(self.dtype), (b, 1, self.width))
            x = jnp.concatenate([cls, x], axis=1)  # (B, 1 + N, width)
        if self.position == "none":
            return x
        if self.position == "learned":
            positions = self.param(
                "position",
                nn.initializers.normal(self.position_std),
                (count + self.cls, self.width),
                jnp.float32,
            )
        else:
            positions = sincos2d_with_cls((h // self.patch, w // self.patch), self.width, self.cls)
            if standing is not None:
                positions[self.cls :] = positions[self.cls :][standing]
        if keep is not None:
            # Before the cast: the gradient of a gather adds up in the dtype gathered.
            rows = jnp.pad(keep + 1, ((0, 0), (1, 0))) if self.cls else keep
            positions = jnp.asarray(positions).at[rows].get(mode=IN_BOUNDS)  # (B, [1 +] K, width)
        return x + jnp.asarray(positions).astype(self.dtype)
