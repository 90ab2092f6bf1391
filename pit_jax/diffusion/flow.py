"""Flow matching on straight paths: x_t = t · x + (1 − t) · noise, so t = 1 is the image.

The network learns the velocity x − noise (Lipman et al. 2023; Liu et al. 2023), by naming it
or by naming the image ("Back to Basics: Let Denoising Generative Models Denoise", 2025, JiT).
Images are (B, H, W, C), t is (B,) float32 in [0, 1].
"""

from dataclasses import dataclass
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from pit_jax.errors import ConfigError

PREDICTIONS = ("v", "x0")


@dataclass(frozen=True)
class Flow:
    """The process, and what the network says: `predict` is one of

      v    the velocity
      x0   the image x̂, whose velocity is (x̂ − x_t) / max(1 − t, min_gap)

    Times of training are sigmoid(normal · time_std + time_mean) (Esser et al. 2024, equation
    19); JiT has −0.8 and 0.8.

    Raises:
      ConfigError: for another `predict`, or a `min_gap` that divides by zero.
    """

    predict: str = "v"
    time_mean: float = 0.0
    time_std: float = 1.0
    min_gap: float = 0.05
    family: ClassVar[str] = "flow"

    def __post_init__(self) -> None:
        if self.predict not in PREDICTIONS:
            raise ConfigError(
                f"a flow cannot predict {self.predict!r}: write one of {', '.join(PREDICTIONS)}"
            )
        if not 0 < self.min_gap <= 1:
            raise ConfigError(f"a flow's min_gap is {self.min_gap}: write one in (0, 1]")

    def outputs(self, channels: int) -> int:
        """How many channels the network has to return for images of `channels`."""
        return channels

    def times(self, keys: jax.Array) -> jax.Array:
        """One time for each of the (B,) keys: (B,) float32 in [0, 1]."""
        normal = jax.vmap(jax.random.normal)(keys)
        return jax.nn.sigmoid(normal * self.time_std + self.time_mean)

    def network_time(self, t: jax.Array) -> jax.Array:
        """What the network is told of t, (B,) float32: 1000 · t, the range of timesteps."""
        return 1000 * t.astype(jnp.float32)

    def noise_level(self, time: jax.Array) -> jax.Array:
        """A network time as a fraction of the way from the image (0) to noise (1)."""
        return 1 - time / 1000

    def noised(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """x_t, float32."""
        t = _rows(t)
        return t * x.astype(jnp.float32) + (1 - t) * noise.astype(jnp.float32)

    def losses(
        self, output: jax.Array, x: jax.Array, noise: jax.Array, t: jax.Array
    ) -> dict[str, jax.Array]:
        """The squared error of the velocity for `noised(x, noise, t)`, averaged over an image.

        With predict="x0" both velocities come from their image in the same way: closer to the
        image than `min_gap` the error of x̂ keeps its weight 1 / min_gap², and x̂ = x stays the
        optimum.

        Returns:
          "mse" and "loss", which are the same, each (B,) float32.
        """
        chex.assert_equal_shape([output, x, noise])
        x, noise = x.astype(jnp.float32), noise.astype(jnp.float32)
        if self.predict == "v":
            target = x - noise
            error = output.astype(jnp.float32) - target
        else:
            # The difference of both velocities: x_t drops out, and with it its rounding.
            error = (output.astype(jnp.float32) - x) / self._gap(t)
        mse = jnp.square(error).mean(axis=(1, 2, 3))
        return {"loss": mse, "mse": mse}

    def velocity(
        self, output: jax.Array, x_t: jax.Array, t: jax.Array, clip: float | None = None
    ) -> jax.Array:
        """The velocity that an output for x_t says, float32.

        With `clip` the image that it leads to is limited to [−clip, clip] first; where that
        changes nothing, "v" stays the output itself.
        """
        output, x_t = output.astype(jnp.float32), x_t.astype(jnp.float32)
        rest = 1 - _rows(t)
        x = output if self.predict == "x0" else x_t + rest * output
        limited = x if clip is None else jnp.clip(x, -clip, clip)
        if self.predict == "x0":
            return (limited - x_t) / self._gap(t)
        # Not by the gap, which would change what is not clipped, too. No float32 below 1 is
        # nearer to 1 than epsneg: it takes part at t = 1 alone.
        return output + (limited - x) / jnp.maximum(rest, jnp.finfo(jnp.float32).epsneg)

    def _gap(self, t: jax.Array) -> jax.Array:
        return jnp.maximum(1 - _rows(t), self.min_gap)


def _rows(t: jax.Array) -> jax.Array:
    return t.astype(jnp.float32)[:, None, None, None]
