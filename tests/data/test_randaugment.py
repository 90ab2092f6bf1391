"""Every operation against PIL, what is drawn against its distribution, and the whole."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from pit_jax import config, configfile
from pit_jax.data import augmentation, randaugment

OPERATIONS = randaugment.OPERATIONS
FILL = (124, 116, 103)
SHAPES = [(13, 10, 3), (18, 17, 1), (32, 32, 3), (28, 28, 1), (2, 5, 3)]
ENHANCE = ("Color", "Contrast", "Brightness", "Sharpness")
SIGNED = ("Rotate", *ENHANCE, "ShearX", "ShearY", "TranslateX", "TranslateY")
# Arguments at magnitude 0, mean ones and the extremes; both signs; some between magnitudes.
AMOUNTS = {
    "AutoContrast": [0.0],
    "Equalize": [0.0],
    "Invert": [0.0],
    "Posterize": [0.0, 1.0, 2.0, 3.0, 4.0, 8.0],
    "Solarize": [0.0, 26.0, 128.0, 255.0, 256.0],
    "SolarizeAdd": [0.0, 55.0, 99.0, 110.0],
    "Rotate": [-30.0, -27.0, -3.1, 0.0, 14.7, 30.0],
    **dict.fromkeys(ENHANCE, (0.1, 0.19, 0.55, 1.0, 1.37, 1.9)),
    **dict.fromkeys(("ShearX", "ShearY"), (-0.3, -0.2701, -0.1, 0.0, 0.0503, 0.3)),
    **dict.fromkeys(("TranslateX", "TranslateY"), (-0.45, -0.405, -0.1, 0.0, 0.0225, 0.45)),
}
CASES = [(name, amount) for name in OPERATIONS for amount in AMOUNTS[name]]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def images(height: int, width: int, channels: int) -> dict[str, np.ndarray]:
    """Noise; a smooth image of few levels; a flat one; black next to white."""
    y, x = np.mgrid[:height, :width]
    waves = [90 + 60 * np.sin(0.3 * x + c) + 3 * c * np.cos(0.2 * y) for c in range(channels)]
    flat = np.full((height, width, channels), (200, 31, 77)[:channels])
    named = {"noise": noise(height, width, channels), "smooth": np.stack(waves, -1), "flat": flat}
    named["hard"] = 255 * (named["noise"] > 127)
    return {name: image.astype(np.uint8) for name, image in named.items()}


def to_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pil(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32).reshape(image.height, image.width, -1)


def in_pil(name: str, image: Image.Image, amount: float) -> Image.Image:
    """The operation as timm makes it."""
    fill = FILL if image.mode == "RGB" else FILL[0]
    bicubic = {"resample": Image.Resampling.BICUBIC, "fillcolor": fill}

    def affine(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, **bicubic)

    def lookup(level) -> Image.Image:
        return image.point([level(i) for i in range(256)] * len(image.getbands()))

    operations = {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
        "Rotate": lambda: image.rotate(amount, **bicubic),
        # To keep no bit PIL 13 refuses; before, and so in the recipe, that was black.
        "Posterize": lambda: lookup(lambda i: i >> int(8 - amount) << int(8 - amount)),
        "Solarize": lambda: ImageOps.solarize(image, int(amount)),
        "SolarizeAdd": lambda: lookup(lambda i: min(255, i + int(amount)) if i < 128 else i),
        "ShearX": lambda: affine(1, amount, 0, 0, 1, 0),
        "ShearY": lambda: affine(1, 0, 0, amount, 1, 0),
        "TranslateX": lambda: affine(1, 0, amount * image.width, 0, 1, 0),
        "TranslateY": lambda: affine(1, 0, 0, 0, 1, amount * image.height),
    }
    enhance = {
        name: lambda n=name: getattr(ImageEnhance, n)(image).enhance(amount) for name in ENHANCE
    }
    return (operations | enhance)[name]()


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, 0))
def operate(image, operation, amount):
    return randaugment.operate(image, operation, amount, FILL[: image.shape[-1]])


@functools.cache
def results(shape: tuple, kind: str) -> dict[tuple[str, float], np.ndarray]:
    """All CASES of one image, computed at once."""
    numbers = np.array([OPERATIONS.index(name) for name, _ in CASES], np.int32)
    amounts = np.array([amount for _, amount in CASES], np.float32)
    image = jnp.asarray(images(*shape)[kind], jnp.float32)
    return dict(zip(CASES, np.asarray(operate(image, numbers, amounts)), strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_pils_within_a_grey_level(name, shape):
    for kind, image in images(*shape).items():
        for amount in AMOUNTS[name]:
            result = results(shape, kind)[name, amount]
            expected = from_pil(in_pil(name, to_pil(image), amount))
            np.testing.assert_allclose(result, expected, atol=1, err_msg=f"{kind} {amount}")
            np.testing.assert_array_equal(result, np.round(result))
            different = np.sum(result != expected)  # and seldom even that
            assert different <= max(2, 0.07 * image.size), (kind, amount, different)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_change_something(name):
    """So that agreeing with PIL above was not agreeing to do nothing."""
    image = images(32, 32, 3)["smooth"]
    extreme = AMOUNTS[name][-1 if name == "SolarizeAdd" else 0]
    assert np.mean(results((32, 32, 3), "smooth")[name, extreme] != image) > 0.3


def test_magnitude_0_of_what_has_a_neutral_setting_changes_nothing():
    image = images(13, 10, 3)["noise"]
    for name in SIGNED:
        neutral = 1.0 if name in ENHANCE else 0.0
        np.testing.assert_array_equal(results((13, 10, 3), "noise")[name, neutral], image)


def test_whole_pixels_move_exactly_and_leave_the_fill_behind():
    image = noise(4, 8, 3)
    number = np.array([OPERATIONS.index("TranslateX")], np.int32)
    moved = np.asarray(operate(jnp.asarray(image, jnp.float32), number, np.float32([0.25])))[0]
    np.testing.assert_array_equal(moved[:, :6], image[:, 2:])
    np.testing.assert_array_equal(moved[:, 6:], np.broadcast_to(FILL, (4, 2, 3)))


def test_smooth_is_pils_filter():
    image = noise(9, 7, 3)
    expected = from_pil(to_pil(image).filter(ImageFilter.SMOOTH))
    result = jax.jit(randaugment.smooth)(jnp.asarray(image, jnp.float32))
    np.testing.assert_array_equal(result, expected)


# Magnitudes

# timm's increasing set: what becomes of a level, a share of the highest magnitude.
TIMM = {
    "AutoContrast": lambda level, sign: 0,
    "Equalize": lambda level, sign: 0,
    "Invert": lambda level, sign: 0,
    "Rotate": lambda level, sign: sign * 30 * level,  # degrees
    "PosterizeIncreasing": lambda level, sign: 4 - int(4 * level),  # bits that are kept
    "SolarizeIncreasing": lambda level, sign: 256 - min(256, int(256 * level)),
    "SolarizeAdd": lambda level, sign: min(128, int(110 * level)),
    **dict.fromkeys(
        ("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"),
        lambda level, sign: max(0.1, 1 + sign * 0.9 * level),
    ),
    **dict.fromkeys(("ShearX", "ShearY"), lambda level, sign: sign * 0.3 * level),
    **dict.fromkeys(("TranslateXRel", "TranslateYRel"), lambda level, sign: sign * 0.45 * level),
}
WHOLE = ("Posterize", "Solarize", "SolarizeAdd")  # or the wrong bit or level would change


argument = jax.jit(jax.vmap(randaugment.argument))


def test_operations_are_timms_increasing_set():
    """Those of timm 0.8.19.dev0, in its order: `_RAND_INCREASING_TRANSFORMS` in
    timm/data/auto_augment.py of huggingface/pytorch-image-models at commit ab7ca62."""
    names = [name.removesuffix("Increasing").removesuffix("Rel") for name in TIMM]
    assert names == list(OPERATIONS)


def test_magnitudes_become_arguments_as_in_timm():
    """`LEVEL_TO_ARG` of the same file. As it was before, at 066e490 and in a copy of 2020 at
    e4242f5 of DifferentSC/pytorch-image-models, it says the same of magnitudes up to 10, where
    all three cut them off. Of the steps of whole arguments the grid has the ends and 5."""
    magnitudes = (0.0, *np.linspace(0.11, 9.91, 99), 5.0, 10.0)
    grid = [(name, m, s) for name in TIMM for m in magnitudes for s in (-1, 1)]
    numbers = np.array([list(TIMM).index(name) for name, _, _ in grid], np.int32)
    magnitudes, signs = np.array([case[1:] for case in grid], np.float32).T
    result = argument(numbers, magnitudes, signs)
    for (name, magnitude, sign), got in zip(grid, np.asarray(result), strict=True):
        wanted = TIMM[name](magnitude / 10, sign)
        whole = name.removesuffix("Increasing") in WHOLE
        assert got == (wanted if whole else pytest.approx(wanted, abs=1e-5)), (name, magnitude)


def test_steps_of_whole_arguments_lie_where_timm_cuts_fractions_off():
    magnitudes = np.float32([2.49, 2.5, 4.99, 5.0, 7.49, 7.5, 9.99, 10.0])
    number = np.full(8, OPERATIONS.index("Posterize"), np.int32)
    bits = argument(number, magnitudes, np.ones(8, np.float32)).tolist()
    assert bits == [4 - int(m / 10 * 4) for m in magnitudes.tolist()] == [4, 3, 3, 2, 2, 1, 1, 0]


# Draws


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, None))
def sample(key, magnitude, std):
    return randaugment.sample(key, magnitude, std, 2)


def drawn(magnitude: float, std: float, n: int = 6000) -> list[np.ndarray]:
    return [np.asarray(x) for x in sample(jax.random.split(jax.random.key(0), n), magnitude, std)]


def test_operations_are_drawn_uniformly_and_with_replacement():
    operation, _, sign, applied = drawn(9.0, 0.5)
    counts = np.bincount(operation.ravel(), minlength=15)
    assert len(counts) == 15
    np.testing.assert_allclose(counts, 800, atol=5 * math.sqrt(800))
    assert abs(np.mean(operation[:, 0] == operation[:, 1]) - 1 / 15) < 0.015
    assert set(np.unique(sign)) == {-1.0, 1.0}
    for share in (applied.mean(), (sign > 0).mean()):
        assert abs(share - 0.5) < 0.02
    columns = np.concatenate([operation, sign, applied], 1).astype(float)
    np.testing.assert_allclose(np.corrcoef(columns.T), np.eye(6), atol=0.05)


def test_magnitudes_are_gaussian_and_clipped():
    magnitude = drawn(9.0, 0.5)[1]
    below = magnitude[magnitude < 10]
    assert magnitude.max() == 10
    assert abs(np.mean(magnitude == 10) - 0.0228) < 0.008  # two deviations above 9
    np.testing.assert_allclose(np.quantile(magnitude, [0.1587, 0.5]), [8.5, 9.0], atol=0.04)
    assert below.min() < 7.7
    assert abs(np.corrcoef(magnitude.T)[0, 1]) < 0.05
    wide = drawn(5.0, 50.0)[1]
    assert (wide.min(), wide.max()) == (0, 10)
    np.testing.assert_array_equal(drawn(7.0, 0.0)[1], 7.0)
    shapes = jax.eval_shape(lambda: randaugment.sample(jax.random.key(0), 9.0, 0.5, 3))
    assert {x.shape for x in shapes} == {(3,)}


# The whole


@functools.cache
def jitted(**options):
    """`augment` with these options on images of the mean colour 124, 116, 103, unnormalised."""
    chosen = config.base().data.augmentation
    chosen.update(options)
    mean, std = np.array(FILL) / 255, np.array([0.25, 0.3, 0.35])

    @jax.jit
    def augment(images, key):
        labels = jnp.zeros(len(images), jnp.int32)
        result, _ = augmentation.augment(images, labels, key, chosen, mean, std, 2)
        return (result * std + mean) * 255

    return augment


def test_layers_are_made_one_after_the_other():
    """`randaugment` is the drawn operations one by one, in PIL; half of them are left out."""
    image = images(18, 17, 3)["smooth"]
    keys = jax.random.split(jax.random.key(1), 300)
    run = jax.jit(jax.vmap(lambda k: randaugment.randaugment(image, k, 9.0, 0.5, 2, FILL)))
    results, draws = np.asarray(run(keys)), [np.asarray(x) for x in sample(keys, 9.0, 0.5)]
    amounts = np.asarray(argument(*(x.ravel() for x in draws[:3]))).reshape(-1, 2)
    close = []
    for result, *layers in list(zip(results, draws[0], amounts, draws[3], strict=True))[:80]:
        expected = to_pil(image)
        for operation, amount, applies in zip(*layers, strict=True):
            if applies:
                expected = in_pil(OPERATIONS[operation], expected, float(amount))
        # A level off in the first layer may cross a threshold in the second.
        close.append(np.mean(np.abs(result - from_pil(expected)) <= 2))
    assert np.mean(np.array(close) > 0.98) > 0.95
    applied = draws[3]
    changed = (results != image).any((1, 2, 3))
    assert not changed[~applied.any(1)].any()
    assert abs(np.mean(changed) - 0.75) < 0.1
    assert changed[applied.any(1)].mean() > 0.9


JITTER = {"jitter": (0.4, 0.4, 0.4, 0.1), "randaugment": 9.0}


def test_an_example_depends_on_its_row_and_key_alone():
    batch, others = noise(12, 8, 8, 3), noise(12, 8, 8, 3, seed=1)
    others[5] = batch[5]
    run, key = jitted(**JITTER), jax.random.key(2)
    first = np.asarray(run(batch, key))
    np.testing.assert_array_equal(first, run(batch, key))
    np.testing.assert_array_equal(first[5], np.asarray(run(others, key))[5])
    assert not np.array_equal(first, run(batch, jax.random.key(3)))
    same = run(np.repeat(batch[:1], 12, 0), key)
    assert len(np.unique(np.asarray(same), axis=0)) > 5


def test_results_are_grey_levels_after_jitter_too():
    result = np.asarray(jitted(**JITTER)(noise(12, 8, 8, 3), jax.random.key(0)))
    np.testing.assert_allclose(result, np.round(result), atol=1e-3)
    assert result.min() > -1e-3
    assert result.max() < 255 + 1e-3


def test_both_come_last_and_what_the_other_changes_draw_stays():
    """Erasing comes after RandAugment: its noise is not rounded to grey levels."""
    batch, key = noise(64, 8, 8, 3), jax.random.key(0)
    before = np.round(jitted(crop="pad", pad=1, flip=0.5)(batch, key))
    run = jitted(crop="pad", pad=1, flip=0.5, randaugment=9.0, erasing=1.0)
    after = np.asarray(run(batch, key))
    noisy = (np.abs(after - np.round(after)) > 1e-3).any(-1)  # (64, 8, 8)
    rows, columns = noisy.any(2), noisy.any(1)
    np.testing.assert_array_equal(noisy, rows[:, :, None] & columns[:, None])
    assert noisy.any((1, 2)).all()
    same = (before == np.round(after)).all(-1) | noisy
    # As many as no layer changes, and few more; other crops or flips would leave none.
    assert 0.15 < same.all((1, 2)).mean() < 0.5


def test_no_key_is_used_twice():
    key = jax.random.fold_in(jax.random.key(0), 3)
    names = ("RANDAUGMENT", "ERASING", "THREE_AUGMENT", "BLUR", "JITTERED")
    new = [jax.random.fold_in(key, getattr(augmentation, name)) for name in names]
    keys = [*new, *jax.random.split(key, 4)]
    assert len({jax.random.key_data(k).tobytes() for k in keys}) == 9


def test_the_recipe_of_imagenet_has_it_on():
    a = configfile.load("configs/imagenet28.py:pit-b").data.augmentation
    assert (a.randaugment, a.randaugment_std, a.randaugment_layers) == (9.0, 0.5, 2)
    assert a.erasing == 0.0
