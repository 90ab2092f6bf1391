"""DeiT III's ThreeAugment and simple random crop, against PIL and NumPy."""

import ast
import itertools
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from pit_jax import config, configfile, validation
from pit_jax.data import pipeline, resize, sources, three_augment
from pit_jax.errors import ConfigError

from .augmented import keys, run
from .images import as_float, from_pil, noise, to_pil

operate = jax.jit(jax.vmap(three_augment.operate, (None, 0, 0)))


@pytest.mark.parametrize("channels", [1, 3])
def test_its_operations_are_pils(channels):
    image = noise(17, 14, channels)
    picture = to_pil(image)
    expected = {
        "Grayscale": ImageOps.grayscale(picture).convert(picture.mode),
        "Solarize": ImageOps.solarize(picture),
        "GaussianBlur": picture.filter(ImageFilter.GaussianBlur(1.37)),
    }
    results = operate(as_float(image), np.arange(3), np.full(3, 1.37, np.float32))
    for name, result in zip(three_augment.OPERATIONS, results, strict=True):
        np.testing.assert_array_equal(result, from_pil(expected[name]), err_msg=name)


def test_each_operation_is_drawn_equally_often_with_a_uniform_sigma():
    operation, sigma = map(np.asarray, jax.jit(jax.vmap(three_augment.sample))(keys(6000)))
    np.testing.assert_allclose(np.bincount(operation), 2000, atol=200)
    for number in range(3):
        drawn = sigma[operation == number]
        assert drawn.min() >= 0.1
        quantiles = np.quantile(drawn, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quantiles, [0.1, 0.575, 1.05, 1.525, 2.0], atol=0.07)


def test_every_image_undergoes_exactly_one_of_them():
    image = noise(1, 8, 8, 3)
    images, _ = run(np.repeat(image, 600, 0), three_augment=True)
    grey = np.ptp(images, -1).max((1, 2)) < 1e-2
    solarized = from_pil(ImageOps.solarize(to_pil(image[0])))
    inverted = np.isclose(images, solarized, atol=1e-2).all((1, 2, 3))
    sums = images.sum((1, 2, 3)) / image.sum()  # a blur keeps the mean
    blurred = ~grey & ~inverted
    np.testing.assert_allclose([grey.mean(), inverted.mean(), blurred.mean()], 1 / 3, atol=0.08)
    np.testing.assert_allclose(sums[blurred], 1, atol=0.05)
    assert len(np.unique(np.round(images[blurred]), axis=0)) > 100


def test_the_jitter_comes_after_it():
    """200 is solarised to 55 and then changed by 30 %; the other way round it would be 0 to 115."""
    flat = np.full((400, 3, 3, 3), 200, np.uint8)
    images, _ = run(flat, three_augment=True, jitter=(0.3, 0.0, 0.0, 0.0))
    levels = images[:, 0, 0, 0]
    low = levels < 128
    assert abs(low.mean() - 1 / 3) < 0.1
    assert np.all((levels[low] > 55 * 0.7 - 0.1) & (levels[low] < 55 * 1.3 + 0.1))
    assert np.ptp(levels[low]) > 20
    assert np.all(levels[~low] > 200 * 0.7 - 0.1)


# Its crop, on the host where images are not of the model's size


