"""Bringing images to the model's size on the host.

The filters are PIL's, computed by fast_image_resize (the package cykooz-resizer), which takes
a quarter of PIL's time. Both round to whole grey levels between the two passes, but take these
in another order: bilinear is within one level, bicubic too but where it overshoots black or
white. Where there is no wheel of it, as on 64-bit ARM under Linux, PIL itself does it.

A `View` is what of an image becomes the model's image. It is chosen from the image's size
alone, so that a JPEG may be decoded at the scale the view needs.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

try:
    import cykooz_resizer as fast
except ImportError:
    fast = None

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_FILTERS |= {"box": Image.Resampling.BOX}
_ATTEMPTS = 10  # torchvision's, before it falls back to a centre crop

# An image may be decoded at a scale that leaves its view this many times the wanted size or
# more, as PIL's own `thumbnail` does. On photographs the result is within 2 grey levels of the
# full decode's in the mean; at 1 it would be within 5, at 3 within 1 for half of the gain.
_GAP = 2
_SCALES = (8, 4, 2)


@dataclasses.dataclass(frozen=True)
class View:
    """A box of an image is resized with antialiasing, and a square is cut out of the result.

    With `pad` the result is mirrored at its border before, and the square may reach there.

    Attributes:
      box: (left, top, right, bottom), pixels of the whole image.
      resized: (width, height) that the box is brought to, pixels.
      cut: (left, top) of the square in that, pixels, not below −pad.
      size: side of the square, pixels.
      interpolation: "bilinear" or "bicubic".
      pad: pixels mirrored around the resized box, fewer than its sides have.
      halved: the whole image's (width, height) after each halving that comes before all else,
        the box being of the last, and PIL itself does all of it; None: no halving is asked for.
    """

    box: tuple[int, int, int, int]
    resized: tuple[int, int]
    cut: tuple[int, int]
    size: int
    interpolation: str
    pad: int = 0
    halved: tuple[tuple[int, int], ...] | None = None

    def scale(self) -> int:
        """8, 4, 2 or 1: the image may be decoded to this fraction of its size."""
        if self.halved:
            return 1  # libjpeg-turbo's halves are nearly, not exactly, these
        left, top, right, bottom = self.box
        width, height = self.resized
        shrinking = min((right - left) / width, (bottom - top) / height)
        return next((n for n in _SCALES if shrinking >= n * _GAP), 1)

    def of(self, image: np.ndarray, scale: int = 1) -> np.ndarray:
        """The view of an image that was decoded to 1 / scale of its size.

        Args:
          image: (ceil(H / scale), ceil(W / scale), C) uint8.

        Returns:
          (size, size, C) uint8.
        """
        for size in self.halved or ():
            height, width = image.shape[:2]
            image = _resize_with_pil(image, size, "box", (0, 0, width, height))
        left, top, right, bottom = (side / scale for side in self.box)
        # What lies beyond the box is cut off first: no filter sees it.
        row, column = math.floor(top), math.floor(left)
        image = image[row : math.ceil(bottom), column : math.ceil(right)]
        if self.resized != (right - left, bottom - top):
            box = (left - column, top - row, right - column, bottom - row)
            image = (_resize if fast and self.halved is None else _resize_with_pil)(
                image, self.resized, self.interpolation, box
            )
        return self.square(image)

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """The view of numbers that must not be mixed with their neighbours, as depth: each
        place takes that of the pixel its centre falls into.

        Args:
          values: (H, W) of the whole image, not padded.

        Returns:
          (size, size).
        """
        left, top, right, bottom = self.box
        width, height = self.resized
        at = np.arange(self.size) + 0.5
        rows = top + (at + self.cut[1]) * (bottom - top) / height
        columns = left + (at + self.cut[0]) * (right - left) / width
        if self.halved:  # the box is of what was halved
            rows, columns = rows * len(values) / bottom, columns * values.shape[1] / right
        return values[np.ix_(rows.astype(int), columns.astype(int))]

    def square(self, resized: np.ndarray) -> np.ndarray:
        """(size, size, C) of the resized box."""
        if self.pad:
            border = (self.pad, self.pad)
            resized = np.pad(resized, (border, border, (0, 0)), mode="reflect")
        left, top = (side + self.pad for side in self.cut)
        return resized[top : top + self.size, left : left + self.size]


def center_view(shape: tuple[int, int], size: int, keep: float = 1.0, halve: bool = False) -> View:
    """The shorter side becomes `size` / `keep` (antialiased bicubic), then the centre is cut out.

    Args:
      shape: (H, W) of the image.
      size: side of the result, pixels.
      keep: share of the shorter side that is cut out, e.g. 0.875 for 224 of 256 pixels.
      halve: the image's sides are halved (PIL's box filter) as long as the shorter one stays as
        long as it has to become, as public DiT's `center_crop_arr` and ADM's do.
    """
    height, width = shape
    short = round(size / keep)
    halved = []
    while halve and min(height, width) >= 2 * short:
        height, width = height // 2, width // 2
        halved.append((width, height))
    scale = short / min(height, width)
    resized = max(short, round(width * scale)), max(short, round(height * scale))
    cut = (resized[0] - size) // 2, (resized[1] - size) // 2
    return View(
        (0, 0, width, height),
        resized,
        cut,
        size,
        "bicubic",
        halved=tuple(halved) if halve else None,
    )


def whole_view(shape: tuple[int, int], size: int) -> View:
    """The whole image squeezed into a square of `size` (antialiased bicubic)."""
    height, width = shape
    return View((0, 0, width, height), (size, size), (0, 0), size, "bicubic")


def random_view(
    shape: tuple[int, int],
    size: int,
    generator: np.random.Generator,
    scale: Sequence[float],
    ratio: Sequence[float],
    interpolation: str = "bicubic",
) -> View:
    """torchvision's RandomResizedCrop, taken from the whole image.

    Args:
      shape: (H, W) of the image.
      size: side of the result, pixels.
      generator: decides the box.
      scale: range of the box's share of the image area.
      ratio: range of its width / height, drawn log-uniformly.
      interpolation: "bilinear" or "bicubic", antialiased.
    """
    top, left, height, width = _random_box(shape, generator, scale, ratio)
    box = (left, top, left + width, top + height)
    return View(box, (size, size), (0, 0), size, interpolation)


def simple_view(
    shape: tuple[int, int], size: int, generator: np.random.Generator, pad: int
) -> View:
    """The simple random crop of DeiT III (Touvron et al. 2022): a square of the resized image.

    The shorter side becomes `size` (antialiased bicubic), `pad` pixels are mirrored around the
    result, and a square of `size` is cut out anywhere in that. torchvision rounds the longer
    side down, `center_view` to the nearest pixel.

    Args:
      shape: (H, W) of the image.
      generator: decides the place.
      pad: pixels, fewer than `size`.
    """
    view = center_view(shape, size)
    left, top = (int(generator.integers(-pad, side - size + pad + 1)) for side in view.resized)
    return dataclasses.replace(view, cut=(left, top), pad=pad)


def resize_center_crop(image: np.ndarray, size: int, keep: float = 1.0) -> np.ndarray:
    """`center_view` of an image: (H, W, C) uint8 → (size, size, C) uint8."""
    return center_view(image.shape[:2], size, keep).of(image)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _resize(image: np.ndarray, size: tuple[int, int], interpolation: str, box: Box) -> np.ndarray:
    """A box of (H, W, C) uint8, C 1 or 3, as (height, width, C) of `size` = (width, height)."""
    kind = {1: fast.PixelType.U8, 3: fast.PixelType.U8x3}[image.shape[2]]
    like = {"bilinear": fast.FilterType.bilinear, "bicubic": fast.FilterType.catmull_rom}
    left, top, right, bottom = box
    options = fast.ResizeOptions(
        fast.ResizeAlg.convolution(like[interpolation]),
        use_alpha=False,
        crop_box=fast.CropBox(left, top, right - left, bottom - top),
    )
    height, width = image.shape[:2]
    source = fast.ImageData(width, height, kind, image.tobytes())
    found = fast.ImageData(*size, kind)
    fast.Resizer().resize(source, found, options)
    return np.frombuffer(found.get_buffer(), np.uint8).reshape(*reversed(size), image.shape[2])


def _resize_with_pil(
    image: np.ndarray, size: tuple[int, int], interpolation: str, box: Box
) -> np.ndarray:
    """What `_resize` does."""
    channels = image.shape[2]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    picture = picture.resize(size, _FILTERS[interpolation], box=box)
    return np.asarray(picture).reshape(*reversed(size), channels)


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
