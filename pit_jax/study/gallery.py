"""The pictures of compared runs, as a page takes them into itself."""

import base64
import io
import warnings
from typing import Any

from etils import epath
from PIL import Image

from pit_jax.study.collect import Run
from pit_jax.study.compare import Comparison

_LARGEST_SIDE = 1400  # pixels of a picture
_SMALL_SIDE = 200  # up to this pixels are drawn larger, with sharp edges
_LARGEST_FILE = 400_000  # bytes of a picture as it is taken over
_ALL_PICTURES = 8_000_000  # bytes
_MOST_PIXELS = 50_000_000  # of a picture: a small file may unpack to more than the memory


def pictures(comparison: Comparison) -> tuple[list[dict[str, Any]], list[str]]:
    """[{"name", "shown": [...]}] of each kind of picture, one a group; and what was left out."""
    names = dict.fromkeys(n for run in comparison.runs for n in run.pictures)
    found, dropped, total = [], [], 0
    for name in names:
        shown = []
        for entry in comparison.entries:
            run = next((run for run in entry.group.runs if name in run.pictures), None)
            if run is None:
                continue
            try:
                png, size = _png(run.pictures[name])
            except (OSError, ValueError, SyntaxError):  # PIL's words for a broken file
                dropped.append(f"{run.pictures[name].name} of {run.called} cannot be read")
                continue
            if total + len(png) > _ALL_PICTURES:
                dropped.append(f"{run.pictures[name].name} of {run.called}: the report is full")
                continue
            total += len(png)
            shown.append(_shown(entry.label, name, run, png, size))
        if shown:
            small = all(max(one["size"]) <= _SMALL_SIDE for one in shown)
            found.append({"name": _plain(name), "shown": shown, "small": small})
    return found, dropped


def _shown(label: str, name: str, run: Run, png: bytes, size: tuple[int, int]) -> dict[str, Any]:
    step = run.pictures[name].name.removesuffix(".png").rpartition("-")[2]
    return {
        "label": label,
        "alt": f"{_plain(name)} of {label}, seed {run.seed}, step {step}",
        "caption": f"{label}, seed {run.seed}, step {step}",
        "uri": f"data:image/png;base64,{base64.b64encode(png).decode()}",
        "size": size,
    }


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _png(file: epath.Path) -> tuple[bytes, tuple[int, int]]:
    """The bytes of a picture, made smaller where it is large."""
    content = file.read_bytes()
    with _opened(content) as image:
        image.load()
        if max(image.size) <= _LARGEST_SIDE and len(content) <= _LARGEST_FILE:
            return content, image.size
        smaller = image.convert("RGB")
        smaller.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
        output = io.BytesIO()
        smaller.save(output, "png", optimize=True)
        return output.getvalue(), smaller.size


def _opened(content: bytes) -> Image.Image:
    """Raises ValueError for a picture that is too large to be unpacked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    if image.size[0] * image.size[1] > _MOST_PIXELS:
        raise ValueError("too large")
    return image
