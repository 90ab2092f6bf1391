"""Resizing on the host, against PIL, and boxes against what torchvision promises."""

import numpy as np
import pytest
from PIL import Image

from pit_jax import configfile
from pit_jax.data import pipeline, resize, sources

from .images import noise, to_pil


@pytest.fixture(params=["fast_image_resize", "PIL"])
def apart(request, monkeypatch) -> int:
    """Resizes by either; the grey levels that the result may be away from PIL's own."""
    if request.param == "PIL":
        monkeypatch.setattr(resize, "fast", None)
        return 0
    pytest.importorskip("cykooz_resizer", reason="there is no wheel for this machine")
    return 1


def grey_noise(*shape: int) -> np.ndarray:
    """Noise that no filter takes beyond black or white, where the order of passes matters."""
    return 96 + noise(*shape) // 4


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (33, 32), (8, 8), (5, 9), (480, 70)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("keep", "short"), [(1.0, 16), (0.875, 18)])
def test_center_crop_is_pils_resize_and_the_middle(shape, channels, keep, short, apart):
    image = grey_noise(*shape, channels)
    found = resize.resize_center_crop(image, 16, keep)
    assert found.shape == (16, 16, channels)
    scale = short / min(shape)
    height, width = round(shape[0] * scale), round(shape[1] * scale)
    expected = np.asarray(to_pil(image).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - 16) // 2, (width - 16) // 2
    expected = expected[top : top + 16, left : left + 16].reshape(found.shape)
    assert np.abs(found.astype(int) - expected).max() <= apart


def as_adm(image: Image.Image, size: int) -> np.ndarray:
    """What public DiT and ADM make of an image, step by step."""
    width, height = image.size
    while min(width, height) // size >= 2:
        width, height = width // 2, height // 2
        image = image.resize((width, height), Image.Resampling.BOX)
    scale = size / min(width, height)
    width, height = round(width * scale), round(height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(64, 70), (31, 40), (130, 97), (257, 301), (16, 16), (40, 500)])
def test_halving_is_public_dits_to_the_bit(shape, channels):
    image = noise(*shape, channels)
    view = resize.center_view(shape, 16, halve=True)
    assert len(view.halved) == int(np.log2(min(shape) / 16))
    np.testing.assert_array_equal(view.of(image).squeeze(), as_adm(to_pil(image), 16))
    plain = resize.resize_center_crop(image, 16)
    if view.halved:  # and another image than without, at full scale whatever a JPEG could save
        assert np.abs(view.of(image).astype(int) - plain).max() > 8
        assert view.scale() == 1


def test_the_recipes_of_public_dit_halve(tiny):
    for spec in ("configs/imagenet256_latent.py:images", "configs/imagenet64_pixels.py"):
        assert configfile.load(spec).data.halve
    tiny.data.update(image_size=8, halve=True)
    reader = pipeline.Reader(sources.Digits("test"), tiny.data, train=False)
    assert reader.chooser()((40, 60)) == resize.center_view((40, 60), 8, halve=True)


def test_depths_follow_an_image_that_was_halved():
    values = np.arange(64.0).reshape(8, 8)
    np.testing.assert_array_equal(
        resize.center_view((8, 8), 2, halve=True).nearest(values),
        resize.center_view((8, 8), 2).nearest(values),
    )


def test_224_of_256_pixels_is_an_eighth_left_out():
    """The evaluation that published ImageNet figures are of."""
    view = resize.center_view((375, 500), 224, 0.875)
    assert view.resized == (341, 256)
    assert view.cut == (58, 16)


def random_view(shape, size: int, seed: int, interpolation: str = "bicubic"):
    rng = np.random.default_rng(seed)
    return resize.random_view(shape, size, rng, (0.2, 1.0), (0.75, 1.3), interpolation)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_random_crop_is_cut_out_and_then_resized(interpolation, channels, apart):
    """So that no filter sees what lies beyond the box, as in torchvision."""
    image = grey_noise(60, 80, channels)
    view = random_view((60, 80), 24, 3, interpolation)
    cut = to_pil(image).crop(view.box)
    expected = cut.resize((24, 24), Image.Resampling[interpolation.upper()])
    found = view.of(image)
    assert found.shape == (24, 24, channels)
    assert np.abs(found.astype(int) - np.asarray(expected).reshape(found.shape)).max() <= apart


def test_an_image_of_the_models_size_stays_what_it_is():
    image = noise(24, 24, 3)
    np.testing.assert_array_equal(resize.resize_center_crop(image, 24), image)


@pytest.mark.parametrize(
    ("side", "scale"), [(55, 1), (56, 2), (111, 2), (112, 4), (223, 4), (224, 8), (900, 8)]
)
def test_the_scale_leaves_twice_the_wanted_size(side, scale):
    wide = resize.View((3, 5, 3 + 4 * side, 5 + side), (14, 14), (0, 0), 14, "bicubic")
    assert wide.scale() == scale
    tall = resize.View((0, 0, side, 9 * side), (14, 14), (0, 0), 14, "bicubic")
    assert tall.scale() == wide.scale()


def test_random_boxes_keep_to_area_and_ratio():
    rng = np.random.default_rng(0)
    boxes = [resize._random_box((100, 80), rng, (0.2, 1.0), (0.75, 4 / 3)) for _ in range(500)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 100 - height
        assert 0 <= left <= 80 - width
        assert 0.19 <= height * width / 8000 <= 1
        assert 0.7 <= width / height <= 1.4
    assert np.std([height * width for _, _, height, width in boxes]) > 500


def test_an_image_too_narrow_for_any_box_falls_back_to_the_centre():
    rng = np.random.default_rng(0)
    box = resize._random_box((100, 10), rng, (1.0, 1.0), (1.0, 1.0))
    assert box == (45, 0, 10, 10)


def test_the_same_generator_gives_the_same_crop():
    assert random_view((40, 40), 8, 5) == random_view((40, 40), 8, 5)
    assert random_view((40, 40), 8, 5).box != random_view((40, 40), 8, 6).box
