"""Which changes happen how often, in which order, and what they depend on."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import config
from pit_jax.data import augmentation, colour

from .augmented import CLASSES, MEAN, STD, run
from .images import noise

ALL_PER_EXAMPLE = {
    "crop": "resized",
    "three_augment": True,
    "flip": 0.5,
    "grayscale": 0.5,
    "jitter": (0.4, 0.4, 0.4, 0.1),
    "jitter_prob": 0.8,
    "blur": 0.5,
}

MOCO_V2 = {
    "crop": "resized",
    "jitter": (0.4, 0.4, 0.4, 0.1),
    "jitter_prob": 0.8,
    "grayscale": 0.2,
    "grayscale_first": False,
    "blur": 0.5,
    "flip": 0.5,
}


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


def test_the_jitter_happens_with_its_probability():
    """MoCo v2 jitters 80 % of the images, MoCo v1 all of them."""
    image = np.full((1, 2, 2, 3), 100, np.uint8)
    for probability, options in ((0.8, {"jitter_prob": 0.8}), (1.0, {})):
        images, _ = run(np.repeat(image, 1000, 0), jitter=(0.4, 0.0, 0.0, 0.0), **options)
        changed = np.abs(images[:, 0, 0, 0] - 100) > 0.01
        assert abs(changed.mean() - probability) < 0.05
        np.testing.assert_allclose(images[~changed], 100, atol=1e-2)
        values = images[changed][:, 0, 0, 0]  # and by how much does not depend on whether
        assert values.min() < 63
        assert values.max() > 137
        assert abs(values.mean() - 100) < 4


def test_colour_is_lost_before_the_jitter_or_after_it():
    """Of a grey image hue and saturation change nothing; a coloured one turns other greys."""
    images = noise(8, 4, 4, 3)
    jitter = (0.0, 0.0, 0.9, 0.5)
    grey = np.asarray(colour.gray(images.astype(np.float32)))
    first, _ = run(images, grayscale=1.0, jitter=jitter)
    np.testing.assert_allclose(first, grey, atol=1e-2)
    last, _ = run(images, grayscale=1.0, jitter=jitter, grayscale_first=False)
    jittered, _ = run(images, jitter=jitter)
    np.testing.assert_allclose(last, colour.gray(jittered), atol=1.01)  # halves, rounded again
    assert np.abs(last - grey).mean() > 1


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
        ((4, 9, 9, 3), MOCO_V2),
        ((6, 6, 5, 1), {"crop": "simple", "three_augment": True, "jitter": (0.3, 0.3, 0.0, 0.0)}),
        ((2, 1, 1, 3), {"crop": "resized", "scale": (0.01, 0.1), "jitter": (0.0, 9.0, 0.0, 0.5)}),
    ],
)
def test_odd_sizes_give_finite_images_in_range(shape, options):
    images, targets = run(noise(*shape), **options)
    assert images.shape == shape
    assert np.all((images > -1e-2) & (images < 255 + 1e-2))  # NaN is neither
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)


def test_the_table_of_the_docs_names_every_field_and_tests_that_exist():
    root = pathlib.Path(__file__).parents[2]
    text = (root / "docs/augmentation.md").read_text()
    named = set(re.findall(r"`(\w+)`", text))
    assert set(config.base().data.augmentation) <= named
    written = "\n".join(path.read_text() for path in (root / "tests/data").glob("test_*.py"))
    tests = {name for name in named if name.startswith("test_")}
    assert len(tests) > 10
    assert tests <= set(re.findall(r"^def (test_\w+)", written, re.MULTILINE))
