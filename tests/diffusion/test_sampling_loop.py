"""The loop that all samplers share: its program, its keys, its clipping and its refusals."""

import re
from functools import partial

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
ALL = [(family, name) for family, names in SAMPLERS.items() for name in names]


def make(family, learn_sigma=True):
    return Gaussian(LINEAR, "epsilon", learn_sigma) if family == "gaussian" else Flow("x0")


def pointwise(process):
    def denoise(x, time):
        output = jnp.tanh(x + 0.001 * time[:, None, None, None])
        copies = process.outputs(x.shape[-1]) // x.shape[-1]
        return jnp.concatenate([output] * copies, axis=-1)

    return denoise


def test_an_images_noise_depends_on_its_own_key_alone():
    process = Gaussian(LINEAR, "epsilon", True)
    noise, keys = normal.draw(8)
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


@pytest.mark.parametrize(("family", "sampler"), ALL)
def test_the_program_does_not_grow_with_the_steps_and_holds_one_network(family, sampler):
    process = make(family)
    noise, keys = normal.draw(2)
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
    noise, keys = normal.draw(16)
    far = lambda x, time: jnp.full_like(x, 5.0)  # noqa: E731
    found = sample(process, far, noise, keys, sampler, 10, clip=0.5)
    assert np.abs(found).max() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(("family", "sampler"), ALL)
@pytest.mark.parametrize("predict", ["v", "x0"])
def test_a_clip_that_limits_nothing_changes_nothing(family, sampler, predict):
    process = Gaussian(LINEAR, predict, False) if family == "gaussian" else Flow(predict)
    noise, keys = normal.draw(16)
    draw = jax.jit(partial(sample, process, pointwise(process), sampler=sampler, steps=60))
    np.testing.assert_allclose(draw(noise, keys, clip=1e3), draw(noise, keys), atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS["flow"])
@pytest.mark.parametrize("steps", [10, 60])
def test_clipped_velocities_end_where_their_images_do(sampler, steps):
    """Steps shorter than a flow's smallest gap are no exception."""
    noise, keys = normal.draw(16)
    far = lambda x, time: jnp.full_like(x, 40.0)  # noqa: E731
    found = sample(Flow("v"), far, noise, keys, sampler, steps, clip=0.5)
    np.testing.assert_allclose(found, 0.5, atol=1e-5)


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
        sample(make(family), None, *normal.draw(1), sampler, 10)


def test_what_a_sampler_cannot_do_is_refused():
    with pytest.raises(ConfigError, match=r"eta is 0\.5 with sampler 'ddpm': write 0"):
        sample(make("gaussian"), None, *normal.draw(1), "ddpm", 10, eta=0.5)
    with pytest.raises(ConfigError, match="sampling steps 'ddim50' of a flow: write a number"):
        sample(make("flow"), None, *normal.draw(1), "heun", "ddim50")
    with pytest.raises(ConfigError, match="sampling steps '0' of a flow"):
        sample(make("flow"), None, *normal.draw(1), "euler", 0)
