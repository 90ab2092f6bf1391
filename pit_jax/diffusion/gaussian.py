"""Gaussian diffusion: what a network predicts about a noised image, and its losses.

x_t = √ᾱ_t · x + √(1 − ᾱ_t) · ε, with t = 0 next to the image (Ho et al. 2020). Images, and
whatever else has their shape, are (B, H, W, C); t is (B,) int32, an index of the schedule.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.diffusion.schedule import Schedule
from pit_jax.errors import ConfigError

PREDICTIONS = ("epsilon", "x0", "v")
_BITS = 1 / np.log(2)


class Prediction(NamedTuple):
    """A network's output in every currency, float32."""

    x0: jax.Array  # (B, H, W, C)
    epsilon: jax.Array  # (B, H, W, C)
    log_variance: jax.Array  # of the step to t − 1: (B, H, W, C), or (B, 1, 1, 1) if fixed


@dataclass(frozen=True)
class Gaussian:
    """The process, and what the network says: `predict` is one of

      epsilon   the noise
      x0        the image
      v         √ᾱ · ε − √(1 − ᾱ) · x (Salimans and Ho 2022)

    With `learn_sigma` the network has as many channels again, which place the log variance of
    a step between its bounds β̃ (at −1) and β (at 1) (Nichol and Dhariwal 2021, equation 15);
    without, it is one of them, as `variance` says: "large" is β, public DiT's and ADM's default,
    "small" β̃. At t = 0 both are β̃ of t = 1. `decoder` is the normal distribution function of
    the bound's last term: "tanh", as public DiT and ADM approximate it, or "exact".

    Raises:
      ConfigError: for another `predict`.
    """

    schedule: Schedule
    predict: str = "epsilon"
    learn_sigma: bool = True
    variance: str = "large"
    decoder: str = "tanh"
    family: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        if self.predict not in PREDICTIONS:
            raise ConfigError(
                f"a gaussian process cannot predict {self.predict!r}:"
                f" write one of {', '.join(PREDICTIONS)}"
            )

    def respaced(self, steps: int | str) -> "Gaussian":
        """The process of fewer steps for the same network, see `Schedule.respaced`."""
        return dataclasses.replace(self, schedule=self.schedule.respaced(steps))

    def outputs(self, channels: int) -> int:
        """How many channels the network has to return for images of `channels`."""
        return 2 * channels if self.learn_sigma else channels

    def times(self, keys: jax.Array) -> jax.Array:
        """One uniform timestep for each of the (B,) keys: (B,) int32."""
        return jax.vmap(lambda key: jax.random.randint(key, (), 0, len(self.schedule)))(keys)

    def network_time(self, t: jax.Array) -> jax.Array:
        """What the network is told of t, (B,) float32: the number it had in training."""
        return jnp.asarray(self.schedule.timesteps, jnp.float32)[t]

    def noise_level(self, time: jax.Array) -> jax.Array:
        """A network time as a fraction of the way from the image (0) to noise (1)."""
        return time / self.schedule.original

    def noised(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """x_t, float32."""
        signal, sigma = self._signal_and_sigma(t)
        return signal * x.astype(jnp.float32) + sigma * noise.astype(jnp.float32)

    def target(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """What the network should predict, float32."""
        x, noise = x.astype(jnp.float32), noise.astype(jnp.float32)
        if self.predict == "epsilon":
            return noise
        if self.predict == "x0":
            return x
        signal, sigma = self._signal_and_sigma(t)
        return signal * noise - sigma * x

    def losses(
        self, output: jax.Array, x: jax.Array, noise: jax.Array, t: jax.Array
    ) -> dict[str, jax.Array]:
        """The losses of a network's output for `noised(x, noise, t)`, averaged over an image.

        "mse" is the squared error of the prediction. With `learn_sigma` there is "vlb", the
        term of t in the variational bound in bits per dimension, in which the mean counts as
        constant and only the variance learns; "loss" is the sum of both.

        That sum is the hybrid loss (Nichol and Dhariwal 2021, equation 16): its λ = 0.001 of
        a bound of T terms, from which one is drawn, is 1 at T = 1000. Public DiT adds the
        term unscaled at any T, and so do we; guided diffusion's `rescale_learned_sigmas`,
        which multiplies it by T/1000, is the same at T = 1000.

        Args:
          output: (B, H, W, `outputs(C)`), of any float dtype.

        Returns:
          Name → (B,) float32.
        """
        channels = x.shape[-1]
        chex.assert_equal_shape([x, noise])
        chex.assert_shape(output, (*x.shape[:-1], self.outputs(channels)))
        output = output.astype(jnp.float32)
        predicted = output[..., :channels]
        mse = _mean(jnp.square(predicted - self.target(x, noise, t)))
        if not self.learn_sigma:
            return {"loss": mse, "mse": mse}
        frozen = jnp.concatenate(
            [jax.lax.stop_gradient(predicted), output[..., channels:]], axis=-1
        )
        vlb = self._bound(frozen, x.astype(jnp.float32), self.noised(x, noise, t), t)
        return {"loss": mse + vlb, "mse": mse, "vlb": vlb}

    def read(self, output: jax.Array, x_t: jax.Array, t: jax.Array) -> Prediction:
        """What an output (B, H, W, `outputs(C)`) for x_t says of the image and the noise."""
        output, x_t = output.astype(jnp.float32), x_t.astype(jnp.float32)
        predicted = output[..., : x_t.shape[-1]]
        signal, sigma = self._signal_and_sigma(t)
        if self.predict == "epsilon":
            x0, epsilon = (x_t - sigma * predicted) / signal, predicted
        elif self.predict == "x0":
            x0, epsilon = predicted, (x_t - signal * predicted) / sigma
        else:
            x0 = signal * x_t - sigma * predicted
            epsilon = sigma * x_t + signal * predicted
        low = _rows(self.schedule.posterior_log_variance, t)
        if not self.learn_sigma:
            fixed = np.log(self.schedule.fixed_variance(self.variance))
            return Prediction(x0, epsilon, _rows(fixed, t))
        high = _rows(np.log(self.schedule.betas), t)
        share = (output[..., x_t.shape[-1] :] + 1) / 2
        return Prediction(x0, epsilon, share * high + (1 - share) * low)

    def _bound(self, output: jax.Array, x: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """The term of t in the variational bound, bits per dimension, (B,)."""
        schedule = self.schedule
        of_x0 = _rows(schedule.posterior_mean_of_x0, t)
        of_xt = _rows(schedule.posterior_mean_of_xt, t)
        said = self.read(output, x_t, t)
        mean = of_x0 * said.x0 + of_xt * x_t
        true_log_variance = _rows(schedule.posterior_log_variance, t)
        divergence = _normal_kl(of_x0 * x + of_xt * x_t, true_log_variance, mean, said.log_variance)
        likelihood = _grey_log_likelihood(x, mean, said.log_variance, _CDFS[self.decoder])
        return _BITS * jnp.where(t == 0, -_mean(likelihood), _mean(divergence))

    def _signal_and_sigma(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        signal = np.sqrt(self.schedule.alphas_cumprod)
        sigma = np.sqrt(1 - self.schedule.alphas_cumprod)
        return _rows(signal, t), _rows(sigma, t)


def _rows(table: np.ndarray, t: jax.Array) -> jax.Array:
    """The entries of t, (B, 1, 1, 1) float32."""
    return jnp.asarray(table, jnp.float32)[t][:, None, None, None]


def _mean(x: jax.Array) -> jax.Array:
    return x.mean(axis=(1, 2, 3))


def _normal_kl(
    mean: jax.Array, log_variance: jax.Array, other: jax.Array, other_log_variance: jax.Array
) -> jax.Array:
    """KL(N(mean) ‖ N(other)) of each element in nats."""
    ratio = log_variance - other_log_variance
    distance = jnp.square(mean - other) * jnp.exp(-other_log_variance)
    return 0.5 * (jnp.expm1(ratio) - ratio + distance)


def _tanh_cdf(x: jax.Array) -> jax.Array:
    """The normal distribution function as public DiT and ADM approximate it: ½ (1 + tanh(√(2/π) ·
    (x + 0.044715 x³))), off by up to 4e-4, written so that its lower tail keeps its digits."""
    return jax.nn.sigmoid(2 * np.float32(np.sqrt(2 / np.pi)) * (x + 0.044715 * x**3))


_CDFS = {"tanh": _tanh_cdf, "exact": jax.scipy.stats.norm.cdf}


def _grey_log_likelihood(
    x: jax.Array, mean: jax.Array, log_variance: jax.Array, cdf: Callable
) -> jax.Array:
    """ln of the mass that N(mean) has on the grey level x (Ho et al. 2020, equation 13).

    Levels are 2/255 apart in [−1, 1], and the outermost reach to infinity; a mass below 1e-12
    counts as that. Latents have no levels: there this is, as in public DiT, only a loss that
    draws the last variance to its size.
    """
    inverse = jnp.exp(-0.5 * log_variance)
    centred = x - mean
    # Beyond the mean the mass is taken from its mirror image: a difference of two numbers
    # near 1 has no digits left in float32.
    mirrored = centred > 0
    near = jnp.where(mirrored, -centred, centred)
    upper = cdf((near + 1 / 255) * inverse)
    lower = cdf((near - 1 / 255) * inverse)
    lowest, highest = x < -0.999, x > 0.999
    # What reaches to +∞ is a lower tail once mirrored, and the other way round.
    downwards = jnp.where(mirrored, highest, lowest)
    upwards = jnp.where(mirrored, lowest, highest)
    mass = jnp.where(upwards, 1.0, upper) - jnp.where(downwards, 0.0, lower)
    return jnp.log(jnp.maximum(mass, 1e-12))
