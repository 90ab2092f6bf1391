"""Image classification, from scratch or from loaded weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pit_jax.data.augmentation import augment, normalise
from pit_jax.evals import accuracy
from pit_jax.models import vit
from pit_jax.perf import flops
from pit_jax.tasks.program import Program

TOP_K = 5


class Classification:
    """What the trainer asks of a task, for classification with softmax cross-entropy.

    A batch is {"image": (B, S, S, C) uint8, "label": (B,) int32}, for evaluation also
    {"mask": (B,) float32}, 0 on the rows that only fill the last batch up.
    """

    def __init__(self, config: Any):
        self.config = config
        self.model = vit.build(config.model, config.data.num_classes)
        # The dictionary looks colours up and wants them in [0, 1].
        lookup = config.model.embed == "dictionary"
        self.mean = (0.0,) if lookup else config.data.mean
        self.std = (1.0,) if lookup else config.data.std

    def init(self, key: jax.Array) -> Any:
        """Parameters drawn from `key`."""
        data = self.config.data
        image = jnp.zeros((1, data.image_size, data.image_size, data.channels))
        # Parameters do not depend on what attends; what cannot run here need not be asked.
        return self.model.clone(attention="xla").init(key, image)["params"]

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a training batch."""
        data = self.config.data
        image = (batch_size, data.image_size, data.image_size, data.channels)
        return {
            "image": jax.ShapeDtypeStruct(image, jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        }

    def augment(self, batch: dict, key: jax.Array) -> dict:
        """uint8 images and labels → {"image": float32, "target": (B, classes)}."""
        data = self.config.data
        image, target = augment(
            batch["image"],
            batch["label"],
            key,
            data.augmentation,
            self.mean,
            self.std,
            data.num_classes,
        )
        smoothing = self.config.train.label_smoothing
        return {"image": image, "target": optax.smooth_labels(target, smoothing)}

    def loss(self, params: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        """Mean cross-entropy of an augmented batch, and what to log beside it."""
        rngs = {"dropout": key}
        logits = self.model.apply({"params": params}, batch["image"], train=True, rngs=rngs)
        losses = optax.softmax_cross_entropy(logits, batch["target"])
        metrics = _hits(logits, batch["target"].argmax(-1)) | {"loss": losses}
        metrics = jax.tree.map(jnp.mean, metrics)
        return metrics["loss"], metrics

    def evaluate(self, params: Any, batch: dict) -> dict[str, jax.Array]:
        """Sums over the real rows of a batch; "examples" counts them."""
        logits = self.predict(params, batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        values = _hits(logits, batch["label"]) | {"loss": losses, "examples": jnp.ones_like(losses)}
        # where, not a product: a filling row may hold anything
        return {k: jnp.where(batch["mask"] > 0, v, 0).sum() for k, v in values.items()}

    def predict(self, params: Any, images: jax.Array) -> jax.Array:
        """Logits (B, classes) of uint8 images (B, S, S, C)."""
        return self.model.apply({"params": params}, normalise(images, self.mean, self.std))

    def flops(self) -> flops.Flops:
        """Analytic cost of one image."""
        return flops.vit(self.config.model, self.config.data)

    def steps(self, steps: Any) -> dict[str, Program]:
        """What preflight compiles: the steps that the trainer runs.

        Args:
          steps: the jitted functions and their layout, as step.build makes them.
        """
        train_size = self.config.train.batch_size
        eval_size = self.config.eval.batch_size or train_size
        cost, state = self.flops(), steps.shapes
        train, evaluate = (
            jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=steps.batch_sharding),
                batch,
            )
            for batch in (
                self.batch_shapes(train_size),
                self.batch_shapes(eval_size)
                | {"mask": jax.ShapeDtypeStruct((eval_size,), jnp.float32)},
            )
        )
        return {
            "train": Program(
                steps.train,
                (state, train),
                params=state.params,
                optimizer=(state.opt_state, state.ema, state.step),
                model_flops=cost.training * train_size,
                recompute_flops=cost.recomputed * train_size,
                trains=True,
            ),
            "eval": Program(
                steps.evaluate,
                (state.eval_params, evaluate),
                params=state.eval_params,
                optimizer=(state.opt_state, state.params if state.ema else (), state.step),
                model_flops=cost.forward * eval_size,
            ),
        }

    def evaluations(self) -> dict[str, Any]:
        """Name → function(run, state) that yields metric names and values."""
        return {"accuracy": accuracy.evaluate}


def _hits(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """1 where the label is the best, or among the five best, logits: each (B,)."""
    _, best = jax.lax.top_k(logits, min(TOP_K, logits.shape[-1]))
    hit = best == labels[:, None]
    return {
        "accuracy": hit[:, 0].astype(jnp.float32),
        "accuracy_top5": hit.any(-1).astype(jnp.float32),
    }
