"""`pit-jax data stats`: a data set as the file that generated images are compared by."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pit_jax import classifier
from pit_jax.data import pipeline, sources
from pit_jax.errors import ConfigError
from pit_jax.evals import networks, reference
from pit_jax.parallel import mesh as meshes
from pit_jax.validation import resolve

_IMAGES_A_BATCH = 64  # that a device is sent


def write(
    config: Any,
    out: str,
    features: str = "",
    split: str | None = None,
    count: int | None = None,
    images: bool = False,
    devices: Sequence[jax.Device] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Writes the statistics and features of a data set, or its images, for `eval.reference`.

    Images are of `data.image_size`, resized and centre-cropped as for an evaluation.

    Args:
      config: its `data` group counts, and `eval.resize`.
      out: the .npz file, local or gs://.
      features: the file of FID's Inception, or the run directory of a classifier.
      split: by default the training set, `data.per_class` of it if so configured.
      count: images, at even distances from all over the set, which may be sorted by class.
      images: write those themselves, and no statistics.
      devices: those to use; all of them by default.
      say: takes the line at the end.

    Raises:
      ConfigError: if the set, the split or the network is not there or does not fit.
      StorageError: if the file cannot be written.
    """
    config = resolve(config)
    data = config.data
    if data.name == "latents":
        raise ConfigError(
            "config.data.name='latents' has no images: name the config of the images that they"
            " were made from"
        )
    if bool(features) == images:
        raise ConfigError("give either --features FILE for statistics, or --images")
    if images and data.corrupt != "refuse":
        raise ConfigError(
            f"config.data.corrupt={data.corrupt!r}: a file of images begins with their number, so"
            " write 'refuse', and remove the images that it names"
        )
    if data.eval_crop != 1:
        raise ConfigError(
            f"config.data.eval_crop={data.eval_crop}: generated images are compared with whole"
            " ones, as diffusion trains on them, so write --config.data.eval_crop=1.0"
        )
    if not str(out).endswith(".npz"):
        raise ConfigError(f"--out {out}: write a file name that ends with .npz")
    mesh = meshes.make_mesh({"data": -1, "fsdp": 1, "seq": 1, "model": 1}, devices)
    network = None if images else classifier.network(features, config.eval.resize, mesh)
    if network:
        network.check((data.image_size, data.image_size, data.channels), "images of the config")
    if split:
        source = sources.load(data, split, labelled=False)
    else:
        source = sources.training(data, labelled=False)
    if images:
        source.needs_all()
    whole = len(source)
    if count is not None:
        source = _spread(source, count)
    reader = pipeline.Reader(source, data, train=False)
    stream = batches(reader, mesh, data.workers)
    origin = {
        "data": data.name,
        "split": split or data.split,
        "per_class": 0 if split else data.per_class,
        "of": whole,
        "image_size": data.image_size,
        "halve": data.halve,
    }
    writes = jax.process_index() == 0
    with jax.set_mesh(mesh), contextlib.closing(stream):
        if network:
            found = networks.describe(network, stream, len(reader))
            origin |= {"images": found.count, "features": network.provenance()}
            if writes:
                reference.write_description(out, found, origin)
            what = f"statistics of {found.count} images"
        else:
            shape = (len(reader), data.image_size, data.image_size, 3)
            coloured = (x if x.shape[-1] == 3 else x.repeat(3, -1) for x in stream)
            if writes:
                reference.write_images(out, coloured, shape, origin)
            else:  # the devices of all processes make every batch
                for _ in coloured:
                    pass
            what = f"{shape[0]} images"
    for line in source.passed_over if writes else ():
        say(line)
    if skipped := pipeline.skipped(reader):
        say(skipped)
    if writes:
        say(f"{what} of {source.name} written to {out}: use it as config.eval.reference")


def _spread(source: sources.Source, count: int) -> sources.Part:
    """`count` examples of a source at even distances."""
    if not 1 <= count <= len(source):
        raise ConfigError(f"--num {count}: {source.name} has {len(source)} examples")
    numbers = np.arange(count) * len(source) // count
    return sources.Part(source, numbers)


def batches(reader: pipeline.Reader, mesh: Any, workers: int) -> Iterator[np.ndarray]:
    """All images in order, whole on every process; those that are corrupt are left out."""
    split = NamedSharding(mesh, meshes.batch_spec())
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    size = mesh.size * min(_IMAGES_A_BATCH, -(-len(reader) // mesh.size))
    found = pipeline.Pipeline(reader, split, size, workers).evaluate()
    with contextlib.closing(found):
        for batch in found:
            on_host = jax.device_get(whole({name: batch[name] for name in ("image", "mask")}))
            yield on_host["image"][on_host["mask"] > 0]
