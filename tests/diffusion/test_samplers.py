"""Samplers on normally distributed images, whose every step and outcome is known."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.diffusion.flow import Flow
from pit_jax.diffusion.gaussian import Gaussian
from pit_jax.diffusion.samplers import sample
from pit_jax.diffusion.schedule import named

from . import normal

LINEAR = named("linear")
PREDICTIONS = [("epsilon", False), ("x0", False), ("v", False), ("epsilon", True)]
FLOWS = [("v",), ("x0", 0.0, 1.0, 1e-3)]  # JiT's gap of 0.05 stops short of the data
SHARE = 0.4  # where a learned variance lies between its bounds


def denoiser(process):
    """The ideal network of a process; a variance that it learned is `SHARE` everywhere."""

    def gaussian(x, time):
        t = time.astype(jnp.int32)
        left = jnp.asarray(LINEAR.alphas_cumprod, jnp.float32)[t]
        rest = jnp.asarray(1 - LINEAR.alphas_cumprod, jnp.float32)[t]
        output = normal.predict(x, jnp.sqrt(left), jnp.sqrt(rest), process.predict)
        if process.learn_sigma:
            output = jnp.concatenate([output, jnp.full_like(x, SHARE)], axis=-1)
        return output

    def flow(x, time):
        what = "velocity" if process.predict == "v" else "x0"
        return normal.predict(x, time / 1000, 1 - time / 1000, what)

    return gaussian if isinstance(process, Gaussian) else flow


def run(process, sampler, steps, count=64, **options) -> tuple[np.ndarray, np.ndarray]:
    """The noise (count, 4) that was put in and the images that came out, float64."""
    noise, keys = normal.draw(count)
    options = dict(sampler=sampler, steps=steps, **options)
    found = jax.jit(partial(sample, process, denoiser(process), **options))(noise, keys)
    assert found.shape == noise.shape
    assert found.dtype == jnp.float32
    return tuple(np.asarray(a, np.float64)[:, 0, :, 0] for a in (noise, found))


def visited(steps) -> np.ndarray:
    """ᾱ from noise to image, and 1."""
    return np.append(LINEAR.respaced(steps).alphas_cumprod[::-1], 1.0)


# Deterministic samplers -----------------------------------------------------------------


def ddim(steps) -> normal.Affine:
    """Song et al. 2021, equation 12 with σ = 0: the predicted image, noised less."""
    state, left = normal.Affine(), visited(steps)
    for now, then in pairwise(left):
        said = normal.predictions(np.sqrt(now), np.sqrt(1 - now))
        parts = zip(said["x0"], said["epsilon"], strict=True)
        state.step(*(np.sqrt(then) * x0 + np.sqrt(1 - then) * eps for x0, eps in parts))
    return state


def dpm(steps) -> normal.Affine:
    """Lu et al. 2022, algorithm 2, on the map of the noise: x and D are affine in it."""
    left = visited(steps)
    lam = [np.log(np.sqrt(a / (1 - a))) for a in left[:-1]] + [np.inf]
    x, before = (np.eye(normal.SIZE), np.zeros(normal.SIZE)), None
    for i in range(len(left) - 1):
        matrix, vector = normal.predictions(np.sqrt(left[i]), np.sqrt(1 - left[i]))["x0"]
        x0 = matrix @ x[0], matrix @ x[1] + vector
        d = x0
        h = lam[i + 1] - lam[i]
        if before is not None and i < len(left) - 2:
            r = (lam[i] - lam[i - 1]) / h
            d = tuple((1 + 1 / (2 * r)) * a - b / (2 * r) for a, b in zip(x0, before, strict=True))
        ratio = np.sqrt((1 - left[i + 1]) / (1 - left[i]))
        step = -np.sqrt(left[i + 1]) * np.expm1(-h)
        x, before = tuple(ratio * a + step * b for a, b in zip(x, d, strict=True)), x0
    state = normal.Affine()
    state.step(*x)
    return state


def flow(sampler, predict, steps, gap) -> normal.Affine:
    """Euler's and Heun's methods, the last step always Euler's."""
    state = normal.Affine()
    times = np.arange(steps + 1) / steps
    for i in range(steps):
        (m1, c1), (m2, c2) = (velocity(t, predict, gap) for t in times[i : i + 2])
        dt = times[i + 1] - times[i]
        if sampler == "euler" or i == steps - 1:
            state.step(np.eye(normal.SIZE) + dt * m1, dt * c1)
        else:
            there = np.eye(normal.SIZE) + dt * m1
            state.step(
                np.eye(normal.SIZE) + dt / 2 * (m1 + m2 @ there),
                dt / 2 * (c1 + m2 @ (dt * c1) + c2),
            )
    return state


