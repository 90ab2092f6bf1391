"""An encoder by itself: what it makes of every token, whatever a head would read."""

import flax.linen as nn
import jax

from pit_jax.models import vit


class Encoded(vit.Encoder, kw_only=True):
    """All tokens after the last block, as `Encoder.encode` returns them."""

    @nn.compact
    def __call__(
        self, images: jax.Array, keep: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        return self.encode(images, keep, train=train)
