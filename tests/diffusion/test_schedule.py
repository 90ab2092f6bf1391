"""Noise schedules against their formulas, and respacing against lists derived by hand."""

import numpy as np
import pytest

from pit_jax.diffusion.schedule import kept_timesteps, named
from pit_jax.errors import ConfigError


def test_linear_is_the_published_table():
    schedule = named("linear")
    assert schedule.betas.dtype == np.float64
    expected = [1e-4 + i * (0.02 - 1e-4) / 999 for i in range(1000)]
    np.testing.assert_allclose(schedule.betas, expected, rtol=1e-12)
    # Public DDPM: hardly any signal is left at the end.
    assert schedule.alphas_cumprod[-1] == pytest.approx(4.036e-5, rel=1e-3)
    np.testing.assert_allclose(named("linear", 100).betas[[0, -1]], [1e-3, 0.2], rtol=1e-12)


def test_cosine_is_the_published_formula():
    schedule = named("cosine")

    def f(t):
        return np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2

    t = np.arange(1000)
    free = schedule.betas < 0.999
    assert free[:-1].all()
    assert not free[-1]
    np.testing.assert_allclose(schedule.alphas_cumprod[free], f(t + 1)[free] / f(0), rtol=1e-9)
    assert schedule.betas[-1] == 0.999


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_posterior_is_bayes_rule(name):
    """q(x_{t−1} | x_t, x_0) from the product of two normal densities."""
    schedule = named(name).respaced(37)
    left, before = schedule.alphas_cumprod[1:], schedule.alphas_cumprod[:-1]
    alpha = left / before
    precision = 1 / (1 - before) + alpha / (1 - alpha)
    np.testing.assert_allclose(schedule.posterior_variance[1:], 1 / precision, rtol=1e-9)
    np.testing.assert_allclose(
        schedule.posterior_mean_of_x0[1:], np.sqrt(before) / (1 - before) / precision, rtol=1e-9
    )
    np.testing.assert_allclose(
        schedule.posterior_mean_of_xt[1:], np.sqrt(alpha) / (1 - alpha) / precision, rtol=1e-9
    )
    clipped = schedule.posterior_log_variance
    np.testing.assert_allclose(clipped[1:], -np.log(precision), rtol=1e-9)
    # At t = 0 the image is known: no variance, and the mean is x_0.
    assert clipped[0] == clipped[1]
    assert schedule.posterior_variance[0] == 0
    assert schedule.posterior_mean_of_x0[0] == pytest.approx(1, abs=1e-12)
    assert schedule.posterior_mean_of_xt[0] == 0


def test_250_of_1000_are_the_nearest_to_even_spacing():
    kept = kept_timesteps("250", 1000)
    # i · 999 / 249 = i · 333 / 83 is never halfway between two numbers: 83 is odd.
    assert kept.tolist() == [(2 * 333 * i + 83) // (2 * 83) for i in range(250)]
    assert kept[:4].tolist() == [0, 4, 8, 12]
    assert kept[-3:].tolist() == [991, 995, 999]
    assert kept_timesteps(250, 1000).tolist() == kept.tolist()


def test_few_steps_and_all():
    assert kept_timesteps(1, 1000).tolist() == [0]
    assert kept_timesteps(2, 1000).tolist() == [0, 999]
    assert kept_timesteps(3, 1000).tolist() == [0, 500, 999]  # 499.5 goes to the even one
    assert kept_timesteps(1000, 1000).tolist() == list(range(1000))


def test_ddim50_strides_by_twenty():
    assert kept_timesteps("ddim50", 1000).tolist() == list(range(0, 1000, 20))
    assert kept_timesteps("ddim1000", 1000).tolist() == list(range(1000))
    assert kept_timesteps("ddim1", 1000).tolist() == [0]


@pytest.mark.parametrize("steps", [250, "ddim50", 1, 1000])
def test_a_respaced_schedule_has_the_same_signal_at_fewer_timesteps(steps):
    whole = named("cosine")
    some = whole.respaced(steps)
    assert len(some) == int(str(steps).removeprefix("ddim"))
    np.testing.assert_allclose(some.alphas_cumprod, whole.alphas_cumprod[some.timesteps], rtol=1e-9)
    assert some.original == 1000
    twice = whole.respaced(500).respaced(2)
    assert twice.timesteps.tolist() == [0, 999]  # in the numbers of training


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        (0, "sampling steps '0': write a number such as 250, or 'ddim50'"),
        ("fast", "sampling steps 'fast'"),
        ("10,20", "sampling steps '10,20'"),
        (1001, "1001 sampling steps of 1000 timesteps: write at most 1000"),
        ("ddim300", "no integer stride takes 300 of 1000 timesteps: write 300 without 'ddim'"),
    ],
)
def test_steps_that_cannot_be_kept_are_refused(steps, sentence):
    with pytest.raises(ConfigError, match=sentence):
        named("linear").respaced(steps)


def test_unknown_and_impossible_schedules_are_refused():
    with pytest.raises(ConfigError, match="'quadratic' is not known: write one of linear, cosine"):
        named("quadratic")
    with pytest.raises(ConfigError, match="20 steps has β ≥ 1"):
        named("linear", 20)
    assert named("linear", 21).betas[-1] < 1
