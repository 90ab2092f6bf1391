"""Mixup and cutmix against NumPy, and what is drawn against its distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.data import mixing

from .augmented import CLASSES, keys, run
from .images import as_float, noise


@pytest.mark.parametrize("batch", [4, 5, 1])
def test_mixup_blends_with_the_example_counted_from_the_end(batch):
    images, targets = noise(batch, 3, 4, 3).astype(np.float32), np.eye(batch, CLASSES)
    mixed, mixed_targets = mixing.mix(as_float(images), jnp.asarray(targets), 0.3)
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
        mask = mixing.cutmix_mask(height, width, lam, centre)
        return mixing.mix(images, targets, mask)

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


def test_a_batch_is_mixed_with_one_probability_and_switched_with_another():
    """Against the shares of timm's `prob` and `switch_prob`, and what is not mixed stays."""
    pixels, share = mixed_shares(
        mixup=5.0, cutmix=5.0, mixup_prob=0.6, mixup_switch_prob=0.25
    )  # neither draws a share close to 0 or 1
    alone = share == 0
    assert np.abs(pixels[alone]).max() < 1e-4
    blended = np.ptp(pixels, axis=(1, 2)) < 1e-4
    assert np.all(np.abs(share[~alone] - 0.5) < 0.49)
    found = [alone.mean(), (~alone & blended).mean(), (~alone & ~blended).mean()]
    np.testing.assert_allclose(found, [0.4, 0.6 * 0.75, 0.6 * 0.25], atol=0.1)


def test_mixes_come_after_the_changes_of_single_examples():
    """Row i is mixed with what row B − 1 − i became, not with what it was."""
    images, key = noise(4, 3, 3, 1), jax.random.key(5)
    alone, _ = run(images, key, flip=0.5)
    mixed, targets = run(images, key, flip=0.5, mixup=1.0)
    assert not np.allclose(alone, images, atol=1)
    share = targets[0, 0]
    assert 0 < share < 1
    np.testing.assert_allclose(mixed, share * alone + (1 - share) * alone[::-1], atol=1e-2)
