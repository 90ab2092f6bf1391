"""`pit-jax bench --input-only`: what one core decodes, crops and resizes, beside PIL.

Both sides are given the bytes of the same files and take the same views of them, in turn, in
one thread: the config's own input, and PIL's whole decode, crop and resize. Time is the
thread's own on its core, since that is what more cores multiply.
"""

import collections
import datetime
import io
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pit_jax import configfile
from pit_jax.config import label
from pit_jax.data import resize, sources
from pit_jax.data.decode import Undecodable, as_channels, decode, opened
from pit_jax.data.pipeline import Reader
from pit_jax.data.prepared import NotPrepared
from pit_jax.errors import ConfigError
from pit_jax.perf import bench
from pit_jax.validation import resolve

SCHEMA = 1
_FILES = 32
_TURN_S = 0.5  # for both sides together
_HEIGHT, _WIDTH = 375, 500  # the most common size in ImageNet
_QUALITY = 98  # files of 104 kB on average; ImageNet's training images have 108


class _Files(sources.Encoded):
    """Files held in memory."""

    def __init__(self, data: Any, name: str, files: Sequence[bytes]):
        super().__init__(data)
        self.name, self._files = name, files

    def __len__(self) -> int:
        return len(self._files)

    def _read(self, index: int) -> tuple[bytes, int]:
        return self._files[index], 0


def main(spec: str, overrides: Sequence[str], turns: int) -> dict[str, Any]:
    """Loads the config and measures its input."""
    return measure(configfile.load(spec, overrides), turns)


def measure(config: Any, turns: int = 10) -> dict[str, Any]:
    """Images a second that one core makes of files, as the config's training wants them.

    Args:
      config: resolved or not. Where its set is one of TensorFlow Datasets and not here,
        JPEGs of ImageNet's usual size are made of two photographs instead.
      turns: how often each side is asked, for a quarter of a second or once through the files.

    Returns:
      The contract's JSON: seconds an image, medians over turns, with the distance between the
      quartiles; the share of images decoded at 1/1, 1/2, 1/4 and 1/8; and how far the two
      sides' pixels are apart, in grey levels of 0 to 255.

    Raises:
      ConfigError: if the config's images are not kept as files, or are the model's size.
    """
    data = resolve(config).data.copy_and_resolve_references()
    data.in_memory_gb = 0.0  # all of it is decoded in training, and none of it here
    source, origin, made, broken = _files(data)
    reader = Reader(source, data, train=True, seed=config.train.seed)
    files = [source.encoded(i) for i in range(len(source))]

    def ours(number: int, position: int) -> np.ndarray:
        return source.view(number, reader.chooser(position))[0]

    def pil(number: int, position: int) -> np.ndarray:
        return _pil(files[number], data.channels, reader.chooser(position))

    sides = {"ours": ours, "pil": pil}
    first = {name: _passes(side, len(files), 0, 1) for name, side in sides.items()}
    passes = max(1, round(_TURN_S / (len(files) * sum(first.values()))))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name, side in sides.items():
            times[name].append(_passes(side, len(files), turn * passes, passes))
        medians = ", ".join(f"{n} {1e3 * statistics.median(t):.2f} ms" for n, t in times.items())
        bench.say(f"turn {turn + 1}/{turns}: {medians} an image")

    shapes = [decode(file, data.channels).shape[:2] for file in files]
    numbers = [divmod(i, len(files)) for i in range(turns * passes * len(files))]
    choosers = [(reader.chooser(_position(p, n, len(files))), shapes[n]) for p, n in numbers]
    scales = collections.Counter(choose(shape).scale() for choose, shape in choosers)
    apart = [
        np.abs(ours(n, n).astype(int) - pil(n, n)) for n in range(len(files))
    ]  # positions of the first pass

    def row(name: str) -> dict[str, Any]:
        quartiles = statistics.quantiles(times[name], n=4)
        image_s = statistics.median(times[name])
        return {
            "image_s": image_s,
            "image_s_iqr": quartiles[2] - quartiles[0],
            "images": turns * passes * len(files),
            "images_per_s": 1 / image_s,
        }

    rows = {name: row(name) for name in sides}
    rows["ours"]["scales"] = {f"1/{n}": scales[n] / len(numbers) for n in (1, 2, 4, 8)}
    return {
        "schema": SCHEMA,
        "kind": "input",
        "label": label(config),
        "config": config.to_dict(),
        "machine": bench.processor() | {"system": platform.platform()},
        "versions": bench.versions(
            ("numpy", "pillow", "simplejpeg", *(["cykooz-resizer"] if resize.fast else []))
        ),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": bench.command(sys.argv[1:]),
        "files": {
            "of": origin,
            "made": made,
            "count": len(files),
            "broken": broken,
            "kinds": dict(collections.Counter(_kind(file) for file in files)),
            "height": statistics.median(shape[0] for shape in shapes),
            "width": statistics.median(shape[1] for shape in shapes),
            "bytes": statistics.mean(len(file) for file in files),
        },
        **rows,
        "ratio_to_pil": rows["pil"]["image_s"] / rows["ours"]["image_s"],
        "difference": {
            "mean": float(np.mean([x.mean() for x in apart])),
            "max": int(max(x.max() for x in apart)),
        },
    }


