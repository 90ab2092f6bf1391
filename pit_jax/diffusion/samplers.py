"""Samplers: from noise to images in `steps` steps of a denoiser.

Every sampler is a table of coefficients, computed in float64, and one loop over its rows:
the compiled program holds the network once and does not grow with the number of steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.diffusion.flow import Flow
from pit_jax.diffusion.gaussian import Gaussian
from pit_jax.diffusion.names import SAMPLERS
from pit_jax.diffusion.schedule import Schedule
from pit_jax.errors import ConfigError


def check_sampler(family: str, sampler: str) -> None:
    """Raises ConfigError, with the names that fit, if `sampler` cannot sample the family."""
    if sampler not in SAMPLERS[family]:
        names = ", ".join(repr(name) for name in SAMPLERS[family])
        raise ConfigError(
            f"sampler {sampler!r} does not fit a {family} process: write one of {names}"
        )


def sample(
    process: Gaussian | Flow,
    denoise: Callable[[jax.Array, jax.Array], jax.Array],
    noise: jax.Array,
    keys: jax.Array,
    sampler: str,
    steps: int | str,
    eta: float = 0.0,
    clip: float | None = None,
) -> jax.Array:
    """Images from noise.

      ddpm    ancestral steps (Ho et al. 2020), with the learned variance where there is one
      ddim    (Song et al. 2021), of which `eta` is the share of an ancestral step's noise
      dpm++   DPM-Solver++(2M) (Lu et al. 2022), whose first and last step are of order one
      euler   the flow's equation, times evenly spaced
      heun    the same at order two, the last step Euler's: 2 · steps − 1 passes (JiT 2025)

    Args:
      process: as in training; it is respaced here.
      denoise: images (B, H, W, C) and network times (B,) → output (B, H, W, outputs).
      noise: (B, H, W, C), standard normal.
      keys: (B,) typed keys. Step i adds to image b what fold_in(keys[b], i) draws: it depends
        neither on the rest of the batch nor on where a row is computed.
      steps: passes of the network (but see "heun"); "ddim50" as in `Schedule.respaced`.
      eta: "ddim" only.
      clip: the network's x0 is limited to [−clip, clip] before it is used; None leaves it.

    Returns:
      (B, H, W, C) float32.

    Raises:
      ConfigError: if sampler, steps or eta do not fit the process.
    """
    check_sampler(process.family, sampler)
    if eta and sampler != "ddim":
        raise ConfigError(f"eta is {eta} with sampler {sampler!r}: write 0, only 'ddim' has it")
    chex.assert_shape(keys, noise.shape[:1])
    noise = noise.astype(jnp.float32)
    if isinstance(process, Flow):
        return _sample_flow(process, denoise, noise, sampler, steps, clip)
    process = process.respaced(steps)
    table = gaussian_table(process.schedule, sampler, eta, process.variance)
    return _sample_gaussian(process, denoise, noise, keys, table, clip)


class GaussianTable(NamedTuple):
    """What each step does: x ← of_x · x + of_x0 · x̂0 + of_before · x̂0 of the step before
    + spread · noise. Rows stand in the order of sampling, the noisiest first."""

    t: np.ndarray  # index of the schedule
    of_x: np.ndarray
    of_x0: np.ndarray
    of_before: np.ndarray
    spread: np.ndarray
    learned: np.ndarray  # 1 where a learned standard deviation stands in for `spread`


def gaussian_table(
    schedule: Schedule, sampler: str, eta: float = 0.0, variance: str = "large"
) -> GaussianTable:
    """The steps of a Gaussian process's sampler over all timesteps of `schedule`.

    Args:
      variance: "ddpm" without a learned one, see `Schedule.fixed_variance`.
    """
    t = np.arange(len(schedule))[::-1]
    now, then = schedule.alphas_cumprod[t], schedule.alphas_cumprod_before[t]
    zeros = np.zeros(len(t))
    if sampler == "ddpm":
        of_x, of_x0 = schedule.posterior_mean_of_xt[t], schedule.posterior_mean_of_x0[t]
        last = (t > 0).astype(float)  # the step onto the image adds no noise
        spread = np.sqrt(schedule.fixed_variance(variance)[t]) * last
        return GaussianTable(t, of_x, of_x0, zeros, spread, last)
    if sampler == "ddim":
        spread = eta * np.sqrt(schedule.posterior_variance[t])
        # The predicted noise, (x − √ᾱ · x̂0) / √(1 − ᾱ), is kept up to what is drawn anew.
        of_x = np.sqrt((1 - then - spread**2) / (1 - now))
        of_x0 = np.sqrt(then) - of_x * np.sqrt(now)
        return GaussianTable(t, of_x, of_x0, zeros, spread, zeros)
    of_x, of_x0, of_before = np.zeros((3, len(t)))
    of_x0[-1] = 1  # the step onto the image, where λ is infinite
    lam = 0.5 * np.log(now / (1 - now))  # half the logarithm of signal to noise
    h = np.diff(lam)
    order_one = -np.sqrt(then[:-1]) * np.expm1(-h)
    of_x[:-1] = np.sqrt((1 - then[:-1]) / (1 - now[:-1]))
    correction = np.append(0, order_one[1:] * h[1:] / (2 * h[:-1])) if len(h) else h
    of_x0[:-1], of_before[:-1] = order_one + correction, -correction
    return GaussianTable(t, of_x, of_x0, of_before, zeros, zeros)


def _sample_gaussian(
    process: Gaussian,
    denoise: Callable,
    noise: jax.Array,
    keys: jax.Array,
    table: GaussianTable,
    clip: float | None,
) -> jax.Array:
    noisy = bool(table.spread.any())  # else no number is drawn
    learned = process.learn_sigma and bool(table.learned.any())
    rows = GaussianTable(
        jnp.asarray(table.t, jnp.int32), *(jnp.asarray(x, jnp.float32) for x in table[1:])
    )

    def step(carry: tuple, row: tuple) -> tuple[tuple, None]:
        x, before = carry
        i, c = row
        t = jnp.full(len(x), c.t)
        said = process.read(denoise(x, process.network_time(t)), x, t)
        x0 = said.x0 if clip is None else jnp.clip(said.x0, -clip, clip)
        x = c.of_x * x + c.of_x0 * x0 + c.of_before * before
        if noisy:
            drawn = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)
            spread = c.learned * jnp.exp(0.5 * said.log_variance) if learned else c.spread
            x = x + spread * drawn
        return (x, x0), None

    shape = noise.shape[1:]
    xs = (jnp.arange(len(table.t)), rows)
    (x, _), _ = jax.lax.scan(step, (noise, jnp.zeros_like(noise)), xs)
    return x


class FlowTable(NamedTuple):
    """One row a pass of the network, which finds v at x and t. `first` passes make (x, v) the
    start of a step; then x ← start + of_first · v at the start + of_now · v."""

    t: np.ndarray
    first: np.ndarray
    of_first: np.ndarray
    of_now: np.ndarray


def flow_table(sampler: str, steps: int | str) -> FlowTable:
    """The passes of a flow's sampler, times evenly spaced from noise (0) to the image (1)."""
    if not str(steps).isdecimal() or int(steps) == 0:
        raise ConfigError(f"sampling steps {str(steps)!r} of a flow: write a number such as 50")
    times = np.linspace(0, 1, int(steps) + 1)
    dt = np.diff(times)
    euler = FlowTable(times[:-1], np.ones(len(dt), bool), dt, np.zeros(len(dt)))
    if sampler == "euler":
        return euler
    # At the end of every step but the last, one more pass: the mean of both velocities.
    half = dt[:-1] / 2
    second = FlowTable(times[1:-1], np.zeros(len(half), bool), half, half)
    merged = [np.empty(2 * len(dt) - 1, x.dtype) for x in euler]
    for whole, one, two in zip(merged, euler, second, strict=True):
        whole[::2], whole[1::2] = one, two
    return FlowTable(*merged)


def _sample_flow(
    process: Flow,
    denoise: Callable,
    noise: jax.Array,
    sampler: str,
    steps: int | str,
    clip: float | None,
) -> jax.Array:
    table = flow_table(sampler, steps)
    rows = FlowTable(*(jnp.asarray(x, bool if x.dtype == bool else jnp.float32) for x in table))

    def one_pass(carry: tuple, c: FlowTable) -> tuple[tuple, None]:
        x, start, at_start = carry
        t = jnp.full(len(x), c.t)
        v = process.velocity(denoise(x, process.network_time(t)), x, t, clip)
        start = jnp.where(c.first, x, start)
        at_start = jnp.where(c.first, v, at_start)
        return (start + c.of_first * at_start + c.of_now * v, start, at_start), None

    (x, _, _), _ = jax.lax.scan(one_pass, (noise, noise, jnp.zeros_like(noise)), rows)
    return x
