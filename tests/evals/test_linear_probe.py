"""The probe against scikit-learn, its training against NumPy, and what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pit_jax.evals import linear_probe

TRAIN, TEST, WIDTH, CLASSES = 1000, 1000, 6, 3  # one size for most tests: one compilation


def overlapping(seed: int = 0):
    """Gaussians that no line separates, in correlated features."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, TRAIN + TEST).astype(np.int32)
    features = rng.normal(size=(CLASSES, WIDTH))[labels] + 1.5 * rng.normal(
        size=(len(labels), WIDTH)
    )
    features = (features @ rng.normal(size=(WIDTH, WIDTH))).astype(np.float32)
    return features[:TRAIN], labels[:TRAIN], features[TRAIN:], labels[TRAIN:]


def probe(x, y, test_x, test_y, **options) -> linear_probe.Result:
    return linear_probe.accuracy(x, y, test_x, test_y, CLASSES, batch_size=200, **options)


def test_is_as_accurate_as_logistic_regression():
    x, y, test_x, test_y = overlapping()
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(C=1e6, max_iter=1000).fit(scaler.transform(x), y)
    expected = reference.score(scaler.transform(test_x), test_y)
    result = probe(x, y, test_x, test_y)
    assert 0.5 < expected < 0.9
    assert result.accuracy == pytest.approx(expected, abs=0.03)
    assert result.held_out_accuracy == pytest.approx(expected, abs=0.12)  # 100 examples
    assert result.base_rate in linear_probe.BASE_RATES


def test_scale_and_offset_of_a_feature_do_not_matter():
    x, y, test_x, test_y = overlapping()
    expected = probe(x, y, test_x, test_y)
    scale, offset = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    scale[2], offset[4] = 1e4, 1e3
    result = probe(x * scale + offset, y, test_x * scale + offset, test_y)
    assert result.accuracy == pytest.approx(expected.accuracy, abs=0.005)
    assert result.base_rate == expected.base_rate


def test_random_labels_give_chance():
    x, y, test_x, test_y = overlapping()
    y, test_y = (np.random.default_rng(1).permutation(labels) for labels in (y, test_y))
    assert probe(x, y, test_x, test_y).accuracy == pytest.approx(1 / CLASSES, abs=0.06)


def test_the_seed_decides_everything():
    x, y, _, _ = overlapping()
    again = [probe(x, y, x, y, seed=3) for _ in range(2)]
    assert again[0] == again[1]
    assert probe(x, y, x, y, seed=4) != again[0]


def test_the_seed_decides_the_initial_weights(monkeypatch):
    x, y, test_x, test_y = overlapping()
    monkeypatch.setattr(linear_probe, "BASE_RATES", (0.0,) * 9)  # which stay what they are
    results = {probe(x, y, test_x, test_y, seed=seed).accuracy for seed in range(3)}
    assert len(results) > 1


def test_training_is_sgd_with_momentum_warmup_and_cosine():
    x, y, _, _ = overlapping()
    moments = linear_probe.statistics(x[None])
    rates, epochs, batch = np.array([0.0, 0.5], np.float32), 30, TRAIN  # full batches: no order
    weights, bias = linear_probe.fit(
        *(jnp.asarray(x[None]), jnp.asarray(y), jnp.arange(TRAIN), moments, jnp.asarray(rates)),
        jax.random.key(0),
        num_classes=CLASSES,
        epochs=epochs,
        batch_size=batch,
    )
    # At rate 0 nothing moves: the initial weights.
    assert np.std(weights[0]) == pytest.approx(0.01, rel=0.5)
    np.testing.assert_array_equal(bias[0], 0)
    w, b = np.asarray(weights[0], np.float64), np.zeros(CLASSES)
    inputs, targets = StandardScaler().fit_transform(x.astype(np.float64)), np.eye(CLASSES)[y]
    velocity_w, velocity_b = np.zeros_like(w), np.zeros_like(b)
    for t in range(epochs):
        scores = np.exp(inputs @ w + b)
        error = scores / scores.sum(1, keepdims=True) - targets
        velocity_w = 0.9 * velocity_w + inputs.T @ error / TRAIN
        velocity_b = 0.9 * velocity_b + error.mean(0)
        share = (t + 1) / 3 if t < 3 else 0.5 * (1 + np.cos(np.pi * (t - 3) / 27))
        w = w - 0.5 * batch / 256 * share * velocity_w
        b = b - 0.5 * batch / 256 * share * velocity_b
    np.testing.assert_allclose(weights[1], w, atol=2e-4)
    np.testing.assert_allclose(bias[1], b, atol=2e-4)


@pytest.mark.parametrize("informative", [0, 1])
def test_every_view_is_trained_on(informative):
    x, y, test_x, test_y = overlapping()
    noise = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    views = [noise, noise]
    assert probe(np.stack(views), y, test_x, test_y).accuracy < 0.5
    views[informative] = x
    assert probe(np.stack(views), y, test_x, test_y).accuracy > 0.55