def velocity(t, predict, gap):
    said = normal.predictions(t, 1 - t)
    if predict == "v":
        return said["velocity"]
    matrix, vector = said["x0"]
    return (matrix - np.eye(normal.SIZE)) / max(1 - t, gap), vector / max(1 - t, gap)


@pytest.mark.parametrize(
    ("steps", "predict", "learn_sigma"),
    [(20, *p) for p in PREDICTIONS] + [(n, *PREDICTIONS[0]) for n in (1, 2, "ddim50")],
)
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_every_step_is_the_papers(sampler, steps, predict, learn_sigma):
    noise, found = run(Gaussian(LINEAR, predict, learn_sigma), sampler, steps)
    expected = {"ddim": ddim, "dpm++": dpm}[sampler](steps)(noise)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("steps", "predict"), [(40, "v"), (40, "x0"), (1, "x0"), (2, "x0")])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_every_step_of_a_flow_is_the_papers(sampler, steps, predict):
    noise, found = run(Flow(predict), sampler, steps)
    expected = flow(sampler, predict, steps, 0.05)(noise)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("process", "sampler", "order"),
    [
        (Gaussian(LINEAR, "epsilon", False), "ddim", 1),
        (Gaussian(LINEAR, "v", False), "dpm++", 2),
        (Flow("v"), "euler", 1),
        (Flow("x0", min_gap=1e-3), "heun", 2),
    ],
    ids=lambda x: str(getattr(x, "family", x)),
)
def test_images_converge_to_the_probability_flow_in_the_samplers_order(process, sampler, order):
    """Twice the steps, half or a quarter of the error."""
    if isinstance(process, Gaussian):
        left = LINEAR.alphas_cumprod[[-1, 0]]
        ends = [(np.sqrt(a), np.sqrt(1 - a)) for a in left]
        exact = normal.Affine()
        exact.step(*normal.transport(*ends))
        exact.step(*normal.predictions(*ends[1])["x0"])  # every sampler ends on a prediction
    else:
        exact = normal.Affine()
        exact.step(*normal.transport((0, 1), (1, 0)))
    errors = []
    for steps in (50, 100):
        noise, found = run(process, sampler, steps, count=8192)
        errors.append(np.sqrt(np.mean((found - exact(noise)) ** 2)))
    assert errors[1] < {1: 0.03, 2: 0.01}[order], errors
    assert 1.7**order < errors[0] / errors[1] < 2.5**order, errors


@pytest.mark.parametrize(
    ("process", "sampler", "steps"),
    [
        *((Gaussian(LINEAR, *p), "ddim", 1000) for p in PREDICTIONS),
        *((Gaussian(LINEAR, *p), "dpm++", 250) for p in PREDICTIONS),
        *((Flow(*p), "euler", 500) for p in FLOWS),
        *((Flow(*p), "heun", 100) for p in FLOWS),
    ],
    ids=lambda x: getattr(x, "predict", None),
)
def test_images_have_the_mean_and_covariance_of_the_data(process, sampler, steps):
    """To 0.03 standard deviations and 3 % of the variance along every axis, without drawing.

    Here a deterministic sampler is affine in the noise: zero and the unit vectors tell it all.
    """

    def law(steps: int) -> tuple[np.ndarray, np.ndarray]:
        noise = np.vstack([np.zeros((1, normal.SIZE)), np.eye(normal.SIZE)])[:, None, :, None]
        draw = jax.jit(partial(sample, process, denoiser(process), sampler=sampler, steps=steps))
        found = np.asarray(draw(jnp.float32(noise), normal.keys(len(noise))), np.float64)
        mean, *rest = found[:, 0, :, 0]
        matrix = np.transpose(rest - mean)
        return mean, matrix @ matrix.T

    normal.assert_data(*law(steps), 0.03, 0.03)
    with pytest.raises(AssertionError):  # too few steps have another variance
        normal.assert_data(*law(10), 0.03, 0.03)


