"""Flow matching: losses against a float64 reference, and the distribution of times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pit_jax.diffusion.flow import Flow
from pit_jax.errors import ConfigError

T = np.array([0.0, 0.3, 0.9, 0.96, 1.0])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(3, len(T), 2, 3, 2))


@pytest.mark.parametrize("gap", [0.05, 0.3])
@pytest.mark.parametrize("predict", ["v", "x0"])
def test_losses_are_those_of_the_papers(images, predict, gap):
    x, noise, error = images
    process = Flow(predict, min_gap=gap)
    t = T[:, None, None, None]
    x_t = t * x + (1 - t) * noise
    output = (x - noise if predict == "v" else x) + error
    rest = np.maximum(1 - t, gap)
    velocity = output if predict == "v" else (output - x_t) / rest
    # x − noise is (x − x_t) / (1 − t), but where the gap takes part it is divided by that.
    target = x - noise if predict == "v" else (x - x_t) / rest
    expected = ((velocity - target) ** 2).mean((1, 2, 3))
    arrays = [jnp.asarray(a, jnp.float32) for a in (output, x, noise, T)]
    found = jax.jit(process.losses)(*arrays)
    assert set(found) == {"loss", "mse"}
    for value in found.values():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(process.noised(*arrays[1:]), x_t, atol=1e-6)
    said = process.velocity(arrays[0], jnp.asarray(x_t, jnp.float32), arrays[3])
    np.testing.assert_allclose(said, velocity, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("predict", ["v", "x0"])
def test_a_clipped_velocity_leads_into_the_range(images, predict):
    x_t, output = (jnp.asarray(a, jnp.float32) for a in images[:2])
    t = jnp.array([0.0, 0.3, 0.5, 0.8, 0.9])
    v = Flow(predict).velocity(output, x_t, t, clip=0.5)
    rest = (1 - t)[:, None, None, None]
    free = output if predict == "x0" else x_t + rest * output
    np.testing.assert_allclose(x_t + rest * v, np.clip(free, -0.5, 0.5), atol=1e-5)


@pytest.mark.parametrize("predict", ["v", "x0"])
def test_a_clip_that_limits_nothing_changes_nothing(images, predict):
    """Near the image, too, where the gap takes part; and beside a number that is clipped."""
    x_t, output = (jnp.asarray(a, jnp.float32) for a in images[:2])
    t = jnp.array([0.0, 0.5, 0.96, 0.98, 1.0])
    process = Flow(predict)
    free = process.velocity(output, x_t, t)
    np.testing.assert_array_equal(process.velocity(output, x_t, t, clip=1e3), free)
    far = output.at[:, 0, 0, 0].set(1e6)
    found = process.velocity(far, x_t, t, clip=1e3)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:, 1:], free[:, 1:])


def test_a_clipped_velocity_near_the_image_reaches_the_range_in_the_time_that_is_left():
    x_t, output = jnp.full((3, 1, 1, 1), 0.9), jnp.full((3, 1, 1, 1), 50.0)
    t = jnp.array([0.96, 0.98, 0.999])
    rest = (1 - t)[:, None, None, None]
    free = x_t + rest * output
    v = Flow("v").velocity(output, x_t, t, clip=0.5)
    assert (free > 0.5).all()
    np.testing.assert_allclose(x_t + rest * v, 0.5, atol=1e-5)


def test_times_are_logit_normal_and_belong_to_their_keys():
    process = Flow(time_mean=-0.8, time_std=0.6)
    keys = jax.random.split(jax.random.key(1), 20_000)
    times = np.asarray(process.times(keys), np.float64)
    normal = (np.log(times / (1 - times)) + 0.8) / 0.6
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    np.testing.assert_array_equal(process.times(keys[7:9]), times[7:9].astype(np.float32))


def test_the_network_is_told_a_thousandfold_time():
    process = Flow()
    time = process.network_time(jnp.array([0.0, 0.25, 1.0]))
    assert time.tolist() == [0, 250, 1000]
    assert process.noise_level(time).tolist() == [1, 0.75, 0]
    assert process.outputs(3) == 3


def test_what_a_flow_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="cannot predict 'epsilon': write one of v, x0"):
        Flow("epsilon")
    with pytest.raises(ConfigError, match=r"min_gap is 0: write one in \(0, 1\]"):
        Flow("x0", min_gap=0)