def test_equal_views_change_nothing():
    x, y, test_x, test_y = overlapping()
    one, two = (probe(v, y, test_x, test_y) for v in (x, np.stack([x, x])))
    assert one.accuracy == pytest.approx(two.accuracy, abs=0.01)


def test_a_diverging_rate_loses(monkeypatch):
    x, y, test_x, test_y = overlapping()
    monkeypatch.setattr(linear_probe, "BASE_RATES", (1e38,) * 4 + (0.1,) + (1e38,) * 4)
    result = probe(x, y, test_x, test_y)
    assert result.base_rate == 0.1
    assert result.accuracy > 0.55


def test_what_is_not_finite_is_wrong():
    # argmax takes the first NaN, so a diverged probe would always say class 0.
    x, y = np.ones((10, WIDTH), np.float32), np.zeros(10, np.int32)
    weights = np.zeros((3, WIDTH, CLASSES), np.float32)
    weights[0], weights[1, 0] = np.nan, [np.inf, 0, 0]
    bias = np.zeros((3, CLASSES), np.float32)
    moments = np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32)
    accuracies, losses = linear_probe.evaluate((weights, bias), x, y, moments)
    np.testing.assert_array_equal(accuracies, [0, 0, 1])
    np.testing.assert_allclose(losses, [np.inf, np.inf, np.log(CLASSES)], rtol=1e-6)


def test_equal_accuracies_are_decided_by_the_loss(monkeypatch):
    x, y, _, _ = overlapping()
    x = x + 100 * np.eye(CLASSES, WIDTH, dtype=np.float32)[y]  # separable: all rates are right
    monkeypatch.setattr(linear_probe, "BASE_RATES", (0.03,) * 4 + (0.3,) + (0.03,) * 4)
    result = probe(x, y, x, y)
    assert result == linear_probe.Result(1.0, 0.3, 1.0)


def test_a_class_without_training_examples_is_never_predicted():
    x, y, test_x, test_y = overlapping()
    missing = np.full(TEST, 1, np.int32)
    assert probe(x, np.where(y == 1, 0, y), test_x, missing).accuracy == 0
    assert probe(x, np.where(y == 1, 0, y), test_x, np.where(test_y == 1, 0, test_y)).accuracy > 0.6


def test_a_feature_that_is_constant_in_training_does_not_matter():
    x, y, test_x, test_y = overlapping()
    x[:, 0] = 0.1
    result = probe(x, y, test_x, test_y)
    test_x[:, 0] = np.random.default_rng(0).normal(size=TEST) * 100
    assert probe(x, y, test_x, test_y) == result


def test_blocks_do_not_matter(monkeypatch):
    x, y, test_x, test_y = overlapping()
    expected = probe(x, y, test_x, test_y)
    moments = linear_probe.statistics(x[None])
    rng = np.random.default_rng(0)
    parameters = rng.normal(size=(9, WIDTH, CLASSES)), np.zeros((9, CLASSES))
    sums = linear_probe.evaluate(parameters, test_x, test_y, moments)
    monkeypatch.setattr(linear_probe, "BLOCK", 77)
    assert probe(x, y, test_x, test_y) == expected
    again = linear_probe.evaluate(parameters, test_x, test_y, moments)
    np.testing.assert_allclose(again, sums, rtol=1e-5)


def test_statistics_are_exact():
    x = np.random.default_rng(0).normal(size=(2, 5000, 3)) * [1e-2, 1, 1e4] + [0, 1e3, 1e6]
    x = x.astype(np.float32)
    mean, scale = linear_probe.statistics(x)
    exact = x.astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scale, 1 / np.sqrt(exact.var(0) + 1e-6), rtol=1e-5)


def test_a_tenth_is_held_out_within_classes():
    labels = np.repeat(np.arange(4), [1, 2, 47, 100]).astype(np.int32)
    kept, held_out = linear_probe.split(labels, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(150))
    counts = np.bincount(labels[held_out], minlength=4)
    assert counts[0] == 0
    assert counts[1] <= 1
    assert counts[2] in (4, 5)
    assert counts[3] == 10
    assert not np.array_equal(held_out, linear_probe.split(labels, seed=1)[1])


def test_too_few_examples_are_all_trained_on():
    assert len(linear_probe.split(np.zeros(9, np.int32), seed=0)[1]) == 0
    assert len(linear_probe.split(np.zeros(10, np.int32), seed=0)[1]) == 1
    assert len(linear_probe.split(np.arange(12), seed=0)[1]) == 0  # one example a class
    x, y = np.ones((1, WIDTH), np.float32), np.array([2], np.int32)
    assert probe(x, y, x, y) == linear_probe.Result(1.0, 0.1, None)
