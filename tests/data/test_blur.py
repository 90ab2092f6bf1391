"""The blur against PIL's, and PIL's against a Gaussian."""

import jax
import numpy as np
import pytest
from PIL import ImageFilter
from scipy import ndimage

from pit_jax.data import blur

from .augmented import run
from .images import as_float, from_pil, noise, to_pil

# At some of the round ones every sixth sum is a half.
SIGMAS = np.concatenate([[0.1, 0.2, 0.5, 1.0, 1.41, 2.0], np.linspace(0.13, 1.97, 14)])
blurs = jax.jit(jax.vmap(blur.gaussian_blur, (None, 0)))


@pytest.mark.parametrize("shape", [(28, 32, 3), (18, 7, 1), (2, 1, 3)], ids=str)
def test_the_blur_is_pils(shape):
    """To the level, but for one pixel in a thousand where float32 rounds a weight otherwise."""
    for image in (noise(*shape), (noise(*shape) > 127).astype(np.uint8) * 255):
        results = np.asarray(blurs(as_float(image), SIGMAS.astype(np.float32)))
        for result, sigma in zip(results, SIGMAS, strict=True):
            expected = from_pil(to_pil(image).filter(ImageFilter.GaussianBlur(float(sigma))))
            np.testing.assert_allclose(result, expected, atol=1)
            assert np.mean(result != expected) <= 1e-3
    assert not np.array_equal(results[0], results[-1])


def test_three_boxes_have_the_variance_of_the_gaussian():
    weights = np.asarray(jax.jit(jax.vmap(blur.box))(SIGMAS.astype(np.float32))) / 2**24
    places = np.arange(-2, 3)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(3 * weights @ places**2, SIGMAS**2, rtol=1e-4)
    np.testing.assert_array_equal(weights, weights[:, ::-1])


@pytest.mark.parametrize("sigma", [0.7, 1.3, 2.0])
def test_where_an_image_is_smooth_that_is_a_gaussian(sigma):
    """Within 3 grey levels of the exact one in float64, at the border, where each pass repeats
    what the one before has made of it, within 7."""
    y, x = np.mgrid[:30, :40]
    waves = 120 + 60 * np.sin(0.3 * x) + 50 * np.cos(0.25 * y)
    image = np.round(waves)[..., None].astype(np.uint8)
    expected = ndimage.gaussian_filter(image[..., 0].astype(np.float64), sigma, mode="nearest")
    result = blurs(as_float(image), np.array([sigma], np.float32))[0, ..., 0]
    np.testing.assert_allclose(result[6:-6, 6:-6], expected[6:-6, 6:-6], atol=3)
    np.testing.assert_allclose(result, expected, atol=7)
    assert np.abs(result - image[..., 0]).max() > 3  # and it did blur


def test_blurs_happen_with_their_probability_and_with_every_sigma():
    """Of a white dot the middle tells the sigma: the larger, the darker."""
    image = np.zeros((1, 9, 9, 1), np.uint8)
    image[0, 4, 4] = 255
    images, _ = run(np.repeat(image, 1500, 0), blur=0.5)
    middle = np.round(images[:, 4, 4, 0])
    assert abs(np.mean(middle < 255) - 0.5) < 0.05
    np.testing.assert_allclose(images[middle == 255], np.repeat(image, np.sum(middle == 255), 0))
    sigmas = np.linspace(0.1, 2.0, 9).astype(np.float32)
    levels = np.asarray(blurs(as_float(image[0]), sigmas))[:, 4, 4, 0]
    counts, _ = np.histogram(middle[middle < 255], np.sort(levels))
    np.testing.assert_allclose(counts / counts.sum(), 1 / 8, atol=0.06)
