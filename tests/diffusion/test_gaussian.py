"""Losses of Gaussian diffusion against a float64 reference written from the papers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pit_jax.diffusion.gaussian import Gaussian
from pit_jax.diffusion.schedule import named
from pit_jax.errors import ConfigError

T = np.array([0, 0, 1, 2, 10, 300, 999])
CASES = [(p, s) for p in ("epsilon", "x0", "v") for s in (False, True)]


@pytest.fixture(scope="module")
def images():
    """Grey levels in [−1, 1], black and white among them, noise, and errors of a network."""
    rng = np.random.default_rng(0)
    x = 2 * rng.integers(0, 256, size=(len(T), 2, 3, 2)) / 255 - 1
    x[:, 0, 0] = [-1, 1]
    return x, rng.normal(size=x.shape), rng.normal(size=x.shape), rng.uniform(-1.2, 1.2, x.shape)


def bits(x0, x_t, predicted_x0, share, t, betas) -> float:
    """The term of t in the variational bound, from densities (Ho et al. 2020, §2 and §3.3)."""
    alphas = 1 - betas
    left = np.prod(alphas[: t + 1])
    before = np.prod(alphas[:t])

    def posterior(image, t, left, before):
        if t == 0:
            return image, 0.0
        precision = 1 / (1 - before) + alphas[t] / betas[t]
        mean = np.sqrt(before) * image / (1 - before) + np.sqrt(alphas[t]) * x_t / betas[t]
        return mean / precision, 1 / precision

    true_mean, variance = posterior(x0, t, left, before)
    mean, _ = posterior(predicted_x0, t, left, before)
    if t == 0:
        variance = posterior(x0, 1, left * alphas[1], left)[1]
    log_variance = (1 + share) / 2 * np.log(betas[t]) + (1 - share) / 2 * np.log(variance)
    deviation = np.exp(log_variance / 2)
    if t == 0:
        upper = np.where(x0 > 0.999, np.inf, x0 + 1 / 255)
        lower = np.where(x0 < -0.999, -np.inf, x0 - 1 / 255)
        normal = stats.norm(mean, deviation)
        # The survival function keeps the digits of what lies above the mean.
        mass = np.where(
            lower > mean,
            normal.sf(lower) - normal.sf(upper),
            normal.cdf(upper) - normal.cdf(lower),
        )
        return float(-np.log2(np.maximum(mass, 1e-12)).mean())
    kl = np.log(deviation / np.sqrt(variance)) - 0.5
    kl = kl + (variance + (true_mean - mean) ** 2) / (2 * deviation**2)
    return float(kl.mean() / np.log(2))


def reference(predict, learn_sigma, x, noise, error, share) -> tuple[np.ndarray, dict]:
    """A network's output, `error` away from the truth, and its losses row by row."""
    betas = np.linspace(1e-4, 0.02, 1000)
    rows: dict = {"mse": [], "vlb": []}
    outputs = []
    for i, t in enumerate(T):
        left = np.prod(1 - betas[: t + 1])
        x_t = np.sqrt(left) * x[i] + np.sqrt(1 - left) * noise[i]
        true = {
            "epsilon": noise[i],
            "x0": x[i],
            "v": np.sqrt(left) * noise[i] - np.sqrt(1 - left) * x[i],
        }[predict]
        output = true + 0.3 * error[i] * (0.01 if predict != "epsilon" and t < 3 else 1)
        rows["mse"].append(((output - true) ** 2).mean())
        predicted = {
            "epsilon": (x_t - np.sqrt(1 - left) * output) / np.sqrt(left),
            "x0": output,
            "v": np.sqrt(left) * x_t - np.sqrt(1 - left) * output,
        }[predict]
        rows["vlb"].append(bits(x[i], x_t, predicted, share[i], t, betas))
        outputs.append(np.concatenate([output, share[i]], -1) if learn_sigma else output)
    losses = {name: np.array(values) for name, values in rows.items()}
    if not learn_sigma:
        del losses["vlb"]
    losses["loss"] = sum(losses.values())
    return np.array(outputs), losses


@pytest.mark.parametrize(("predict", "learn_sigma"), CASES)
def test_losses_are_those_of_the_papers(images, predict, learn_sigma):
    x, noise, error, share = images
    output, expected = reference(predict, learn_sigma, x, noise, error, share)
    process = Gaussian(named("linear"), predict, learn_sigma, decoder="exact")
    assert output.shape[-1] == process.outputs(2)
    arrays = [jnp.asarray(a, jnp.float32) for a in (output, x, noise)]
    found = jax.jit(process.losses)(*arrays, jnp.asarray(T))
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == jnp.float32
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    if learn_sigma:  # and the rows are no trivial ones
        assert len(set(np.round(expected["vlb"], 3))) >= 6
        assert (expected["vlb"][:2] < 30).all()


def public_bits(x0, mean, deviation) -> np.ndarray:
    """The last term as public DiT has it, of each image: masses by its tanh, in float64."""

    def cdf(level):
        u = (level - mean) / deviation
        return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))

    upper = np.where(x0 > 0.999, 1, cdf(x0 + 1 / 255))
    mass = upper - np.where(x0 < -0.999, 0, cdf(x0 - 1 / 255))
    return -np.log2(np.maximum(mass, 1e-12)).mean((1, 2, 3))


