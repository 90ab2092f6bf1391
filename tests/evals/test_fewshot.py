"""Ridge and leave-one-out against scikit-learn and brute force, and what a draw contains."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from pit_jax.evals import fewshot

CLASSES = 4
PRIMAL, DUAL, SQUARE = (40, 9), (24, 60), (24, 24)  # examples, features


def problem(examples: int, width: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, examples).astype(np.int32)
    centres = np.random.default_rng(100).normal(size=(CLASSES, width))
    features = centres[labels] + 2 * rng.normal(size=(examples, width))
    return (features * np.geomspace(0.01, 100, width) + 3).astype(np.float32), labels


def standardised(x: np.ndarray) -> np.ndarray:
    return StandardScaler().fit_transform(x.astype(np.float64))


def one_hot(y: np.ndarray) -> np.ndarray:
    return 2 * np.eye(CLASSES)[y] - 1


def brute_force(x: np.ndarray, y: np.ndarray, ridge: float) -> float:
    """Each example predicted by a regression on all others."""
    errors = []
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        model = Ridge(alpha=ridge, solver="cholesky").fit(x[others], one_hot(y[others]))
        errors.append((model.predict(x[i : i + 1]) - one_hot(y[i : i + 1])) ** 2)
    return float(np.mean(errors))


@pytest.mark.parametrize("shape", [PRIMAL, DUAL, SQUARE])
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 300.0])
def test_weights_are_those_of_ridge_regression(shape, ridge, monkeypatch):
    x, y = problem(*shape)
    _, eigenvalues, _ = fewshot.decompose(standardised(x))
    monkeypatch.setattr(fewshot, "RIDGES", np.array([ridge / eigenvalues.mean()]))
    weights, bias = fewshot.fit(x, y, CLASSES)
    test_x, _ = problem(50, shape[1], seed=1)
    scaler = StandardScaler().fit(x.astype(np.float64))
    model = Ridge(alpha=ridge, solver="cholesky").fit(standardised(x), one_hot(y))
    expected = model.predict(scaler.transform(test_x.astype(np.float64)))
    np.testing.assert_allclose(test_x @ weights + bias, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", [PRIMAL, DUAL, SQUARE])
@pytest.mark.parametrize("repeated", [False, True])
def test_leave_one_out_is_exact(shape, repeated, monkeypatch):
    monkeypatch.setattr(fewshot, "BLOCK", 7)
    x, y = problem(*shape)
    if repeated:  # examples twice, with other labels: rank deficient in the dual
        x = np.concatenate([x[: shape[0] // 2]] * 2)
    x, y = standardised(x), y[: len(x)]
    projections, eigenvalues, _ = fewshot.decompose(x)
    ridges = np.array([1e-3, 0.1, 10.0, 1e4])
    errors = fewshot.leave_one_out(projections, eigenvalues, y, CLASSES, ridges)
    expected = [brute_force(x, y, ridge) for ridge in ridges]
    np.testing.assert_allclose(errors, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [PRIMAL, DUAL])
def test_the_ridge_of_least_leave_one_out_error_is_chosen(shape, monkeypatch):
    x, y = problem(*shape)
    ridges = fewshot.RIDGES[::3]
    monkeypatch.setattr(fewshot, "RIDGES", ridges)
    weights, bias = fewshot.fit(x, y, CLASSES)
    unit = fewshot.decompose(standardised(x))[1].mean()
    best = np.argmin([brute_force(standardised(x), y, ridge * unit) for ridge in ridges])
    assert 0 < best < len(ridges) - 1
    monkeypatch.setattr(fewshot, "RIDGES", ridges[best : best + 1])
    expected_weights, expected_bias = fewshot.fit(x, y, CLASSES)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(bias, expected_bias, rtol=1e-9)


def test_accuracy_is_the_mean_over_draws(monkeypatch):
    monkeypatch.setattr(fewshot, "RIDGES", fewshot.RIDGES[::4])
    x, y = problem(400, 9)
    test_x, test_y = problem(300, 9, seed=1)
    result = fewshot.accuracy(x, y, test_x, test_y, CLASSES, shots=(5,), draws=4, seed=2)[5]
    accuracies = []
    for draw in range(4):
        rows = fewshot.sample(y, 5, np.random.default_rng((2, draw)))
        scaler, few = StandardScaler().fit(x[rows].astype(np.float64)), standardised(x[rows])
        unit = np.linalg.eigvalsh(few.T @ few).mean()
        ridge = min(fewshot.RIDGES * unit, key=lambda ridge: brute_force(few, y[rows], ridge))
        model = Ridge(alpha=ridge, solver="cholesky").fit(few, one_hot(y[rows]))
        scores = model.predict(scaler.transform(test_x.astype(np.float64)))
        accuracies.append(np.mean(scores.argmax(1) == test_y))
    assert result.accuracy == pytest.approx(np.mean(accuracies), abs=1e-9)
    assert result.std == pytest.approx(np.std(accuracies), abs=1e-9)
    assert result.std > 0
    assert result.accuracy > 0.3  # chance is 0.25
    assert result.examples == 20


def test_more_shots_are_better_and_contain_the_fewer():
    x, y = problem(2000, 9)
    test_x, test_y = problem(1000, 9, seed=1)
    results = fewshot.accuracy(x, y, test_x, test_y, CLASSES)
    assert list(results) == [5, 10, 100]
    assert [r.examples for r in results.values()] == [20, 40, 400]
    assert results[5].accuracy < results[10].accuracy < results[100].accuracy
    few, more = (fewshot.sample(y, n, np.random.default_rng(0)) for n in (5, 10))
    assert set(few) < set(more)
    assert set(fewshot.sample(y, 5, np.random.default_rng(1))) != set(few)
    again = fewshot.accuracy(x, y, test_x, test_y, CLASSES)
    assert again == results
    assert fewshot.accuracy(x, y, test_x, test_y, CLASSES, seed=1) != results


def test_a_class_gives_at_most_what_it_has():
    labels = np.repeat(np.arange(4), [0, 3, 5, 20]).astype(np.int32)
    np.random.default_rng(0).shuffle(labels)
    rows = fewshot.sample(labels, 5, np.random.default_rng(0))
    assert len(set(rows)) == len(rows)
    np.testing.assert_array_equal(np.bincount(labels[rows]), [0, 3, 5, 5])


def test_more_shots_than_examples_are_all_examples_and_say_so():
    x, y = problem(60, 9)
    test_x, test_y = problem(100, 9, seed=1)
    results = fewshot.accuracy(x, y, test_x, test_y, CLASSES, shots=(50, 100))
    assert results[50] == results[100]
    assert results[50].examples == 60
    assert results[50].std == 0
    weights, bias = fewshot.fit(x, y, CLASSES)
    assert results[50].accuracy == np.mean((test_x @ weights + bias).argmax(1) == test_y)


def test_a_class_without_training_examples_is_never_predicted():
    x, y = problem(400, 9)
    weights, bias = fewshot.fit(x[y != 1], y[y != 1], CLASSES)
    scores = x @ weights + bias
    np.testing.assert_allclose(scores[:, 1], -1)
    assert not np.any(scores.argmax(1) == 1)


def test_scale_offset_and_constant_features_do_not_matter():
    x, y = problem(200, 9)
    test_x, test_y = problem(200, 9, seed=1)
    expected = fewshot.accuracy(x, y, test_x, test_y, CLASSES, shots=(10,))
    scale = (2.0 ** np.arange(-4, 5)).astype(np.float32)
    x, test_x = (np.concatenate([v * scale, np.full((200, 1), 0.1)], 1) for v in (x, test_x))
    test_x[:, -1] = np.random.default_rng(0).normal(size=200) * 1000
    assert fewshot.accuracy(x, y, test_x, test_y, CLASSES, shots=(10,)) == expected


def test_blocks_do_not_matter(monkeypatch):
    x, y = problem(200, 9)
    test_x, test_y = problem(150, 9, seed=1)
    expected = fewshot.accuracy(x, y, test_x, test_y, CLASSES, shots=(20,))
    monkeypatch.setattr(fewshot, "BLOCK", 31)
    assert fewshot.accuracy(x, y, test_x, test_y, CLASSES, shots=(20,)) == expected


@pytest.mark.parametrize("count", [1, 2])
def test_a_handful_of_examples_gives_numbers(count):
    x, y = problem(count, 9)
    weights, bias = fewshot.fit(x, y, CLASSES)
    assert np.isfinite(weights).all()
    assert (x @ weights + bias).argmax(1)[0] == y[0]
