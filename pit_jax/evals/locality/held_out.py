"""The held-out images that locality is measured on, and how they are read."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from pit_jax.data import order, pipeline
from pit_jax.evals.context import Context
from pit_jax.parallel.mesh import BATCH_AXES

# Images that a device works on at once: queries and keys of all layers are held for them.
PER_DEVICE = 8
_SEED = 0


class Sample:
    """So many examples of a reader, drawn once and for all; it is read like the reader itself.

    Drawn and not the first ones: sets that lie in folders are sorted by class.
    """

    def __init__(self, reader: Any, count: int):
        self._reader, self.held = reader, reader.held
        drawn = order.examples(_SEED, len(reader), np.arange(min(count, len(reader))))
        self._drawn = np.sort(drawn)

    def __len__(self) -> int:
        return len(self._drawn)

    def __call__(self, indices: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
        return self._reader(self._drawn[indices], positions)

    def note_corrupt(self, indices: np.ndarray) -> None:
        self._reader.note_corrupt(self._drawn[indices])


def sample(context: Context, count: int, batch_size: int | None = None) -> pipeline.Pipeline:
    """`count` held-out images, or all if there are fewer.

    Args:
      batch_size: over all devices; by default `PER_DEVICE` on each.
    """
    sharding = context.steps.batch_sharding
    ways = int(np.prod([sharding.mesh.shape[axis] for axis in BATCH_AXES]))
    chosen = Sample(context.held_out.reader, count)
    workers = context.config.data.workers
    return pipeline.Pipeline(chosen, sharding, batch_size or PER_DEVICE * ways, workers)


def read(
    context: Context, images: pipeline.Pipeline, function: Callable, extra: Any = 0
) -> Iterator[Any]:
    """What `function(params, batch, extra)` says of every batch, whole on every process."""
    compiled = context.steps.read(function)
    with contextlib.closing(images.evaluate()) as batches:
        for batch in context.until_stopped(batches):
            found = compiled(context.state.eval_params, batch, np.asarray(extra, np.int32))
            yield jax.device_get(found)
