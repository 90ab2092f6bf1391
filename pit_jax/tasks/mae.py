"""Masked autoencoding: pre-training by predicting the patches that the encoder did not see."""

from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.evals import reconstruction
from pit_jax.models import mae, vit
from pit_jax.models.embed import draw, unpatchify
from pit_jax.models.sizes import num_kept
from pit_jax.perf import flops
from pit_jax.tasks.images import ImageTask
from pit_jax.tasks.means import Mean


class MaskedAutoencoding(ImageTask):
    """What the trainer asks of a task, for masked autoencoding (He et al. 2021).

    Labels come with the batch and are not looked at. In training the mask of an example is
    drawn from (seed, step, example) with its augmentation, so that neither the mesh nor the
    accumulation of gradients changes it. The mask of a held-out image is a function of its
    number in the split: it is the same at every evaluation, in whatever batch the image comes.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.model = mae.build(config.model, config.mae)
        self.patches = (config.data.image_size // config.model.patch) ** 2
        self.kept = num_kept(self.patches, config.mae.mask_ratio)

    def init(self, key: jax.Array) -> Any:
        """Parameters drawn from `key`."""
        keep = jnp.arange(self.kept, dtype=jnp.int32)[None]
        images = jnp.zeros(self.image_shape())
        # Parameters do not depend on what attends; what cannot run here need not be asked.
        return self.model.clone(attention="xla").init(key, images, keep)["params"]

    def augment(self, batch: dict, key: jax.Array) -> dict:
        """uint8 images → {"image": float32, "keep": (B, kept) int32}."""
        image_key, mask_key = jax.random.split(key)
        image, _ = self.augmented(batch, image_key)
        rows = jnp.arange(len(image))
        keys = jax.vmap(lambda i: jax.random.fold_in(mask_key, i))(rows)
        return {"image": image, "keep": self._draw(keys)}

    def loss(self, params: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        """Mean squared error on the hidden patches, averaged over images."""
        losses, _ = self._losses(params, batch["image"], batch["keep"], key)
        loss = Mean.of(losses)
        return loss.value, {"loss": loss}

    def evaluate(self, params: Any, batch: dict) -> dict[str, jax.Array]:
        """Sums over the real rows of a batch; "examples" counts them."""
        keep = self.fixed_masks(batch)
        losses, _ = self._losses(params, self.normalise(batch), keep)
        values = {"loss": losses, "examples": jnp.ones_like(losses)}
        # where, not a product: a filling row may hold anything
        return {k: jnp.where(batch["mask"] > 0, v, 0).sum() for k, v in values.items()}

    def reconstruct(self, params: Any, batch: dict, extra: jax.Array) -> dict[str, jax.Array]:
        """The first `eval.pictures` images of an evaluation batch, what the encoder saw of
        them, and what was made of that.

        Returns:
          "original", "masked" (hidden patches grey) and "reconstructed" (hidden patches as
          predicted), each (B, S, S, C) float32, grey levels in [0, 255]; the batch's "mask".
        """
        del extra
        config = self.config
        batch = {name: x[: config.eval.pictures] for name, x in batch.items()}
        images, normalised = batch["image"], self.normalise(batch)
        patch = config.model.patch
        keep = self.fixed_masks(batch)
        _, predicted = self._losses(params, normalised, keep)
        hidden = mae.masked(keep, self.patches)[..., None]
        patches = mae.target(normalised, patch, normalise=False)
        if config.mae.normalise_target:  # back with the moments that the patch itself has
            _, mean, deviation = mae.normalise_patches(patches)
            predicted = predicted * deviation + mean
        mean, std = (jnp.asarray(x) for x in (self.mean, self.std))

        def levels(patches: jax.Array) -> jax.Array:
            x = unpatchify(patches, config.data.image_size, patch)
            return jnp.clip(255 * (self.permuted(x, batch) * std + mean), 0, 255)

        grey = mae.target((jnp.full(images.shape, 0.5) - mean) / std, patch, normalise=False)
        return {
            "original": images.astype(jnp.float32),
            "masked": levels(jnp.where(hidden > 0, grey, patches)),
            "reconstructed": levels(jnp.where(hidden > 0, predicted, patches)),
            "mask": batch["mask"],
        }

    def outputs(self, params: Any, batch: dict) -> tuple[jax.Array, jax.Array]:
        """The prediction for an augmented batch and its mean loss, without dropout."""
        losses, predicted = self._losses(params, batch["image"], batch["keep"])
        return predicted, losses.mean()

    def represent(self, params: Any, images: jax.Array) -> jax.Array:
        """The encoder's vector of each whole image, (B, d), as a head would read it."""
        return self.model.apply({"params": params}, images)

    def tokens(self, params: Any, images: jax.Array, batch: dict, mutable: Any = False) -> Any:
        """Every patch's token in the encoder, which sees them all: (B, N, d); see
        tasks/images.py."""
        encoder = vit.Tokens(**vit.fields(self.config.model))
        return encoder.apply({"params": params}, images, mutable=mutable)

    def fixed_masks(self, batch: dict) -> jax.Array:
        """The patches that evaluation keeps of a batch's images: (B, kept) int32."""
        return self._draw(self.keys(batch))

    def _draw(self, keys: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: draw(key, self.patches, self.kept))(keys)

    def _losses(
        self, params: Any, images: jax.Array, keep: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Each image's loss (B,) and the prediction (B, N, p·p·C); a key means training."""
        train, rngs = key is not None, {} if key is None else {"dropout": key}
        predicted = self.model.apply({"params": params}, images, keep, train=train, rngs=rngs)
        wanted = mae.target(images, self.config.model.patch, self.config.mae.normalise_target)
        return mae.losses(predicted, wanted, mae.masked(keep, self.patches)), predicted

    def flops(self) -> flops.Flops:
        """Analytic cost of one image in training."""
        return flops.mae(self.config.model, self.config.data, self.config.mae)

    def evaluations(self) -> dict[str, Any]:
        """Name → function(context) that yields metric names and values."""
        return {"reconstruction": reconstruction.evaluate}
