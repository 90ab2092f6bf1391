"""Monocular depth: the distance of every pixel's surface from one image."""

from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.data.augmentation import augment_depth
from pit_jax.evals import depth as evaluation
from pit_jax.models import depth, vit
from pit_jax.perf import flops
from pit_jax.tasks.images import ImageTask
from pit_jax.tasks.means import Mean


class Depth(ImageTask):
    """What the trainer asks of a task, for depth regression.

    The model says log depths. A batch has also {"depth": (B, S, S) float32}, metres; 0, or
    what lies outside (`depth.nearest`, `depth.farthest`], means that a pixel's depth is not
    known: it counts nowhere. Each image's loss is a mean over its known pixels, and a batch's
    the mean over images that have any.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.model = depth.build(config.model)

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a training batch."""
        side = self.config.data.image_size
        depths = jax.ShapeDtypeStruct((batch_size, side, side), jnp.float32)
        return super().batch_shapes(batch_size) | {"depth": depths}

    def init(self, key: jax.Array) -> Any:
        """Parameters drawn from `key`."""
        # Parameters do not depend on what attends; what cannot run here need not be asked.
        model = self.model.clone(attention="xla")
        return model.init(key, jnp.zeros(self.image_shape()))["params"]

    def augment(self, batch: dict, key: jax.Array) -> dict:
        """uint8 images and depth → {"image": float32, "depth": moved with it, "stored": what
        decides an image's permutation}."""
        image, _ = self.augmented(batch, key)
        moved = augment_depth(batch["depth"], key, self.config.data.augmentation)
        stored = {name: batch[name] for name in ("image", "index") if name in batch}
        return {"image": image, "depth": moved, "stored": stored}

    def loss(self, params: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict[str, Mean]]:
        """Mean loss of an augmented batch, and "rmse" in metres over its known pixels."""
        found = self._log_depth(params, batch["image"], batch["stored"], key)
        losses, known = self._losses(found, batch["depth"])
        loss = Mean.where(known.any((1, 2)), losses)
        square = jnp.square(self._metres(found) - batch["depth"])
        return loss.value, {"loss": loss, "rmse": Mean.where(known, square, root=True)}

    def evaluate(self, params: Any, batch: dict) -> dict[str, jax.Array]:
        """Sums over the real rows of a batch, as evals/depth.py wants them; "examples" counts."""
        found = self._log_depth(params, self.normalise(batch), batch)
        losses, known = self._losses(found, batch["depth"])
        values = sums(self._metres(found), batch["depth"], known)
        values |= {"loss": losses, "with_depth": known.any((1, 2)).astype(jnp.float32)}
        # where, not a product: a filling row may hold anything
        counts = (batch["mask"] > 0) & known.any((1, 2))
        values = {k: jnp.where(counts, v, 0).sum() for k, v in values.items()}
        return values | {"examples": (batch["mask"] > 0).sum().astype(jnp.float32)}

    def predicted(self, params: Any, batch: dict, extra: jax.Array) -> dict[str, jax.Array]:
        """The first `eval.pictures` images of an evaluation batch, and their depths.

        Returns:
          "image" (B, S, S, C) uint8, "depth" (B, S, S) in metres, 0 where it is not known,
          "predicted" (B, S, S) in metres; the batch's "mask".
        """
        del extra
        batch = {name: x[: self.config.eval.pictures] for name, x in batch.items()}
        found = self._log_depth(params, self.normalise(batch), batch)
        return {
            "image": batch["image"],
            "depth": jnp.where(self._known(batch["depth"]), batch["depth"], 0),
            "predicted": self._metres(found),
            "mask": batch["mask"],
        }

    def outputs(self, params: Any, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Log depths of an augmented batch and its mean loss, without dropout."""
        found = self._log_depth(params, batch["image"], batch["stored"])
        losses, known = self._losses(found, batch["depth"])
        return found, Mean.where(known.any((1, 2)), losses).value

    def represent(self, params: Any, images: jax.Array) -> jax.Array:
        """The mean of what the head reads, (B, d), of images as the model sees them."""
        return self.model.apply({"params": params}, images, head=False)

    def tokens(self, params: Any, images: jax.Array, batch: dict, mutable: Any = False) -> Any:
        """Every patch's token, (B, N, d); see tasks/images.py."""
        del batch
        encoder = vit.Tokens(**vit.fields(self.config.model))
        return encoder.apply({"params": params}, images, mutable=mutable)

    def _log_depth(
        self, params: Any, images: jax.Array, batch: dict, key: jax.Array | None = None
    ) -> jax.Array:
        """(B, S, S) float32; a key means training. Where pixels are permuted the model answers
        at their new places, which is undone: every loss and metric is of the image itself."""
        train, rngs = key is not None, {} if key is None else {"dropout": key}
        found = self.model.apply({"params": params}, images, train=train, rngs=rngs)
        return self.permuted(found[..., None], batch)[..., 0]

    def _known(self, depths: jax.Array) -> jax.Array:
        return (depths > self.config.depth.nearest) & (depths <= self.config.depth.farthest)

    def _metres(self, found: jax.Array) -> jax.Array:
        """Depths as they are measured, in [nearest, farthest]."""
        return jnp.clip(jnp.exp(found), self.config.depth.nearest, self.config.depth.farthest)

    def _losses(self, found: jax.Array, depths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Each image's loss (B,) and which pixels count (B, S, S)."""
        options, known = self.config.depth, self._known(depths)
        if options.loss == "silog":
            return scale_invariant(found, depths, known, options.silog_lambda), known
        error = jnp.where(known, jnp.exp(found) - depths, 0)
        error = jnp.abs(error) if options.loss == "l1" else jnp.square(error)
        return _mean(error, known), known

    def flops(self) -> flops.Flops:
        """Analytic cost of one image."""
        return flops.depth(self.config.model, self.config.data)

    def evaluations(self) -> dict[str, Any]:
        """Name → function(context) that yields metric names and values."""
        return {"depth": evaluation.evaluate}


def scale_invariant(
    found: jax.Array, depths: jax.Array, known: jax.Array, share: float
) -> jax.Array:
    """Mean d² − share · (mean d)² with d = found − log depth, over known pixels: (B,).

    Eigen, Puhrsch and Fergus 2014, equation 4 (share 0.5 there): with 1 a common factor of
    all depths costs nothing, with 0 it is the squared error of logarithms.

    Args:
      found: log depths (B, S, S).
      depths: (B, S, S), anything where not known.
      known: (B, S, S) bool.
    """
    d = jnp.where(known, found - jnp.log(jnp.where(known, depths, 1)), 0)
    return _mean(jnp.square(d), known) - share * jnp.square(_mean(d, known))


def sums(found: jax.Array, depths: jax.Array, known: jax.Array) -> dict[str, jax.Array]:
    """Of each image (B,) what the metrics of depth are made of, over its known pixels.

    Args:
      found, depths: metres (B, S, S); `found` is positive.
      known: (B, S, S) bool.
    """
    depths = jnp.where(known, depths, found)  # no error where nothing is known
    error = found - depths
    ratio = jnp.maximum(found / depths, depths / found)
    total = {
        "square": jnp.square(error),
        "abs_rel": jnp.abs(error) / depths,
        "log10": jnp.abs(jnp.log10(found) - jnp.log10(depths)),
    }
    total |= {f"delta{n}": (ratio < 1.25**n) & known for n in (1, 2, 3)}
    total = {name: x.sum((1, 2), dtype=jnp.float32) for name, x in total.items()}
    pixels = known.sum((1, 2)).astype(jnp.float32)
    image_rmse = jnp.sqrt(total["square"] / jnp.maximum(pixels, 1))
    return total | {"pixels": pixels, "image_rmse": image_rmse}


def _mean(values: jax.Array, known: jax.Array) -> jax.Array:
    """(B,): over the known pixels of each image; `values` are 0 elsewhere."""
    return values.sum((1, 2)) / jnp.maximum(known.sum((1, 2)), 1)
