"""Few-shot ridge regression on frozen features, after big_vision's few-shot evaluator.

Targets are ±1 one-hot, features standardised with the few training examples' own mean and
deviation, the solution in closed form. Two things differ from big_vision: the bias is not
penalised, rather than hardly (a constant feature of 100), and the ridge is chosen by
leave-one-out error on the few examples themselves, since it has no labels besides them.
NumPy in float64 throughout: the ridges span nine decades.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import chex
import numpy as np

# In units of the mean eigenvalue, strongest first: of equal errors the stronger one wins.
RIDGES = 10.0 ** np.arange(3, -6.5, -0.5)
BLOCK = 8192  # examples whose (examples, num_classes) scores are held at a time


@dataclasses.dataclass(frozen=True)
class Result:
    """What `accuracy` found at one number of shots.

    Attributes:
      accuracy: the mean over draws, in [0, 1].
      std: the standard deviation over draws (divided by their number); 0 where no class
        has more than `shots`, because all draws are then the same.
      examples: how many training examples a draw has; fewer than shots · num_classes where
        classes ran out of them.
    """

    accuracy: float
    std: float
    examples: int


def accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
    *,
    shots: Sequence[int] = (5, 10, 100),
    draws: int = 3,
    seed: int = 0,
    until_stopped: Callable[[Iterable], Iterable] = iter,
) -> dict[int, Result]:
    """Test accuracy for each of `shots`, examples a class.

    Args:
      train_features: (N, d) float32.
      train_labels: (N,) int32 in [0, num_classes); a class may be missing.
      test_features: (M, d) float32.
      test_labels: (M,) int32.
      num_classes: length of a target.
      shots: a class that has fewer gives all it has.
      draws: of training examples. Draw i is the same order for all shots, so the 10-shot
        examples contain the 5-shot examples.
      seed: decides the draws, and nothing else is random.
      until_stopped: of a context; it is asked before every draw.
    """
    chex.assert_shape(train_labels, (len(train_features),))
    chex.assert_shape(test_features, (len(test_labels), train_features.shape[1]))
    largest = np.bincount(train_labels).max()
    results = {}
    for count in shots:
        accuracies = []
        for draw in until_stopped(range(draws if largest > count else 1)):
            rows = sample(train_labels, count, np.random.default_rng((seed, draw)))
            weights, bias = fit(train_features[rows], train_labels[rows], num_classes)
            right = 0
            for start in range(0, len(test_labels), BLOCK):
                block = slice(start, start + BLOCK)
                scores = test_features[block].astype(np.float64) @ weights + bias
                right += np.sum(scores.argmax(1) == test_labels[block])
            accuracies.append(right / len(test_labels))
        results[count] = Result(float(np.mean(accuracies)), float(np.std(accuracies)), len(rows))
    return results


def sample(labels: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of at most `shots` random examples of each class, sorted by class."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    rank = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])
    return order[rank < shots]


def fit(features: np.ndarray, labels: np.ndarray, num_classes: int):
    """Weights (d, num_classes) and bias (num_classes,) on raw features, at the chosen ridge.

    A class without examples scores −1 everywhere and is never predicted: the P others
    score 2 / P − 1 on average.
    """
    x = features.astype(np.float64)  # (n, d)
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > 1e-6 * np.abs(mean), std, 1)  # constant: its weight is 0 regardless
    projections, eigenvalues, directions = decompose((x - mean) / std)
    unit = eigenvalues.mean() if len(eigenvalues) else 1.0
    errors = leave_one_out(projections, eigenvalues, labels, num_classes, RIDGES * unit)
    ridge = RIDGES[errors.argmin()] * unit
    moments = _moments(projections, labels, num_classes)
    weights = directions @ (moments / (eigenvalues + ridge)[:, None]) / std[:, None]
    return weights, _mean_target(labels, num_classes) - mean @ weights


def decompose(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Principal axes of centred features by the smaller of xᵀx (primal) and xxᵀ (dual).

    Args:
      x: (n, d) float64, centred, so that an unpenalised bias is the mean target.

    Returns:
      Projections x · v (n, r), eigenvalues of xᵀx (r,), and directions v (d, r). Axes
      below 1e-12 of the largest are left out: no ridge lets them count.
    """
    primal = len(x) > x.shape[1]
    eigenvalues, vectors = np.linalg.eigh(x.T @ x if primal else x @ x.T)
    keep = eigenvalues > 1e-12 * max(eigenvalues[-1], np.finfo(np.float64).tiny)
    eigenvalues, vectors = eigenvalues[keep], vectors[:, keep]
    if primal:
        return x @ vectors, eigenvalues, vectors
    singular = np.sqrt(eigenvalues)
    return vectors * singular, eigenvalues, x.T @ (vectors / singular)


def leave_one_out(
    projections: np.ndarray,
    eigenvalues: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    ridges: np.ndarray,
) -> np.ndarray:
    """Mean squared error (L,) on the ±1 targets, each example predicted by all others.

    The residual without example i is residual_i / (1 − H_ii) with H the hat matrix (Allen
    1974, PRESS), exact for given features; their standardisation has seen all examples.

    Args:
      projections, eigenvalues: (n, r) and (r,) of `decompose`.
      labels: (n,).
      num_classes: length of a target.
      ridges: (L,) penalties of the sum over examples of squared errors.
    """
    n = len(labels)
    moments = _moments(projections, labels, num_classes)
    mean = _mean_target(labels, num_classes)
    errors = np.zeros(len(ridges))
    for start in range(0, n, BLOCK):
        z, y = projections[start : start + BLOCK], labels[start : start + BLOCK]
        target = _targets(y, num_classes) - mean
        for i, ridge in enumerate(ridges):
            residual = target - z @ (moments / (eigenvalues + ridge)[:, None])
            left = 1 - 1 / n - np.square(z) @ (1 / (eigenvalues + ridge))
            # 0 / 0 for a single example, and by rounding nowhere else.
            residual /= np.maximum(left, np.finfo(np.float64).eps)[:, None]
            errors[i] += np.square(residual).sum()
    return errors / (n * num_classes)


def _moments(projections: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Projectionsᵀ · targets, (r, num_classes)."""
    blocks = range(0, len(labels), BLOCK)
    at = (slice(start, start + BLOCK) for start in blocks)
    return sum(projections[b].T @ _targets(labels[b], num_classes) for b in at)


def _mean_target(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return 2 * np.bincount(labels, minlength=num_classes) / len(labels) - 1


def _targets(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)