# Samplers that draw ---------------------------------------------------------------------


def ancestral(steps, share=None, eta=1.0) -> normal.Affine:
    """Steps of the posterior by Bayes' rule (Ho et al. 2020, §2), its variance as learned."""
    state, left = normal.Affine(), visited(steps)
    for i, (now, then) in enumerate(pairwise(left)):
        x0_matrix, x0_vector = normal.predictions(np.sqrt(now), np.sqrt(1 - now))["x0"]
        if i == len(left) - 2:
            state.step(x0_matrix, x0_vector)
            break
        alpha = now / then
        posterior = 1 / (1 / (1 - then) + alpha / (1 - alpha))
        variance = posterior
        if share is not None:
            low, high = np.log(posterior), np.log(1 - alpha)
            variance = np.exp((1 - share) / 2 * low + (1 + share) / 2 * high)
        of_x0 = posterior * np.sqrt(then) / (1 - then)
        of_x = posterior * np.sqrt(alpha) / (1 - alpha)
        if eta != 1:
            variance = eta**2 * posterior
            of_x = np.sqrt(1 - then - variance) / np.sqrt(1 - now)
            of_x0 = np.sqrt(then) - of_x * np.sqrt(now)
        state.step(of_x0 * x0_matrix + of_x * np.eye(normal.SIZE), of_x0 * x0_vector, variance)
    return state


@pytest.mark.parametrize(
    ("sampler", "learned", "options", "expected"),
    [
        ("ddpm", (False, "small"), {}, {}),
        ("ddpm", (False, "large"), {}, {"share": 1.0}),
        ("ddpm", (True,), {}, {"share": SHARE}),
        ("ddim", (True,), {"eta": 0.5}, {"eta": 0.5}),
    ],
)
def test_images_are_distributed_as_the_steps_say(sampler, learned, options, expected):
    process = Gaussian(LINEAR, "epsilon", *learned)
    _, found = run(process, sampler, 8, count=16384, **options)
    state = ancestral(8, **expected)
    normal.assert_distributed(found, state.vector, state.covariance)
    others = [ancestral(8, **o) for o in ({}, {"share": SHARE}, {"eta": 0.5}) if o != expected]
    for other in others:  # none of which would pass for it
        with pytest.raises(AssertionError):
            normal.assert_distributed(found, other.vector, other.covariance)


def test_many_ancestral_steps_give_the_data():
    state = ancestral(1000)
    np.testing.assert_allclose(state.vector, normal.MEAN, atol=0.02)
    np.testing.assert_allclose(state.covariance, normal.COVARIANCE, atol=0.02)
    _, found = run(Gaussian(LINEAR, "epsilon", True), "ddpm", 250, count=2048)
    normal.assert_distributed(found, normal.MEAN, normal.COVARIANCE)
    # Without a learned variance 250 steps have too little of it, by an eighth along one axis.
    _, found = run(Gaussian(LINEAR, "epsilon", False, variance="small"), "ddpm", 1000, count=4096)
    normal.assert_data(found.mean(0), np.cov(found.T), 5 / 4096**0.5, 0.15)
    _, found = run(Gaussian(LINEAR, "epsilon", False, variance="small"), "ddpm", 50, count=4096)
    with pytest.raises(AssertionError):
        normal.assert_data(found.mean(0), np.cov(found.T), 5 / 4096**0.5, 0.15)


def test_ddim_with_all_of_the_noise_is_ddpm():
    process = Gaussian(LINEAR, "v", False, variance="small")
    _, one = run(process, "ddim", 20, eta=1.0)
    _, other = run(process, "ddpm", 20)
    np.testing.assert_allclose(one, other, atol=1e-4)
