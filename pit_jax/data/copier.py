"""`pit-jax data prepare SET --resize N`: makes a resized copy of a set, see copies.py.

Every image is decoded, resized and written once, by processes that take one shard after the
other. A JPEG much larger than the copy is decoded at a fraction of its size (decode.py).
"""

import collections
import contextlib
import dataclasses
import fcntl
import functools
import importlib.util
import os
import shlex
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pit_jax import metrics
from pit_jax.data import crew, folder, prepare, prepared, sources
from pit_jax.data.copies import CROPPED, KIND, LEFT_OUT, SQUASHED, Manifest, Writer
from pit_jax.data.decode import Undecodable
from pit_jax.data.known import KNOWN, Copy, facts
from pit_jax.data.resize import View, center_view, whole_view
from pit_jax.data.sources import Source, data_dir
from pit_jax.data.store import labels_name, local, read_manifest
from pit_jax.errors import ConfigError, StorageError
from pit_jax.rundir import version

_SHARD = 10_000  # images, about: what a kill may cost a process
_REPORT_S = 0.2
_PACKAGES = ("pit_jax", "simplejpeg", "cykooz-resizer", "pillow")


def copy(
    name: str,
    size: int,
    squash: bool = False,
    directory: str | None = None,
    out: str | None = None,
    split: Sequence[str] | None = None,
    shards: int | None = None,
    workers: int | None = None,
    skip_corrupt: bool = False,
) -> Path:
    """Writes a resized copy of a set; goes on where an earlier call stopped.

    Args:
      name: digits, folder, or a TensorFlow Datasets name, which is prepared where it is not yet.
      size: side of the copy's images, pixels.
      squash: squeeze whole images into squares; by default the shorter side becomes `size`, and
        the centre is cut out.
      directory: where the set lies, as a config's data.dir.
      out: where the copy is put, in a directory of its own; by default where the set lies.
      split: those of the set; all by default.
      shards: files of a split; by default of about 10,000 images, or as many as an earlier call
        began with.
      workers: processes; one a core by default.
      skip_corrupt: leave out images that cannot be decoded.

    Returns:
      The directory of the copy. Where nothing was left to do, all its files were compared with
      their checksums.

    Raises:
      ConfigError: if there is no such set or split, it has no images and labels, all its images
        are smaller than the copy, or the directory holds a copy of something else.
      StorageError: if an image cannot be decoded, something cannot be read or written, or
        another process is at it.
    """
    _check(name, size, directory, shards, workers)
    _open.cache_clear()  # of an earlier call
    wanted = Copy(name, size, squash)
    root = data_dir(str(local(out or directory or "", KIND))) / str(wanted)
    source_dir = "" if name == "digits" else str(data_dir(directory or "").absolute())
    data = types.SimpleNamespace(
        name=name,
        dir=source_dir,
        split="train",
        channels=3,
        corrupt="skip" if skip_corrupt else "refuse",
    )
    found = _splits(data, split or ())
    first = next(iter(found.values()))
    if first.native_shape and min(first.native_shape) < size:
        h, w = first.native_shape
        raise ConfigError(
            f"images of {name} are {h} × {w} pixels: a copy at {size} × {size} would only enlarge"
            " them"
        )
    data.channels = first.channels or 3
    manifest = Manifest(
        image_set=f"{name}:{first.version}" if first.version and ":" not in name else name,
        size=size,
        channels=data.channels,
        num_classes=first.num_classes,
        resize=SQUASHED if squash else CROPPED,
        source=source_dir,
        versions={name: version(name) for name in _PACKAGES},
        classes=tuple(first.classes),
    )
    with _alone(root):
        writers = {
            split: Writer(
                root, manifest, split, len(source), shards or _shards(root, split, source)
            )
            for split, source in found.items()
        }
        todo = [(split, shard) for split, writer in writers.items() for shard in writer.missing()]
        job = _Job(data, root, manifest, {split: x.shards for split, x in writers.items()})
        total = sum(len(writers[split].span(shard)) for split, shard in todo)
        with metrics.Progress(total, str(wanted), first="starting") as progress:
            for line in (line for source in found.values() for line in source.passed_over):
                progress.say(line)
            meter, enlarged = metrics.Counted(progress, total), 0
            kinds: collections.Counter[str] = collections.Counter()

            def told(words: int | str) -> None:
                (progress.warn if isinstance(words, str) else meter.add)(words)

            for number, of_kind in crew.each(job.write, todo, workers or _cores(), told):
                enlarged += number
                kinds.update(of_kind)
                meter.line()
            for writer in writers.values():
                writer.finish()
            if not todo:
                progress.say(f"{root}: every file is as it was written")
            for line in _result(wanted, root, manifest, found, enlarged, kinds):
                progress.say(line)
    return root