@pytest.mark.parametrize("shape", [(20, 33), (50, 24), (12, 12)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_simple_crop_is_pils_resize_mirrored_and_cut(shape, channels, monkeypatch):
    monkeypatch.setattr(resize, "fast", None)
    image, size, pad = noise(*shape, channels), 12, 4
    width, height = (round(side * size / min(shape)) for side in reversed(shape))
    resized = np.asarray(to_pil(image).resize((width, height), Image.Resampling.BICUBIC))
    resized = resized.reshape(height, width, channels)
    padded = np.pad(resized, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    generator = np.random.default_rng(0)
    places = set()
    for _ in range(300):
        view = resize.simple_view(shape, size, generator, pad)
        left, top = view.cut
        places.add((top, left))
        expected = padded[top + pad : top + pad + size, left + pad : left + pad + size]
        np.testing.assert_array_equal(view.of(image), expected)
    tops, lefts = map(set, zip(*places, strict=True))
    assert tops == set(range(-pad, height - size + pad + 1))
    assert lefts == set(range(-pad, width - size + pad + 1))


def test_images_of_other_sizes_are_cropped_on_the_host(tmp_path, tiny):
    """By (seed, position) alone; the device then crops no more. The model's size it crops."""
    for number, name in itertools.product(range(2), "ab"):
        path = tmp_path / "train" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(noise(20, 30 + number, 3, seed=number)).save(path)
    digits = tiny.copy_and_resolve_references()
    tiny.data.update(name="folder", dir=str(tmp_path), eval_split="train")
    tiny.data.update(image_size=8, channels=3, num_classes=2)
    for c in (tiny, digits):
        c.data.augmentation.update(crop="simple", pad=3)
    source = sources.load(tiny.data, "train")
    reader = pipeline.Reader(source, tiny.data, train=True, seed=1)
    assert not reader.held
    at = np.arange(40)
    images, again = (reader(np.zeros(40, int), at)["image"] for _ in range(2))
    np.testing.assert_array_equal(images, again)
    assert len(np.unique(images, axis=0)) > 20
    assert pipeline.device_config(tiny, source).data.augmentation.crop == "none"
    native = sources.load(digits.data, "train")
    assert pipeline.device_config(digits, native).data.augmentation.crop == "simple"
    assert pipeline.Reader(native, digits.data, train=True).held


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["crop=simple", "pad=8"], "pad=8 rows cannot be mirrored .* write at most 7"),
        (["mixup_prob=1.5"], "config.data.augmentation.mixup_prob=1.5"),
        (["mixup_switch_prob=-0.1"], "config.data.augmentation.mixup_switch_prob=-0.1"),
        (["jitter_prob=2.0"], "config.data.augmentation.jitter_prob=2.0"),
        (["blur=80.0"], "config.data.augmentation.blur=80.0"),
        (["repeats=0"], "config.data.augmentation.repeats=0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(words, sentence):
    words = [f"--config.data.augmentation.{word}" for word in words]
    with pytest.raises(ConfigError, match=sentence) as caught:
        configfile.load("configs/digits.py:pit", words)
    assert "\n" not in str(caught.value)


def recipes() -> dict[str, dict]:
    """The fields of each row under "Recipes" in docs/augmentation.md."""
    page = pathlib.Path("docs/augmentation.md").read_text().partition("## Recipes")[2]
    rows = re.findall(r"^\| ([^|`]+) \| (`.+) \|$", page.partition("\n## ")[0], re.MULTILINE)
    fields = r"`([a-z_.]+)`=(\(.*?\)|\".*?\"|[\w.]+)"
    return {
        name: {field: ast.literal_eval(value) for field, value in re.findall(fields, text)}
        for name, text in rows
    }


def test_every_recipe_of_the_page_is_a_config():
    found = recipes()
    assert len(found) == 5
    for name, fields in found.items():
        c = configfile.read("configs/imagenet224.py")
        whole = {f if "." in f else f"data.augmentation.{f}": x for f, x in fields.items()}
        for field, value in whole.items():
            config.assign(c, field, value)
        resolved = config.flatten(validation.resolve(c))
        assert all(resolved[field] == value for field, value in whole.items()), name


def test_deit_iii_on_imagenet_21k_neither_mixes_nor_repeats():
    """Its published command: --mixup 0 --cutmix 1.0 --no-repeated-aug --ThreeAugment --src."""
    found = recipes()
    small, large = (found[f"DeiT III on ImageNet-{size}k"] for size in (1, 21))
    assert set(small) - set(large) == {"repeats", "mixup", "scale"}
    assert set(large) - set(small) == {"train.label_smoothing"}
    assert (small["crop"], large["crop"]) == ("resized", "simple")
