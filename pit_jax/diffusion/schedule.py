"""Noise schedules: how much of the image is left at each timestep, and what follows from it.

Timestep 0 has the least noise. Everything is float64 numpy: √(1 − ᾱ) at small t and ᾱ at
large t lose their digits in float32, so tables are cast where they are used, not before.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pit_jax.errors import ConfigError

NAMES = ("linear", "cosine")


@dataclass(frozen=True, eq=False)  # compared and hashed as the one object it is
class Schedule:
    """β and its consequences, each table (T,) float64 (Ho et al. 2020, §2 and equation 7).

    `timesteps` are the numbers that the network was trained with, ascending; a respaced
    schedule keeps those of the steps that it kept. `original` is the training's T.
    """

    betas: np.ndarray
    timesteps: np.ndarray
    original: int

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """ᾱ: the share of the variance of x_t that is signal, if the image has variance 1."""
        return np.cumprod(1 - self.betas)

    @cached_property
    def alphas_cumprod_before(self) -> np.ndarray:
        """ᾱ one step nearer to the image, which itself is 1."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def posterior_variance(self) -> np.ndarray:
        """Variance of q(x_{t−1} | x_t, x_0); 0 at t = 0."""
        return self.betas * (1 - self.alphas_cumprod_before) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance(self) -> np.ndarray:
        """Its logarithm, clipped: t = 0 has the value of t = 1 in place of −∞."""
        if len(self) == 1:
            return np.log(self.betas)
        variance = self.posterior_variance
        return np.log(np.append(variance[1], variance[1:]))

    def fixed_variance(self, which: str) -> np.ndarray:
        """Of a step whose variance is not learned, (T,): "large" is β, "small" β̃; at t = 0 both
        are β̃ of t = 1 (public DiT, which it gives a better likelihood of the image)."""
        small = np.exp(self.posterior_log_variance)
        return small if which == "small" else np.append(small[0], self.betas[1:])

    @cached_property
    def posterior_mean_of_x0(self) -> np.ndarray:
        """The factor of x_0 in the mean of q(x_{t−1} | x_t, x_0)."""
        return self.betas * np.sqrt(self.alphas_cumprod_before) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_of_xt(self) -> np.ndarray:
        """The factor of x_t in the mean of q(x_{t−1} | x_t, x_0)."""
        left = 1 - self.alphas_cumprod_before
        return left * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)

    def respaced(self, steps: int | str) -> "Schedule":
        """The schedule of fewer steps that visits the same ᾱ at those which it keeps.

        Args:
          steps: a number ("250" is one, too): evenly spaced from the first timestep to the
            last, as public DiT samples; or "ddim50": 50 timesteps at an integer stride from
            the first on (Song et al. 2021), the last of which falls short of T − 1.

        Raises:
          ConfigError: if there are not that many steps to keep.
        """
        kept = kept_timesteps(steps, len(self))
        alphas_cumprod = self.alphas_cumprod[kept]
        before = np.append(1.0, alphas_cumprod[:-1])
        return Schedule(1 - alphas_cumprod / before, self.timesteps[kept], self.original)


def named(name: str, steps: int = 1000) -> Schedule:
    """A schedule of `steps` timesteps.

    "linear" rises from 1e-4 to 0.02 for 1000 steps and by 1000 / steps as much for others
    (Ho et al. 2020; the scaling is that of the public guided-diffusion and DiT code).
    "cosine" has ᾱ(t) ∝ cos²((t/T + s) / (1 + s) · π/2) with s = 0.008 and β ≤ 0.999 (Nichol
    and Dhariwal 2021, equation 17).

    Raises:
      ConfigError: for another name, or too few steps for β to stay below 1.
    """
    if name == "linear":
        betas = np.linspace(1e-4, 0.02, steps) * (1000 / steps)
        if betas[-1] >= 1:
            raise ConfigError(f"a linear schedule of {steps} steps has β ≥ 1: write at least 21")
    elif name == "cosine":
        left = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - left[1:] / left[:-1], 0.999)
    else:
        raise ConfigError(f"schedule {name!r} is not known: write one of {', '.join(NAMES)}")
    return Schedule(betas, np.arange(steps), steps)


def kept_timesteps(steps: int | str, total: int) -> np.ndarray:
    """Which of `total` timesteps `Schedule.respaced` keeps, ascending.

    One step is timestep 0 alone, as `space_timesteps` of public guided-diffusion and DiT has it:
    the network is then told that pure noise is hardly noisy. Two are the fewest that reach the
    last timestep.
    """
    text = str(steps)
    count = text.removeprefix("ddim")
    if not count.isdecimal() or int(count) == 0:
        raise ConfigError(f"sampling steps {text!r}: write a number such as 250, or 'ddim50'")
    count = int(count)
    if text.startswith("ddim"):
        for stride in range(1, total + 1):
            if len(range(0, total, stride)) == count:
                return np.arange(0, total, stride)
        raise ConfigError(
            f"no integer stride takes {count} of {total} timesteps: write {count} without 'ddim'"
        )
    if count > total:
        raise ConfigError(f"{count} sampling steps of {total} timesteps: write at most {total}")
    # Strides are added up one by one, and halves go to the even number: both decide which
    # timestep is visited when the stride is a fraction, and are what the public code does.
    strides = np.full(count, (total - 1) / max(count - 1, 1))
    strides[0] = 0
    return np.round(np.cumsum(strides)).astype(int)
