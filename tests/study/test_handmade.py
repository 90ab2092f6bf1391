"""Features made by hand: what they see, and that the classifier's penalty is chosen honestly."""

import numpy as np
import pytest

from pit_jax.config import base
from pit_jax.errors import ConfigError
from pit_jax.study import handmade

pytest.importorskip("cv2")
pytest.importorskip("skimage")


def digits():
    c = base()
    c.data.update(name="digits", image_size=8, channels=1)
    return c.data


def test_histograms_count_directions():
    """Of a ramp from left to right all gradients point one way, of its transpose the other."""
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 32, 1))
    found = handmade.hog(np.stack([ramp, ramp.swapaxes(0, 1)])).reshape(2, -1, 9)
    assert (found > 0).sum(-1).tolist() == [[1] * 36] * 2  # 3 × 3 blocks of 4 cells
    first, second = found.argmax(-1)
    assert len(set(first)) == len(set(second)) == 1
    assert set(first) != set(second)
    flat = handmade.hog(np.full((1, 32, 32, 1), 100, np.uint8))
    assert not flat.any()


def test_descriptors_are_of_unit_length_and_turn_with_the_image():
    """Rotated by half a turn, blocks come in the opposite order, and so do cells and bins."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 4), dtype=np.uint8).repeat(8, 0).repeat(8, 1)[..., None]
    turned = np.ascontiguousarray(image[::-1, ::-1])
    a, b = handmade.dense_sift(np.stack([image, turned])).reshape(2, 9, 4, 4, 8)
    np.testing.assert_allclose(np.linalg.norm(a.reshape(9, -1), axis=-1), 1, rtol=1e-5)
    back = np.roll(b[::-1, ::-1, ::-1], 4, axis=-1)  # half a turn of 8 directions is 4
    # OpenCV centres on whole pixels, and the middle of 16 is none.
    cosine = (a.reshape(9, -1) * back.reshape(9, -1)).sum(-1)
    assert cosine.min() > 0.8
    assert (a.reshape(9, -1) * b.reshape(9, -1)).sum(-1).min() < 0.6  # it can fail
    grey = handmade.dense_sift(np.repeat(image[None], 3, -1))
    assert grey.shape == (1, 9 * 128)


def test_small_images_are_enlarged_and_large_ones_are_not():
    for side, channels, blocks in ((8, 1, 9), (32, 3, 9), (48, 3, 25)):
        images = np.random.default_rng(0).integers(0, 256, (2, side, side, channels), np.uint8)
        assert handmade.hog(images).shape == (2, blocks * 36)
        assert handmade.dense_sift(images).shape == (2, blocks * 128)
        assert handmade.pixels(images).shape == (2, side * side * channels)


def test_the_penalty_is_that_which_does_best_on_training_images_held_out():
    """Against scikit-learn's own search over the same split."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit

    images, labels = handmade.images(digits(), "train")
    images, labels = images[:150], labels[:150]
    vectors = handmade.pixels(images) + np.random.default_rng(0).normal(0, 0.5, (150, 64))
    classifier, strength = handmade.fit(vectors, labels, seed=3)
    split = StratifiedShuffleSplit(1, test_size=0.1, random_state=3)
    search = GridSearchCV(
        LogisticRegression(max_iter=1000), {"C": handmade.STRENGTHS}, cv=split
    ).fit(vectors, labels)
    assert strength == search.best_params_["C"]
    assert len(set(search.cv_results_["mean_test_score"])) > 1
    np.testing.assert_allclose(classifier.coef_, search.best_estimator_.coef_, atol=1e-3)


def test_it_measures_on_images_that_it_did_not_train_on():
    data = digits()
    data.per_class = 20
    found = handmade.measure("HOG, linear", data)
    assert found["metric"] == "eval/accuracy"
    assert found["features"] == 324
    assert found["C"] in handmade.STRENGTHS
    assert 0.9 < found["value"] < 1
    assert found["value"] * 360 == pytest.approx(round(found["value"] * 360))
    assert handmade.measure("pixels, linear", data)["value"] < found["value"]


def test_without_the_libraries_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"HOG and SIFT need .* pip install 'pit_jax\[study\]'"):
        handmade.hog(np.zeros((1, 32, 32, 1), np.uint8))
