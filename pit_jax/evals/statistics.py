"""Mean and covariance of features that come in batches, in float64 on the host."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from pit_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """What the Fréchet distance knows of a set: mean (d,) and covariance (d, d), float64."""

    mean: np.ndarray
    covariance: np.ndarray


class FeatureStatistics:
    """Of all features added so far; statistics of parts can be merged in any order.

    Each batch is centred on its own mean before it is squared, and batches are joined by the
    pairwise update of Chan, Golub and LeVeque 1979 (equation 2.1): a mean far from zero, or
    very many samples, cost no digits.

    Attributes:
      count: samples.
      mean: (d,).
      scatter: (d, d), the sum of the outer products of what deviates from the mean.
    """

    def __init__(self, dim: int):
        self.count = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))

    def add(self, features: np.ndarray) -> None:
        """Adds (n, d) of any floating dtype; n may be 0."""
        if not len(features):
            return
        part = FeatureStatistics(len(self.mean))
        features = np.asarray(features, np.float64)
        part.count = len(features)
        part.mean = features.mean(0)
        deviations = features - part.mean
        part.scatter = deviations.T @ deviations
        self.merge(part)

    def merge(self, other: "FeatureStatistics") -> None:
        """Adds the samples that `other` has seen; `other` is left as it is."""
        count = self.count + other.count
        if not other.count:
            return
        step = other.mean - self.mean
        self.mean = self.mean + step * (other.count / count)
        self.scatter += other.scatter
        self.scatter += np.outer(step, step * (self.count * other.count / count))
        self.count = count

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance (over count − 1, as numpy.cov).

        Raises:
          ConfigError: if fewer than two samples were added, or one was not finite.
        """
        if self.count < 2:
            raise ConfigError(f"a covariance needs 2 samples or more, there are {self.count}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.scatter).all()):
            raise ConfigError(
                f"the features of {self.count} samples are not all finite: nothing to compare"
            )
        return Gaussian(self.mean.copy(), self.scatter / (self.count - 1))


def of(batches: Iterable[np.ndarray]) -> FeatureStatistics:
    """Statistics of a stream of (n, d) batches.

    Raises:
      ConfigError: if there is none.
    """
    found = None
    for batch in batches:
        if found is None:
            found = FeatureStatistics(batch.shape[1])
        found.add(batch)
    if found is None:
        raise ConfigError("there is not one batch of features to take statistics of")
    return found
