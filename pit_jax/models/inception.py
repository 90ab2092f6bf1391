"""Inception-v3 as generation metrics use it: the TensorFlow graph of December 2015.

Szegedy et al. 2016 (figures 5, 6 and 7) with the peculiarities of that graph, which every
published FID depends on: 1008 classes, averages over the border that leave the padding out,
and a maximum instead of an average in the last block. Inference only: batch norm (epsilon
0.001) is folded into the convolutions, see weights/inception.py. Modules have the public
PyTorch port's names. All of it is float32; metrics are no place to save digits.
"""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SIDE = 299  # pixels, what the network sees
POOL_DIM, CLASSES = 2048, 1008
SPATIAL_CHANNELS = 7  # of a 17 × 17 map: 2023 numbers, about as many as the pool features
SPATIAL_DIM = 17 * 17 * SPATIAL_CHANNELS
PREPROCESSINGS = ("tensorflow", "pytorch")

# The default precision of a TPU or GPU has 3 digits, and FID is a difference of near equals.
_PRECISION = jax.lax.Precision.HIGHEST


class Inception(nn.Module):
    """Images (B, H, W, 3), uint8 or float in [0, 255], to what FID, sFID and IS compare.

    Returns a dict of float32 arrays:
      pool: (B, 2048), the last block's average: FID, precision and recall.
      spatial: (B, 2023), the first 7 channels of TensorFlow's "mixed_6/conv", flattened row,
        column, channel: sFID (Nash et al. 2021). That graph counts its blocks mixed,
        mixed_1, …, so mixed_6 is the port's Mixed_6d and its "conv" the 1 × 1 branch. A
        scope's name is that of its last operation: the values after batch norm and ReLU.
      logits: (B, 1008), with bias.
      probabilities: (B, 1008), softmax of the logits *without* bias: the evaluator of
        Dhariwal and Nichol 2021 (ADM) multiplies by the weights only, and published
        Inception scores do so too.

    Attributes:
      preprocessing: "tensorflow" resizes and scales as the graph that ADM's evaluator runs,
        "pytorch" as the pytorch-fid package; see `preprocess`.
    """

    preprocessing: str = "tensorflow"

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        x = preprocess(images, self.preprocessing)  # (B, 299, 299, 3)
        x = _convolution("Conv2d_1a_3x3", x, 32, (3, 3), stride=2, padding="VALID")
        x = _convolution("Conv2d_2a_3x3", x, 32, (3, 3), padding="VALID")
        x = _convolution("Conv2d_2b_3x3", x, 64, (3, 3))
        x = _halve(x)  # (B, 73, 73, 64)
        x = _convolution("Conv2d_3b_1x1", x, 80)
        x = _convolution("Conv2d_4a_3x3", x, 192, (3, 3), padding="VALID")
        x = _halve(x)  # (B, 35, 35, 192)
        x = BlockA(32, name="Mixed_5b")(x)
        x = BlockA(64, name="Mixed_5c")(x)
        x = BlockA(64, name="Mixed_5d")(x)  # (B, 35, 35, 288)
        x = ReductionA(name="Mixed_6a")(x)  # (B, 17, 17, 768)
        x, _ = BlockB(128, name="Mixed_6b")(x)
        x, _ = BlockB(160, name="Mixed_6c")(x)
        x, mixed_6_conv = BlockB(160, name="Mixed_6d")(x)
        x, _ = BlockB(192, name="Mixed_6e")(x)
        x = ReductionB(name="Mixed_7a")(x)  # (B, 8, 8, 1280)
        x = BlockC(_border_average, name="Mixed_7b")(x)
        x = BlockC(_border_maximum, name="Mixed_7c")(x)  # (B, 8, 8, 2048)
        pool = x.mean((1, 2))
        bias = self.param("fc_bias", nn.initializers.zeros, (CLASSES,), jnp.float32)
        unbiased = nn.Dense(CLASSES, use_bias=False, precision=_PRECISION, name="fc")(pool)
        return {
            "pool": pool,
            "spatial": mixed_6_conv[..., :SPATIAL_CHANNELS].reshape(len(x), SPATIAL_DIM),
            "logits": unbiased + bias,
            "probabilities": jax.nn.softmax(unbiased),
        }


class BlockA(nn.Module):
    """(B, 35, 35, C) → (B, 35, 35, 224 + pooled)."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = _convolution("branch1x1", x, 64)
        five = _convolution("branch5x5_1", x, 48)
        five = _convolution("branch5x5_2", five, 64, (5, 5))
        double = _convolution("branch3x3dbl_1", x, 64)
        double = _convolution("branch3x3dbl_2", double, 96, (3, 3))
        double = _convolution("branch3x3dbl_3", double, 96, (3, 3))
        pool = _convolution("branch_pool", _border_average(x), self.pooled)
        return jnp.concatenate([single, five, double, pool], -1)


class ReductionA(nn.Module):
    """(B, 35, 35, C) → (B, 17, 17, 480 + C)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = _convolution("branch3x3", x, 384, (3, 3), stride=2, padding="VALID")
        double = _convolution("branch3x3dbl_1", x, 64)
        double = _convolution("branch3x3dbl_2", double, 96, (3, 3))
        double = _convolution("branch3x3dbl_3", double, 96, (3, 3), stride=2, padding="VALID")
        return jnp.concatenate([three, double, _halve(x)], -1)


