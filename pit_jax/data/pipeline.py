"""From a source to batches on the devices.

A batch is a function of the step: `TrainBatches(...)[step]`. Sets that fit the bound in
the config are held in memory as uint8; others are decoded as they are needed, by grain.
Each process makes only the rows that its devices hold.
"""

import concurrent.futures
import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import numpy as np
from jax.sharding import NamedSharding

from pit_jax.data import ahead, order
from pit_jax.data.resize import View, center_view, random_view, simple_view
from pit_jax.errors import ConfigError

_THREADS = 8
_TRIED = 1000  # images of a stream, and of a class of it, before it is trained on
_WHOLE_BATCH = 64  # images that are not all broken by chance where half of them are whole


class Reader:
    """Images of the model's size, from memory or decoded one by one.

    Images of another size are brought to it on the host: the shorter side is resized and
    the centre cut out, or in training, where the config asks for a random crop that resizes,
    it is taken from the whole image (`crop`), which then stays on disk. Stored latents come
    as they are.
    """

    def __init__(self, source: Any, data: Any, train: bool, seed: int = 0):
        self.source, self.size, self.channels = source, data.image_size, data.channels
        self.crop = data.augmentation if train and crops_on_host(source, data) else None
        self.repeats = data.augmentation.repeats  # of a training batch
        self.seed = seed
        self.keep = 1.0 if train else data.eval_crop
        self.halve = data.halve
        self.shape = source.record_shape or (self.size, self.size, self.channels)
        self.dtype = np.dtype(np.float16 if source.record_shape else np.uint8)
        self.depth_shape = (self.size, self.size) if source.has_depth else None
        self.num_classes = data.num_classes
        nbytes = math.prod(self.shape) * self.dtype.itemsize
        nbytes += 4 * math.prod(self.depth_shape) if self.depth_shape else 0
        nbytes *= len(source)
        self.held = nbytes <= data.in_memory_gb * 1e9 and self.crop is None
        if self.held:
            self._hold()
            self._check_labels(self.labels[self.mask > 0])
        if not len(source):
            raise ConfigError(f"data set {source.name} holds no image that can be read")
        if data.corrupt == "skip":
            self._check_readable()

    def __len__(self) -> int:
        """Images of the set, broken ones among them, which keep their places."""
        return len(self.source)

    def __call__(self, indices: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Examples `indices`; `positions` seed the host's random crops.

        Returns:
          {"image": (n, S, S, C) uint8 or (n, flips, 2, h, w, c) float16, "label": (n,)
          int32, "index": (n,) int32, "mask": (n,) float32}; the index is the example's number
          in the source, whatever is skipped; the mask is 0 where an image could not be decoded
          and the config says to skip it. Of a set with depth also {"depth": (n, S, S) float32}.
        """
        number = indices.astype(np.int32)
        if self.held:
            held = {"image": self.images[indices], "label": self.labels[indices]}
            held |= {"depth": self.depths[indices]} if self.depth_shape else {}
            return held | {"index": number, "mask": self.mask[indices]}
        image = np.zeros((len(indices), *self.shape), self.dtype)
        label, mask = np.zeros(len(indices), np.int32), np.zeros(len(indices), np.float32)
        depth = np.zeros((len(indices), *(self.depth_shape or ())), np.float32)
        for row, (index, position) in enumerate(zip(indices, positions, strict=True)):
            example = self._example(int(index), int(position))
            if example is not None:
                image[row], label[row], *rest = example
                mask[row] = 1
                if self.depth_shape:
                    (depth[row],) = rest
        self._check_labels(label)
        found = {"image": image, "label": label, "index": number, "mask": mask}
        return found | {"depth": depth} if self.depth_shape else found

    def note_corrupt(self, indices: np.ndarray) -> None:
        """Counts examples that could not be decoded, perhaps in another process, once each."""
        for index in indices:
            self.source.note_corrupt(self.source.example_name(int(index)))

    def chooser(self, position: int = 0) -> Callable[[tuple[int, int]], View]:
        """From an image's (H, W) to the view of it that stands at `position` of the epochs."""

        def choose(shape: tuple[int, int]) -> View:
            if self.crop is None:
                return center_view(shape, self.size, self.keep, self.halve)
            generator = np.random.Generator(np.random.Philox(key=(self.seed, position)))
            crop = self.crop
            if crop.crop == "simple":
                return simple_view(shape, self.size, generator, crop.pad)
            return random_view(
                shape, self.size, generator, crop.scale, crop.ratio, crop.interpolation
            )

        return choose

    def _example(self, index: int, position: int = 0) -> tuple | None:
        if self.source.record_shape:
            return self.source[index]
        example = self.source.view(index, self.chooser(position))
        if example is None:
            return None
        image = example[0]
        if image.shape[-1] != self.channels:
            raise ConfigError(
                f"config.data.channels={self.channels}, but images of {self.source.name} have"
                f" {image.shape[-1]}"
            )
        return example

    def _check_labels(self, labels: np.ndarray) -> None:
        if not self.source.labelled or not len(labels):
            return
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise ConfigError(
                f"labels of {self.source.name} go from {labels.min()} to {labels.max()}, but"
                f" config.data.num_classes={self.num_classes}"
            )

    def _hold(self) -> None:
        count = len(self.source)
        self.mask = np.ones(count, np.float32)
        as_they_are = self.keep == 1 and self.source.native_shape == (self.size, self.size)
        if as_they_are and (whole := self.source.in_memory()):
            self.images, self.labels = whole[0], whole[1].astype(np.int32)
            return
        self.images = np.zeros((count, *self.shape), self.dtype)
        self.labels = np.zeros(count, np.int32)
        self.depths = np.zeros((count, *(self.depth_shape or ())), np.float32)

        def put(index: int) -> None:
            if (example := self._example(index)) is None:
                self.mask[index] = 0
                return
            self.images[index], self.labels[index], *depth = example
            if self.depth_shape:
                (self.depths[index],) = depth

        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(put, range(count)))  # raises what one of them raised

    def _check_readable(self) -> None:
        """Refuses a set whose broken images are too many to be skipped: more than half of them,
        or all of a class. Of a stream some are tried.

        Raises:
          ConfigError: naming one.
        """
        source, count = self.source, len(self.source)

        def whole(index: int) -> bool:
            if self.held:
                return bool(self.mask[index])
            return source.readable(int(index), self.chooser())

        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            tried = np.arange(count) if self.held else _spread(np.arange(count))
            found = np.array(list(pool.map(whole, tried)))
            if 2 * found.sum() < len(found):
                none = "holds no image that can be read" if not found.any() else "is mostly broken"
                raise ConfigError(
                    f"data set {source.name} {none}: of {len(found):,} images tried"
                    f" {len(found) - found.sum():,} cannot be decoded,"
                    f" {source.example_name(int(tried[~found][0]))} first"
                )
            if not source.labelled or not (source.labels_at_hand or (self.held and not all(found))):
                return
            labels = source.labels()
            classes = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
            read = pool.map(lambda numbers: any(map(whole, _spread(numbers))), classes)
            if broken := [
                numbers for numbers, any_is in zip(classes, read, strict=True) if not any_is
            ]:
                more = f" and of {len(broken) - 1} more" if len(broken) > 1 else ""
                raise ConfigError(
                    f"data set {source.name} holds no image that can be read of class"
                    f" {labels[broken[0][0]]} ({source.example_name(int(broken[0][0]))}){more}"
                )