def test_the_last_term_is_public_dits(images):
    x, noise, error, share = images
    output, expected = reference("x0", True, x, noise, 0.02 * error, share)
    arrays = [jnp.asarray(a, jnp.float32) for a in (output, x, noise)]
    found, exact = (
        np.asarray(
            jax.jit(Gaussian(named("linear"), "x0", True, decoder=d).losses)(*arrays, T)["vlb"]
        )
        for d in ("tanh", "exact")
    )
    last = T == 0
    betas = np.linspace(1e-4, 0.02, 1000)
    small = betas[1] * betas[0] / (1 - (1 - betas[0]) * (1 - betas[1]))
    log_variance = (1 + share) / 2 * np.log(betas[0]) + (1 - share) / 2 * np.log(small)
    wanted = public_bits(x[last], output[last][..., :2], np.exp(log_variance[last] / 2))
    np.testing.assert_allclose(found[last], wanted, rtol=1e-5)
    np.testing.assert_allclose(exact, expected["vlb"], rtol=1e-5, atol=1e-6)
    assert (np.abs(found[last] / exact[last] - 1) > 1e-5).all()  # one would not pass for the other
    np.testing.assert_array_equal(found[~last], exact[~last])


@pytest.mark.parametrize("steps", [1000, 250])
def test_a_variance_that_is_not_learned_is_public_dits(steps):
    """The large one is β, the small one β̃; at t = 0 both are β̃ of t = 1."""
    process = Gaussian(named("linear"), "epsilon", False).respaced(steps)
    betas, left = process.schedule.betas, np.cumprod(1 - process.schedule.betas)
    before = np.append(1.0, left[:-1])
    small = betas * (1 - before) / (1 - left)
    expected = {"large": np.append(small[1], betas[1:]), "small": np.append(small[1], small[1:])}
    t, x = np.arange(steps), np.zeros((steps, 1, 1, 1), np.float32)
    assert process.variance == "large"  # the default of the public code
    for which, variance in expected.items():
        said = dataclasses.replace(process, variance=which).read(x, x, t)
        np.testing.assert_allclose(said.log_variance.ravel(), np.log(variance), rtol=1e-5)


def test_only_the_variance_learns_from_the_bound(images):
    x, noise, error, share = images
    output, _ = reference("epsilon", True, x, noise, error, share)
    process = Gaussian(named("linear"), "epsilon", True)
    arrays = [jnp.asarray(a, jnp.float32) for a in (output, x, noise)]

    def gradient(name):
        loss = lambda output: process.losses(output, *arrays[1:], jnp.asarray(T))[name].sum()  # noqa: E731
        return np.asarray(jax.jit(jax.grad(loss))(arrays[0]))

    vlb, mse = gradient("vlb"), gradient("mse")
    assert np.isfinite(vlb).all()
    assert not vlb[..., :2].any()
    assert not mse[..., 2:].any()
    assert (np.abs(vlb[2:, ..., 2:]) > 0).all()
    assert (np.abs(mse[..., :2]) > 0).all()


@pytest.mark.parametrize("predict", ["epsilon", "x0", "v"])
def test_the_truth_is_read_back_in_every_currency(images, predict):
    x, noise, _, share = (jnp.asarray(a, jnp.float32) for a in images)
    process = Gaussian(named("cosine").respaced(1000), predict, True)
    t = jnp.asarray(np.minimum(T, 900))
    x_t, target = process.noised(x, noise, t), process.target(x, noise, t)
    said = process.read(jnp.concatenate([target, share], -1), x_t, t)
    np.testing.assert_allclose(said.x0, x, atol=3e-5)
    np.testing.assert_allclose(said.epsilon, noise, atol=3e-4)  # an x0 says little of it at t = 0
    betas = np.log(process.schedule.betas)[t]
    smaller = process.schedule.posterior_log_variance[t]
    expected = (share + 1) / 2 * betas[:, None, None, None]
    expected += (1 - share) / 2 * smaller[:, None, None, None]
    np.testing.assert_allclose(said.log_variance, expected, rtol=1e-5)


def test_half_precision_outputs_are_lost_in_float32(images):
    x, noise, error, share = images
    output, _ = reference("epsilon", True, x, noise, error, share)
    process = Gaussian(named("linear"), "epsilon", True)
    half = jnp.asarray(output, jnp.bfloat16)
    rest = [jnp.asarray(a, jnp.float32) for a in (x, noise)]
    losses = jax.jit(process.losses)
    found = losses(half, *rest, jnp.asarray(T))
    same = losses(half.astype(jnp.float32), *rest, jnp.asarray(T))
    for name in found:
        np.testing.assert_array_equal(found[name], same[name])


def test_times_are_uniform_and_belong_to_their_keys():
    process = Gaussian(named("linear"))
    keys = jax.random.split(jax.random.key(1), 20_000)
    times = np.asarray(process.times(keys))
    assert times.dtype == np.int32
    counts = np.bincount(times // 100, minlength=10)
    assert len(counts) == 10
    assert stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(process.times(keys[7:9]), times[7:9])


def test_the_network_is_told_the_timesteps_of_its_training():
    process = Gaussian(named("linear")).respaced("ddim50")
    time = process.network_time(jnp.array([0, 1, 49]))
    assert time.dtype == jnp.float32
    assert time.tolist() == [0, 20, 980]
    np.testing.assert_allclose(process.noise_level(time), [0, 0.02, 0.98], rtol=1e-6)


def test_another_prediction_is_refused():
    with pytest.raises(ConfigError, match="cannot predict 'noise': write one of epsilon, x0, v"):
        Gaussian(named("linear"), "noise")
