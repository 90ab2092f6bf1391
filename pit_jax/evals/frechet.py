"""The Fréchet distance of two Gaussians: FID is it of Inception's features.

Heusel et al. 2017, equation 6, after Dowson and Landau 1982. Any features will do.
"""

import numpy as np

from pit_jax.errors import ConfigError
from pit_jax.evals.statistics import Gaussian


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a − mean_b|² + tr(A + B − 2 (A B)^½), squared distance of the two; at least 0.

    The trace of (A B)^½ is that of (A^½ B A^½)^½, whose eigenvalues are the singular values
    of A^½ B^½. So no complex root is taken of a matrix that is not symmetric, nothing has to
    be added to a singular covariance, and a vanishing eigenvalue stays one instead of
    becoming the root of a rounding error.

    Args:
      a, b: of the same dimension. Fewer samples than dimensions are no numerical problem, but
        a bias: published values take 50,000.

    Raises:
      ConfigError: if the dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ConfigError(
            f"features of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared:"
            " take both from the same network"
        )
    difference = a.mean - b.mean
    product = root(a.covariance) @ root(b.covariance)
    cross = np.linalg.svd(product, compute_uv=False).sum()
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(distance - 2 * cross))


def root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a (d, d) covariance; what rounding made of 0 counts as 0."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    noise = values[-1] * len(values) * np.finfo(values.dtype).eps
    values = np.where(values > noise, values, 0)
    return (vectors * np.sqrt(values)) @ vectors.T