def _check(name: str, size: int, directory: Any, shards: int | None, workers: int | None) -> None:
    if name in ("latents", "scenes") or "@" in name:
        raise ConfigError(f"{name} is no set of image files that a resized copy could be made of")
    if name == "folder" and not directory:
        raise ConfigError("folder needs --data-dir: where <split>/<class>/<image file> lie")
    for flag, value in (("resize", size), ("shards", shards), ("workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"--{flag} {value}: at least 1")


def _splits(data: Any, names: Sequence[str]) -> dict[str, Source]:
    """The splits that are asked for, or all."""
    if data.name == "digits":
        there = list(KNOWN["digits"].splits)
    elif data.name == "folder":
        there = folder.splits(Path(data.dir))
        data.split = "train" if "train" in there else (names or there)[0]  # which names classes
    else:
        there = _prepared(data)
    for split in names:
        if split not in there:
            raise ConfigError(f"{data.name} has the splits {', '.join(there)}, not {split!r}")
    found = {split: sources.open_split(data, split) for split in names or there}
    if any(source.has_depth for source in found.values()):
        raise ConfigError(f"{data.name} has depth, of which no resized copies are made")
    return found


def _prepared(data: Any) -> list[str]:
    """Splits of a set of TensorFlow Datasets, which is prepared first where that is possible."""
    try:
        found = prepared.splits(data)
    except prepared.NotPrepared:
        if importlib.util.find_spec("tensorflow") is None:
            raise
        prepare.prepare(data.name, data.dir)
        found = prepared.splits(data)
    known = facts(data.name)  # a test split without labels is not among those
    return [name for name in found if not known or name in known.splits]


def _shards(root: Path, split: str, source: Source) -> int:
    """As many as an earlier call began with, or files of about _SHARD images."""
    with contextlib.suppress(ConfigError):  # there is no manifest yet
        if known := read_manifest(root, KIND)["splits"].get(split):
            return known["shards"]
    return max(1, -(-len(source) // _SHARD))


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keeps other calls off the directory; the lock ends with this process, however it ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root, os.O_RDONLY)
    except OSError as error:
        raise StorageError(f"{root} could not be written: {error.strerror or error}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise StorageError(f"another process is writing {root}: wait for it") from None
    except OSError:  # a file system without locks
        pass
    try:
        _clear(root)
        yield
    finally:
        _clear(root)
        os.close(handle)


def _clear(root: Path) -> None:
    """Removes what processes were writing when they were ended."""
    for path in root.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _cores() -> int:
    there = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if there else os.cpu_count() or 1


def _result(
    name: Copy,
    root: Path,
    manifest: Manifest,
    found: dict[str, Source],
    enlarged: int,
    kinds: collections.Counter[str],
) -> Iterator[str]:
    """What was made, and how to train on it, for people."""
    splits = read_manifest(root, KIND)["splits"]
    files = [facts["bytes"] for split in found for facts in splits[split]["files"].values()]
    counts = " + ".join(f"{len(source):,} {split}" for split, source in found.items())
    side, _, channels = manifest.shape()
    yield (
        f"{root}: {counts} images of {manifest.image_set} at {side} × {side} × {channels},"
        f" {sum(files) / 1e6:,.1f} MB"
    )
    if set(kinds) - {"JPEG"}:  # ImageNet holds a PNG called .JPEG, and CMYK
        yield f"by their bytes: {', '.join(f'{n:,} {kind}' for kind, n in kinds.most_common())}"
    if enlarged:
        yield f"{enlarged:,} of them were smaller than {side} × {side} and were enlarged"
    labels = [np.load(root / labels_name(split)) for split in found]
    if left_out := sum(int((x == LEFT_OUT).sum()) for x in labels):
        yield f"{left_out:,} of them could not be decoded and were left out"
    fields = {"data.name": name, "data.image_size": side, "data.num_classes": manifest.num_classes}
    if root.parent != data_dir(""):
        fields["data.dir"] = root.parent
    whole = max(splits[split]["count"] for split in found) * side * side * channels
    if whole > 4e9:
        fields["data.in_memory_gb"] = -(-whole // 10**9)
    words = " ".join(f"--config.{field}={shlex.quote(str(x))}" for field, x in fields.items())
    yield f"train on them with {words}"


# What a process does --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Job:
    """All that a process needs to write shards."""

    data: Any
    root: Path
    manifest: Manifest
    shards: dict[str, int]

    def write(
        self, task: tuple[str, int], tell: Callable[[int | str], None]
    ) -> tuple[int, collections.Counter[str]]:
        """Writes a shard (split, number), and tells of so many images more, or one left out.

        Returns:
          How many images were smaller than the copy, and how many files were of each kind.
        """
        (split, shard), small = task, []
        source = _open(tuple(vars(self.data).items()), split)
        source.skip_with, source.say, source.kinds = "--skip-corrupt", tell, collections.Counter()
        writer = Writer(self.root, self.manifest, split, len(source), self.shards[split])
        writer.write(shard, self._examples(source, writer.span(shard), small, tell))
        return sum(small), source.kinds

    def _examples(
        self, source: Source, numbers: range, small: list[bool], tell: Callable[[int | str], None]
    ) -> Iterator[tuple[np.ndarray | None, int]]:
        manifest = self.manifest
        view = whole_view if manifest.resize == SQUASHED else center_view
        shapes: list[tuple[int, int]] = []

        def choose(shape: tuple[int, int]) -> View:
            shapes.append(shape)
            return view(shape, manifest.size)

        told, count = time.monotonic(), 0
        for number in numbers:
            example = source.view(number, choose)
            if example is None:
                _check_readable(source, number)
                example = None, LEFT_OUT
            elif not 0 <= example[1] < manifest.num_classes:
                raise ConfigError(
                    f"{source.example_name(number)} has label {example[1]}, but {source.name}"
                    f" counts {manifest.num_classes} classes"
                )
            else:
                small.append(min(shapes[-1]) < manifest.size)
            shapes.clear()
            count += 1
            if time.monotonic() - told > _REPORT_S:
                tell(count)
                told, count = time.monotonic(), 0
            yield example
        tell(count)


@functools.cache
def _open(data: tuple[tuple[str, Any], ...], split: str) -> Source:
    """Once a process: to list a large folder takes seconds."""
    return sources.open_split(types.SimpleNamespace(**dict(data)), split)


def _check_readable(source: Source, number: int) -> None:
    """Refuses to leave out for good what only the disk did not give."""
    try:
        with contextlib.suppress(Undecodable):  # a damaged record: that is what is left out
            source.encoded(number)
    except OSError as error:
        name = source.example_name(number)
        raise StorageError(f"{name} cannot be read: {error.strerror or error}") from None
