"""The Inception score against its definition, sample by sample."""

import numpy as np
import pytest

from pit_jax.errors import ConfigError
from pit_jax.evals.inception_score import InceptionScore


def probabilities(count: int = 70, classes: int = 6) -> np.ndarray:
    logits = 2 * np.random.default_rng(0).normal(size=(count, classes))
    p = np.exp(logits)
    return (p / p.sum(1, keepdims=True)).astype(np.float32)


def score(p: np.ndarray, split: int, batch: int = 16):
    found = InceptionScore(split)
    for start in range(0, len(p), batch):
        found.add(p[start : start + batch])
    assert len(found) == len(p)
    return found.score()


def by_definition(p: np.ndarray, split: int) -> np.ndarray:
    """exp of the mean KL(p(y | x) ‖ p(y)), of each split."""
    scores = []
    for start in range(0, len(p), split):
        part = p[start : start + split].astype(np.float64)
        divergence = (part * (np.log(part) - np.log(part.mean(0)))).sum(1)
        scores.append(np.exp(divergence.mean()))
    return np.array(scores)


@pytest.mark.parametrize("split", [7, 10, 33, 70, 5000])
@pytest.mark.parametrize("batch", [1, 16, 70])
def test_equals_the_definition_whatever_the_batches(split, batch):
    p = probabilities()
    expected = by_definition(p, split)
    assert score(p, split, batch) == pytest.approx((expected.mean(), expected.std()), rel=1e-9)


def test_certain_and_even_is_the_number_of_classes():
    """And zeros in the probabilities are no problem."""
    assert score(np.tile(np.eye(6, dtype=np.float32), (5, 1)), 30).mean == pytest.approx(6)


def test_images_that_all_look_alike_score_one():
    assert score(np.tile(probabilities(1), (20, 1)), 10).mean == pytest.approx(1)


def test_splits_follow_the_order_of_the_samples():
    """Classes in order: each split knows but one class, and its score is 1."""
    sorted_by_class = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    assert score(sorted_by_class, 5) == pytest.approx((1, 0))
    assert score(sorted_by_class, 20) == pytest.approx((4, 0))


def test_nothing_has_no_score():
    with pytest.raises(ConfigError, match="needs samples, and there are none"):
        InceptionScore().score()
