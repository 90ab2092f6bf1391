"""The Fréchet distance against closed forms and SciPy's matrix root."""

import numpy as np
import pytest
import scipy.fft
import scipy.linalg

from pit_jax.errors import ConfigError
from pit_jax.evals import statistics
from pit_jax.evals.frechet import frechet_distance, root
from pit_jax.evals.statistics import Gaussian


def sample(seed: int, count: int = 400, dim: int = 24, scale: float = 1.0) -> Gaussian:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) * scale + rng.normal(size=dim)
    return statistics.of([x]).gaussian()


def by_scipy(a: Gaussian, b: Gaussian) -> float:
    """The definition, by the root of the unsymmetric product."""
    cross = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    difference = a.mean - b.mean
    return difference @ difference + np.trace(a.covariance + b.covariance - 2 * cross).real


def test_diagonal_gaussians_have_a_closed_form():
    """Σ (mean difference)² + (difference of standard deviations)²."""
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(2, 9)), rng.uniform(0.1, 3, (2, 9))
    a, b = (Gaussian(m, np.diag(s**2)) for m, s in zip(means, deviations, strict=True))
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_one_dimension_and_a_point_mass():
    point = Gaussian(np.zeros(1), np.zeros((1, 1)))
    assert frechet_distance(point, Gaussian(np.full(1, 3.0), np.full((1, 1), 4.0))) == 9 + 4
    assert frechet_distance(point, point) == 0


def test_a_distribution_has_no_distance_from_itself():
    for a in (sample(0), sample(1, scale=30.0)):
        assert frechet_distance(a, a) < 1e-6


def test_no_distance_from_itself_with_fewer_samples_than_dimensions():
    a = sample(0, count=30, dim=120, scale=3.0)
    assert np.linalg.matrix_rank(a.covariance) == 29
    assert frechet_distance(a, a) < 1e-6


def test_it_is_symmetric_and_rotations_change_nothing():
    a, b = sample(0), sample(1)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(24, 24)))[0]
    rotated = [Gaussian(rotation @ g.mean, rotation @ g.covariance @ rotation.T) for g in (a, b)]
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert frechet_distance(*rotated) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_equals_the_definition_by_scipy():
    a, b = sample(0), sample(1, scale=0.5)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-9)


def spread(seed: int, dim: int, decades: float) -> Gaussian:
    """Variances over so many powers of ten, along axes that no two seeds share."""
    rng = np.random.default_rng(seed)
    axes = np.eye(dim)[rng.permutation(dim)]
    for _ in range(2):
        axes = scipy.fft.dct(axes * rng.choice([-1, 1], dim), norm="ortho").T
    variances = rng.permutation(np.logspace(0, -decades, dim))
    return Gaussian(0.02 * rng.normal(size=dim), (axes * variances) @ axes.T)


def by_cholesky(a: Gaussian, b: Gaussian) -> float:
    """The definition, by the eigenvalues of Lᵀ B L, which are those of A B = L Lᵀ B."""
    lower = scipy.linalg.cholesky(a.covariance, lower=True)
    values = scipy.linalg.eigvalsh(lower.T @ b.covariance @ lower)
    difference = a.mean - b.mean
    traces = np.trace(a.covariance + b.covariance)
    return difference @ difference + traces - 2 * np.sqrt(np.maximum(values, 0)).sum()


@pytest.mark.parametrize("dim", [256, pytest.param(2048, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("decades", "by_root"), [(1, 1e-12), (12, 1e-6)])
def test_as_many_dimensions_as_inception_has(dim, decades, by_root):
    """2048, well and ill conditioned: SciPy's matrix root knows fewer digits of the latter."""
    a, b = spread(0, dim, decades), spread(1, dim, decades)
    assert np.linalg.cond(a.covariance) == pytest.approx(10.0**decades, rel=0.1)
    found = frechet_distance(a, b)
    assert found == pytest.approx(by_cholesky(a, b), rel=1e-12)
    assert found == pytest.approx(by_scipy(a, b), rel=by_root)


def test_singular_covariances_of_different_spaces():
    """The part in common is nothing: all of both variances is distance."""
    a, b = np.zeros((6, 6)), np.zeros((6, 6))
    a[:3, :3], b[3:, 3:] = np.eye(3), 4 * np.eye(3)
    found = frechet_distance(Gaussian(np.zeros(6), a), Gaussian(np.ones(6), b))
    assert found == pytest.approx(3 + 12 + 6, rel=1e-12)


def test_the_root_squares_to_the_covariance():
    covariance = sample(3).covariance
    np.testing.assert_allclose(root(covariance) @ root(covariance), covariance, rtol=1e-10)


def test_features_of_two_networks_are_refused():
    with pytest.raises(ConfigError, match="features of 24 and 25 dimensions cannot be compared"):
        frechet_distance(sample(0), sample(0, dim=25))
