"""Streamed statistics against numpy.cov of everything at once."""

import numpy as np
import pytest

from pit_jax.errors import ConfigError
from pit_jax.evals import statistics
from pit_jax.evals.statistics import FeatureStatistics


def features(count: int = 100, dim: int = 7, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + offset


def assert_statistics_of(found: FeatureStatistics, x: np.ndarray, tolerance: float = 1e-12) -> None:
    gaussian = found.gaussian()
    assert found.count == len(x)
    np.testing.assert_allclose(gaussian.mean, x.mean(0), rtol=tolerance, atol=tolerance)
    expected = np.cov(x, rowvar=False)
    np.testing.assert_allclose(gaussian.covariance, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [1, 3, 32, 100])
def test_batches_of_any_size_give_the_same(size):
    x = features()
    assert_statistics_of(statistics.of(x[i : i + size] for i in range(0, 100, size)), x)


def test_parts_merge_in_any_order_and_stay_as_they_are():
    x = features()
    parts = [statistics.of([part]) for part in np.split(x, [1, 40, 41])]
    both = [FeatureStatistics(7), FeatureStatistics(7)]
    for part in parts:
        both[0].merge(part)
    for part in reversed(parts):
        both[1].merge(part)
    both[1].merge(FeatureStatistics(7))
    both[1].add(x[:0])
    for found in both:
        assert_statistics_of(found, x)
    assert [part.count for part in parts] == [1, 39, 1, 59]
    assert_statistics_of(parts[1], x[1:40])


def test_a_mean_far_from_zero_costs_no_digits():
    """Sums of squares would keep nothing here: (10⁸)² · 10⁻¹⁶ is the variance."""
    x = features(offset=1e8)
    found = statistics.of(np.split(x, 10)).gaussian()
    expected = np.cov(features(), rowvar=False)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-6, atol=1e-6)


def test_float32_batches_are_added_in_float64():
    x = features(offset=100.0).astype(np.float32)
    assert_statistics_of(statistics.of(np.split(x, 10)), x.astype(np.float64))


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([], "not one batch of features"),
        ([np.ones((1, 3))], "a covariance needs 2 samples or more, there are 1"),
        ([np.array([[1.0], [np.nan]])], "features of 2 samples are not all finite"),
        ([np.array([[1.0], [np.inf]])], "features of 2 samples are not all finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_has_no_covariance_is_refused(batches, sentence):
    with pytest.raises(ConfigError, match=sentence):
        statistics.of(batches).gaussian()