def _spread(numbers: np.ndarray) -> np.ndarray:
    """Some of the numbers, at even distances."""
    count = min(_TRIED, len(numbers))
    return numbers[np.arange(count) * len(numbers) // count]


def crops_on_host(source: Any, data: Any) -> bool:
    """Whether crops that resize are taken before the image reaches the device."""
    native = source.native_shape == (data.image_size, data.image_size)
    return data.augmentation.crop in ("resized", "simple") and not native


class TrainBatches:
    """The training batches of one process: `batches[step]`, for any step.

    Beside what goes to the devices a batch holds "corrupt": the numbers of the examples that
    could not be decoded, (0 or more,), so that the process that trains knows of what its
    workers have found.
    """

    def __init__(self, reader: Reader, seed: int, batch_size: int, rows: np.ndarray):
        self._reader, self._seed, self._batch_size, self._rows = reader, seed, batch_size, rows

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        positions = step * self._batch_size + self._rows
        reader = self._reader
        indices = order.examples(self._seed, len(reader), positions, reader.repeats)
        batch, corrupt = self._reader(indices, positions), indices[:0]
        if len(np.unique(indices)) >= _WHOLE_BATCH and not batch["mask"].any():
            raise ConfigError(
                f"no image of a whole batch of {reader.source.name} can be decoded,"
                f" {reader.source.example_name(int(indices[0]))} first"
            )
        for _ in range(len(reader)):  # a corrupt image makes way for the one after it
            bad = batch["mask"] == 0
            if not bad.any():
                break
            corrupt = np.concatenate([corrupt, indices[bad]])
            indices[bad] = (indices[bad] + 1) % len(reader)
            replaced = reader(indices[bad], positions[bad])
            for name, values in replaced.items():
                batch[name][bad] = values
        if not batch["mask"].all():
            raise ConfigError(f"data set {reader.source.name} holds no image that can be read")
        del batch["mask"]
        return batch | {"corrupt": corrupt}


class EvalBatches:
    """Every evaluation example once, in order; the last batch is filled up and masked.

    "corrupt" as in `TrainBatches`.
    """

    def __init__(self, reader: Reader, batch_size: int, rows: np.ndarray):
        self._reader, self._batch_size, self._rows = reader, batch_size, rows

    def __len__(self) -> int:
        return -(-len(self._reader) // self._batch_size)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        positions = number * self._batch_size + self._rows
        real = positions < len(self._reader)
        batch = self._reader(np.where(real, positions, 0), positions)
        corrupt = positions[real & (batch["mask"] == 0)]
        return batch | {"mask": batch["mask"] * real, "corrupt": corrupt}


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, sorted."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[s] for s in slices]))


def to_devices(batch: dict[str, np.ndarray], rows: np.ndarray, sharding: NamedSharding, size: int):
    """Puts one process's rows where they belong in the global batch of `size` examples."""
    chex.assert_rank([batch["image"], batch["label"]], [{4, 6}, 1])
    chex.assert_type(batch["label"], int)
    chex.assert_equal_shape_prefix(list(batch.values()), 1)

    def put(values: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            first = np.searchsorted(rows, start)
            return values[first : first + stop - start]

        return jax.make_array_from_callback((size, *values.shape[1:]), sharding, part)

    return {name: put(values) for name, values in batch.items()}


class Pipeline:
    """One split as batches on the devices.

    `train(step)` iterates from that step on without end; `evaluate()` once over all.
    Close the iterator of `train` (or leave its `with contextlib.closing`) when done.
    `on_batch` is called for each batch that `evaluate()` gives.
    """

    def __init__(
        self,
        reader: Reader,
        sharding: NamedSharding,
        batch_size: int,
        workers: int,
        on_batch: Callable[[], None] | None = None,
    ):
        self.reader, self.batch_size, self._on_batch = reader, batch_size, on_batch
        self._sharding, self._workers = sharding, workers
        self._rows = local_rows(sharding, batch_size)

    def train(self, seed: int, step: int) -> Iterator[dict[str, jax.Array]]:
        batches = TrainBatches(self.reader, seed, self.batch_size, self._rows)
        return self._to_devices(ahead.batches(batches, step, None, self._streamed(), self._workers))

    def evaluate(self) -> Iterator[dict[str, jax.Array]]:
        batches = EvalBatches(self.reader, self.batch_size, self._rows)
        found = self._to_devices(
            ahead.batches(batches, 0, len(batches), self._streamed(), self._workers)
        )
        return self._telling(found) if self._on_batch else found

    def _telling(self, batches: Iterator[dict]) -> Iterator[dict]:
        with contextlib.closing(batches):
            for batch in batches:
                self._on_batch()
                yield batch

    def _streamed(self) -> bool:
        return not self.reader.held

    def _to_devices(self, batches: Iterator[dict]) -> Iterator[dict[str, jax.Array]]:
        """Also putting batches on the devices is done ahead: it took 4 % of the demo's steps."""

        def placed() -> Iterator[dict[str, jax.Array]]:
            with contextlib.closing(batches):
                for batch in batches:
                    self.reader.note_corrupt(batch.pop("corrupt"))
                    yield to_devices(batch, self._rows, self._sharding, self.batch_size)

        return ahead.in_background(placed())


def in_order(reader: Reader, data: Any) -> Reader:
    """The same images one after the other as an evaluation sees them: without the host's random
    crops, and of each the share that `data.eval_crop` keeps."""
    if reader.crop is None and reader.keep == data.eval_crop:
        return reader
    data = copy.deepcopy(data)
    data.in_memory_gb = 0.0  # read once: to hold them would keep whoever waits without a sign
    return Reader(reader.source, data, train=False)


def device_config(config: Any, source: Any) -> Any:
    """The config as the jitted step sees it: without the crops that the host has taken.

    Raises:
      ConfigError: if images that it crops should have a permutation each.
    """
    if not crops_on_host(source, config.data):
        return config
    swaps = config.data.permutation
    if swaps.swaps and swaps.per_image:
        raise ConfigError(
            "config.data.permutation.per_image needs whole images on the device, and those of"
            f" {source.name} are cropped before: an image would be permuted otherwise every time."
            " Write config.data.augmentation.crop='none' or 'pad'"
        )
    config = copy.deepcopy(config)
    config.data.augmentation.crop = "none"
    return config


def skipped(reader: Reader) -> str | None:
    """One line about images that could not be decoded, None if there were none."""
    corrupt = getattr(reader.source, "corrupt", [])
    if not corrupt:
        return None
    more = f" and {len(corrupt) - 1} more" if len(corrupt) > 1 else ""
    return f"{reader.source.name}: {len(corrupt)} corrupt image(s) skipped: {corrupt[0]}{more}"
