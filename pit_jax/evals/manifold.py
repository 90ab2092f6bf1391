"""Improved precision and recall of generated images (Kynkäänniemi et al. 2019, equations 1–3).

Around every feature of a set lies a ball that reaches to its k-th nearest neighbour in the
set; the balls together are the set's manifold. Precision is the share of generated features
in the manifold of real ones, recall the share of real ones in that of generated ones.

Distances are made block by block. The rows of a block are shared out over all devices of the
mesh, whatever its axes are for; no device talks to another one.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax.errors import ConfigError

NEIGHBOURS = 3  # as in the paper and in ADM's evaluator
ROW_BLOCK, COLUMN_BLOCK = 1024, 16384  # a device's; their distances are 64 MiB


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]."""

    precision: float
    recall: float


def precision_recall(
    reference: np.ndarray,
    generated: np.ndarray,
    *,
    k: int = NEIGHBOURS,
    mesh: Mesh | None = None,
    row_block: int = ROW_BLOCK,
    column_block: int = COLUMN_BLOCK,
) -> PrecisionRecall:
    """Of generated features against real ones. Every process is given the same.

    The more features a set has, the smaller its balls: only values from the same two counts
    compare. ADM takes 10,000 real and 50,000 generated ones, of Inception's pool.

    Args:
      reference: (N, d) float32, of real images.
      generated: (M, d) float32.
      k: neighbours that a ball reaches.
      mesh: its devices share the work; by default the ambient mesh, or one device.
      row_block, column_block: features compared at a time on a device; they change no result.

    Raises:
      ConfigError: if a set has k features or fewer, or the dimensions differ.
    """
    if reference.shape[1:] != generated.shape[1:]:
        raise ConfigError(
            f"features of {reference.shape[1]} and {generated.shape[1]} dimensions cannot be"
            " compared: take both from the same network"
        )
    # Distances stay what they are, and the squares they are differences of become smaller.
    centre = reference.mean(0, dtype=np.float64).astype(np.float32)
    reference = np.asarray(reference - centre, np.float32)
    generated = np.asarray(generated - centre, np.float32)
    work = dict(mesh=mesh, row_block=row_block, column_block=column_block)
    real = inside(generated, reference, radii(reference, k, **work), **work)
    covered = inside(reference, generated, radii(generated, k, **work), **work)
    return PrecisionRecall(float(real.mean()), float(covered.mean()))


def radii(
    features: np.ndarray,
    k: int = NEIGHBOURS,
    *,
    mesh: Mesh | None = None,
    row_block: int = ROW_BLOCK,
    column_block: int = COLUMN_BLOCK,
) -> np.ndarray:
    """Squared distance of each feature to its k-th nearest other one: (N,) float32.

    Arguments are `precision_recall`'s.

    Raises:
      ConfigError: if there are k features or fewer.
    """
    count = len(features)
    if count <= k:
        raise ConfigError(
            f"precision and recall with {k} neighbours need more than {k} features, there are"
            f" {count}"
        )
    rows, mesh = _rows(features, mesh, row_block)
    column_block = min(column_block, count)
    best = _split(np.full((*rows.shape[:2], k), np.inf, np.float32), mesh)
    step = _jitted(_nearer, mesh)
    for start in range(0, count, column_block):
        block = _fill(features[start : start + column_block], column_block)
        # Waiting keeps the next blocks from queueing up in the device's memory.
        best = jax.block_until_ready(step(best, rows, block, np.array([start, count])))
    return _whole(best, mesh)[:, -1][:count]


def inside(
    features: np.ndarray,
    centres: np.ndarray,
    squared_radii: np.ndarray,
    *,
    mesh: Mesh | None = None,
    row_block: int = ROW_BLOCK,
    column_block: int = COLUMN_BLOCK,
) -> np.ndarray:
    """Whether each feature (N, d) lies in a ball around a centre (M, d): (N,) bool.

    Arguments are `precision_recall`'s; squared_radii: (M,) float32.
    """
    chex.assert_shape(squared_radii, (len(centres),))
    rows, mesh = _rows(features, mesh, row_block)
    column_block = min(column_block, len(centres))
    found = _split(np.zeros((*rows.shape[:2], 1), bool), mesh)
    step = _jitted(_within, mesh)
    for start in range(0, len(centres), column_block):
        block = slice(start, start + column_block)
        reach = _fill(squared_radii[block], column_block, -1)  # no distance is below 0
        found = jax.block_until_ready(step(found, rows, _fill(centres[block], column_block), reach))
    return _whole(found, mesh)[:, 0][: len(features)]


def _nearer(best: jax.Array, rows: jax.Array, columns: jax.Array, extent: jax.Array) -> jax.Array:
    """The k smallest distances (Q, R, k) to other features, of those seen and a new block.

    extent: (2,) the index of the block's first column, and the number of features.
    """
    count, k = columns.shape[0], best.shape[-1]
    column = extent[0] + jnp.arange(count)

    def one(of_block):
        seen, features, number = of_block  # (R, k), (R, d), ()
        distance = _squared_distances(features, columns)  # (R, C)
        row = number * len(features) + jnp.arange(len(features))
        other = (row[:, None] != column) & (column < extent[1])
        distance = jnp.where(other, distance, jnp.inf)
        nearest, _ = jax.lax.top_k(-distance, min(k, count))
        nearest, _ = jax.lax.top_k(jnp.concatenate([-seen, nearest], -1), k)
        return -nearest

    return jax.lax.map(one, (best, rows, jnp.arange(len(rows))))


def _within(found: jax.Array, rows: jax.Array, columns: jax.Array, reach: jax.Array) -> jax.Array:
    """Whether a row is in a ball (Q, R, 1), of those seen or of a new block."""

    def one(of_block):
        seen, features = of_block
        return seen | (_squared_distances(features, columns) <= reach).any(-1, keepdims=True)

    return jax.lax.map(one, (found, rows))


def _squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """(R, d) and (C, d) → (R, C)."""
    # The default precision of a TPU or GPU has 3 digits: neighbours would change places.
    product = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(a * a, -1)[:, None] + jnp.sum(b * b, -1)
    return jnp.maximum(squares - 2 * product, 0)


@functools.cache
def _jitted(step, mesh: Mesh):
    """step(state, rows, block, extra) with the rows of state and rows split over all devices."""
    split = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))
    same = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, in_shardings=(split, split, same, same), out_shardings=split)


def _rows(features: np.ndarray, mesh: Mesh | None, block: int) -> tuple[jax.Array, Mesh]:
    """(Q, R, d), filled up with zeros, R over all devices of the mesh; and that mesh."""
    if mesh is None:
        mesh = jax.sharding.get_mesh()
        if mesh.empty:
            mesh = Mesh(np.array(jax.devices()[:1]), ("rows",))
    block = mesh.size * min(block, -(-len(features) // mesh.size))
    features = np.asarray(features, np.float32)
    rows = _fill(features, -(-len(features) // block) * block)
    return _split(rows.reshape(-1, block, features.shape[1]), mesh), mesh


def _split(x: np.ndarray, mesh: Mesh) -> jax.Array:
    """(Q, R, n) that every process has, R over all devices; jit takes no such NumPy array."""
    sharding = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))
    return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])


def _whole(x: jax.Array, mesh: Mesh) -> np.ndarray:
    """(Q, R, n) that is split over devices → (Q · R, n) on every process."""
    gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return np.asarray(gather(x)).reshape(-1, x.shape[-1])


def _fill(x: np.ndarray, length: int, value: float = 0) -> np.ndarray:
    widths = [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1)
    return np.pad(x, widths, constant_values=value) if length > len(x) else x
