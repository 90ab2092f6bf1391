"""Every change against PIL, colorsys or NumPy, and what is drawn against its distribution."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pit_jax import config
from pit_jax.data import augmentation, colour

from .images import as_float, from_pil, noise, to_pil

resize_crop = jax.jit(augmentation.resize_crop, static_argnums=(2, 3))
resize_crops = jax.jit(
    jax.vmap(augmentation.resize_crop, in_axes=(None, 0, None)), static_argnums=2
)

MEAN, STD = (0.5,), (0.25,)
CLASSES = 7
RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
ALL_PER_EXAMPLE = {
    "crop": "resized",
    "flip": 0.5,
    "grayscale": 0.5,
    "jitter": (0.4, 0.4, 0.4, 0.1),
}


def keys(n: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


@functools.cache
def jitted(**options):
    """`augment` with these options, from images, labels and a key or a row of keys."""
    chosen = config.base().data.augmentation
    chosen.update(options)

    def augment(images, labels, key):
        return augmentation.augment(images, labels, key, chosen, MEAN, STD, CLASSES)

    def over_keys(images, labels, key):
        vmapped = jax.vmap(augment, (None, None, 0)) if key.ndim else augment
        return vmapped(images, labels, key)

    return jax.jit(over_keys)


def run(images: np.ndarray, key: jax.Array | None = None, **options):
    """Augmented images in grey levels again, and targets; image i is of class i."""
    labels = np.arange(len(images), dtype=np.int32) % CLASSES
    key = jax.random.key(0) if key is None else key
    images, targets = jitted(**options)(images, labels, key)
    assert images.dtype == targets.dtype == jnp.float32
    return (np.asarray(images) * STD[0] + MEAN[0]) * 255, np.asarray(targets)


# Crops


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
    draw = jax.jit(jax.vmap(lambda key: augmentation.sample_box(key, *size, scale, ratio)))
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
    draw = jax.jit(jax.vmap(lambda key: augmentation.sample_box(key, *size, too_large, ratio)))
    np.testing.assert_array_equal(np.stack(draw(keys(5)), 1), [expected] * 5)


@pytest.mark.parametrize(("shape", "pad"), [((8, 8, 3), 1), ((5, 6, 1), 2), ((3, 3, 1), 5)])
def test_pad_crop_is_a_window_of_the_padded_image(shape, pad):
    image = noise(*shape)
    height, width, _ = shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    corners = np.array(list(itertools.product(range(2 * pad + 1), repeat=2)))
    crop = jax.jit(jax.vmap(lambda y, x: augmentation.pad_crop(as_float(image), y, x, pad)))
    for (y, x), result in zip(corners, np.asarray(crop(*corners.T)), strict=True):
        np.testing.assert_array_equal(result, padded[y : y + height, x : x + width])


def test_padded_crops_reach_every_corner_equally():
    image = np.zeros((1, 3, 3, 1), np.uint8)
    image[0, 1, 1] = 255  # where the only white pixel goes tells the corner
    images, _ = run(np.repeat(image, 900, 0), crop="pad", pad=1)
    counts = np.round(images[..., 0] / 255).sum(0)
    assert counts.sum() == 900
    np.testing.assert_allclose(counts, 100, atol=50)


# Colour


def test_flips_happen_with_their_probability():
    image = noise(1, 2, 3, 1)
    images, _ = run(np.repeat(image, 1000, 0), flip=0.3)
    straight = np.isclose(images, image, atol=1e-3).all((1, 2, 3))
    mirrored = np.isclose(images, image[:, :, ::-1], atol=1e-3).all((1, 2, 3))
    assert np.all(straight ^ mirrored)
    assert abs(mirrored.mean() - 0.3) < 0.06


def test_colour_is_lost_with_its_probability():
    image = noise(1, 2, 2, 3)
    images, _ = run(np.repeat(image, 1000, 0), grayscale=0.2)
    lost = np.ptp(images, -1).max((1, 2)) < 1e-3
    np.testing.assert_allclose(images[~lost], np.repeat(image, (~lost).sum(), 0), atol=1e-3)
    assert abs(lost.mean() - 0.2) < 0.06


# The whole


def test_off_is_normalise():
    images = noise(3, 5, 4, 3)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    options = config.base().data.augmentation
    labels = np.array([4, 0, 6], np.int32)
    args = (images, labels, jax.random.key(0), options, mean, std, CLASSES)
    result, targets = augmentation.augment(*args)
    np.testing.assert_array_equal(result, augmentation.normalise(images, mean, std))
    np.testing.assert_allclose(result, (images / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(targets, np.eye(CLASSES)[labels])
    np.testing.assert_allclose(
        augmentation.normalise(images.astype(np.float32), MEAN, STD),
        (images / 255 - 0.5) / 0.25,
        atol=1e-5,
    )


def test_an_example_does_not_depend_on_its_neighbours():
    images, others = noise(5, 8, 8, 3), noise(5, 8, 8, 3, seed=1)
    others[2] = images[2]
    key = jax.random.key(3)
    full, _ = run(images, key, **ALL_PER_EXAMPLE)
    changed, _ = run(others, key, **ALL_PER_EXAMPLE)
    np.testing.assert_array_equal(full[2], changed[2])
    same, _ = run(np.repeat(images[:1], 5, 0), key, **ALL_PER_EXAMPLE)
    assert len(np.unique(same, axis=0)) == 5  # and rows do differ from each other
    assert not np.allclose(full, run(images, jax.random.key(4), **ALL_PER_EXAMPLE)[0])
    longer, _ = run(noise(20, 4, 4, 3), key, flip=0.5)  # nor on how many there are
    shorter, _ = run(noise(20, 4, 4, 3)[:10], key, flip=0.5)
    np.testing.assert_array_equal(longer[:10], shorter)


def test_one_change_more_leaves_the_others_as_they_were():
    images = noise(20, 4, 4, 3)
    alone, _ = run(images, flip=0.5)
    together, _ = run(images, flip=0.5, grayscale=1.0)
    np.testing.assert_allclose(together, colour.gray(jnp.round(alone)), atol=1e-2)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 28, 28, 1), {"crop": "resized", "flip": 0.5, "jitter": (0.4, 0.4, 0.0, 0.0)}),
        ((1, 8, 8, 3), {"crop": "pad", "pad": 1}),
        ((3, 7, 5, 3), {**ALL_PER_EXAMPLE, "interpolation": "bilinear"}),
        ((2, 1, 1, 3), {"crop": "resized", "scale": (0.01, 0.1), "jitter": (0.0, 9.0, 0.0, 0.5)}),
    ],
)
def test_odd_sizes_give_finite_images_in_range(shape, options):
    images, targets = run(noise(*shape), **options)
    assert images.shape == shape
    assert np.all((images > -1e-2) & (images < 255 + 1e-2))  # NaN is neither
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)


# Mixes


@pytest.mark.parametrize("batch", [4, 5, 1])
def test_mixup_blends_with_the_example_counted_from_the_end(batch):
    images, targets = noise(batch, 3, 4, 3).astype(np.float32), np.eye(batch, CLASSES)
    mixed, mixed_targets = augmentation.mix(as_float(images), jnp.asarray(targets), 0.3)
    np.testing.assert_allclose(mixed, 0.3 * images + 0.7 * images[::-1], rtol=1e-5)
    np.testing.assert_allclose(mixed_targets, 0.3 * targets + 0.7 * targets[::-1], rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (7, 12)])
def test_cutmix_pastes_timms_box_and_counts_its_pixels(size):
    height, width = size
    images, targets = noise(2, *size, 1).astype(np.float32), np.eye(2, dtype=np.float32)
    lams = np.array([0.0, 0.15, 0.5, 0.77, 0.97, 1.0], np.float32)
    centres = np.array([(0, 0), (3, 4), (height - 1, width - 1), (6, 1)])
    lams, centres = np.repeat(lams, 4), np.tile(centres, (6, 1))

    @jax.jit
    @jax.vmap
    def cutmix(lam, centre):
        mask = augmentation.cutmix_mask(height, width, lam, centre)
        return augmentation.mix(images, targets, mask)

    results = map(np.asarray, cutmix(lams, centres))
    for lam, (cy, cx), mixed, mixed_targets in zip(lams, centres, *results, strict=True):
        side = np.sqrt(1 - lam)  # timm's rand_bbox
        cut_h, cut_w = int(height * side), int(width * side)
        top, bottom = np.clip([cy - cut_h // 2, cy + cut_h // 2], 0, height)
        left, right = np.clip([cx - cut_w // 2, cx + cut_w // 2], 0, width)
        expected = images.copy()
        expected[:, top:bottom, left:right] = images[::-1, top:bottom, left:right]
        np.testing.assert_array_equal(mixed, expected)
        own = 1 - (bottom - top) * (right - left) / (height * width)
        np.testing.assert_allclose(mixed_targets, [[own, 1 - own], [1 - own, own]], atol=1e-6)


def mixed_shares(size=6, n=400, **options):
    """Of n batches of a black and a white image: what share of each black one turned white
    by its pixels (n, size, size), and by its target (n,)."""
    images = np.stack([np.zeros((size, size, 1)), np.full((size, size, 1), 255)])
    mixed, targets = run(images.astype(np.uint8), keys(n), **options)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(mixed[:, 0] + mixed[:, 1], 255, atol=1e-2)  # partners swap
    return mixed[:, 0, :, :, 0] / 255, targets[:, 0, 1]


def test_mixup_draws_from_its_beta_distribution():
    alpha = 0.2
    pixels, share = mixed_shares(size=2, n=2000, mixup=alpha)
    np.testing.assert_allclose(
        pixels, np.broadcast_to(share[:, None, None], pixels.shape), atol=1e-4
    )
    assert abs(share.mean() - 0.5) < 0.05
    np.testing.assert_allclose(share.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.12)


def test_cutmix_targets_are_the_area_of_the_box():
    pixels, share = mixed_shares(cutmix=1.0)
    assert np.all(np.isclose(pixels, 0, atol=1e-4) | np.isclose(pixels, 1, atol=1e-4))
    np.testing.assert_allclose(pixels.mean((1, 2)), share, atol=1e-4)
    assert len(np.unique(np.round(share, 3))) > 5
    assert np.all(pixels.mean(0) > 0.04)  # boxes come everywhere, corners too


def test_with_both_on_half_of_the_batches_are_cutmix():
    pixels, share = mixed_shares(mixup=5.0, cutmix=0.5)  # mixup is never close to 0 or 1
    np.testing.assert_allclose(pixels.mean((1, 2)), share, atol=1e-4)
    uniform = np.ptp(pixels, axis=(1, 2)) < 1e-4
    blended = uniform & (pixels[:, 0, 0] > 0.01) & (pixels[:, 0, 0] < 0.99)
    binary = np.minimum(pixels, 1 - pixels).max((1, 2)) < 1e-4
    assert np.all(blended ^ binary)
    assert abs(binary.mean() - 0.5) < 0.1
    np.testing.assert_allclose(share[blended].var(), 1 / 44, rtol=0.3)  # Beta(5, 5)


def test_mixes_come_after_the_changes_of_single_examples():
    """Row i is mixed with what row B − 1 − i became, not with what it was."""
    images, key = noise(4, 3, 3, 1), jax.random.key(5)
    alone, _ = run(images, key, flip=0.5)
    mixed, targets = run(images, key, flip=0.5, mixup=1.0)
    assert not np.allclose(alone, images, atol=1)
    share = targets[0, 0]
    assert 0 < share < 1
    np.testing.assert_allclose(mixed, share * alone + (1 - share) * alone[::-1], atol=1e-2)
