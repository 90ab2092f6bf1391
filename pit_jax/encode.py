"""`pit-jax data latents`: encodes a set of images once, for all epochs of a diffusion run.

Every image is brought to the config's size as evaluation does it, encoded as it is and
mirrored, and stored by data/latent_writer.py. Several processes share the shards out, each
on its own devices, and write to a directory that all of them see.
"""

import contextlib
import copy
import itertools
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax import metrics
from pit_jax.checkpoint import Checkpoints
from pit_jax.data import pipeline, sources
from pit_jax.data.augmentation import normalise
from pit_jax.data.latent_writer import Writer
from pit_jax.data.latents import DTYPE, LatentSource, Manifest, local, read_manifest
from pit_jax.data.store import LABEL
from pit_jax.errors import ConfigError
from pit_jax.models.autoencoder import AutoencoderKL
from pit_jax.parallel import mesh as meshes
from pit_jax.rundir import RunDir, version
from pit_jax.tasks.autoencoder import build_model
from pit_jax.validation import resolve
from pit_jax.weights import autoencoder, exchange, tensors

WEIGHTS = "autoencoder.safetensors"  # of a run's own autoencoder, beside its latents
_BATCH = 32  # images a device
_SHARD = 1 << 27  # bytes, about: what a kill may cost
# As data/resize.py does it, without `data.halve` and with it.
_RESIZE = "shorter side antialiased bicubic, centre"
_HALVED = "halved by box filter, then shorter side antialiased bicubic, centre"
_PACKAGES = ("pit_jax", "jax")  # that the manifest names the versions of
_LARGEST = float(np.finfo(DTYPE).max)


