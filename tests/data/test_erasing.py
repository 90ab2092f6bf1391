"""Random erasing: which rectangles are drawn, how often, and what fills them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import config, configfile
from pit_jax.data import augmentation, erasing
from pit_jax.errors import ConfigError

MEAN, STD = (0.48, 0.46, 0.41), (0.23, 0.22, 0.2)
WHITE = (1 - np.array(MEAN)) / STD


def boxes(n: int, height: int, width: int, probability: float = 1.0) -> np.ndarray:
    """(n, 4): top, left, height, width."""
    draw = jax.jit(jax.vmap(lambda key: erasing.sample_erasing(key, height, width, probability)))
    return np.stack(draw(jax.random.split(jax.random.key(0), n)), 1)


@functools.cache
def erased() -> tuple[np.ndarray, np.ndarray]:
    """800 white images (16, 16), normalised, a quarter of them erased; where they are."""
    options = config.base().data.augmentation
    options.erasing = 0.25

    @jax.jit
    def augment(images, key):
        labels = jnp.zeros(len(images), jnp.int32)
        return augmentation.augment(images, labels, key, options, MEAN, STD, 2)[0]

    images = augment(np.full((800, 16, 16, 3), 255, np.uint8), jax.random.key(1))
    noisy = ~np.isclose(images, WHITE, atol=1e-5).all(-1)
    return np.asarray(images), noisy


def timms_boxes(n: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """What a loop with ten attempts draws."""
    drawn = []
    for _ in range(n):
        drawn.append((0, 0, 0, 0))
        for _ in range(10):
            area = height * width * rng.uniform(0.02, 1 / 3)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                drawn[-1] = (top, left, h, w)
                break
    return np.array(drawn)


@pytest.mark.parametrize("size", [(32, 32), (12, 30)])
def test_boxes_are_distributed_as_timms(size):
    height, width = size
    ours = boxes(6000, *size)
    theirs = timms_boxes(6000, *size, np.random.default_rng(0))
    top, left, h, w = ours.T
    assert np.all((top >= 0) & (left >= 0) & (top + h <= height) & (left + w <= width))
    assert np.all((h > 0) & (h < height) & (w > 0) & (w < width))
    # Sides are rounded by at most half a pixel each.
    assert np.all((h + 0.5) * (w + 0.5) >= 0.02 * height * width)
    assert np.all((h - 0.5) * (w - 0.5) <= height * width / 3)
    assert np.all((w - 0.5) / (h + 0.5) <= 1 / 0.3)
    assert np.all((w + 0.5) / (h - 0.5) >= 0.3)
    assert np.any((top == 0) & (left == 0))
    assert np.any(top + h == height)  # they reach the last row and column
    assert np.any(left + w == width)

    def statistics(boxes):
        top, left, h, w = boxes.T
        area = h * w / (height * width)
        return np.stack([area, area**2, np.log(w / h), top, left, top * left, h, w], 1)

    ours, theirs = statistics(ours), statistics(theirs)
    error = 6 * np.sqrt((ours.var(0) + theirs.var(0)) / 6000)
    assert np.all(np.abs(ours.mean(0) - theirs.mean(0)) < error)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.05)


def test_images_that_no_box_fits_stay():
    """A single row: no rectangle is lower than that."""
    height, width = boxes(50, 1, 9)[:, 2:].T
    assert not (height * width).any()


def test_erasing_happens_with_its_probability():
    drawn = boxes(4000, 16, 16, probability=0.25)
    assert abs(np.mean(drawn[:, 2] > 0) - 0.25) < 0.03
    np.testing.assert_array_equal(drawn[:, 2] > 0, drawn[:, 3] > 0)
    assert boxes(200, 16, 16)[:, 2].all()
    assert abs(erased()[1].any((1, 2)).mean() - 0.25) < 0.07


def test_what_is_erased_is_one_box_of_standard_normal_noise():
    images, noisy = erased()
    rows, columns = noisy.any(2), noisy.any(1)
    np.testing.assert_array_equal(noisy, rows[:, :, None] & columns[:, None])
    share = noisy.mean((1, 2))
    share = share[share > 0]
    assert share.min() > 0.01
    assert abs(share.mean() - 0.175) < 0.02  # the middle of 0.02 and 1/3
    values = images[noisy]  # (pixels, 3)
    error = 5 / math.sqrt(len(values))
    np.testing.assert_allclose(values.mean(0), 0, atol=error)
    np.testing.assert_allclose(values.std(0), 1, atol=error)
    np.testing.assert_allclose((values**4).mean(0), 3, atol=20 * error)
    assert np.all(values.min(0) < -np.array(MEAN) / STD - 0.5)  # darker than black: not clipped
    np.testing.assert_allclose(np.corrcoef(values.T), np.eye(3), atol=2 * error)
    first, second = values[:-1:2, 0], values[1::2, 0]
    assert abs(np.corrcoef(first, second)[0, 1]) < 3 * error


def test_erase_replaces_the_box_and_nothing_else():
    image, noise = jnp.zeros((7, 5, 1)), jnp.ones((7, 5, 1))
    expected = np.zeros((7, 5, 1))
    expected[2:5, 1:5] = 1
    np.testing.assert_array_equal(erasing.erase(image, (2, 1, 3, 4), noise), expected)
    np.testing.assert_array_equal(erasing.erase(image, (0, 0, 0, 0), noise), image)


def test_the_colour_dictionary_refuses_noise():
    words = ["--config.model.embed=dictionary", "--config.data.augmentation.erasing=0.25"]
    with pytest.raises(ConfigError) as caught:
        configfile.load("configs/digits.py:pit", words)
    assert "cannot look up the noise of config.data.augmentation.erasing=0.25" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("erasing", 1.5), ("randaugment", 10.5), ("randaugment_layers", 0)]
)
def test_what_is_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"config.data.augmentation.{field}={value}"):
        configfile.load("configs/digits.py:pit", [f"--config.data.augmentation.{field}={value}"])
