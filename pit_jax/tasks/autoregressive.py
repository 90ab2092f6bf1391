"""Autoregressive modelling of pixels, as iGPT (Chen et al. 2020)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pit_jax.evals import accuracy
from pit_jax.models import igpt, order
from pit_jax.perf import flops
from pit_jax.tasks.images import ImageTask
from pit_jax.tasks.means import Mean


class Autoregressive(ImageTask):
    """What the trainer asks of a task, for saying each pixel's colour from those before it.

    The loss is the negative log-likelihood of an image in nats a pixel, so that
    exp(−loss · pixels) is the probability that the model gives the image among all of its
    size and colours. Labels come with the batch and are not looked at.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.mean, self.std = (0.0,), (1.0,)  # colours are read off values in [0, 1]
        model, data = config.model, config.data
        self.levels = config.autoregressive.levels
        self.indices = order.indices(model.order, data.image_size, model.order_seed)
        self.colours = self.levels**data.channels
        self.model = igpt.build(model, self.colours, self.indices)

    def init(self, key: jax.Array) -> Any:
        """Parameters drawn from `key`."""
        # Parameters do not depend on what attends; what cannot run here need not be asked.
        model = self.model.clone(attention="xla")
        return model.init(key, self.sequence(jnp.zeros(self.image_shape())))["params"]

    def augment(self, batch: dict, key: jax.Array) -> dict:
        """uint8 images → {"colours": (B, N) int32}, in the model's order."""
        return {"colours": self.sequence(self.augmented(batch, key)[0])}

    def sequence(self, images: jax.Array) -> jax.Array:
        """The colours (B, N) int32, in the model's order, of images (B, S, S, C) in [0, 1]."""
        return igpt.quantise(images, self.levels)[:, self.indices]

    def loss(self, params: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        """Mean cross-entropy in nats a pixel, and in bits a number."""
        nats = self._nats(params, batch["colours"], train=True, rngs={"dropout": key})
        loss = Mean.of(nats)
        return loss.value, {"loss": loss, "bits_per_dim": Mean.of(self._bits(nats))}

    def evaluate(self, params: Any, batch: dict) -> dict[str, jax.Array]:
        """Sums over the real rows of a batch; "examples" counts them.

        "bits_per_dim" is that of the quantised image: log2 of its colour's improbability, a
        number (pixels × channels).
        """
        nats = self._nats(params, self.sequence(self.normalise(batch)))
        values = {"loss": nats, "bits_per_dim": self._bits(nats), "examples": jnp.ones_like(nats)}
        # where, not a product: a filling row may hold anything
        return {k: jnp.where(batch["mask"] > 0, v, 0).sum() for k, v in values.items()}

    def outputs(self, params: Any, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Logits (B, N, colours) of an augmented batch and its mean loss, without dropout."""
        logits = self.model.apply({"params": params}, batch["colours"])
        return logits, _cross_entropy(logits, batch["colours"]).mean()

    def represent(self, params: Any, images: jax.Array) -> jax.Array:
        """What iGPT's linear probe reads, (B, d), of images in [0, 1]: the mean over all
        places of the normed features after the first half of the layers.

        Its authors probe every layer and report the best, which lies in the middle; here it is
        always the middle. The last pixel in the order is said but never read.
        """
        model, params = igpt.first_layers(params, self.model, -(-self.model.depth // 2))
        features = model.apply({"params": params}, self.sequence(images), head=False)
        return features.mean(1, dtype=jnp.float32)

    def tokens(self, params: Any, images: jax.Array, batch: dict, mutable: Any = False) -> Any:
        """What is known at every place before its pixel is said, (B, N, d); see
        tasks/images.py."""
        del batch
        model, colours = self.model, self.sequence(images)
        return model.apply({"params": params}, colours, head=False, mutable=mutable)

    def _nats(self, params: Any, colours: jax.Array, **how: Any) -> jax.Array:
        """Mean over places of the colours' cross-entropy, (B,) float32."""
        logits = self.model.apply({"params": params}, colours, **how)
        return _cross_entropy(logits, colours).mean(-1)

    def _bits(self, nats: jax.Array) -> jax.Array:
        return nats / (math.log(2) * self.config.data.channels)

    def flops(self) -> flops.Flops:
        """Analytic cost of one image."""
        return flops.autoregressive(self.config.model, self.config.data, self.colours)

    def evaluations(self) -> dict[str, Any]:
        """Name → function(context) that yields metric names and values."""
        return {"likelihood": accuracy.evaluate}


def _cross_entropy(logits: jax.Array, colours: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, colours)  # (B, N)