class BlockB(nn.Module):
    """(B, 17, 17, C) → (B, 17, 17, 768), and its 1 × 1 branch (B, 17, 17, 192)."""

    inner: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        single = _convolution("branch1x1", x, 192)
        seven = _convolution("branch7x7_1", x, self.inner)
        seven = _convolution("branch7x7_2", seven, self.inner, (1, 7))
        seven = _convolution("branch7x7_3", seven, 192, (7, 1))
        double = _convolution("branch7x7dbl_1", x, self.inner)
        double = _convolution("branch7x7dbl_2", double, self.inner, (7, 1))
        double = _convolution("branch7x7dbl_3", double, self.inner, (1, 7))
        double = _convolution("branch7x7dbl_4", double, self.inner, (7, 1))
        double = _convolution("branch7x7dbl_5", double, 192, (1, 7))
        pool = _convolution("branch_pool", _border_average(x), 192)
        return jnp.concatenate([single, seven, double, pool], -1), single


class ReductionB(nn.Module):
    """(B, 17, 17, C) → (B, 8, 8, 512 + C)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = _convolution("branch3x3_1", x, 192)
        three = _convolution("branch3x3_2", three, 320, (3, 3), stride=2, padding="VALID")
        seven = _convolution("branch7x7x3_1", x, 192)
        seven = _convolution("branch7x7x3_2", seven, 192, (1, 7))
        seven = _convolution("branch7x7x3_3", seven, 192, (7, 1))
        seven = _convolution("branch7x7x3_4", seven, 192, (3, 3), stride=2, padding="VALID")
        return jnp.concatenate([three, seven, _halve(x)], -1)


class BlockC(nn.Module):
    """(B, 8, 8, C) → (B, 8, 8, 2048); `pool` is `_border_average` or `_border_maximum`."""

    pool: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = _convolution("branch1x1", x, 320)
        three = _convolution("branch3x3_1", x, 384)
        double = _convolution("branch3x3dbl_1", x, 448)
        double = _convolution("branch3x3dbl_2", double, 384, (3, 3))
        parts = [
            single,
            _convolution("branch3x3_2a", three, 384, (1, 3)),
            _convolution("branch3x3_2b", three, 384, (3, 1)),
            _convolution("branch3x3dbl_3a", double, 384, (1, 3)),
            _convolution("branch3x3dbl_3b", double, 384, (3, 1)),
            _convolution("branch_pool", self.pool(x), 192),
        ]
        return jnp.concatenate(parts, -1)


def _convolution(
    name: str,
    x: jax.Array,
    channels: int,
    kernel: tuple[int, int] = (1, 1),
    stride: int = 1,
    padding: str = "SAME",
) -> jax.Array:
    """Convolution, folded batch norm and ReLU; a parameter of the module that calls it."""
    strides = (stride, stride)
    x = nn.Conv(channels, kernel, strides, padding, precision=_PRECISION, name=name)(x)
    return nn.relu(x)


def _halve(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2))


def _border_average(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _border_maximum(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (1, 1), padding="SAME")


def preprocess(images: jax.Array, how: str) -> jax.Array:
    """Resizes to 299 × 299, bilinear without antialiasing, and scales to about [-1, 1].

    Args:
      images: (B, H, W, 3), uint8 or float in [0, 255].
      how: "tensorflow": pixels are points, 0 and 256 become -1 and 1; "pytorch": pixels are
        squares, 0 and 255 become -1 and 1. FIDs of the two are not comparable.

    Returns:
      (B, 299, 299, 3) float32.
    """
    chex.assert_shape(images, (None, None, None, 3))
    centre, scale = {"tensorflow": (128.0, 128.0), "pytorch": (127.5, 127.5)}[how]
    _, height, width, _ = images.shape
    rows = resize_matrix(height, SIDE, how)
    columns = resize_matrix(width, SIDE, how)
    x = images.astype(jnp.float32)
    x = jnp.einsum("oh,bhwc->bowc", rows, x, precision=_PRECISION)
    x = jnp.einsum("pw,bowc->bopc", columns, x, precision=_PRECISION)
    return (x - centre) / scale


def resize_matrix(size: int, target: int, how: str) -> np.ndarray:
    """(target, size) float32: linear interpolation of `size` values at `target` places.

    Place i lies at i · size/target ("tensorflow": resize_bilinear with neither align_corners
    nor half_pixel_centers) or at (i + ½) · size/target − ½ ("pytorch": interpolate without
    align_corners); beyond the first or last value that value holds.
    """
    half = {"tensorflow": 0.0, "pytorch": 0.5}[how]
    # Both round the step and the places to float32: exact ones lie up to 1e-4 pixels elsewhere.
    step = np.float64(np.float32(size) / np.float32(target))
    at = ((np.arange(target) + half) * step - half).astype(np.float32)
    at = np.clip(at, 0, size - 1).astype(np.float64)
    distance = np.abs(at[:, None] - np.arange(size))
    return np.maximum(0, 1 - distance).astype(np.float32)
