"""What tasks on images share: how an image enters, a batch's shapes, and the two programs."""

import copy
from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.config import label
from pit_jax.data import permutation
from pit_jax.data.augmentation import augment, normalise
from pit_jax.errors import NotOffered
from pit_jax.models.transformer import attention_choice
from pit_jax.tasks.program import Program


class ImageTask:
    """The base of tasks whose batch is images and labels.

    A batch is {"image": (B, S, S, C) uint8, "label": (B,) int32, "index": (B,) int32}, the
    index being the example's number in its split; for evaluation also {"mask": (B,) float32},
    0 on the rows that only fill the last batch up.

    Attributes:
      learns_labels: whether the weights know a class by its number.
    """

    learns_labels = False

    def __init__(self, config: Any):
        self.config = config
        # The dictionary looks colours up and wants them in [0, 1].
        lookup = config.model.embed == "dictionary"
        self.mean = (0.0,) if lookup else config.data.mean
        self.std = (1.0,) if lookup else config.data.std

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a training batch."""
        data = self.config.data
        image = (batch_size, data.image_size, data.image_size, data.channels)
        return {
            "image": jax.ShapeDtypeStruct(image, jnp.uint8),
            "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
            "index": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        }

    def normalise(self, batch: dict | jax.Array) -> jax.Array:
        """The uint8 images of a batch, or they alone, as the model sees them, float32."""
        if not isinstance(batch, dict):
            batch = {"image": batch}
        return self.permuted(normalise(batch["image"], self.mean, self.std), batch)

    def permuted(self, images: jax.Array, batch: dict | None = None) -> jax.Array:
        """Images with their pixels as the config permutes them.

        Swaps undo themselves: of permuted images it makes the original ones.

        Args:
          images: (B, S, S, C).
          batch: what they came with; it decides where each image has a permutation of its own.
        """
        options, side = self.config.data.permutation, self.config.data.image_size
        if not options.swaps:
            return images
        if options.per_image:
            keys = self.keys(batch, options.seed)
            order = permutation.draw_each(keys, side, options.swaps)
        else:
            order = permutation.draw(side, options.swaps, options.distance, options.seed)
        return permutation.apply(images, order)

    def augmented(
        self, batch: dict, key: jax.Array, options: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """A batch's images changed as `options` say, by default the config's, normalised and
        permuted, (B, S, S, C) float32; and what their labels became, (B, classes)."""
        data = self.config.data
        options = data.augmentation if options is None else options
        stored, labels = batch["image"], batch["label"]
        images, targets = augment(
            stored, labels, key, options, self.mean, self.std, data.num_classes
        )
        return self.permuted(images, batch), targets

    def image_shape(self) -> tuple[int, int, int, int]:
        """Of one image as a batch."""
        return self.batch_shapes(1)["image"].shape

    def keys(self, batch: dict, seed: int = 0) -> jax.Array:
        """A PRNG key for each stored image of a batch, (B,): a function of its number in the
        split and of the seed, the same every time, in whatever batch the image comes.

        Of images that are of no split, and where `data.keyed_by` says so, a function of the pixels.
        """
        if self.config.data.keyed_by == "index" and "index" in batch:
            return jax.vmap(lambda x: jax.random.fold_in(jax.random.key(seed), x))(batch["index"])
        stored = batch["image"]
        if stored.dtype == jnp.float16:
            stored = jax.lax.bitcast_convert_type(stored, jnp.uint16)
        numbers = stored.reshape(len(stored), -1).astype(jnp.uint32)
        odd = 2 * jnp.arange(numbers.shape[1], dtype=jnp.uint32) + 1  # places count, too
        sums = (numbers * odd).sum(1, dtype=jnp.uint32)
        return jax.vmap(lambda x: jax.random.fold_in(jax.random.key(seed), x))(sums)

    def tokens(self, params: Any, images: jax.Array, batch: dict, mutable: Any = False) -> Any:
        """What the model makes of every patch: (B, N, d) after the last block, in the order of
        its sequence.

        Args:
          images: of an evaluation batch, as `normalise` makes them.
          batch: that batch.
          mutable: as flax's `apply` takes it; then also what blocks sow is returned.

        Raises:
          NotOffered: if the model has no token for each patch.
        """
        raise NotOffered(f"{label(self.config)} has no token for each patch of an image")

    def vectors(self, params: Any, batch: dict, extra: jax.Array) -> dict[str, jax.Array]:
        """What the model says of an evaluation batch: "vector" (B, d) float32, and the batch's
        "label" and "mask"."""
        del extra
        return self._vectors(params, batch, self.normalise(batch))

    def view_vectors(self, params: Any, batch: dict, extra: jax.Array) -> dict[str, jax.Array]:
        """The same of a random crop and flip of each image, as far as the config has them.

        Args:
          extra: data of the key that decides which.
        """
        return self._of_view(params, batch, extra, self.config.data.augmentation.crop)

    def flip_vectors(self, params: Any, batch: dict, extra: jax.Array) -> dict[str, jax.Array]:
        """The same of images that the host has cropped: a random flip of each."""
        return self._of_view(params, batch, extra, "none")

    def _of_view(self, params: Any, batch: dict, extra: jax.Array, crop: str) -> dict:
        options = copy.deepcopy(self.config.data.augmentation)
        for name in ("grayscale", "blur", "mixup", "cutmix", "randaugment", "erasing"):
            options[name] = 0.0
        options.three_augment, options.crop = False, crop
        options.jitter = (0.0, 0.0, 0.0, 0.0)
        images, _ = self.augmented(batch, jax.random.wrap_key_data(extra), options)
        return self._vectors(params, batch, images)

    def _vectors(self, params: Any, batch: dict, images: jax.Array) -> dict[str, jax.Array]:
        vectors = self.represent(params, images).astype(jnp.float32)
        return {"vector": vectors, "label": batch["label"], "mask": batch["mask"]}

    def attends(self) -> str:
        """What attends under the ambient mesh, for people."""
        return attention_choice(self.config.model, self.flops().tokens)

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
                model_flops=cost.computed * eval_size,
            ),
        }
