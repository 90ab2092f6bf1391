"""Resizing on the host, against PIL, and boxes against what torchvision promises."""

import numpy as np
import pytest
from PIL import Image

from pit_jax.data import resize


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (33, 32), (8, 8), (5, 9)])
@pytest.mark.parametrize("channels", [1, 3])
def test_center_crop_is_pils_resize_and_the_middle(shape, channels):
    image = noise(*shape, channels)
    found = resize.resize_center_crop(image, 16)
    assert found.shape == (16, 16, channels)
    scale = 16 / min(shape)
    height, width = round(shape[0] * scale), round(shape[1] * scale)
    picture = Image.fromarray(image.squeeze() if channels == 1 else image)
    expected = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - 16) // 2, (width - 16) // 2
    expected = expected[top : top + 16, left : left + 16].reshape(found.shape)
    np.testing.assert_array_equal(found, expected)


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
    crops = [
        resize.random_resized_crop(
            noise(40, 40), 8, np.random.default_rng(5), (0.2, 1.0), (0.75, 1.3)
        )
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*crops)
