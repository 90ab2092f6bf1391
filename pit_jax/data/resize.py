"""Bringing images to the model's size on the host, with PIL."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_ATTEMPTS = 10  # torchvision's, before it falls back to a centre crop


def resize_center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The shorter side becomes `size` (antialiased bicubic), then the centre is cut out.

    Args:
      image: (H, W, C) uint8.

    Returns:
      (size, size, C) uint8.
    """
    height, width = image.shape[:2]
    scale = size / min(height, width)
    new_height, new_width = max(size, round(height * scale)), max(size, round(width * scale))
    resized = _resize(image, new_width, new_height, "bicubic")
    top, left = (new_height - size) // 2, (new_width - size) // 2
    return resized[top : top + size, left : left + size]


def random_resized_crop(
    image: np.ndarray,
    size: int,
    generator: np.random.Generator,
    scale: Sequence[float],
    ratio: Sequence[float],
    interpolation: str = "bicubic",
) -> np.ndarray:
    """torchvision's RandomResizedCrop, taken from the whole image.

    Args:
      image: (H, W, C) uint8.
      size: side of the result, pixels.
      generator: decides the box.
      scale: range of the box's share of the image area.
      ratio: range of its width / height, drawn log-uniformly.
      interpolation: "bilinear" or "bicubic", antialiased.

    Returns:
      (size, size, C) uint8.
    """
    top, left, height, width = _random_box(image.shape[:2], generator, scale, ratio)
    return _resize(image[top : top + height, left : left + width], size, size, interpolation)


def _random_box(
    shape: Sequence[int],
    generator: np.random.Generator,
    scale: Sequence[float],
    ratio: Sequence[float],
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random box inside an image of (H, W)."""
    image_height, image_width = shape
    for _ in range(_ATTEMPTS):
        area = image_height * image_width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= image_width and 0 < height <= image_height:
            top = int(generator.integers(0, image_height - height + 1))
            left = int(generator.integers(0, image_width - width + 1))
            return top, left, height, width
    # The largest centred box of an allowed aspect.
    aspect = min(max(image_width / image_height, ratio[0]), ratio[1])
    width = min(image_width, round(image_height * aspect))
    height = min(image_height, round(image_width / aspect))
    return (image_height - height) // 2, (image_width - width) // 2, height, width


def _resize(image: np.ndarray, width: int, height: int, interpolation: str) -> np.ndarray:
    channels = image.shape[2]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    resized = np.asarray(picture.resize((width, height), _FILTERS[interpolation]))
    return resized.reshape(height, width, channels)
