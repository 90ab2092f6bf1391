"""Classifier-free guidance: what it says, where it says it, and on which device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pit_jax.diffusion.flow import Flow
from pit_jax.diffusion.gaussian import Gaussian
from pit_jax.diffusion.guidance import guided
from pit_jax.diffusion.schedule import named
from pit_jax.parallel.mesh import make_mesh

NULL = 10
PROCESS = Gaussian(named("linear"))
COLLECTIVES = r"all-to-all|all-gather|all-reduce|collective-permute|reduce-scatter"


def denoise(x, time, labels):
    """An output that depends on everything, with as many channels of variance again."""
    rows = (labels.astype(jnp.float32) + 0.01 * time)[:, None, None, None]
    return jnp.concatenate([jnp.sin(x * (1 + rows)), jnp.cos(x + rows)], axis=-1)


@pytest.fixture(scope="module")
def batch():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 4)), jnp.float32)
    return x, jnp.array([0.0, 100, 500, 999]), jnp.array([3, 1, 7, 2])


@pytest.mark.parametrize(("channels", "count"), [(0, 4), (3, 3), (4, 4)])
def test_the_first_channels_move_away_from_the_unasked(batch, channels, count):
    x, time, labels = batch
    found = guided(PROCESS, denoise, NULL, 2.5, channels)(x, time, labels)
    label = np.asarray(denoise(x, time, labels), np.float64)
    unasked = np.asarray(denoise(x, time, jnp.full(4, NULL)), np.float64)
    expected = label.copy()  # the variance, and channels that are not guided
    expected[..., :count] = (unasked + 2.5 * (label - unasked))[..., :count]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(found[..., count:], label[..., count:].astype(np.float32))


def test_public_dit_says_the_same(batch):
    """Its batch holds every image twice, once without a label, and keeps the first half."""
    x, time, labels = batch
    whole = denoise(
        jnp.concatenate([x, x]),
        jnp.concatenate([time, time]),
        jnp.concatenate([labels, jnp.full(4, NULL)]),
    )
    guiding, rest = whole[..., :3], whole[..., 3:]
    half = guiding[4:] + 4.0 * (guiding[:4] - guiding[4:])
    expected = jnp.concatenate([half, rest[:4]], axis=-1)
    found = guided(PROCESS, denoise, NULL, 4.0, channels=3)(x, time, labels)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("process", "time"),
    [(PROCESS, [0.0, 100, 500, 999]), (Flow(), [1000.0, 900, 500, 1])],
    ids=["gaussian", "flow"],
)
def test_outside_of_its_interval_the_label_alone_speaks(batch, process, time):
    x, _, labels = batch
    time = jnp.array(time)
    found = guided(process, denoise, NULL, 3.0, interval=(0.1, 0.5))(x, time, labels)
    always = guided(process, denoise, NULL, 3.0)(x, time, labels)
    never = denoise(x, time, labels)
    np.testing.assert_array_equal(found[1:3], always[1:3])  # ends are inside
    for row in (0, 3):
        np.testing.assert_array_equal(found[row], never[row])
        assert np.abs(always[row] - never[row]).max() > 0.1


def test_scale_one_is_one_unguided_pass():
    assert guided(PROCESS, denoise, NULL, 1.0) is denoise
    assert guided(PROCESS, denoise, NULL, 1) is denoise


def test_two_passes_are_one_batch(batch):
    shapes = []

    def seen(x, time, labels):
        shapes.append((x.shape, time.shape, labels.shape))
        return denoise(x, time, labels)

    guided(PROCESS, seen, NULL, 2.0)(*batch)
    assert shapes == [((8, 2, 2, 4), (8,), (8,))]


def side_by_side(x, time, labels):
    """Guidance as usually written: [x, x]."""
    label, unasked = jnp.split(
        denoise(
            jnp.concatenate([x, x]),
            jnp.concatenate([time, time]),
            jnp.concatenate([labels, jnp.full_like(labels, NULL)]),
        ),
        2,
    )
    return unasked + 2.0 * (label - unasked)


def test_no_row_leaves_its_device():
    mesh = make_mesh({"data": 4, "fsdp": 2, "seq": 1, "model": 1})
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    arguments = [
        jax.ShapeDtypeStruct((16, *shape), dtype, sharding=rows)
        for shape, dtype in [((2, 2, 4), jnp.float32), ((), jnp.float32), ((), jnp.int32)]
    ]

    def compiled(function):
        return jax.jit(function, out_shardings=rows).lower(*arguments).compile().as_text()

    assert not re.findall(COLLECTIVES, compiled(guided(PROCESS, denoise, NULL, 2.0, channels=3)))
    assert re.findall(COLLECTIVES, compiled(side_by_side))  # the test can fail
