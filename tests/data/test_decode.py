"""Pixels of image files against PIL's, at full size and scaled, and what is broken."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image
from skimage import data as photographs
from sklearn.datasets import load_sample_images

from pit_jax.data import decode as module
from pit_jax.data.decode import Undecodable, decode
from pit_jax.data.resize import View, center_view


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """427×640, 427×640, 512×512 and 400×600."""
    return [*load_sample_images().images, photographs.astronaut(), photographs.coffee()]


def encode(image: np.ndarray, form: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, form, **options)
    return file.getvalue()


def by_pil(data: bytes, channels: int = 3) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        array = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return array.reshape(*array.shape[:2], channels)


@pytest.fixture
def without_pil(monkeypatch):
    """Decoding fails where it would fall back to PIL."""
    monkeypatch.setattr(module, "_any", lambda data, channels: pytest.fail("PIL decoded"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:2:0"},
        {"subsampling": "4:2:2", "quality": 50},
        {"subsampling": "4:4:4", "quality": 98},
        {"progressive": True},
        {"mode": "L"},
        {"keep_rgb": True},
    ],
)
@pytest.mark.usefixtures("without_pil")
def test_jpegs_are_pils_to_a_grey_level(photos, options, channels):
    data = encode(photos[0][:101, :75], **options)
    difference = decode(data, channels).astype(int) - by_pil(data, channels)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "BMP"])
def test_other_formats_are_known_by_their_bytes(photos, form):
    data = encode(photos[0][:40, :30], form)
    np.testing.assert_array_equal(decode(data, 3), by_pil(data))


def test_cmyk_is_read_as_pil_reads_it(photos):
    """With Adobe's marker inks are kept inverted, which ImageNet's 22 such files are."""
    data = encode(photos[0][:40, :30], mode="CMYK")
    assert simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK")
    np.testing.assert_array_equal(decode(data, 3), by_pil(data))


def crop(rng: np.random.Generator, shape: tuple[int, int], side: int, size: int, how: str) -> View:
    top, left = (int(rng.integers(0, n - side + 1)) for n in shape)
    return View((left, top, left + side, top + side), (size, size), (0, 0), size, how)


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("quality", [75, 98])
@pytest.mark.usefixtures("without_pil")
def test_scaled_decoding_is_close_to_the_whole(photos, scale, quality, monkeypatch):
    """At the smallest box that is decoded at this scale, where the two are farthest apart."""
    decoded = []
    real = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda *a, **k: decoded.append(real(*a, **k)) or decoded[-1]
    )
    rng = np.random.default_rng(scale)
    size = 24 if scale == 8 else 28
    apart, squares = [], []
    for photo in photos:
        data = encode(photo, quality=quality)
        whole = by_pil(data)
        for how in ("bicubic", "bilinear"):
            view = crop(rng, photo.shape[:2], 2 * scale * size, size, how)
            assert view.scale() == scale
            found = decode(data, 3, lambda shape, view=view: view)
            assert decoded[-1].shape[:2] == tuple(-(-n // scale) for n in photo.shape[:2])
            left, top, right, bottom = view.box
            kind = Image.Resampling[how.upper()]
            cut = Image.fromarray(whole[top:bottom, left:right]).resize((size, size), kind)
            difference = found.astype(float) - np.asarray(cut)
            apart.append(np.abs(difference).mean())
            squares.append(np.square(difference).mean())
    assert np.max(apart) < 2  # grey levels
    assert 10 * np.log10(255**2 / np.max(squares)) > 37  # dB


@pytest.mark.parametrize("quality", [75, 98])
def test_a_centre_crop_is_close_to_the_whole(photos, quality):
    for photo in photos:
        data = encode(photo, quality=quality)
        found = decode(data, 3, lambda shape: center_view(shape, 64, 0.875))
        whole = center_view(photo.shape[:2], 64, 0.875).of(by_pil(data))
        assert 0 < np.abs(found.astype(int) - whole).mean() < 2


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.usefixtures("without_pil")
def test_scaled_places_are_where_they_were(scale):
    """A ramp: every output pixel shows which place of the image it is of, at any scale, also
    where the box begins within a scaled pixel and the image ends within one."""
    height, width, size, slope = 301, 461, 16, 0.43
    ramp = np.round(np.tile(slope * np.arange(width), (height, 1)))
    data = encode(np.repeat(ramp[..., None], 3, 2).astype(np.uint8), quality=100)
    side = (2 * scale if scale > 1 else 1) * size
    view = View((width - side, 5, width, 5 + side), (size, size), (0, 0), size, "bilinear")
    assert view.scale() == scale
    places = width - side + (np.arange(size) + 0.5) * side / size - 0.5
    error = decode(data, 3, lambda shape: view) / slope - places[:, None]  # pixels
    inner = error[:, 1:-1]  # at its ends a filter has less on one side
    assert abs(inner.mean()) < 0.4
    assert np.abs(inner).max() < 3


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.98])
@pytest.mark.parametrize("size", [8, 400])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_truncated_file_is_broken_at_any_scale(photos, keep, size, form):
    data = encode(photos[0], form)
    with pytest.raises(Undecodable, match=r"^[^\n]+$"):
        decode(data[: int(keep * len(data))], 3, lambda shape: center_view(shape, size))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"no picture", b"\x89PNG\r\n\x1a\n" * 3])
def test_what_is_no_image_says_so_in_one_line(data):
    with pytest.raises(Undecodable, match=r"^[^\n]+$") as caught:
        decode(data, 3)
    assert "0x" not in str(caught.value)


def test_what_pil_overlooks_is_overlooked(photos):
    """Bytes between segments: libjpeg-turbo warns, and PIL reads on. ImageNet has such files."""
    data = encode(photos[0][:64, :64])
    scan = data.index(b"\xff\xda")
    data = data[:scan] + b"\x00\x00\x00" + data[scan:]
    with pytest.raises(ValueError, match="xtraneous"):
        simplejpeg.decode_jpeg(data)
    np.testing.assert_array_equal(decode(data, 3), by_pil(data))


def test_a_header_that_would_fill_the_memory_is_refused(photos, monkeypatch):
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: pytest.fail("memory taken"))
    data = bytearray(encode(photos[0][:16, :16]))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\x00\xff\x00"  # 65280 × 65280 pixels
    with pytest.raises(Undecodable, match="exceeds limit"):
        decode(bytes(data), 3, lambda shape: center_view(shape, 8))


def test_damage_never_shows_as_anything_else(photos):
    data = encode(photos[0][:32, :32])
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(0, 256)
        try:
            assert decode(bytes(damaged), 3, lambda shape: center_view(shape, 8)).shape == (8, 8, 3)
        except Undecodable:
            broken += 1
    assert 0 < broken < 300


# Levels of 16 bits and more -----------------------------------------------------------------


def deep(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**16, shape, dtype=np.uint16)


def saved(array: np.ndarray, form: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
def test_levels_of_16_bits_are_opencvs(shape, channels):
    """OpenCV writes the file and reads it back in 8 bits; grey of colours is PIL's to a level."""
    data = cv2.imencode(".png", deep(*shape))[1].tobytes()
    wanted = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    if channels == 1:
        wanted = np.asarray(Image.fromarray(wanted).convert("L"))[..., None]
    found = decode(data, channels)
    np.testing.assert_array_equal(found, wanted)
    assert len(np.unique(found)) > 30


