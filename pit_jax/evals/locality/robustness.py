"""Accuracy on held-out images that were changed: which locality does the model rely on.

    swapped   pairs of pixels trade places, others in every image: the colours stay, the
              neighbourhoods go. Share of the pixels that move.
    shifted   the image moves up, down, left or right, a random one of the four for each image;
              what comes in repeats the border, as the ground of a digit or a sky goes on.
              In pixels.
    covered   squares take the colour `data.mean`: single pixels up to a side of 15, else an
              eighth of the side. Share of the squares.

Everything is a function of the image's number in its split, so it is the same at every
evaluation, in whatever batch the image comes. The changes are made to the image as it is
stored; what the run itself does to its images (`data.permutation`) comes after them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.data import permutation

SWAPPED = (25, 50, 100)  # per cent of the pixels
COVERED = (25, 50, 75)  # per cent of the squares
SHIFTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4)  # of the side
MOST = 10_000  # held-out images; of more so many are drawn
_CHANGES = 0x5EED  # folded into an image's key, beside what tasks draw from it


@dataclasses.dataclass(frozen=True)
class Change:
    """One way to change an image, and how much; `name` is that of its metric."""

    kind: str
    dose: int

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.dose}" if self.kind else "unchanged"


def changes(size: int) -> tuple[Change, ...]:
    """Those that are measured of images of this side; the first changes nothing."""
    shifts = sorted({max(1, round(share * size)) for share in SHIFTS})
    return (
        Change("", 0),
        *(Change("swapped", dose) for dose in SWAPPED),
        *(Change("shifted", dose) for dose in shifts if dose < size),
        *(Change("covered", dose) for dose in COVERED),
    )


def changed(images: jax.Array, keys: jax.Array, change: Change, colour: np.ndarray) -> jax.Array:
    """Images (B, S, S, C) uint8, changed.

    Args:
      keys: (B,) PRNG keys.
      colour: (C,) uint8, of what is covered.
    """
    size = images.shape[1]
    match change.kind:
        case "swapped":
            swaps = permutation.most_swaps(size) * change.dose // 100
            return permutation.apply(images, permutation.draw_each(keys, size, swaps))
        case "shifted":
            return jax.vmap(lambda image, key: _shifted(image, key, change.dose))(images, keys)
        case "covered":
            hidden = jax.vmap(lambda key: _covered(key, size, change.dose))(keys)
            return jnp.where(hidden[..., None], jnp.asarray(colour), images)
    return images


def _shifted(image: jax.Array, key: jax.Array, pixels: int) -> jax.Array:
    steps = jnp.array([(-1, 0), (1, 0), (0, -1), (0, 1)])
    down, right = pixels * steps[jax.random.randint(key, (), 0, 4)]
    inside = jnp.arange(len(image))
    rows, columns = (jnp.clip(inside - by, 0, len(image) - 1) for by in (down, right))
    return image[rows][:, columns]


def _covered(key: jax.Array, size: int, per_cent: int) -> jax.Array:
    """Which pixels are hidden, (S, S)."""
    square = max(1, size // 8)
    side = -(-size // square)
    count = round(side**2 * per_cent / 100)
    rank = jnp.argsort(jnp.argsort(jax.random.bits(key, (side**2,))))
    hidden = (rank < count).reshape(side, side)
    return hidden.repeat(square, 0).repeat(square, 1)[:size, :size]


def reader(task: Any, chosen: tuple[Change, ...]):
    """The function of a batch that measures it, for `steps.read`.

    Args:
      task: its `predict` gives logits of a batch of uint8 images.
      chosen: n changes.

    Returns:
      function(params, batch, extra) → {"hits": (n,), the real images that are recognised,
      "examples": their number}.
    """
    data = task.config.data
    colour = np.round(255 * np.broadcast_to(data.mean, data.channels)).astype(np.uint8)

    def measure(params: Any, batch: dict, extra: jax.Array) -> dict[str, jax.Array]:
        del extra
        keys = jax.vmap(lambda key: jax.random.fold_in(key, _CHANGES))(task.keys(batch))
        every = jnp.stack([changed(batch["image"], keys, c, colour) for c in chosen])
        real = batch["mask"] > 0

        def hits(images: jax.Array) -> jax.Array:
            right = task.predict(params, batch | {"image": images}).argmax(-1) == batch["label"]
            return jnp.where(real, right, False).sum()

        # One after the other: the model is compiled once, and one batch of it held.
        return {"hits": jax.lax.map(hits, every), "examples": real.sum()}

    return measure
