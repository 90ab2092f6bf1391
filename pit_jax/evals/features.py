"""What a frozen model says of every image of a set: one vector each, or one a view of it."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import numpy as np

from pit_jax.data import pipeline, sources
from pit_jax.errors import ConfigError

# A seed of training is below 2³²: no crop of a view is one that the run was trained on.
_VIEW = 32


@dataclasses.dataclass(frozen=True)
class Features:
    """Vectors (N, d) float32 of N images as evaluation sees them, and labels (N,) int32."""

    vectors: np.ndarray
    labels: np.ndarray


def extract(context: Any, images: pipeline.Pipeline) -> Features:
    """Features of every image of a set, in its order, on every process.

    Args:
      context: its task's `vectors` are what is asked, at its state's `eval_params`.
      images: `evaluate()` iterates over the set, the last batch filled up and masked.

    Raises:
      StopAsked: between two batches, once a stop was asked for.
    """
    vectors, labels = zip(*_read(context, images, context.task.vectors, 0), strict=True)
    return Features(np.concatenate(vectors), np.concatenate(labels))


def extract_views(
    context: Any, images: pipeline.Pipeline, first: Features, count: int
) -> np.ndarray:
    """Vectors of `count` views of every image of a set: (V, N, d) float32.

    The first view is the image itself, as `first` has it. The others are random crops and
    flips, as far as the config has them: where training crops on the host they are taken from
    the whole image there, too, each a function of (view, number of the image); else on the
    device, a function of (view, batch, row).

    Args:
      context, images: as `extract` takes them.

    Raises:
      StopAsked: between two batches, once a stop was asked for.
    """
    if count == 1:
        return first.vectors[None]
    found = np.empty((count, *first.vectors.shape), np.float32)
    found[0] = first.vectors
    for view in range(1, count):
        seen, cropped = 0, _cropped(context, images, view)
        function = context.task.flip_vectors if cropped else context.task.view_vectors
        for vectors, labels in _read(context, cropped or images, function, view):
            rows = slice(seen, seen + len(labels))
            chex.assert_trees_all_equal(labels, first.labels[rows])  # one example a row
            found[view, rows] = vectors
            seen += len(labels)
        chex.assert_equal(seen, len(first.labels))
    return found


def _cropped(context: Any, images: pipeline.Pipeline, view: int) -> pipeline.Pipeline | None:
    """The set with a random crop of each image, where crops are made on the host."""
    source, data = images.reader.source, context.config.data
    if not pipeline.crops_on_host(source, data):
        return None
    reader = pipeline.Reader(source, data, train=True, seed=view << _VIEW)
    sharding = context.steps.batch_sharding
    return pipeline.Pipeline(reader, sharding, images.batch_size, data.workers)


def _read(
    context: Any, images: pipeline.Pipeline, function: Callable, view: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Vectors and labels of the real rows of every batch, as the task's `function` says."""
    read = context.steps.read(function)
    with contextlib.closing(images.evaluate()) as batches:
        for number, batch in enumerate(context.until_stopped(batches)):
            key = jax.random.key_data(jax.random.fold_in(jax.random.key(view), number))
            out = jax.device_get(read(context.state.eval_params, batch, np.asarray(key)))
            real = out["mask"] > 0
            yield out["vector"][real], out["label"][real]


# What fits --------------------------------------------------------------------------------


def require_room(config: Any, task: Any, steps: Any, linear: bool) -> None:
    """Refuses features that do not fit into memory, before an image is read.

    Every process holds those of the training set, and in the linear probe each device all
    views of them, beside the run's state. A CPU's devices share the machine's memory.

    Args:
      config, task, steps: of the run.
      linear: whether the linear probe is asked for, and so `eval.views` of each image.

    Raises:
      ConfigError: saying how many views fit.
    """
    data, views = config.data, config.eval.views if linear else 1
    examples = sources.num_examples(data, data.split) or len(sources.training(data))
    width = _width(config, task, steps)
    one = 4 * width * examples  # bytes of one view
    devices = steps.batch_sharding.mesh.local_devices
    machine, device = machine_memory(), device_memory(devices[0])
    # Joining the batches of a view takes as much as the view.
    fits, where = int(machine // one) - 1, f"this machine has {machine / 1e9:.1f} GB"
    if linear and device is None:
        fits = int((machine - one) // (one * (1 + len(devices))))
        if len(devices) > 1:
            where += f" for {len(devices)} devices, each of which holds them"
    elif linear:
        room = device - _state(steps)
        if room // one < fits:
            kind = devices[0].device_kind
            fits, where = int(room // one), f"{kind} has {room / 1e9:.1f} GB beside the state"
    if views <= fits:
        return
    line = (
        f"config.eval.views={views} makes {views * one / 1e9:.1f} GB of features"
        f" ({examples:,} training images × {width} numbers), but {where}: "
    )
    if fits > 0:
        raise ConfigError(f"{line}write config.eval.views={fits} or less")
    raise ConfigError(
        f"{line}leave the probe out, or train on fewer by config.data.per_class in another"
        " --workdir"
    )


def machine_memory() -> float:
    """Bytes; infinite where the system does not say."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_memory(device: jax.Device) -> int | None:
    """Bytes that may be used of it; None if it has none of its own."""
    return (device.memory_stats() or {}).get("bytes_limit")


def _width(config: Any, task: Any, steps: Any) -> int:
    size = config.eval.batch_size or config.train.batch_size
    batch = task.batch_shapes(size) | {"mask": jax.ShapeDtypeStruct((size,), np.float32)}
    key = jax.ShapeDtypeStruct((2,), np.uint32)
    found = jax.eval_shape(task.vectors, steps.shapes.eval_params, batch, key)
    return found["vector"].shape[1]


def _state(steps: Any) -> int:
    """Bytes of a run's state on a device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(steps.shapes)
    )
