"""Images that are normally distributed: everything a diffusion model can say of them is known.

An image is (1, 4, 1) and x_t = signal · x + sigma · noise. Matrices here are float64 numpy.
"""

import jax
import jax.numpy as jnp
import numpy as np

SIZE = 4
MEAN = np.array([0.5, -1.0, 0.0, 2.0])
_AXES = np.linalg.qr(np.random.default_rng(3).normal(size=(SIZE, SIZE)))[0]
_VARIANCES = np.array([1.0, 0.5, 0.2, 0.04])
COVARIANCE = _AXES * _VARIANCES @ _AXES.T


def predictions(signal: float, sigma: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name → the matrix and the vector of the best prediction, affine in x_t, by conditioning."""
    inverse = np.linalg.inv(signal**2 * COVARIANCE + sigma**2 * np.eye(SIZE))
    x0 = signal * COVARIANCE @ inverse
    epsilon = sigma * inverse
    v = signal * epsilon - sigma * x0
    matrices = {"x0": x0, "epsilon": epsilon, "v": v, "velocity": x0 - epsilon}
    means = {"x0": 1, "epsilon": 0, "v": -sigma, "velocity": 1}
    return {k: (m, means[k] * MEAN - m @ (signal * MEAN)) for k, m in matrices.items()}


def predict(x, signal, sigma, what: str):
    """The same in JAX, along the axes of the distribution: x (B, 1, 4, 1), the rest (B,)."""
    axes, variances = jnp.asarray(_AXES, jnp.float32), jnp.asarray(_VARIANCES, jnp.float32)
    mean = jnp.asarray(MEAN, jnp.float32)
    signal, sigma = signal[:, None], sigma[:, None]
    whole = signal**2 * variances + sigma**2
    along = ((x[:, 0, :, 0] - signal * mean) @ axes) / whole
    x0 = mean + (signal * variances * along) @ axes.T
    epsilon = (sigma * along) @ axes.T
    v = signal * epsilon - sigma * x0
    found = {"x0": x0, "epsilon": epsilon, "v": v, "velocity": x0 - epsilon}[what]
    return found[:, None, :, None]


def transport(before: tuple[float, float], after: tuple[float, float]):
    """Matrix and vector by which the probability flow carries x from one (signal, sigma) to
    another: every axis keeps its number of standard deviations."""

    def deviations(signal, sigma):
        return np.sqrt(signal**2 * _VARIANCES + sigma**2)

    matrix = _AXES * (deviations(*after) / deviations(*before)) @ _AXES.T
    return matrix, after[0] * MEAN - matrix @ (before[0] * MEAN)


def keys(count: int) -> jax.Array:
    """One for each of `count` images."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(jnp.arange(count))


def draw(count: int) -> tuple[jax.Array, jax.Array]:
    """Noise to start from, and keys."""
    return jax.random.normal(jax.random.key(9), (count, 1, SIZE, 1)), keys(count)


class Affine:
    """Keeps where samples of N(0, I) are: their map, and their distribution, step by step."""

    def __init__(self):
        self.matrix, self.vector = np.eye(SIZE), np.zeros(SIZE)
        self.covariance = np.eye(SIZE)

    def step(self, matrix, vector, variance=0.0):
        self.vector = matrix @ self.vector + vector
        self.matrix = matrix @ self.matrix
        self.covariance = matrix @ self.covariance @ matrix.T + variance * np.eye(SIZE)

    def __call__(self, noise):
        return noise @ self.matrix.T + self.vector


def assert_distributed(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
    """That x (N, 4) may be draws of N(mean, covariance): within five standard errors."""
    variances = np.diag(covariance)
    error = np.abs(x.mean(0) - mean) / np.sqrt(variances / len(x))
    assert error.max() < 5, error
    spread = np.sqrt((np.outer(variances, variances) + covariance**2) / len(x))
    error = np.abs(np.cov(x.T) - covariance) / spread
    assert error.max() < 5, error


def assert_data(mean: np.ndarray, covariance: np.ndarray, of_mean: float, share: float) -> None:
    """That a distribution is the data's, measured in the data's own standard deviations.

    Args:
      mean, covariance: of the distribution, (4,) and (4, 4).
      of_mean: how many standard deviations the mean may be off along any axis.
      share: of the variance along any axis, and of any two's product, by which it may differ.
    """
    deviations = np.sqrt(_VARIANCES)
    error = np.abs((mean - MEAN) @ _AXES / deviations)
    assert error.max() < of_mean, error
    along = _AXES.T @ covariance @ _AXES / np.outer(deviations, deviations)
    error = np.abs(along - np.eye(SIZE))
    assert error.max() < share, error
