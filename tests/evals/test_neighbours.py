"""Neighbours and votes against scikit-learn, and every tie by its rule."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from pit_jax.evals import neighbours

CLASSES = 7


def overlapping(seed: int = 0, train: int = 203, test: int = 101, width: int = 12):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, train + test).astype(np.int32)
    features = rng.normal(size=(CLASSES, width))[labels] + 2 * rng.normal(size=(len(labels), width))
    features = (features * rng.uniform(0.01, 100, (len(labels), 1))).astype(np.float32)
    return features[:train], labels[:train], features[train:], labels[train:]


def reference(x, y, test_x, k: int, temperature: float) -> np.ndarray:
    def weights(distance):
        return np.exp((1 - distance) / temperature)

    classifier = KNeighborsClassifier(k, metric="cosine", weights=weights, algorithm="brute")
    return classifier.fit(x.astype(np.float64), y).predict(test_x.astype(np.float64))


@pytest.mark.parametrize(("query_block", "train_block"), [(1024, 16384), (17, 50), (100, 7)])
def test_predicts_what_scikit_learn_predicts(query_block, train_block):
    x, y, test_x, test_y = overlapping()
    expected = reference(x, y, test_x, 20, 0.07)
    assert 0.3 < np.mean(expected == test_y) < 0.9
    predicted = neighbours.predict(
        *(x, y, test_x, CLASSES), query_block=query_block, train_block=train_block
    )
    np.testing.assert_array_equal(predicted, expected)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.02), (203, 0.5)])
def test_for_any_k_and_temperature(k, temperature):
    x, y, test_x, test_y = overlapping(seed=1)
    expected = reference(x, y, test_x, k, temperature)
    options = dict(k=k, temperature=temperature)
    predicted = neighbours.predict(x, y, test_x, CLASSES, **options, train_block=60)
    np.testing.assert_array_equal(predicted, expected)
    measured = neighbours.accuracy(x, y, test_x, test_y, CLASSES, **options)
    assert measured == np.mean(expected == test_y)


def test_the_training_examples_bound_k():
    x, y, test_x, _ = overlapping(train=13)
    expected = neighbours.predict(x, y, test_x, CLASSES, k=13)
    np.testing.assert_array_equal(neighbours.predict(x, y, test_x, CLASSES, k=20), expected)
    np.testing.assert_array_equal(expected, reference(x, y, test_x, 13, 0.07))


def test_a_low_temperature_does_not_overflow():
    x, y, test_x, _ = overlapping()
    nearest = neighbours.predict(x, y, test_x, CLASSES, k=1)
    cold = neighbours.predict(x, y, test_x, CLASSES, k=20, temperature=1e-6)
    np.testing.assert_array_equal(cold, nearest)


@pytest.mark.parametrize("train_block", [1, 3, 8])
def test_equal_votes_go_to_the_lower_class(train_block):
    x = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [1, 0], [1, 0]], np.float32)
    y = np.array([5, 2, 0, 0, 2, 5], np.int32)
    query = np.array([[3, 0]], np.float32)
    assert neighbours.predict(x, y, query, CLASSES, k=4, train_block=train_block) == [2]


@pytest.mark.parametrize("train_block", [1, 3, 8])
def test_of_equally_near_examples_the_first_vote(train_block):
    x = np.ones((6, 2), np.float32)
    y = np.array([4, 4, 1, 1, 1, 1], np.int32)
    predicted = neighbours.predict(x, y, x[:1], CLASSES, k=3, train_block=train_block)
    assert predicted == [4]


def test_what_fills_up_a_block_is_no_neighbour():
    x = np.random.default_rng(0).uniform(0.5, 1, (7, 3)).astype(np.float32)
    y = np.full(7, 3, np.int32)  # the query is farther from all of them than from zeros
    assert neighbours.predict(x, y, -x[:1], CLASSES, k=7, train_block=4) == [3]


def test_zero_features_are_no_nan():
    x, y, test_x, _ = overlapping()
    test_x[0], x[5] = 0, 0
    predicted = neighbours.predict(x, y, test_x, CLASSES, k=3)
    votes = np.bincount(y[:3])  # to zero all are equally near
    assert predicted[0] == votes.argmax()
    np.testing.assert_array_equal(predicted[1:], reference(x, y, test_x[1:], 3, 0.07))


def test_the_length_of_a_feature_does_not_matter():
    x, y, test_x, _ = overlapping()
    expected = neighbours.predict(x, y, test_x, CLASSES)
    # Powers of two, whose squares leave the range of float32.
    for factor in (2.0**-90, 2.0**90):
        scaled = (v * np.float32(factor) for v in (x, test_x))
        predicted = neighbours.predict(next(scaled), y, next(scaled), CLASSES)
        np.testing.assert_array_equal(predicted, expected)