def _files(data: Any) -> tuple[_Files, str, bool, int]:
    """Files of a set, what they are of, whether they were made, and how many more are broken."""
    if sources.native_shape(data) == (data.image_size, data.image_size):
        raise ConfigError(
            f"images of {data.name} have the model's {data.image_size} pixels: --input-only has"
            " nothing to crop or resize"
        )
    try:
        source = sources.load(data, data.split, labelled=False)
    except NotPrepared:
        bench.say(f"{data.name} is not here: JPEGs of {_WIDTH}×{_HEIGHT} are made of photographs")
        name = "two photographs of scikit-learn"
        files = photographs(_HEIGHT, _WIDTH, _FILES)
        return _Files(data, name, files), name, True, 0
    if not isinstance(source, sources.Encoded):
        raise ConfigError(f"images of {source.name} are not kept as files: nothing is decoded")
    count = min(_FILES, len(source))
    whole, broken = [], 0
    for number in np.arange(count) * len(source) // count:
        try:
            file = source.encoded(int(number))
            decode(file, data.channels)
            whole.append(file)
        except (OSError, Undecodable):
            broken += 1
    if not whole:
        raise ConfigError(f"{source.name}: none of {count} images could be decoded")
    return _Files(data, source.name, whole), source.name, False, broken


def photographs(height: int, width: int, count: int) -> list[bytes]:
    """JPEGs cut out of scikit-learn's two photographs, colour at half the resolution."""
    from sklearn.datasets import load_sample_images

    found = []
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        photo = photos[number % 2]
        if number % 4 > 1:
            photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        wide = min(photo.width, round(photo.height * width / height))
        tall = min(photo.height, round(wide * height / width))
        left = (photo.width - wide) * number // count
        box = (left, 0, left + wide, tall)
        cut = photo.resize((width, height), Image.Resampling.BICUBIC, box=box)
        file = io.BytesIO()
        cut.save(file, "JPEG", quality=_QUALITY, subsampling="4:2:0")
        found.append(file.getvalue())
    return found


def _pil(data: bytes, channels: int, choose: Callable) -> np.ndarray:
    """The same view by PIL alone, from the whole image."""
    with opened(data) as image:
        array = as_channels(image, channels)
    picture = Image.fromarray(array[..., 0] if channels == 1 else array)
    view = choose((picture.height, picture.width))
    if view.box != (0, 0, *picture.size):
        picture = picture.crop(view.box)
    picture = picture.resize(view.resized, Image.Resampling[view.interpolation.upper()])
    return view.square(np.asarray(picture).reshape(*reversed(view.resized), channels))


def _passes(side: Callable, files: int, first: int, passes: int) -> float:
    """Seconds of a core an image, over so many passes through the files."""
    start = time.thread_time()
    for turn in range(first, first + passes):
        for number in range(files):
            side(number, _position(turn, number, files))
    return (time.thread_time() - start) / (passes * files)


def _position(turn: int, number: int, files: int) -> int:
    """Other crops in every pass, the same for both sides."""
    return turn * files + number


def _kind(data: bytes) -> str:
    with opened(data) as image:
        return f"{image.mode} {image.format}"


def report(result: dict[str, Any]) -> str:
    """The result for people, 80 columns wide."""
    files, machine, size = result["files"], result["machine"], result["config"]["data"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in files["kinds"].items())
    broken = f", {files['broken']} broken left out" if files["broken"] else ""
    made = f"made of {files['of']}" if files["made"] else f"of {files['of']}"
    lines = [
        f"{result['label']}: input of {size['image_size']}×{size['image_size']} pixels",
        f"{made}: {kinds}{broken},",
        f"{files['width']:g}×{files['height']:g} pixels and {files['bytes'] / 1e3:,.0f} kB each",
        f"one core of {machine['cpu']}",
        "",
        f"{'':32}{'pit_jax':>16}{'PIL':>16}",
    ]

    def add(title: str, field: str, form: Callable) -> None:
        cells = [form(result[name][field]) for name in ("ours", "pil")]
        lines.append(f"{title:32}" + "".join(f"{cell:>16}" for cell in cells))

    add("an image, median", "image_s", lambda x: f"{1e3 * x:.2f} ms")
    add("an image, between quartiles", "image_s_iqr", lambda x: f"{1e3 * x:.2f} ms")
    add("images/s a core", "images_per_s", lambda x: f"{x:,.0f}")
    add("images measured", "images", lambda x: f"{x:,}")
    scales = result["ours"]["scales"].items()
    shares = ", ".join(f"{share:.0%} at {scale}" for scale, share in scales if share)
    apart = result["difference"]
    lines += [
        "",
        f"decoded: {shares}",
        f"apart: {apart['mean']:.2f} grey levels of 255 in the mean, {apart['max']} at most",
        f"pit_jax is {result['ratio_to_pil']:.2f} times as fast as PIL",
    ]
    return "\n".join(lines)
