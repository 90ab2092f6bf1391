"""From the bytes of an image file to pixels.

JPEGs go to libjpeg-turbo, which simplejpeg brings along. Where only a small view of an image
is wanted it decodes at 1/2, 1/4 or 1/8 of the size, which is an inverse transform of fewer
coefficients (a block of 8×8 becomes 4×4, 2×2 or 1×1), and so less of everything but the entropy
decoding. All other files go to PIL: what is no JPEG by its first bytes, whatever its name says
(ImageNet holds a PNG called .JPEG), CMYK (ImageNet holds 22), and each JPEG that libjpeg-turbo
complains of. So PIL alone decides what is broken, at any scale.
"""

import io
import struct
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image

from pit_jax.data.resize import View

_JPEG = b"\xff\xd8\xff"


class Undecodable(ValueError):
    """The bytes are no image, or not a whole one; the text says why."""


def decode(
    data: bytes, channels: int, choose: Callable[[tuple[int, int]], View] | None = None
) -> np.ndarray:
    """An image file's pixels, or a view of them.

    Args:
      data: the file's bytes, of any format that PIL reads.
      channels: 1 or 3; transparency becomes white.
      choose: the view of an image of (H, W), given before anything is decoded; called again
        where the first attempt fails, and has to give the same. None: all pixels.

    Returns:
      (H, W, channels) uint8, or of the view's size.

    Raises:
      Undecodable: if the file is broken, or far too large to be meant.
    """
    if data[:3] == _JPEG:
        try:
            return _jpeg(data, channels, choose)
        except _Unsuited:
            pass
    image = _any(data, channels)
    return choose(image.shape[:2]).of(image) if choose else image


def kind(data: bytes) -> str:
    """What an image file is by its bytes: "JPEG", "greyscale JPEG", "CMYK JPEG", "PNG", ..."""
    if data[:3] == _JPEG:
        try:
            colours = simplejpeg.decode_jpeg_header(data)[2]
        except ValueError:
            return "JPEG"
        names = {"Gray": "greyscale JPEG", "CMYK": "CMYK JPEG", "YCCK": "CMYK JPEG"}
        return names.get(colours, "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        return image.format or "unknown format"


class _Unsuited(Exception):
    """A JPEG for PIL."""


def _jpeg(
    data: bytes, channels: int, choose: Callable[[tuple[int, int]], View] | None
) -> np.ndarray:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise _Unsuited from error
    limit = Image.MAX_IMAGE_PIXELS
    if colours in ("CMYK", "YCCK") or (limit and height * width > limit):
        raise _Unsuited  # PIL knows Adobe's inverted inks, and refuses what would fill the memory
    view = choose((height, width)) if choose else None
    scale = view.scale() if view else 1
    try:
        # Strict: also of a warning such as a premature end, so that no grey rest is learned.
        image = simplejpeg.decode_jpeg(
            data,
            "GRAY" if colours == "Gray" and channels == 1 else "RGB",
            min_height=-(-height // scale),
            min_width=-(-width // scale),
            min_factor=scale,
        )
    except ValueError as error:
        raise _Unsuited from error
    if image.shape[-1] != channels:
        image = as_channels(Image.fromarray(image), channels)
    return view.of(image, scale) if view else image


def _any(data: bytes, channels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return as_channels(image, channels)
    except (
        *(OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error),  # PIL's readers'
        Image.DecompressionBombError,
    ) as error:
        reason = str(error).partition(": <")[0].partition(" <")[0].partition(" '")[0]
        raise Undecodable(reason or type(error).__name__) from None


def as_channels(image: Image.Image, channels: int) -> np.ndarray:
    """A PIL image of any mode as (H, W, channels) uint8; transparency becomes white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    array = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return array.reshape(*array.shape[:2], channels)
