"""Image classification, from scratch or from loaded weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pit_jax.evals import accuracy
from pit_jax.models import convnet, perceiver, vit
from pit_jax.perf import flops
from pit_jax.tasks.images import ImageTask
from pit_jax.tasks.means import Mean

TOP_K = 5


class Classification(ImageTask):
    """What the trainer asks of a task, for classification with softmax cross-entropy."""

    learns_labels = True

    def __init__(self, config: Any):
        super().__init__(config)
        self.model = build_model(config)

    def init(self, key: jax.Array) -> Any:
        """Parameters drawn from `key`."""
        model = self.model
        if hasattr(model, "attention"):
            # Parameters do not depend on what attends; what cannot run here need not be asked.
            model = model.clone(attention="xla")
        return model.init(key, jnp.zeros(self.image_shape()))["params"]

    def augment(self, batch: dict, key: jax.Array) -> dict:
        """uint8 images and labels → {"image": float32, "target": (B, classes)}."""
        image, target = self.augmented(batch, key)
        smoothing = self.config.train.label_smoothing
        return {"image": image, "target": optax.smooth_labels(target, smoothing)}

    def loss(self, params: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        """Mean cross-entropy of an augmented batch, and what to log beside it."""
        rngs = {"dropout": key}
        logits = self.model.apply({"params": params}, batch["image"], train=True, rngs=rngs)
        losses = optax.softmax_cross_entropy(logits, batch["target"])
        metrics = _hits(logits, batch["target"].argmax(-1)) | {"loss": losses}
        means = {name: Mean.of(values) for name, values in metrics.items()}
        return means["loss"].value, means

    def evaluate(self, params: Any, batch: dict) -> dict[str, jax.Array]:
        """Sums over the real rows of a batch; "examples" counts them."""
        logits = self.predict(params, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        values = _hits(logits, batch["label"]) | {"loss": losses, "examples": jnp.ones_like(losses)}
        # where, not a product: a filling row may hold anything
        return {k: jnp.where(batch["mask"] > 0, v, 0).sum() for k, v in values.items()}

    def predict(self, params: Any, batch: dict | jax.Array) -> jax.Array:
        """Logits (B, classes) of a batch's uint8 images (B, S, S, C), or of images alone."""
        return self.model.apply({"params": params}, self.normalise(batch))

    def outputs(self, params: Any, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Logits of an augmented batch and its mean loss, without dropout."""
        logits = self.model.apply({"params": params}, batch["image"])
        return logits, optax.softmax_cross_entropy(logits, batch["target"]).mean()

    def represent(self, params: Any, images: jax.Array) -> jax.Array:
        """What the head reads, (B, d), of images as the model sees them (normalised)."""
        return self.model.apply({"params": params}, images, head=False)

    def tokens(self, params: Any, images: jax.Array, batch: dict, mutable: Any = False) -> Any:
        """Every patch's token, (B, N, d); see tasks/images.py. Of a ConvNet what its head
        averages, place by place."""
        model = self.config.model
        match model.name:
            case "convnet":
                places = convnet.places(self.model, params, images)
                return (places, {}) if mutable else places
            case "perceiver":
                return super().tokens(params, images, batch, mutable)
        encoder = vit.Tokens(**vit.fields(model))
        return encoder.apply({"params": params}, images, mutable=mutable)

    def flops(self) -> flops.Flops:
        """Analytic cost of one image."""
        c = self.config
        match c.model.name:
            case "convnet":
                return flops.convnet(c.convnet, c.data)
            case "perceiver":
                return flops.perceiver(c.model, c.data, c.perceiver)
        return flops.vit(c.model, c.data)

    def attends(self) -> str:
        """What attends under the ambient mesh, for people."""
        return "none" if self.config.model.name == "convnet" else super().attends()

    def evaluations(self) -> dict[str, Any]:
        """Name → function(context) that yields metric names and values."""
        return {"accuracy": accuracy.evaluate}


def build_model(config: Any) -> Any:
    """The classifier that a config describes: all are called alike."""
    classes = config.data.num_classes
    match config.model.name:
        case "convnet":
            return convnet.build(config.model, config.convnet, classes)
        case "perceiver":
            return perceiver.build(config.model, config.perceiver, classes)
    return vit.build(config.model, classes)


def _hits(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """1 where the label is the best, or among the five best, logits: each (B,)."""
    _, best = jax.lax.top_k(logits, min(TOP_K, logits.shape[-1]))
    hit = best == labels[:, None]
    return {
        "accuracy": hit[:, 0].astype(jnp.float32),
        "accuracy_top5": hit.any(-1).astype(jnp.float32),
    }
