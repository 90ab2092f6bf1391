"""Pixel permutations: how much of an image's locality is left when pixels trade places.

The Pixel Transformer paper (section 5.2) swaps T pairs of pixels, no further apart than δ,
right before an image is cut into patches. A permutation here consists of such swaps and
nothing else: every pixel takes part in one at most, so that it is its own inverse.

Whoever fixes size, number, distance and seed gets the same pairs on every machine and with
every version of NumPy: they are made of a bit generator's raw numbers, which NumPy promises
never to change.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

_STREAM = 2**32  # of numbers of our own, beside those that order the examples of an epoch
_BLOCK = 4096  # raw numbers drawn at a time


def most_swaps(side: int) -> int:
    """The largest number of disjoint pairs in side × side pixels, whatever the distance.

    A distance of 1 is enough: dominoes cover any such image, but for one pixel if it is odd.
    """
    return side**2 // 2


@functools.lru_cache(maxsize=64)
def draw(side: int, swaps: int, distance: int = 0, seed: int = 0) -> np.ndarray:
    """`swaps` disjoint random pairs of pixels, as what stands where afterwards.

    Without a limit the pairs are uniformly random. With one they grow pair by pair: a pixel
    that is free takes a random one within reach, free or not; who loses a partner by that is
    free and does likewise, until one is met that was free. This random walk realises every
    augmenting path (Berge 1957) with positive probability, so it finds any number of pairs
    that exists. Pairs are then nearly, not exactly, uniform.

    Args:
      side: of the image, in pixels.
      swaps: T, at most `most_swaps(side)`.
      distance: δ, the largest |Δrow| + |Δcolumn| within a pair; 0 = no limit.
      seed: below 2³².

    Returns:
      (side²,) int32: pixel i of the permuted image is pixel `order[i]` of the image; read-only.

    Raises:
      ValueError: for more swaps than there are disjoint pairs.
    """
    pixels = side**2
    if not 0 <= swaps <= most_swaps(side):
        raise ValueError(f"{swaps} disjoint swaps of {side} × {side} pixels: at most {pixels // 2}")
    bits = np.random.Philox(key=(seed, _STREAM))
    shuffled = np.argsort(bits.random_raw(pixels), kind="stable")
    if 0 < distance < 2 * (side - 1):
        order = _within(side, swaps, distance, shuffled, bits)
    else:
        order = np.arange(pixels, dtype=np.int32)
        one, other = shuffled[:swaps], shuffled[swaps : 2 * swaps]
        order[one], order[other] = other, one
    order.setflags(write=False)  # it is shared by all who ask
    return order


def _within(
    side: int, swaps: int, distance: int, shuffled: np.ndarray, bits: np.random.Philox
) -> np.ndarray:
    reach = min(distance, side - 1)
    along = range(-reach, reach + 1)
    steps = [s for s in itertools.product(along, along) if 0 < abs(s[0]) + abs(s[1]) <= distance]

    def endless():
        while True:
            yield from (bits.random_raw(_BLOCK) % np.uint64(len(steps))).tolist()

    choices = endless()
    partner = [-1] * side**2
    starts = iter(shuffled.tolist())
    for _ in range(swaps):
        pixel = next(start for start in starts if partner[start] < 0)
        while pixel >= 0:
            down, right = steps[next(choices)]
            row, column = pixel // side + down, pixel % side + right
            if not (0 <= row < side and 0 <= column < side):
                continue  # over the edge: draw again
            taken = row * side + column
            left = partner[taken]
            partner[pixel], partner[taken] = taken, pixel
            if left >= 0:
                partner[left] = -1
            pixel = left
    found = np.array(partner, np.int32)
    return np.where(found < 0, np.arange(side**2, dtype=np.int32), found)


def draw_each(keys: jax.Array, side: int, swaps: int) -> jax.Array:
    """One permutation a key, as `draw` without a distance limit: (B, side²) int32.

    Args:
      keys: (B,) PRNG keys.
      side, swaps: as `draw` takes them.
    """

    def one(key: jax.Array) -> jax.Array:
        shuffled = jnp.argsort(jax.random.bits(key, (side**2,))).astype(jnp.int32)
        first, second = shuffled[:swaps], shuffled[swaps : 2 * swaps]
        order = jnp.arange(side**2, dtype=jnp.int32)
        return order.at[first].set(second).at[second].set(first)

    return jax.vmap(one)(keys)


def inverse(order: np.ndarray) -> np.ndarray:
    """The permutation that undoes `order`, (N,) int32; of swaps it is `order` itself."""
    found = np.empty_like(order)
    found[order] = np.arange(len(order), dtype=order.dtype)
    return found


def apply(images: jax.Array, order: np.ndarray | jax.Array) -> jax.Array:
    """Images (B, H, W, C) with pixel i of each replaced by its pixel order[i].

    Args:
      order: (H·W,) for all images, or (B, H·W) with one for each.
    """
    flat = images.reshape(len(images), -1, images.shape[-1])  # (B, H·W, C)
    if order.ndim == 1:
        flat = flat.at[:, order].get(mode="promise_in_bounds", unique_indices=True)
    else:
        flat = jnp.take_along_axis(flat, order[..., None], axis=1, mode="promise_in_bounds")
    return flat.reshape(images.shape)
