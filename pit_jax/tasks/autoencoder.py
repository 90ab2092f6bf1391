"""Learning the autoencoder whose latents a diffusion model may work on."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.evals import accuracy, reconstruction
from pit_jax.evals.context import Context
from pit_jax.models.attention import choose
from pit_jax.models.autoencoder import AutoencoderKL, kl
from pit_jax.models.transformer import compute_dtype
from pit_jax.perf import flops
from pit_jax.tasks.images import ImageTask
from pit_jax.tasks.means import Mean

_LEAST_ERROR = 1e-10  # bounds the PSNR of an image that is met exactly, at 100 dB


class Autoencoder(ImageTask):
    """What the trainer asks of a task, for the KL autoencoder of latent diffusion.

    The loss of an image is |x − decoded|, summed over its numbers, plus `kl_weight` times the
    divergence of its latents from N(0, 1), summed over theirs (Rombach et al. 2022, section
    G); both are divided by the image's numbers, which changes no balance and makes losses of
    different sizes alike. The published models add a perceptual and an adversarial loss.
    They are left out here, so reconstructions are blurrier than those at equal L1.

    Images are in [−1, 1]; labels come with the batch and are not looked at. In training the
    latents are a sample whose noise is drawn from (seed, step, example) with the
    augmentation, so that neither the mesh nor the accumulation of gradients changes it. In
    evaluation they are the mean.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.model = build_model(config)
        side = config.data.image_size
        self.latent_shape = self.model.latent_shape(side, side)

    def init(self, key: jax.Array) -> Any:
        """Parameters drawn from `key`."""
        return self.model.init(key, jnp.zeros(self.image_shape()))["params"]

    def augment(self, batch: dict, key: jax.Array) -> dict:
        """uint8 images → {"image": float32, "noise": (B, h, w, latent) float32}."""
        image_key, noise_key = jax.random.split(key)
        image, _ = self.augmented(batch, image_key)

        def draw(row: jax.Array) -> jax.Array:
            return jax.random.normal(jax.random.fold_in(noise_key, row), self.latent_shape)

        return {"image": image, "noise": jax.vmap(draw)(jnp.arange(len(image)))}

    def loss(self, params: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        """Mean loss of an augmented batch, and its two parts: L1 a number, KL in nats."""
        del key
        _, _, _, terms = self._apply(params, batch["image"], batch["noise"])
        means = {name: Mean.of(x) for name, x in terms.items()}
        return means["loss"].value, means

    def evaluate(self, params: Any, batch: dict) -> dict[str, jax.Array]:
        """Sums over the real rows of a batch; "examples" counts them.

        "mse" and "psnr" are those of images in [0, 1]; "latent_mean" and "latent_square" are
        the mean of a sample's latents and of their squares.
        """
        images = self.normalise(batch)
        found, mean, std, terms = self._apply(params, images)
        error = jnp.square((jnp.clip(found, -1, 1) - images) / 2).mean((1, 2, 3))
        values = terms | {
            "mse": error,
            "psnr": -10 * jnp.log10(jnp.maximum(error, _LEAST_ERROR)),
            "latent_mean": mean.mean((1, 2, 3)),
            "latent_square": (mean**2 + std**2).mean((1, 2, 3)),
            "examples": jnp.ones_like(error),
        }
        # where, not a product: a filling row may hold anything
        return {k: jnp.where(batch["mask"] > 0, v, 0).sum() for k, v in values.items()}

    def reconstruct(self, params: Any, batch: dict, extra: jax.Array) -> dict[str, jax.Array]:
        """The first `eval.pictures` images of an evaluation batch, and what is decoded.

        Returns:
          "original" and "reconstructed" (from the latents' mean), each (B, S, S, C) float32,
          grey levels in [0, 255]; the batch's "mask".
        """
        del extra
        batch = {name: x[: self.config.eval.pictures] for name, x in batch.items()}
        found, _, _ = self.model.apply({"params": params}, self.normalise(batch))
        return {
            "original": batch["image"].astype(jnp.float32),
            "reconstructed": jnp.clip(127.5 * (found + 1), 0, 255),
            "mask": batch["mask"],
        }

    def outputs(self, params: Any, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Reconstructions of an augmented batch and the mean loss."""
        found, _, _, terms = self._apply(params, batch["image"], batch["noise"])
        return found, terms["loss"].mean()

    def represent(self, params: Any, images: jax.Array) -> jax.Array:
        """The latents' mean, averaged over places: (B, latent)."""
        mean, _ = self.model.apply({"params": params}, images, method="encode")
        return mean.mean((1, 2))

    def _apply(
        self, params: Any, images: jax.Array, noise: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Reconstruction, mean and deviation of the latents, and each image's loss (B,)."""
        found, mean, std = self.model.apply({"params": params}, images, noise)
        absolute, divergence = jnp.abs(found - images).mean((1, 2, 3)), kl(mean, std)
        weight = self.config.autoencoder.kl_weight / math.prod(images.shape[1:])
        loss = absolute + weight * divergence
        return found, mean, std, {"loss": loss, "l1": absolute, "kl": divergence}

    def attends(self) -> str:
        """What attends, among the places of the smallest resolution."""
        if not self.model.attends:
            return "none"
        places = math.prod(self.latent_shape[:2])
        return choose("auto", places, self.model.channels[-1], compute_dtype(self.model.dtype))

    def flops(self) -> flops.Flops:
        """Analytic cost of encoding and decoding one image."""
        return flops.autoencoder(self.config.autoencoder, self.config.data)

    def evaluations(self) -> dict[str, Any]:
        """Name → function(context) that yields metric names and values."""
        return {"reconstruction": evaluate}


def build_model(config: Any) -> AutoencoderKL:
    """The model that a config's `autoencoder` group describes."""
    sizes = config.autoencoder
    return AutoencoderKL(
        channels=tuple(sizes.channels),
        layers=sizes.layers,
        latent=sizes.latent,
        groups=sizes.groups,
        image_channels=config.data.channels,
        attends=sizes.attends,
        dtype=config.model.dtype,
    )


def evaluate(context: Context) -> Iterator[tuple[str, float]]:
    """Yields "loss", its parts "l1" and "kl", "mse", "psnr", and "examples", the count.

    "latent_mean" and "latent_std" are those of samples of the latents, all channels together:
    a diffusion model should see (latents − mean) / std. Draws "reconstruction".
    """
    values = dict(accuracy.evaluate(context))
    mean, square = values["latent_mean"], values.pop("latent_square")
    values["latent_std"] = math.sqrt(max(square - mean**2, 0.0))
    yield from values.items()
    reconstruction.draw(context)
