"""Pixels of image files against PIL's, at full size and scaled, and what is broken."""

import io

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
