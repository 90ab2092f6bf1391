"""Images from a trained diffusion model: of any number, as uint8, decoded if it makes latents."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax.data import latent_origin
from pit_jax.errors import ConfigError, NonFiniteLoss
from pit_jax.models.autoencoder import AutoencoderKL
from pit_jax.models.normalisation import Normalisation
from pit_jax.models.transformer import compute_dtype
from pit_jax.parallel.mesh import BATCH_AXES, batch_spec
from pit_jax.validation import sample_batch, sample_dtype
from pit_jax.weights import autoencoder

# Latents that a device decodes at once: its activations are 500 times as large as they are.
DECODED_AT_ONCE = 8
_LABELS = 2**33  # of random numbers, beside those that seeds order data and pixels by


class Generator:
    """Images by label and index, which with `sample.seed` decide all that is random of them.

    Every process calls it alike and gets all images.

    Attributes:
      batch_size: images at once, over all devices.
      image_shape: (S, S, C) of an image.
      decoder: of latents, as `weights.autoencoder.load` returned it; else None.
    """

    def __init__(self, config: Any, task: Any, steps: Any, params: Any, mesh: Mesh):
        """
        Args:
          config: resolved; `config.sample` says how.
          task: offers `generate`, and `levels` if it is not of latents.
          steps: its jitted functions, as `step.build` makes them for `mesh`.
          params: the weights to sample from.

        Raises:
          ConfigError: if the batch does not divide over the mesh, or the autoencoder that
            should decode is not named, not there, or of other latents.
        """
        self._config, self._task, self._steps, self._mesh = config, task, steps, mesh
        self._params = params
        self._ways = mesh_ways(mesh)
        size = sample_batch(config)
        if size % self._ways:
            raise ConfigError(
                f"samples in batches of {size} do not divide over the {self._ways} devices that"
                " share a batch: write config.sample.batch_size="
                f"{-(-size // self._ways) * self._ways}"
            )
        self.batch_size, data = size, config.data
        self.decoder = None
        if data.name == "latents":
            known = getattr(task, "origin", None)  # a run's own, else what the store says
            self.decoder = _load_decoder(config, known or latent_origin.of_store(data))
            self._decode = _decoding(self.decoder, mesh)
        else:
            self._levels = jax.jit(task.levels)
        self.image_shape = image_shape(data, self.decoder and self.decoder.model)

    def with_params(self, params: Any) -> "Generator":
        """The same for other weights; nothing is loaded or compiled again."""
        other = copy.copy(self)
        other._params = params
        return other

    def images(self, labels: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """All images of these labels and indices, each (n,): (n, S, S, C) uint8.

        A label equal to `data.num_classes` means no class.

        Raises:
          NonFiniteLoss: if a sample is not finite, or not once it is decoded.
        """
        return np.concatenate(list(self.batches(labels, indices)))

    def batches(self, labels: np.ndarray, indices: np.ndarray) -> Iterator[np.ndarray]:
        """The same, batch by batch: what is asked for last comes as a shorter one."""
        size = self.size(len(indices))
        for start in range(0, len(indices), size):
            part = slice(start, start + size)
            yield self.batch(labels[part], indices[part], size)

    def size(self, count: int) -> int:
        """Images of each batch that `count` images are made in: no more than are wanted."""
        return min(self.batch_size, -(-count // self._ways) * self._ways)

    def batch(self, labels: np.ndarray, indices: np.ndarray, size: int) -> np.ndarray:
        """`images` of at most `size`, made in one batch of that size."""
        count = len(indices)
        sharding = self._steps.batch_sharding
        batch = {
            name: _put(np.pad(np.asarray(x, np.int32), (0, size - count), "edge"), sharding)
            for name, x in (("label", labels), ("index", indices))
        }
        seed = np.uint32(self._config.sample.seed)
        with jax.set_mesh(self._mesh):
            x = self._steps.read(self._task.generate)(self._params, batch, seed)
            self._check(np.asarray(x)[:count], indices, "")
            if self.decoder is None:
                return to_bytes(np.asarray(self._levels(x))[:count])
            return self._decoded(np.asarray(x)[:count], indices)

    def _decoded(self, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
        size = decode_size(len(x), self._ways)
        parts = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            padding = ((0, size - len(part)), (0, 0), (0, 0), (0, 0))
            levels = self._decode(_put(np.pad(part, padding), self._steps.batch_sharding))
            levels = np.asarray(levels)[: len(part)]
            self._check(levels, indices[start : start + size], f" once {self.decoder.name} decoded")
            parts.append(to_bytes(levels))
        return np.concatenate(parts)

    def _check(self, x: np.ndarray, indices: np.ndarray, when: str) -> None:
        finite = np.isfinite(x).all(axis=(1, 2, 3))
        if not finite.all():
            options = self._config.sample
            bad = np.flatnonzero(~finite)
            raise NonFiniteLoss(
                f"{len(bad)} of {len(x)} samples are not finite{when},"
                f" index {indices[bad[0]]} first (sampler {options.sampler}, {options.steps}"
                f" steps, guidance {options.guidance:g}): other sampler options or another"
                " checkpoint may help"
            )

    def provenance(self, labels: str | Sequence[int]) -> dict[str, Any]:
        """How images are made, as JSON knows it; `labels` is what `choose_labels` was told."""
        options = self._config.sample
        decoder = self.decoder and {
            "name": self.decoder.name,
            "path": self._config.autoencoder.weights,
            "sha256": self.decoder.sha256,
            "weights_sha256": self.decoder.weights_sha256,
        }
        with jax.set_mesh(self._mesh):
            dtype = compute_dtype(sample_dtype(self._config)).name
        fixed = options.sampler == "ddpm" and not self._config.diffusion.learn_sigma
        return {
            "dtype": dtype,
            "sampler": options.sampler,
            "steps": options.steps,
            "spacing": options.spacing,
            "eta": options.eta,
            "clip": options.clip,
            "guidance": options.guidance,
            "guidance_channels": options.guidance_channels,
            "guidance_interval": list(options.guidance_interval),
            "seed": options.seed,
            "labels": labels if isinstance(labels, str) else list(labels),
            "image_shape": list(self.image_shape),
            "decoder": decoder,
            **({"variance": options.variance} if fixed else {}),
        }


def of(context: Any) -> Generator:
    """The generator of an evaluation's weights; what it loaded and compiled is kept."""
    params = context.state.eval_params
    kept = context.kept.get("generator")
    if kept is None:
        mesh = context.steps.batch_sharding.mesh
        kept = Generator(context.config, context.task, context.steps, params, mesh)
        context.kept["generator"] = kept.with_params(None)  # an old step's weights may go
    return kept.with_params(params)


