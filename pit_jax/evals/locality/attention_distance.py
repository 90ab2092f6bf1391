"""How far attention reaches: the mean attention distance of every head.

Dosovitskiy et al. 2021 (figure 7 and appendix D.7): the distance between a query's token and
the tokens it attends to, weighted by the attention weights, averaged over queries and images.
It is for attention what the size of the receptive field is for a convolution.

Tokens stand at the centres of their patches. [CLS], which has no place in the image, is left
out on both sides, and the weights of the others are brought back to a sum of 1. Where [CLS]
alone is read by a head, the last layer's other queries were never trained: what they do is
up to weights that were learned for [CLS].
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.config import label
from pit_jax.errors import NotOffered

ROWS = 64  # queries whose scores are held at a time
_HIDDEN = -1e30


def mean_distances(
    q: jax.Array, k: jax.Array, places: np.ndarray, limit: jax.Array | int, causal: bool = False
) -> jax.Array:
    """Attention distance of each image and head, averaged over queries, in tokens.

    Args:
      q, k: (B, N, H, D) queries and keys of the patches' tokens, [CLS] left out.
      places: (N, 2) int32, row and column of each.
      limit: the largest squared distance that is seen; may be traced.
      causal: whether a token sees itself and those before it only.

    Returns:
      (B, H) float32. The scores of `ROWS` queries are all that is held of length × length.
    """
    count = q.shape[1]
    blocks = -(-count // ROWS)
    numbers = np.arange(blocks * ROWS).reshape(blocks, ROWS)
    filled = jnp.pad(q * q.shape[-1] ** -0.5, ((0, 0), (0, blocks * ROWS - count), (0, 0), (0, 0)))
    filled = filled.reshape(len(q), blocks, ROWS, *q.shape[2:]).swapaxes(0, 1)
    keys, columns = jnp.asarray(places), jnp.arange(count)

    def one_block(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        queries, rows = inputs  # (B, ROWS, H, D), (ROWS,)
        apart = keys[jnp.minimum(rows, count - 1)][:, None] - keys  # (ROWS, N, 2)
        squared = jnp.square(apart).sum(-1)
        seen = squared <= limit
        if causal:
            seen &= columns <= rows[:, None]
        scores = jnp.einsum("bqhd,bkhd->bhqk", queries, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(seen, scores, _HIDDEN), axis=-1)
        distances = (weights * jnp.sqrt(squared.astype(jnp.float32))).sum(-1)  # (B, H, ROWS)
        return jnp.where(rows < count, distances, 0).sum(-1)

    return jax.lax.map(one_block, (filled, jnp.asarray(numbers))).sum(0) / count


def reader(task: Any, places: np.ndarray, limits: np.ndarray, prefix: int, causal: bool):
    """The function of a batch that measures it, for `steps.read`.

    Args:
      task: its `tokens` are computed, and what its blocks sow is taken.
      places: (N, 2) int32 of the patches' tokens.
      limits: (layers,) int32, see `mean_distances`.
      prefix: tokens before the first patch.
      causal: see `mean_distances`.

    Returns:
      function(params, batch, extra) → {"distance": (B, layers, H) float32, in tokens,
      "mask": (B,)}.

    Raises:
      NotOffered: when it is called, if the model has no attention between patches.
    """
    patches = slice(prefix, prefix + len(places))

    def layers(sown: dict[str, Any]) -> list[tuple[jax.Array, jax.Array]]:
        """Queries and keys (layers, B, N, H, D) of the scanned blocks, then of the last."""
        parts = []
        for name in ("blocks", "last"):
            if name in sown:
                q, k = (sown[name][what][0] for what in ("queries", "keys"))
                if name == "last":
                    q, k = q[None], k[None]
                parts.append((q[:, :, patches], k[:, :, patches]))
        return parts

    def measure(params: Any, batch: dict, extra: jax.Array) -> dict[str, jax.Array]:
        del extra
        images = task.normalise(batch)
        _, sown = task.tokens(params, images, batch, mutable=["intermediates"])
        trunk = sown.get("intermediates", {}).get("trunk")
        if trunk is None:
            raise NotOffered(f"{label(task.config)} has no attention between patches")
        found, first = [], 0
        for q, k in layers(trunk):
            own = jnp.asarray(limits[first : first + len(q)])
            first += len(q)
            found.append(
                jax.lax.map(lambda x: mean_distances(x[0], x[1], places, x[2], causal), (q, k, own))
            )
        distances = jnp.concatenate(found)  # (layers, B, H)
        return {"distance": distances.swapaxes(0, 1), "mask": batch["mask"]}

    return measure


def uniform(places: np.ndarray, limits: np.ndarray, causal: bool) -> np.ndarray:
    """What heads would have that look at everything they may alike: (layers,), in tokens."""
    nothing = jnp.zeros((1, len(places), 1, 1))
    one = jax.jit(lambda limit: mean_distances(nothing, nothing, places, limit, causal)[0, 0])
    found = {limit: float(one(limit)) for limit in np.unique(limits)}
    return np.array([found[limit] for limit in limits])
