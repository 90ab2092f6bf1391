"""Crops against PIL and NumPy, and what is drawn against torchvision's distribution."""

import itertools
import math

import jax
import numpy as np
import pytest
from PIL import Image

from pit_jax.data import crop

from .augmented import keys, run
from .images import as_float, from_pil, noise, to_pil

resize_crop = jax.jit(crop.resize_crop, static_argnums=(2, 3))
resize_crops = jax.jit(jax.vmap(crop.resize_crop, in_axes=(None, 0, None)), static_argnums=2)

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 3), (13, 21, 3)])
@pytest.mark.parametrize("hard", [False, True])
def test_resize_crop_is_pils_crop_and_resize(shape, interpolation, hard):
    """Within one grey level, also where black next to white makes bicubic overshoot."""
    height, width, channels = shape
    rng = np.random.default_rng(1)
    image = (noise(*shape) > 127).astype(np.uint8) * 255 if hard else noise(*shape)
    box_h, box_w = rng.integers(1, height + 1, 40), rng.integers(1, width + 1, 40)
    box_h[:2], box_w[:2] = (height, 1), (width, 1)  # the whole image, and a single pixel
    top, left = rng.integers(0, height - box_h + 1), rng.integers(0, width - box_w + 1)
    boxes = np.stack([top, left, box_h, box_w])
    results = np.asarray(resize_crops(as_float(image), tuple(boxes), interpolation))
    for result, (y, x, h, w) in zip(results, boxes.T, strict=True):
        cut = to_pil(image).crop((x, y, x + w, y + h))
        expected = from_pil(cut.resize((width, height), RESAMPLE[interpolation]))
        assert expected.shape[-1] == channels
        np.testing.assert_allclose(result, expected, atol=1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_crop_is_antialiased_when_it_shrinks(interpolation):
    """As PIL, within one grey level; Pillow 13 may shrink rows first where they shrink more."""
    image = noise(32, 40, 3)
    box = (1, 2, 30, 37)
    result = resize_crop(as_float(image), box, interpolation, (13, 9))
    cut = to_pil(image).crop((2, 1, 39, 31))
    expected = from_pil(cut.resize((9, 13), RESAMPLE[interpolation]))
    np.testing.assert_allclose(result, expected, atol=1)


def test_the_whole_image_is_its_own_crop():
    image = noise(9, 14, 3)
    for interpolation in RESAMPLE:
        result = resize_crop(as_float(image), (0, 0, 9, 14), interpolation)
        np.testing.assert_array_equal(result, image)


def test_nothing_outside_the_box_bleeds_in():
    image, other = noise(10, 10, 1), noise(10, 10, 1, seed=1)
    other[2:7, 3:9] = image[2:7, 3:9]
    one, two = (resize_crop(as_float(x), (2, 3, 5, 6), "bicubic") for x in (image, other))
    np.testing.assert_array_equal(one, two)


def torchvision_boxes(n, height, width, scale, ratio, rng):
    """RandomResizedCrop.get_params in NumPy, n times: rows of top, left, height, width."""
    boxes = []
    while len(boxes) < n:
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = math.exp(rng.uniform(*np.log(ratio)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                boxes.append((rng.integers(height - h + 1), rng.integers(width - w + 1), h, w))
                break
    return np.array(boxes)


@pytest.mark.parametrize("size", [(32, 32), (20, 28)])
def test_boxes_are_distributed_as_torchvisions(size):
    height, width = size
    scale, ratio = (0.2, 1.0), (3 / 4, 4 / 3)
    draw = jax.jit(jax.vmap(lambda key: crop.sample_box(key, *size, scale, ratio)))
    boxes = np.stack(draw(keys(4000)), 1)
    top, left, h, w = boxes.T
    assert np.all((top >= 0) & (left >= 0) & (h > 0) & (w > 0))
    assert np.all((top + h <= height) & (left + w <= width))
    # Sides are rounded by at most half a pixel each.
    assert np.all((h + 0.5) * (w + 0.5) >= 0.2 * height * width)
    assert np.all((w + 0.5) / (h - 0.5) >= 3 / 4)
    assert np.all((w - 0.5) / (h + 0.5) <= 4 / 3)
    expected = torchvision_boxes(4000, *size, scale, ratio, np.random.default_rng(0))

    def statistics(boxes):
        top, left, h, w = boxes.T
        return np.stack([h * w / (height * width), np.log(w / h), top, left, top * left, h, w], 1)

    ours, theirs = statistics(boxes), statistics(expected)
    # Six standard errors of the difference of two means; spreads within 5 %.
    error = 6 * np.sqrt((ours.var(0) + theirs.var(0)) / 4000)
    assert np.all(np.abs(ours.mean(0) - theirs.mean(0)) < error)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.05)


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        ((8, 32), (3 / 4, 4 / 3), (0, 10, 8, 11)),  # 8 × 4/3 ≈ 11 columns of 32
        ((32, 8), (3 / 4, 4 / 3), (10, 0, 11, 8)),
        ((9, 10), (3 / 4, 4 / 3), (0, 0, 9, 10)),  # its own ratio is allowed
        ((8, 32), (0.01, 0.01), (0, 15, 8, 1)),  # never less than a pixel
    ],
)
def test_an_image_no_box_fits_is_cut_centrally(size, ratio, expected):
    too_large = (1.3, 1.4)
    draw = jax.jit(jax.vmap(lambda key: crop.sample_box(key, *size, too_large, ratio)))
    np.testing.assert_array_equal(np.stack(draw(keys(5)), 1), [expected] * 5)


@pytest.mark.parametrize(("shape", "pad"), [((8, 8, 3), 1), ((5, 6, 1), 2), ((3, 3, 1), 5)])
def test_pad_crop_is_a_window_of_the_padded_image(shape, pad):
    image = noise(*shape)
    height, width, _ = shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    corners = np.array(list(itertools.product(range(2 * pad + 1), repeat=2)))
    cut = jax.jit(jax.vmap(lambda y, x: crop.pad_crop(as_float(image), y, x, pad)))
    for (y, x), result in zip(corners, np.asarray(cut(*corners.T)), strict=True):
        np.testing.assert_array_equal(result, padded[y : y + height, x : x + width])


@pytest.mark.parametrize(("shape", "pad"), [((8, 8, 3), 4), ((5, 7, 1), 4), ((2, 3, 1), 1)])
def test_a_simple_crop_is_a_window_of_the_mirrored_image(shape, pad):
    image = noise(*shape)
    height, width, _ = shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    corners = np.array(list(itertools.product(range(2 * pad + 1), repeat=2)))
    cut = jax.jit(jax.vmap(lambda y, x: crop.pad_crop(as_float(image), y, x, pad, True)))
    for (y, x), result in zip(corners, np.asarray(cut(*corners.T)), strict=True):
        np.testing.assert_array_equal(result, padded[y : y + height, x : x + width])


@pytest.mark.parametrize("kind", ["pad", "simple"])
def test_shifted_crops_reach_every_corner_equally(kind):
    image = noise(1, 3, 3, 1)
    images, _ = run(np.repeat(image, 900, 0), crop=kind, pad=1)
    windows, counts = np.unique(np.round(images), axis=0, return_counts=True)
    assert len(windows) == 9
    assert (windows.min((1, 2, 3)) == 0).sum() == (8 if kind == "pad" else 0)  # black comes in
    np.testing.assert_allclose(counts, 100, atol=50)
