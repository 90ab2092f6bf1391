"""From the bytes of an image file to pixels.

JPEGs go to libjpeg-turbo, which simplejpeg brings along. Where only a small view of an image
is wanted it decodes at 1/2, 1/4 or 1/8 of the size, which is an inverse transform of fewer
coefficients (a block of 8×8 becomes 4×4, 2×2 or 1×1), and so less of everything but the entropy
decoding. All other files go to PIL: what is no JPEG by its first bytes, whatever its name says
(ImageNet holds a PNG called .JPEG), CMYK (ImageNet holds 22), and each JPEG that libjpeg-turbo
complains of. So PIL alone decides what is broken, at any scale.

Of a PNG PIL is handed nothing but what makes its pixels: it refuses whole images for the sake
of a text or a colour profile that is large or damaged, and looks at no checksum of the pixels.

Levels of 16 bits become their high byte: 16-bit RGB is that in PIL, and grey in OpenCV and in
TensorFlow's decode_png. Of 32 bits and of floats no range is known; they are refused.
"""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image

from pit_jax.data.resize import View

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_BITS_PER_SAMPLE = 258  # TIFF's tag


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
      Undecodable: if the file is broken, far too large to be meant, or has levels of a range
        that nobody knows.
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
    with opened(data) as image:
        return image.format or "unknown format"


def opened(data: bytes) -> Image.Image:
    """An image file as PIL opens it; see the head of this file about PNGs."""
    return Image.open(io.BytesIO(_pixels_of_png(data) if data[:8] == _PNG else data))


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
        with opened(data) as image:
            return as_channels(image, channels)
    except (
        *(OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error),  # PIL's readers'
        Image.DecompressionBombError,
    ) as error:
        reason = str(error).partition(": <")[0].partition(" <")[0].partition(" '")[0]
        raise Undecodable(reason or type(error).__name__) from None


def as_channels(image: Image.Image, channels: int) -> np.ndarray:
    """A PIL image of any mode as (H, W, channels) uint8; transparency becomes white.

    Raises:
      Undecodable: if nobody knows which of its levels is white.
    """
    image = _of_eight_bits(image)
    if image.mode in ("La", "RGBa"):  # colours multiplied by their opacity
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    array = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return array.reshape(*array.shape[:2], channels)


def _of_eight_bits(image: Image.Image) -> Image.Image:
    """The image itself, or of levels of up to 16 bits their highest eight: "L", or "LA"."""
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not wide:
        kind = "floats" if image.mode == "F" else "32-bit integers"
        raise Undecodable(f"its levels are {kind}, of no known range: save it with 8 or 16 bits")
    if not wide:
        return image
    levels = np.asarray(image)
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]  # a TIFF may have 12
    grey = Image.fromarray((levels >> (bits - 8)).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    return grey


def _pixels_of_png(data: bytes) -> bytes:
    """A PNG without the chunks that make no pixel; the checksums of the others hold.

    Raises:
      Undecodable: if they do not, or the file is no row of chunks.
    """
    kept, at, grey_bits, clear_is_lost = [_PNG], len(_PNG), 0, False
    while len(data) - at >= 8:
        length, name = struct.unpack(">I4s", data[at : at + 8])
        end = at + length + 12
        if not name.isalpha():
            raise Undecodable(f"broken PNG file: byte {at:,} begins no chunk")
        if name[:1].isupper() or name == b"tRNS":  # critical, or says which colour is clear
            chunk = data[at:end]
            if len(chunk) < length + 12:
                raise Undecodable("PNG file is truncated")
            if struct.pack(">I", zlib.crc32(chunk[4:-4])) != chunk[-4:]:
                raise Undecodable(f"broken PNG file: {name.decode()} differs from its checksum")
            if name == b"IHDR" and length == 13:
                depth, colour = chunk[16], chunk[17]
                grey_bits = depth if colour == 0 else 0
                clear_is_lost = depth == 16 and colour == 2  # PIL drops the lower bytes
            if name == b"tRNS" and clear_is_lost:
                raise Undecodable("16-bit colours of which one is transparent are not read")
            if name == b"tRNS" and grey_bits in (2, 4):  # whose levels PIL spreads, but not this
                level = struct.unpack(">H", chunk[8:10])[0] * 255 // (2**grey_bits - 1)
                chunk = _chunk(name, struct.pack(">H", level))
            kept.append(chunk)
        at = end
        if name == b"IEND":
            break
    return b"".join(kept)


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I4s", len(content), name) + content + struct.pack(">I", checksum)