def choose_labels(
    config: Any, indices: np.ndarray, wanted: str | Sequence[int] | None = None
) -> tuple[np.ndarray, str | list[int]]:
    """The label of each index, (n,) int32, and the name of the choice.

    Args:
      config: resolved.
      indices: (n,).
      wanted: "balanced" gives index i the label i mod classes, "random" one that is drawn from
        (`sample.seed`, i), "unconditional" none; numbers are taken in turn. By default what
        `sample.labels` says, or "unconditional" if the network knows no classes.

    Raises:
      ConfigError: if the network was not trained for that, or there is no such class.
    """
    classes, conditional = config.data.num_classes, config.diffusion.conditional
    if wanted is None:
        wanted = config.sample.labels if conditional else "unconditional"
    if wanted == "unconditional":
        if conditional and config.diffusion.label_drop == 0:
            raise ConfigError(
                "labels 'unconditional': this network was always told the class"
                " (config.diffusion.label_drop=0), write 'balanced' or numbers"
            )
        return np.full(len(indices), classes, np.int32), wanted
    if not conditional:
        raise ConfigError(
            f"labels {_words(wanted)}: this network knows no classes"
            " (config.diffusion.conditional=False), write 'unconditional'"
        )
    if wanted == "balanced":
        return (indices % classes).astype(np.int32), wanted
    if wanted == "random":
        bits = np.random.Philox(key=(config.sample.seed, _LABELS))
        drawn = bits.random_raw(int(indices.max(initial=-1)) + 1)[indices]
        return (drawn % np.uint64(classes)).astype(np.int32), wanted
    numbers = [] if isinstance(wanted, str) else [int(x) for x in wanted]
    if not numbers or not all(0 <= x < classes for x in numbers):
        raise ConfigError(
            f"labels {_words(wanted)}: write numbers from 0 to {classes - 1}, 'balanced',"
            " 'random' or 'unconditional'"
        )
    return np.asarray(numbers, np.int32)[indices % len(numbers)], numbers


def image_shape(data: Any, decoder: AutoencoderKL | None) -> tuple[int, int, int]:
    """(S, S, C) of an image of a config's `data`, which `decoder` makes of latents."""
    if decoder is None:
        return (data.image_size, data.image_size, data.channels)
    side = data.image_size * decoder.factor
    return (side, side, decoder.image_channels)


def to_bytes(levels: np.ndarray) -> np.ndarray:
    """Grey levels of any range, rounded to the nearest uint8."""
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def mesh_ways(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def _words(wanted: str | Sequence[int]) -> str:
    return repr(wanted) if isinstance(wanted, str) else " ".join(map(str, wanted))


def _put(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """What every process has, laid out over all devices; jit takes no such NumPy array."""
    return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])


def _load_decoder(config: Any, origin: latent_origin.Origin | None) -> autoencoder.Loaded:
    if not config.autoencoder.weights:
        raise ConfigError(
            "config.autoencoder.weights is empty: name the autoencoder that made the latents,"
            " samples are decoded with it"
        )
    return latent_origin.load_autoencoder(config, origin)


def decode_size(count: int, ways: int) -> int:
    """Latents that are decoded together, of so many in a batch split so many ways."""
    return min(DECODED_AT_ONCE, -(-count // ways)) * ways


def decoding(model: AutoencoderKL, normalisation: Normalisation, mesh: Mesh) -> Callable:
    """Jitted: parameters, normalised latents (B, h, w, c), split over the mesh → whole grey
    levels (B, S, S, C), not limited: an infinite one would pass as white."""
    # What is measured keeps its digits: bfloat16 would be an error of its own in an image, and
    # at its default precision a TPU multiplies float32 in it.
    model = model.clone(dtype="float32")
    whole = NamedSharding(mesh, PartitionSpec())

    def decode(params: Any, x: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            x = model.apply({"params": params}, normalisation.invert(x), method="decode")
        return (x + 1) * 127.5

    shardings = (whole, NamedSharding(mesh, batch_spec()))
    return jax.jit(decode, in_shardings=shardings, out_shardings=whole)


def _decoding(loaded: autoencoder.Loaded, mesh: Mesh) -> Callable:
    whole = NamedSharding(mesh, PartitionSpec())
    params = jax.tree.map(lambda x: _put(np.asarray(x), whole), loaded.params)
    return functools.partial(decoding(loaded.model, loaded.normalisation, mesh), params)
