"""Colour changes against PIL, colorsys and NumPy, and what is drawn against its distribution."""

import colorsys
import itertools

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pit_jax.data import colour

from .images import as_float, from_pil, noise, to_pil


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.4, 2.5])
@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_contrast_and_saturation_are_pils(factor, channels):
    """Less than one grey level off: PIL cuts the fraction off, we keep it."""
    image = noise(12, 12, channels)
    pairs = {
        colour.adjust_brightness: ImageEnhance.Brightness,
        colour.adjust_contrast: ImageEnhance.Contrast,
    }
    if channels == 3:
        pairs[colour.adjust_saturation] = ImageEnhance.Color
    for adjust, enhancer in pairs.items():
        expected = from_pil(enhancer(to_pil(image)).enhance(factor))
        np.testing.assert_allclose(jax.jit(adjust)(as_float(image), factor), expected, atol=1)


def test_gray_is_pils_luma_to_the_level():
    levels = np.arange(0, 256, 5, dtype=np.uint8)  # 52³ colours, 0 and 255 among them
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(52, -1, 3)
    expected = from_pil(to_pil(colours).convert("L"))
    result = jax.jit(colour.gray)(as_float(colours))
    np.testing.assert_array_equal(result, np.broadcast_to(expected, colours.shape))
    image = noise(4, 5, 1)
    np.testing.assert_array_equal(colour.gray(as_float(image)), image)


@pytest.mark.parametrize("shift", [-0.5, -0.13, 0.0, 0.1, 0.5])
def test_hue_is_colorsys(shift):
    """PIL's own HSV holds 8 bits a value, so it is compared only to within a few levels."""
    image = noise(10, 10, 3)
    image[0] = image[0, :, :1]  # grays have no hue
    image[1, :6] = 255 * np.array(list(itertools.product([0, 1], repeat=3)))[1:7]  # pure colours

    def turn(pixel):
        h, s, v = colorsys.rgb_to_hsv(*pixel / 255)
        return colorsys.hsv_to_rgb((h + shift) % 1, s, v)

    expected = 255 * np.apply_along_axis(turn, -1, image.astype(np.float64))
    result = np.asarray(jax.jit(colour.adjust_hue)(as_float(image), shift))
    np.testing.assert_allclose(result, expected, atol=1e-3)

    h, s, v = to_pil(image).convert("HSV").split()  # as torchvision on PIL images
    turned = (np.asarray(h, np.int32) + int(shift * 255)) % 256
    turned = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), s, v))
    difference = np.abs(result - from_pil(turned.convert("RGB")))
    assert difference.mean() < 2
    assert difference.max() < 16


def test_jitter_makes_its_changes_in_the_given_order():
    image = as_float(noise(6, 6, 3))
    adjusts, amounts, _ = colour.sample_jitter(jax.random.key(1), (0.9, 0.9, 0.9, 0.5))
    orders = np.array(list(itertools.permutations(range(4))))
    jitter = jax.jit(jax.vmap(lambda order: colour.jitter(image, adjusts, amounts, order)))
    results = np.asarray(jitter(orders))
    single = [jax.jit(adjust) for adjust in adjusts]
    for order, result in zip(orders, results, strict=True):
        expected = image
        for i in order:
            expected = single[i](expected, amounts[i])
        np.testing.assert_allclose(result, expected, atol=2e-3)
    distinct = np.unique(np.round(results, 1), axis=0)
    assert len(distinct) > 12  # so the orders above could not have been mixed up


def test_jitter_draws_uniform_amounts_and_orders():
    strengths = (0.4, 1.5, 0.2, 0.1)

    @jax.jit
    @jax.vmap
    def draw(key):
        return colour.sample_jitter(key, strengths)[1:]

    amounts, orders = map(np.asarray, draw(jax.random.split(jax.random.key(0), 4800)))
    low, high = np.array([0.6, 0, 0.8, -0.1]), np.array([1.4, 2.5, 1.2, 0.1])
    quantiles = np.quantile((amounts - low) / (high - low), [0, 0.25, 0.5, 0.75, 1], axis=0)
    expected = np.repeat([[0], [0.25], [0.5], [0.75], [1]], 4, axis=1)
    np.testing.assert_allclose(quantiles, expected, atol=0.03)
    assert np.all((amounts >= low - 1e-6) & (amounts <= high + 1e-6))
    distinct, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(distinct) == 24
    np.testing.assert_allclose(counts, 200, atol=75)
    together = np.corrcoef(amounts.T, orders[:, :3].T)  # three places fix the fourth
    np.testing.assert_allclose(together[:4, 4:], 0, atol=0.07)
    np.testing.assert_allclose(together[:4, :4], np.eye(4), atol=0.07)


def test_jitter_leaves_out_what_has_no_strength():
    adjusts, amounts, order = colour.sample_jitter(jax.random.key(0), (0.0, 0.4, 0.0, 0.0))
    assert adjusts == [colour.adjust_contrast]
    assert amounts.shape == order.shape == (1,)
