"""What position embeddings know of the image: which are alike, and do they tell (row, column).

NumPy in float64 throughout. Similarities of all pairs are never held: an image of 224² pixels
has 2.5 billion of them.
"""

import numpy as np

from pit_jax.evals.fewshot import decompose

FOLDS, SPLITS = 5, 5
LEAST = 9  # positions: of fewer no fold says anything
# In units of the mean eigenvalue, strongest first: of equal errors the stronger one wins.
RIDGES = 10.0 ** np.arange(4, -6.5, -0.5)


def similarity_maps(positions: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
    """Cosine similarity of position embeddings to all others.

    Args:
      positions: (H · W, d) of a square image, row by row, [CLS] left out.
      at: (n,) the positions to make maps of; all of them by default.

    Returns:
      (n, H, W): entry i is the map of the similarities to position at[i].
    """
    unit = _unit(positions)
    side = round(len(positions) ** 0.5)
    return ((unit if at is None else unit[at]) @ unit.T).reshape(-1, side, side)


def neighbour_similarity(positions: np.ndarray) -> tuple[float, float]:
    """Mean similarity of positions one apart in row or column, and of all other pairs.

    Args:
      positions: (H · W, d) of a square image of 2 × 2 or more, row by row.
    """
    unit = _unit(positions)
    count, side = len(unit), round(len(unit) ** 0.5)
    grid = unit.reshape(side, side, -1)
    near = (grid[1:] * grid[:-1]).sum() + (grid[:, 1:] * grid[:, :-1]).sum()
    near_pairs = 2 * side * (side - 1)
    # The similarities of all pairs add up to the square of the sum.
    pairs = (np.square(unit.sum(0)).sum() - np.square(unit).sum()) / 2
    far_pairs = count * (count - 1) / 2 - near_pairs
    return float(near / near_pairs), float((pairs - near) / far_pairs)


def recovery(positions: np.ndarray, places: np.ndarray, seed: int = 0) -> float:
    """R² of the best linear map from position embeddings to (row, column), on held-out ones.

    Ridge regression, its intercept not penalised. Positions are split into `FOLDS` random
    parts; each is predicted by a map fitted to the others, whose penalty is chosen by
    leave-one-out error on those others alone (Allen 1974, PRESS): with more dimensions than
    positions a map without one would go through every point it was fitted to. R² is 1 minus
    the squared error of all held-out predictions over that of the mean place: over all folds
    together, since a fold of a small grid may lie in one row. It is averaged over the two
    coordinates and `SPLITS` random splits. Embeddings that know nothing have about 0, and
    somewhat less by chance.

    Args:
      positions: (N, d), N at least `LEAST`.
      places: (N, 2) row and column of each.
      seed: of the splits.
    """
    x, y = positions.astype(np.float64), places.astype(np.float64)
    total = np.square(y - y.mean(0)).sum(0)
    found = []
    for split in range(SPLITS):
        shuffled = np.random.Generator(np.random.Philox(key=(seed, split))).permutation(len(x))
        errors = np.zeros(2)
        for fold in range(FOLDS):
            held_out = shuffled[fold::FOLDS]
            rest = np.setdiff1d(shuffled, held_out)
            errors += np.square(y[held_out] - predict(x[rest], y[rest], x[held_out])).sum(0)
        found.append(1 - errors / total)
    return float(np.mean(found))


def predict(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """What ridge regression on (n, d) → (n, t) says of new ones, (m, d) → (m, t)."""
    mean, target = x.mean(0), y.mean(0)
    projections, eigenvalues, directions = decompose(x - mean)
    moments = projections.T @ (y - target)  # (r, t)
    ridges = RIDGES * (eigenvalues.mean() if len(eigenvalues) else 1.0)
    shrunk = 1 / (eigenvalues + ridges[:, None])  # (ridges, r)
    left = 1 - 1 / len(x) - np.square(projections) @ shrunk.T  # (n, ridges)
    left = np.maximum(left, np.finfo(np.float64).eps)
    errors = np.zeros(len(ridges))
    for column in range(y.shape[1]):
        said = projections @ (shrunk * moments[:, column]).T  # (n, ridges)
        errors += np.square(((y - target)[:, column, None] - said) / left).sum(0)
    weights = directions @ (moments * shrunk[np.argmin(errors)][:, None])
    return (new - mean) @ weights + target


def _unit(positions: np.ndarray) -> np.ndarray:
    positions = positions.astype(np.float64)
    length = np.linalg.norm(positions, axis=1, keepdims=True)
    return positions / np.maximum(length, np.finfo(np.float64).tiny)
