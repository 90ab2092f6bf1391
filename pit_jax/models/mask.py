"""Which token may look at which: padding, order, and 2-D windows over the pixels.

A mask is a rule, not an array: every implementation asks it for the block it is working
on, so that no mask of length × length is ever held.
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Mask:
    """What attention may see. The default sees everything.

    Attributes:
      length: number of real keys; later ones only fill the array up. None: all are real.
      causal: a token sees itself and those before it.
      radius: a patch sees those within this Euclidean distance, in patches (0: itself).
        None: all of them.
      columns: patches in a row of the image, where `radius` is given.
      prefix: tokens before the first patch ([CLS]): they see all and all see them.
    """

    length: int | None = None
    causal: bool = False
    radius: float | None = None
    columns: int = 0
    prefix: int = 0

    @property
    def dense(self) -> bool:
        """Whether every query sees every real key."""
        return not self.causal and self.radius is None

    def of_length(self, length: int) -> "Mask":
        """The same with the keys from `length` on marked as filling."""
        real = length if self.length is None else min(self.length, length)
        return dataclasses.replace(self, length=real)

    def within(self, radius: float | None, columns: int, prefix: int) -> "Mask":
        """The same with a window; a radius of None is none."""
        if radius is None:
            return self
        return dataclasses.replace(self, radius=radius, columns=columns, prefix=prefix)

    def allowed(self, queries: Any, keys: Any) -> Any:
        """Whether these tokens see those: a boolean array of the broadcast shape.

        Args:
          queries: indices of tokens, integers of any shape; NumPy, jax or inside a
            kernel. As (n, 1) against keys of (1, m) the divisions cost nothing.
          keys: likewise.
        """
        seen = []
        if self.length is not None:
            seen.append((keys < self.length) & (queries >= 0))
        if self.causal:
            seen.append(keys <= queries)
        if self.radius is not None:
            q, k = queries - self.prefix, keys - self.prefix
            rows = q // self.columns - k // self.columns
            columns = q % self.columns - k % self.columns
            near = rows * rows + columns * columns <= int(self.radius**2 + 1e-6)
            near = near | (q < 0) | (k < 0)
            if self.length is not None:  # filling sees the real keys: no row sums to nothing
                near = near | (queries >= self.length)
            seen.append(near)
        return functools.reduce(operator.and_, seen) if seen else (queries >= 0) & (keys >= 0)


FULL = Mask()
MOST_WINDOWS = 4  # different ones in one model: each is a branch of the compiled program


def layer_radii(
    window: Sequence[float], window_layers: int, depth: int, side: int
) -> tuple[float | None, ...]:
    """The radius of each layer, None where a patch sees the whole image.

    Args:
      window: as in the config: nothing, one radius, or one a layer; negative = everything.
      window_layers: how many of the first layers have the one radius; 0 = all.
      depth: layers.
      side: of the image, in patches.
    """
    radii = tuple(window) or (-1,)
    if len(radii) == 1:
        first = window_layers or depth
        radii = radii * min(first, depth) + (-1,) * (depth - first)
    farthest = 2 * (side - 1) ** 2  # squared distance between opposite corners
    # r · r and not r**2, which raises where it is too large for a float.
    return tuple(None if r < 0 or r * r >= farthest else float(r) for r in radii)