@pytest.mark.parametrize("form", ["PNG", "PPM", "TIFF", "TIFF, other byte order"])
def test_16_bits_become_their_high_byte_in_any_file(form):
    levels = deep(9, 7)
    if "order" in form:
        levels, file = levels.astype(">u2"), io.BytesIO()
        Image.frombytes("I;16B", (7, 9), levels.tobytes()).save(file, "TIFF")
        data = file.getvalue()
    else:
        data = saved(levels, form)
    for channels in (1, 3):
        found = decode(data, channels)
        np.testing.assert_array_equal(found, np.repeat((levels >> 8)[..., None], channels, 2))


@pytest.mark.parametrize("array", [np.full((5, 5), 0.5, np.float32), np.full((5, 5), 9, np.int32)])
def test_levels_of_no_known_range_are_refused(array):
    with pytest.raises(Undecodable, match="of no known range: save it with 8 or 16 bits"):
        decode(saved(array, "TIFF"), 1)


def png(depth: int, colour: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of rows of packed levels, with further chunks before the pixels."""
    width = 8 * len(rows[0]) // (depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour])
    header = struct.pack(">2I5B", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    found = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, *zip(*found, strict=True)))


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_level_of_grey_is_white_at_any_depth(depth):
    """Level 0 is the clear one, of levels 0 and the next highest."""
    bits = f"{0:0{depth}b}{2**depth - 2 if depth > 1 else 0:0{depth}b}" * 8
    row = int(bits, 2).to_bytes(len(bits) // 8, "big")
    data = png(depth, 0, [row], (b"tRNS", struct.pack(">H", 0)))
    darker = {1: 255, 2: 170, 4: 238, 8: 254, 16: 255}[depth]
    assert decode(data, 1)[0, :2, 0].tolist() == [255, darker]
    clear = struct.pack(">H", 2**depth - 2 if depth > 1 else 1)
    data = png(depth, 0, [row], (b"tRNS", clear))
    assert decode(data, 1)[0, :2, 0].tolist() == [0, 255 if depth > 1 else 0]


@pytest.mark.parametrize("colour", [4, 6])
def test_opacity_of_16_bits_blends_with_white(colour):
    levels = deep(5, 6, {4: 2, 6: 4}[colour])
    data = png(16, colour, [row.astype(">u2").tobytes() for row in levels])
    colours, opacity = levels[..., :-1] / 65535, levels[..., -1:] / 65535
    wanted = np.broadcast_to(255 * (colours * opacity + 1 - opacity), (5, 6, 3))
    assert np.abs(decode(data, 3) - wanted).max() < 2.5


def test_a_transparent_16_bit_colour_is_refused():
    """PIL keeps the high bytes alone: others of the same high bytes would turn white."""
    data = png(16, 2, [bytes(6 * 4)], (b"tRNS", bytes(6)))
    with pytest.raises(Undecodable, match="of which one is transparent"):
        decode(data, 3)


# What else a PNG holds ----------------------------------------------------------------------

ROWS = [bytes(range(24 * n, 24 * n + 24)) for n in range(4)]  # 8 × 4 pixels
DAMAGED = bytearray(chunk(b"tEXt", b"Comment\0words"))
DAMAGED[12] ^= 1


@pytest.mark.parametrize(
    "further",
    [
        chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"zTXt", b"key\0\7words"),
        chunk(b"tEXt", b"key\0" + b"w" * (1 << 20)) * 65,
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"iCCP", b"profile\0\7nothing"),
        chunk(b"iCCP", b"profile"),
        chunk(b"gAMA", b"\0"),
        chunk(b"pHYs", b""),
        chunk(b"acTL", b"") + chunk(b"fcTL", bytes(26)) + chunk(b"fcTL", bytes(26)),
        bytes(DAMAGED),
    ],
    ids=lambda further: f"{further[4:8].decode()}-{len(further)}",
)
@pytest.mark.parametrize("behind", [False, True])
def test_what_makes_no_pixel_breaks_no_png(further, behind):
    """Of each kind PIL refuses one at least, before the pixels or behind them."""
    whole = png(8, 2, ROWS)
    place = whole.index(b"IEND") - 4 if behind else whole.index(b"IDAT") - 4
    data = whole[:place] + further + whole[place:]
    np.testing.assert_array_equal(decode(data, 3), np.array(list(map(list, ROWS))).reshape(4, 8, 3))
    assert module.kind(data) == "PNG"
    if not behind:
        with pytest.raises((ValueError, SyntaxError, IndexError, OSError)):
            by_pil(data)


@pytest.mark.parametrize(("depth", "colour"), [(8, 2), (8, 0), (8, 3), (16, 0)])
def test_no_damaged_byte_of_a_png_changes_a_pixel(depth, colour):
    """PIL alone overlooks damage to pixels whose stream still ends well."""
    palette = [(b"PLTE", bytes(range(255, -1, -1)) * 3)] if colour == 3 else []
    more = (b"tRNS", b"\0\x10\0\x20") if colour == 3 else (b"tEXt", b"a\0b")
    data = png(depth, colour, [row[:6] for row in ROWS], *palette, more)
    whole, noticed = decode(data, 3), 0
    named = data.find(b"tRNS")  # by another name it is another chunk, and may be left out
    for place in set(range(len(data))) - set(range(named, named + 4)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        try:
            np.testing.assert_array_equal(decode(bytes(damaged), 3), whole, str(place))
        except Undecodable:
            noticed += 1
    assert 50 < noticed < len(data)
