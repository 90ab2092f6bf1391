"""A mean that knows what it is a mean of, so that means of parts make the mean of the whole."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A sum and its count: of examples, or of what else counts, which may differ between parts
    of a batch and may be 0 in one.

    What two parts have is added up field by field; `value` is taken last. The count depends on
    no parameter.

    Attributes:
      total, count: scalars, float32.
      root: whether the value is the mean's square root, as in an RMSE.
    """

    total: jax.Array
    count: jax.Array
    root: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def of(cls, values: jax.Array) -> "Mean":
        """Over all values, each an example's."""
        return cls(values.sum(), jnp.float32(values.size))

    @classmethod
    def where(cls, known: jax.Array, values: jax.Array, root: bool = False) -> "Mean":
        """Over those that are known; the others may hold anything."""
        total = jnp.where(known, values, 0).sum()
        return cls(total, known.sum().astype(jnp.float32), root)

    @property
    def value(self) -> jax.Array:
        """0 where nothing counts."""
        mean = self.total / jnp.maximum(self.count, 1)
        return jnp.sqrt(mean) if self.root else mean
