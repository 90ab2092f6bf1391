"""Diffusion: learning to undo noise, on pixels or on the latents of an autoencoder."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from pit_jax.data import latent_origin, latents
from pit_jax.diffusion import guidance, samplers, schedule
from pit_jax.diffusion.flow import Flow
from pit_jax.diffusion.gaussian import Gaussian
from pit_jax.evals import accuracy, generation, generator, samples
from pit_jax.models import dit
from pit_jax.models.autoencoder import AutoencoderKL
from pit_jax.models.normalisation import Normalisation
from pit_jax.parallel.mesh import constrain
from pit_jax.perf import flops
from pit_jax.tasks.images import ImageTask
from pit_jax.tasks.means import Mean
from pit_jax.tasks.program import Program
from pit_jax.validation import sample_batch, sample_dtype
from pit_jax.weights import autoencoder_names, tensors


class Diffusion(ImageTask):
    """What the trainer asks of a task, for diffusion (Ho et al. 2020) and flow matching.

    On images the network sees them in [-1, 1]. On stored latents "image" of a batch is what
    the store holds, (B, flips, 2, h, w, c) float16: mean and standard deviation of the
    posterior, as it is and of the image flipped; a training step draws from one of the two.

    Everything random of a training example is drawn from (seed, step, example). A held-out
    example's noise and time are functions of its number in the split: the same at every
    evaluation.
    """

    def __init__(self, config: Any):
        """Of a store of latents the manifest is read, if there is one.

        Raises:
          ConfigError: if the manifest lacks something.
        """
        super().__init__(config)
        self.process = process(config.diffusion, config.sample.variance)
        self.learns_labels = config.diffusion.conditional
        self.classes = config.data.num_classes if self.learns_labels else 0
        outputs = self.process.outputs(config.data.channels)
        self.model = dit.build(config.model, outputs, self.classes)
        self.stored = config.data.name == "latents"
        self.origin: latent_origin.Origin | None = None
        if self.stored:
            # Without the store, as for sizes and samples, shapes are all that is needed.
            found = latents.manifest(config.data.dir)
            self.normalisation = found.normalisation if found else Normalisation()
            self.flips = found.flips if found else 2
            self.origin = latent_origin.of_manifest(found) if found else None

    def restored_from(self, origin: latent_origin.Origin) -> None:
        """Tells what latents the weights were trained on, be their store gone or not."""
        self.origin, self.normalisation = origin, origin.normalisation

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a training batch."""
        shapes = super().batch_shapes(batch_size)
        if self.stored:
            stored = (batch_size, self.flips, 2, *shapes["image"].shape[1:])
            shapes["image"] = jax.ShapeDtypeStruct(stored, jnp.float16)
        return shapes

    def image_shape(self) -> tuple[int, int, int, int]:
        """Of what the network sees of one image, as a batch."""
        return super().batch_shapes(1)["image"].shape

    def normalise(self, batch: dict) -> jax.Array:
        """What is stored of images as the network sees it, float32; of latents the mean."""
        if not self.stored:
            return super().normalise(batch)
        return self.normalisation.apply(batch["image"][:, 0, 0].astype(jnp.float32))

    def init(self, key: jax.Array) -> Any:
        """Parameters drawn from `key`."""
        x = jnp.zeros(self.image_shape())
        # Parameters do not depend on what attends; what cannot run here need not be asked.
        return self.model.clone(attention="xla").init(key, x, jnp.zeros(1))["params"]

    def augment(self, batch: dict, key: jax.Array) -> dict:
        """A stored batch → {"image", "noise": (B, H, W, C) float32, "time": (B,) of the
        process, "label": (B,) int32, `num_classes` where it is dropped}."""
        image_key, noise_key = jax.random.split(key)
        keys = _fold_in(noise_key, jnp.arange(len(batch["label"])))
        x = self._draw(batch, image_key)
        label = batch["label"]
        if self.classes:
            rate = self.config.diffusion.label_drop
            label = dit.drop_labels(label, _fold_in(keys, 2), rate, self.classes)
        return {"image": x, "label": label} | self._noise(keys, x)

    def _draw(self, batch: dict, key: jax.Array) -> jax.Array:
        """Images augmented, or latents drawn from their posterior: (B, H, W, C) float32."""
        stored, flip = batch["image"], self.config.data.augmentation.flip
        if not self.stored:
            return self.augmented(batch, key)[0]

        def one(stored: jax.Array, key: jax.Array) -> jax.Array:
            flip_key, normal_key = jax.random.split(key)
            flipped = jax.random.bernoulli(flip_key, flip)
            mean, deviation = stored[flipped * (self.flips - 1)].astype(jnp.float32)
            return mean + deviation * jax.random.normal(normal_key, mean.shape)

        drawn = jax.vmap(one)(stored, _fold_in(key, jnp.arange(len(stored))))
        return self.normalisation.apply(drawn)

    def _noise(self, keys: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(_fold_in(keys, 0))
        return {"noise": noise, "time": self.process.times(_fold_in(keys, 1))}

    def loss(self, params: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        """The process's loss, averaged over examples, and what it consists of."""
        losses, _ = self._losses(params, batch, key)
        means = {name: Mean.of(values) for name, values in losses.items()}
        return means["loss"].value, means

    def evaluate(self, params: Any, batch: dict) -> dict[str, jax.Array]:
        """Sums over the real rows of a batch; "examples" counts them."""
        x = self.normalise(batch)
        losses, _ = self._losses(params, batch | {"image": x} | self._noise(self.keys(batch), x))
        values = losses | {"examples": jnp.ones_like(losses["loss"])}
        # where, not a product: a filling row may hold anything
        return {k: jnp.where(batch["mask"] > 0, v, 0).sum() for k, v in values.items()}

    def outputs(self, params: Any, batch: dict) -> tuple[jax.Array, jax.Array]:
        """What the network says of an augmented batch and the mean loss, without dropout."""
        losses, said = self._losses(params, batch)
        return said, losses["loss"].mean()

    def represent(self, params: Any, images: jax.Array) -> jax.Array:
        """The network's vector of each image without noise or label, (B, d)."""
        end = jnp.full(len(images), 0 if self.process.family == "gaussian" else 1)
        time = self.process.network_time(end)
        return self.model.apply({"params": params}, images, time, method="represent")

    def tokens(self, params: Any, images: jax.Array, batch: dict, mutable: Any = False) -> Any:
        """Every patch's token, (B, N, d), of the images noised up to the middle of the process,
        under their own labels; see tasks/images.py."""
        gaussian = self.process.family == "gaussian"
        middle = len(self.process.schedule) // 2 if gaussian else 0.5
        time = jnp.full(len(images), middle)
        noise = self._noise(self.keys(batch), images)["noise"]
        return self.model.apply(
            {"params": params},
            self.process.noised(images, noise, time),
            self.process.network_time(time),
            batch["label"],
            method="tokens",
            mutable=mutable,
        )

    def view_vectors(self, params: Any, batch: dict, extra: jax.Array) -> dict[str, jax.Array]:
        """`vectors` of a random crop and flip of each image; of latents another draw."""
        if not self.stored:
            return super().view_vectors(params, batch, extra)
        x = self._draw(batch, jax.random.wrap_key_data(extra))
        return self._vectors(params, batch, x)

    def generate(self, params: Any, batch: dict, extra: jax.Array) -> jax.Array:
        """Samples, as `config.sample` says: (B, H, W, C) float32 as the network sees images.

        A sample is a function of (seed, index, label), whatever else the batch holds.

        Args:
          batch: "label" (B,) int32, `num_classes` meaning none; "index" (B,) int32.
          extra: the seed, a uint32.
        """
        if self.config.sample.dtype != "float32":
            return self._generate(params, batch, extra)
        # At its default precision a TPU multiplies float32 in bfloat16.
        with jax.default_matmul_precision("highest"):
            return self._generate(params, batch, extra)

    def _generate(self, params: Any, batch: dict, extra: jax.Array) -> jax.Array:
        options, labels = self.config.sample, batch["label"]
        model = self.model.clone(dtype=sample_dtype(self.config))
        root = jax.random.key(extra)
        keys = _fold_in(root, batch["index"])
        shape = self.image_shape()[1:]
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(_fold_in(keys, 0))
        denoise = guidance.guided(
            self.process,
            lambda x, time, label: model.apply({"params": params}, x, time, label),
            self.classes,
            options.guidance,
            options.guidance_channels,
            tuple(options.guidance_interval),
        )
        return samplers.sample(
            self.process,
            lambda x, time: denoise(x, time, labels),
            constrain(noise, "batch", None, None, None),
            _fold_in(keys, 1),
            options.sampler,
            f"ddim{options.steps}" if options.spacing == "leading" else options.steps,
            options.eta,
            clip=1.0 if options.clip else None,
        )

    def levels(self, x: jax.Array) -> jax.Array:
        """Generated images in grey levels, float32 in [0, 255]."""
        mean, std = (jnp.asarray(v, jnp.float32) for v in (self.mean, self.std))
        return jnp.clip(255 * (self.permuted(x) * std + mean), 0, 255)

    def _losses(
        self, params: Any, batch: dict, key: jax.Array | None = None
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Each example's losses (B,) and what the network said; a key means training."""
        train, rngs = key is not None, {} if key is None else {"dropout": key}
        x, noise, time = batch["image"], batch["noise"], batch["time"]
        said = self.model.apply(
            {"params": params},
            self.process.noised(x, noise, time),
            self.process.network_time(time),
            batch["label"],
            train=train,
            rngs=rngs,
        )
        return self.process.losses(said, x, noise, time), said

    def flops(self) -> flops.Flops:
        """Analytic cost of one image in training."""
        config = self.config
        outputs = self.process.outputs(config.data.channels)
        return flops.dit(config.model, config.data, outputs)

    def evaluations(self) -> dict[str, Any]:
        """Name → function(context) that yields metric names and values."""
        return {
            "loss": accuracy.evaluate,
            "samples": samples.evaluate,
            "generation": generation.evaluate,
        }

    def steps(self, steps: Any) -> dict[str, Program]:
        """What preflight compiles: training, evaluation, the whole loop of sampling, and of
        latents the decoding of as many as are decoded at once."""
        options = self.config.sample
        found = super().steps(steps)
        size = sample_batch(self.config)
        rows, state = steps.batch_sharding, steps.shapes
        whole = NamedSharding(rows.mesh, PartitionSpec())
        number = jax.ShapeDtypeStruct((size,), jnp.int32, sharding=rows)
        passes = options.steps * (1 if options.guidance == 1 else 2)
        passes = 2 * passes - 1 if options.sampler == "heun" else passes
        found["sample"] = Program(
            steps.read(self.generate),
            (
                state.eval_params,
                {"label": number, "index": number},
                jax.ShapeDtypeStruct((), jnp.uint32, sharding=whole),
            ),
            params=state.eval_params,
            optimizer=found["eval"].optimizer,
            model_flops=self.flops().computed * passes * size,
        )
        if self.stored:
            found["decode"] = self._decode(state, rows, whole)
        return found

    def _decode(self, state: Any, rows: NamedSharding, whole: NamedSharding) -> Program:
        """With the autoencoder that the config names, or where its file is not, its sizes."""
        model = decoder_model(self.config, self.origin)
        size = generator.decode_size(sample_batch(self.config), generator.mesh_ways(rows.mesh))
        params = {
            path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole)
            for path, shape in autoencoder_names.shapes(model).items()
        }
        latents = (size, *self.image_shape()[1:])
        side = self.config.data.image_size * model.factor
        return Program(
            generator.decoding(model, self.normalisation, rows.mesh),
            (tensors.unflatten(params), jax.ShapeDtypeStruct(latents, jnp.float32, sharding=rows)),
            params=params,
            optimizer=state,
            model_flops=flops.decoder(model, side, model.image_channels) * size,
        )


def decoder_model(config: Any, origin: latent_origin.Origin | None) -> AutoencoderKL:
    """Of `autoencoder.weights`, or as the config's `autoencoder` group says where no file is."""
    sizes = config.autoencoder
    if sizes.weights and epath.Path(sizes.weights).exists():
        return latent_origin.load_autoencoder(config, origin).model
    return AutoencoderKL(
        channels=tuple(sizes.channels),
        layers=sizes.layers,
        latent=config.data.channels,
        groups=sizes.groups,
        attends=sizes.attends,
    )


def process(diffusion: Any, variance: str = "large") -> Gaussian | Flow:
    """The process that a config's `diffusion` group describes, sampled with this variance where
    none is learned.

    Raises:
      ConfigError: for a prediction that the family does not know.
    """
    if diffusion.family == "flow":
        times = (diffusion.time_mean, diffusion.time_std)
        return Flow(diffusion.predict, *times, diffusion.min_gap)
    table = schedule.named(diffusion.schedule, diffusion.timesteps)
    what = (diffusion.predict, diffusion.learn_sigma)
    return Gaussian(table, *what, variance=variance, decoder=diffusion.decoder)


def _fold_in(keys: jax.Array, numbers: jax.Array | int) -> jax.Array:
    """fold_in of one key with many numbers, or of many keys with one."""
    if np.ndim(numbers):
        return jax.vmap(lambda number: jax.random.fold_in(keys, number))(numbers)
    return jax.vmap(lambda key: jax.random.fold_in(key, numbers))(keys)
