"""Samplers on normally distributed images, whose every step and outcome is known."""

import re
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pit_jax.diffusion.flow import Flow
from pit_jax.diffusion.gaussian import Gaussian
from pit_jax.diffusion.samplers import SAMPLERS, check_sampler, flow_table, sample
from pit_jax.diffusion.schedule import named
from pit_jax.errors import ConfigError
from pit_jax.parallel.mesh import make_mesh

from . import normal

LINEAR = named("linear")
PREDICTIONS = [("epsilon", False), ("x0", False), ("v", False), ("epsilon", True)]
ALL = [(family, name) for family, names in SAMPLERS.items() for name in names]
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


def draw(count: int):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(jnp.arange(count))
    noise = jax.random.normal(jax.random.key(9), (count, 1, normal.SIZE, 1))
    return noise, keys


def run(process, sampler, steps, count=64, **options) -> tuple[np.ndarray, np.ndarray]:
    """The noise (count, 4) that was put in and the images that came out, float64."""
    noise, keys = draw(count)
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
    """Twice the steps, half or a quarter of the error; and the images are those of the data."""
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
    if order == 2:
        normal.assert_distributed(found, normal.MEAN, normal.COVARIANCE)


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
    ("sampler", "learn_sigma", "options", "expected"),
    [
        ("ddpm", False, {}, {}),
        ("ddpm", True, {}, {"share": SHARE}),
        ("ddim", True, {"eta": 0.5}, {"eta": 0.5}),
    ],
)
def test_images_are_distributed_as_the_steps_say(sampler, learn_sigma, options, expected):
    process = Gaussian(LINEAR, "epsilon", learn_sigma)
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


def test_ddim_with_all_of_the_noise_is_ddpm():
    process = Gaussian(LINEAR, "v", False)
    _, one = run(process, "ddim", 20, eta=1.0)
    _, other = run(process, "ddpm", 20)
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_an_images_noise_depends_on_its_own_key_alone():
    process = Gaussian(LINEAR, "epsilon", True)
    noise, keys = draw(8)
    draw_some = jax.jit(partial(sample, process, pointwise(process), sampler="ddpm", steps=10))
    whole = np.asarray(draw_some(noise, keys))
    parts = [np.asarray(draw_some(noise[s], keys[s])) for s in (slice(0, 4), slice(4, 8))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    turned = draw_some(noise[::-1], keys[::-1])
    np.testing.assert_array_equal(whole, turned[::-1])
    rows = NamedSharding(
        make_mesh({"data": 8, "fsdp": 1, "seq": 1, "model": 1}), PartitionSpec("data")
    )
    spread = jax.device_put((noise, keys), rows)
    np.testing.assert_array_equal(whole, draw_some(*spread))
    assert not re.findall("all-|permute|scatter", draw_some.lower(*spread).compile().as_text())
    assert np.abs(whole - draw_some(noise, keys[::-1])).max() > 0.1


# The loop -------------------------------------------------------------------------------


def make(family, learn_sigma=True):
    return Gaussian(LINEAR, "epsilon", learn_sigma) if family == "gaussian" else Flow("x0")


def pointwise(process):
    def denoise(x, time):
        output = jnp.tanh(x + 0.001 * time[:, None, None, None])
        copies = process.outputs(x.shape[-1]) // x.shape[-1]
        return jnp.concatenate([output] * copies, axis=-1)

    return denoise


@pytest.mark.parametrize(("family", "sampler"), ALL)
def test_the_program_does_not_grow_with_the_steps_and_holds_one_network(family, sampler):
    process = make(family)
    noise, keys = draw(2)
    sizes = {}
    for steps in (10, 200):
        program = jax.make_jaxpr(
            lambda *a, steps=steps: sample(process, pointwise(process), *a, sampler, steps)
        )(noise, keys)
        names = list(primitives(program.jaxpr))
        assert names.count("tanh") == 1
        assert names.count("scan") == 1
        sizes[steps] = len(names)
    assert sizes[10] == sizes[200]


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from primitives(getattr(inner, "jaxpr", inner))


def is_jaxpr(x) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def test_heun_passes_twice_but_for_the_last_step():
    table = flow_table("heun", 3)
    np.testing.assert_allclose(table.t, [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert table.first.tolist() == [True, False, True, False, True]


@pytest.mark.parametrize(("family", "sampler"), ALL)
def test_clipping_keeps_images_in_range(family, sampler):
    process = make(family, learn_sigma=False)
    noise, keys = draw(16)
    far = lambda x, time: jnp.full_like(x, 5.0)  # noqa: E731
    found = sample(process, far, noise, keys, sampler, 10, clip=0.5)
    assert np.abs(found).max() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("family", "sampler", "names"),
    [
        ("flow", "ddim", "'euler', 'heun'"),
        ("gaussian", "euler", "'ddpm', 'ddim', 'dpm\\+\\+'"),
        ("gaussian", "plms", "'ddpm', 'ddim', 'dpm\\+\\+'"),
    ],
)
def test_a_sampler_of_another_family_is_refused(family, sampler, names):
    sentence = f"sampler '{sampler}' does not fit a {family} process: write one of {names}"
    with pytest.raises(ConfigError, match=sentence):
        check_sampler(family, sampler)
    with pytest.raises(ConfigError, match=sentence):
        sample(make(family), None, *draw(1), sampler, 10)


def test_what_a_sampler_cannot_do_is_refused():
    with pytest.raises(ConfigError, match=r"eta is 0\.5 with sampler 'ddpm': write 0"):
        sample(make("gaussian"), None, *draw(1), "ddpm", 10, eta=0.5)
    with pytest.raises(ConfigError, match="sampling steps 'ddim50' of a flow: write a number"):
        sample(make("flow"), None, *draw(1), "heun", "ddim50")
    with pytest.raises(ConfigError, match="sampling steps '0' of a flow"):
        sample(make("flow"), None, *draw(1), "euler", 0)