def encode(
    config: Any,
    vae: str,
    directory: str | Path,
    splits: Sequence[str] = (),
    shards: int | None = None,
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> None:
    """Writes the latents of a config's data set; goes on where an earlier call stopped.

    `config.model.dtype` is that of the encoder's products, "auto" being float32 here: what is
    encoded once may take its time.

    Args:
      config: its `data` group says which images, and of which size.
      vae: what `weights.autoencoder.load` takes, or the run directory of an autoencoder. Of a
        run the evaluated weights of the newest checkpoint are taken and written to
        `directory`/autoencoder.safetensors, with the normalisation to mean 0 and variance 1
        that the run's evaluation found: the file that `pit-jax weights export` writes, too.
      directory: of the store, made if it is not there; local. Where nothing is left to do,
        all its files are compared with their checksums.
      splits: of the data set; by default the config's training and evaluation split.
      shards: files of a split; by default of about 128 MB, or as many as an earlier call
        began with.
      batch_size: images at once, over this process's devices.
      devices: of this process; all by default.

    Raises:
      ConfigError: if config, autoencoder and directory do not fit together, a run was never
        evaluated, or latents are not finite, naming the image.
      StorageError: if something cannot be read or written, or is not what was written.
    """
    config = resolve(config)
    _check(config)
    mesh = meshes.make_mesh(
        {"data": -1, "fsdp": 1, "seq": 1, "model": 1}, devices or jax.local_devices()
    )
    size = _BATCH * mesh.size if batch_size is None else batch_size
    if size < 1 or size % mesh.size:
        raise ConfigError(f"--batch-size {size} does not divide over {mesh.size} device(s)")
    root, number, count = local(directory), jax.process_index(), jax.process_count()
    names = splits or (config.data.split, config.data.eval_split)
    found = {split: sources.load(config.data, split) for split in names}
    for source in found.values():
        source.needs_all()
    loaded, weights = _autoencoder(config, vae, root)
    encoder = _Encoder(config, loaded.model, loaded.params, mesh, size)
    manifest = Manifest(
        image_set=config.data.name,
        image_size=config.data.image_size,
        num_classes=config.data.num_classes,
        shape=encoder.shape,
        flips=2,
        autoencoder=loaded.name,
        autoencoder_sha256=loaded.sha256,
        normalisation=loaded.normalisation,
        encoder_dtype=encoder.dtype,
        source=str(config.data.dir),
        resize=_HALVED if config.data.halve else _RESIZE,
        versions={name: version(name) for name in _PACKAGES},
        weights_sha256=loaded.weights_sha256,
        classes=tuple(found[names[0]].classes),
    )
    writers: dict[str, Writer] = {}
    for turn in range(2):  # process 0 makes the manifest, the others find it
        if (number == 0) == (turn == 0):
            for split, source in found.items():
                files = _shards(root, manifest, split, len(source)) if shards is None else shards
                writers[split] = Writer(root, manifest, split, len(source), files)
        _wait_for_all(f"writers {turn}")
    left = [
        (split, shard)
        for split, writer in writers.items()
        for shard in writer.missing(range(number, writer.shards, count))
    ]
    total = sum(len(writers[split].span(shard)) for split, shard in left)
    with metrics.Progress(total, f"latents of {config.data.name}", quiet=number > 0) as progress:
        for line in (line for source in found.values() for line in source.passed_over):
            progress.say(line)
        meter = metrics.Counted(progress, total)
        for split, shard in left:
            span = writers[split].span(shard)
            writers[split].write(shard, encoder.examples(found[split], span, meter.add))
            meter.line()
        _wait_for_all("shards")
        if number > 0:
            return
        for writer in writers.values():
            writer.finish()
        if not left:
            for split in found:
                LatentSource(root, split).verify()
            progress.say(f"{root}: every file is as it was written")
        for line in _result(root, manifest, found, weights):
            progress.say(line)


def _check(config: Any) -> None:
    data = config.data
    if data.name == "latents":
        raise ConfigError("config.data.name='latents' is encoded already: name a set of images")
    if set(data.mean) != {0.5} or set(data.std) != {0.5}:
        raise ConfigError(
            f"config.data.mean={data.mean} and .std={data.std}: an autoencoder works on images in"
            " [-1, 1], which is 0.5 for both"
        )
    if data.corrupt != "refuse":
        raise ConfigError(
            f"config.data.corrupt={data.corrupt!r}: latents of every image are stored, so write"
            " 'refuse', and remove the images that it names"
        )
    if data.eval_crop != 1:
        raise ConfigError(
            f"config.data.eval_crop={data.eval_crop}: latents are of whole images, as diffusion"
            " trains on them, so write --config.data.eval_crop=1.0"
        )


def _shards(root: Path, manifest: Manifest, split: str, count: int) -> int:
    """As many as an earlier call began with, or files of about _SHARD bytes."""
    with contextlib.suppress(ConfigError):  # there is no manifest yet
        if known := read_manifest(root)["splits"].get(split):
            return known["shards"]
    size = count * (LABEL.itemsize + math.prod(manifest.record_shape()) * DTYPE.itemsize)
    return min(max(-(-size // _SHARD), jax.process_count()), count)


def _result(root: Path, manifest: Manifest, found: dict, weights: str) -> Iterator[str]:
    """What was made, and how to train on it, for people."""
    splits = read_manifest(root)["splits"]
    size = sum(facts["bytes"] for x in found for facts in splits[x]["files"].values())
    counts = " + ".join(f"{len(source):,} {split}" for split, source in found.items())
    h, w, c = manifest.shape
    yield (
        f"{root}: {counts} images of {manifest.image_set} as {h} × {w} × {c} latents, as they are"
        f" and mirrored, {size / 1e6:,.1f} MB, by {manifest.autoencoder}"
        f" ({manifest.autoencoder_sha256[:12]})"
    )
    fields = {
        "data.name": "latents",
        "data.dir": root,
        "data.image_size": h,
        "data.channels": c,
        "data.num_classes": manifest.num_classes,
        "autoencoder.weights": weights,
        "sample.clip": False,  # which a config of images may have on
    }
    words = " ".join(f"--config.{name}={shlex.quote(str(x))}" for name, x in fields.items())
    yield f"train on them with {words}"


# The autoencoder ------------------------------------------------------------------------


def _autoencoder(config: Any, vae: str, root: Path) -> tuple[autoencoder.Loaded, str]:
    """The autoencoder that --vae names, and the path of its weights."""
    run = RunDir(vae)
    if not (run.exists() and run.status()):  # diffusers keeps a config.json, too
        loaded, path = autoencoder.load(vae), vae
        _check_images(config, vae, loaded.model)
        return loaded, path
    theirs = run.config()
    if theirs.task != "autoencoder":
        raise ConfigError(f"--vae {vae} was trained by task {theirs.task!r}, it is no autoencoder")
    saved = Checkpoints(run)
    if not saved.steps():
        raise ConfigError(f"--vae {vae} holds no checkpoint yet")
    step = saved.newest_intact(_warn, repair=False)
    model, params = build_model(theirs), saved.read_weights(step)
    _check_images(config, vae, model)
    path, name = root / WEIGHTS, exchange.trained_name(run, step)
    normalisation = exchange.measured(run, step)
    if jax.process_index() == 0 and not path.exists():
        autoencoder.write(path, model, params, normalisation, name)
    _wait_for_all("autoencoder")
    loaded = autoencoder.load(path)
    mine, found = tensors.flatten(params), tensors.flatten(loaded.params)
    same = loaded.model.groups == model.groups and mine.keys() == found.keys()
    same = same and loaded.normalisation == normalisation
    if not same or any(not np.array_equal(mine[k], found[k]) for k in mine):
        raise ConfigError(
            f"{path} holds {loaded.name}, not {name}: name another --out, or that file as --vae"
        )
    return loaded, str(path)


def _check_images(config: Any, vae: str, model: AutoencoderKL) -> None:
    if model.image_channels != config.data.channels:
        raise ConfigError(
            f"--vae {vae} takes images of {model.image_channels} channel(s), but"
            f" config.data.channels={config.data.channels}"
        )
    model.latent_shape(config.data.image_size, config.data.image_size)


class _Encoder:
    """An autoencoder on a mesh: images in, what a store keeps of each out."""

    def __init__(self, config: Any, model: AutoencoderKL, params: Any, mesh: Mesh, size: int):
        self._data, self._mesh, self._size = copy.deepcopy(config.data), mesh, size
        self._data.in_memory_gb = 0.0  # read once, and while the devices work
        self.dtype = "float32" if config.model.dtype == "auto" else config.model.dtype
        model = model.clone(dtype=self.dtype)
        self.shape = model.latent_shape(self._data.image_size, self._data.image_size)
        self._batches = NamedSharding(mesh, meshes.batch_spec())
        whole = NamedSharding(mesh, PartitionSpec())
        self._params = jax.device_put(params, whole)

        def both(params: Any, images: jax.Array) -> jax.Array:
            """uint8 (B, S, S, C) → (B, 2 flips, 2, h, w, c): means and deviations."""
            images = normalise(images, self._data.mean, self._data.std)
            found = [
                jnp.stack(model.apply({"params": params}, x, method="encode"), 1)
                for x in (images, images[:, :, ::-1])
            ]
            return jnp.stack(found, 1)

        sharded = {"in_shardings": (whole, self._batches), "out_shardings": self._batches}
        self._function = jax.jit(both, **sharded)

    def examples(
        self, source: sources.Source, numbers: Sequence[int], done: Callable[[int], None]
    ) -> Iterator[tuple[np.ndarray, int]]:
        """(latents, label) of these images of a source, in order.

        Args:
          done: told the number of images that were encoded, whenever some were.

        Raises:
          ConfigError: if latents are not finite as float16.
        """
        reader = pipeline.Reader(sources.Part(source, numbers), self._data, train=False)
        images = pipeline.Pipeline(reader, self._batches, self._size, self._data.workers)
        first, waiting = 0, None  # fetched one batch late, so that the devices have work
        with contextlib.closing(images.evaluate()) as batches:
            for batch in itertools.chain(batches, (None,)):
                if batch is not None:
                    with jax.set_mesh(self._mesh):
                        batch["image"] = self._function(self._params, batch["image"])
                if waiting is not None:
                    found = jax.device_get(waiting)
                    count = int(found["mask"].sum())
                    for row in range(count):
                        self._check_finite(found["image"][row], source, numbers[first + row])
                        yield found["image"][row], int(found["label"][row])
                    first += count
                    done(count)
                waiting = batch

    def _check_finite(self, latents: np.ndarray, source: sources.Source, number: int) -> None:
        if not (np.abs(latents) <= _LARGEST).all():  # `not <=`: NaN is refused too
            raise ConfigError(
                f"{source.name}: the latents of image {number} are not finite in float16: the"
                " autoencoder's weights are damaged, or this --vae is not made for such images"
            )


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
