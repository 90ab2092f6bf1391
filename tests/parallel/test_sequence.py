"""Tokens over the axis "seq": the same loss and gradients as on one device."""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pit_jax import step, tasks, validation
from pit_jax.errors import ConfigError
from pit_jax.lengths import Clock
from pit_jax.models import attention, splash
from pit_jax.models.mask import FULL, Mask
from pit_jax.parallel import mesh as meshes
from pit_jax.parallel import sequence


def on(**sizes: int) -> jax.sharding.Mesh:
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    return meshes.make_mesh(dict.fromkeys(meshes.AXES, 1) | sizes, devices)


def arrays(length: int, heads: int) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (2, length, heads, 16)) for key in keys]


def run(function, q, k, v, g) -> tuple:
    def both(q, k, v, g):
        out, pull = jax.vjp(function, q, k, v)
        return out, *pull(g)

    return jax.jit(both)(q, k, v, g)


@functools.cache
def on_one_device(mask: Mask, length: int, heads: int) -> tuple:
    return run(functools.partial(attention.attention, mask=mask), *arrays(length, heads))


MASKS = {
    "full": FULL,
    "causal": Mask(causal=True),
    "window": Mask(radius=2.5, columns=16, prefix=1),
}


@pytest.mark.parametrize("exchange", ["ulysses", "gather"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(("length", "heads"), [(257, 4), (300, 3)])
def test_exchanges_change_nothing(exchange, mask, length, heads):
    """257 tokens do not divide over 4, and neither do 3 heads."""
    inputs = arrays(length, heads)
    function = functools.partial(attention.attention, mask=mask, exchange=exchange)
    with jax.set_mesh(on(data=2, seq=4)):
        found = run(function, *inputs)
    for one, other in zip(found, on_one_device(mask, length, heads), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)


@pytest.mark.parametrize("exchange", ["ulysses", "gather"])
def test_the_tpu_kernel_across_devices(exchange):
    inputs = arrays(256, 4)
    mask = Mask(length=250)
    expected = on_one_device(mask, 256, 4)

    def kernel(q, k, v, first):
        return splash.attention(q, k, v, mask, interpret=True)

    with jax.set_mesh(on(seq=2, model=2)):
        found = run(lambda q, k, v: sequence.attend(kernel, q, k, v, exchange), *inputs)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)


def test_what_travels():
    """Ulysses trades tokens for heads and gathers nothing; gathering only gathers."""
    inputs = arrays(256, 4)
    texts = {}
    for exchange in ("ulysses", "gather"):
        function = functools.partial(attention.attention, exchange=exchange)
        with jax.set_mesh(on(seq=4)):
            spec = jax.sharding.PartitionSpec(None, "seq")
            split = [jax.device_put(x, jax.NamedSharding(on(seq=4), spec)) for x in inputs[:3]]
            texts[exchange] = jax.jit(function).lower(*split).compile().as_text()
    assert "all-to-all" in texts["ulysses"]
    assert "all-gather" not in texts["ulysses"]
    assert "all-gather" in texts["gather"]
    assert "all-to-all" not in texts["gather"]


def test_auto_fills_up_few_heads_and_gathers_otherwise():
    with jax.set_mesh(on(seq=4)):
        assert sequence.choose(12) == "ulysses"
        assert sequence.choose(3) == "ulysses"  # one empty head
        assert sequence.choose(5) == "gather"  # three
        assert sequence.choose(5, "ulysses") == "ulysses"
    with jax.set_mesh(on(seq=2, model=4)):
        assert sequence.choose(4) == "gather"  # one a device
        assert sequence.choose(16) == "ulysses"


def test_a_kernel_with_masks_from_query_0_refuses_to_gather(monkeypatch):
    monkeypatch.setattr(attention, "ambient_platform", lambda: "tpu")
    causal = functools.partial(attention.attention, mask=Mask(causal=True), exchange="gather")
    with jax.set_mesh(on(seq=2)), pytest.raises(ConfigError, match="'gather' has neither windows"):
        jax.eval_shape(causal, *arrays(256, 4)[:3])


def step_of(config: ConfigDict, mesh: jax.sharding.Mesh) -> tuple:
    """Gradients, sums of an evaluation, metrics and parameters after one training step."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 14, 14, 1)).astype(np.uint8),
        "label": rng.integers(0, 10, 8).astype(np.int32),
    }
    task = tasks.build(config)
    steps = step.build(task, config, mesh, Clock(8, 80, 10))
    with jax.set_mesh(mesh):
        state = steps.init(jax.random.key(0))
        ready = jax.jit(task.augment)(batch, jax.random.key(1))
        gradient = jax.jit(jax.grad(lambda p, x: task.loss(p, x, jax.random.key(2))[0]))
        grads = gradient(state.params, ready)
        sums = steps.evaluate(state.params, batch | {"mask": np.ones(8, np.float32)})
        state, metrics = steps.train(state, batch)
        return jax.device_get((grads, sums, metrics, state.params))


@pytest.fixture(scope="module")
def one_step():
    """The step of a config on one device, where no tokens are exchanged, by its pooling."""
    found = {}

    def of(config: ConfigDict) -> tuple:
        pool = config.model.pool
        if pool not in found:
            found[pool] = step_of(config, on(data=1))
        return found[pool]

    return of


@pytest.mark.parametrize(
    ("exchange", "pool", "layout"),
    [  # each with each of the others
        ("ulysses", "cls", {"data": 2, "fsdp": 2, "seq": 2}),
        ("gather", "mean", {"data": 2, "fsdp": 2, "seq": 2}),
        ("gather", "cls", {"fsdp": 2, "seq": 4}),
        ("ulysses", "mean", {"fsdp": 2, "seq": 4}),
    ],
)
def test_a_training_step_of_pit_on_eight_devices(tiny, one_step, exchange, pool, layout):
    """Loss, gradients and updated parameters as on one device, with every axis in use."""
    tiny.model.update(width=32, depth=3, heads=4, pool=pool, exchange=exchange, attention="blocked")
    tiny.data.image_size = 14  # 196 tokens, 197 with [CLS]
    tiny.train.batch_size = 8
    config = validation.resolve(tiny)
    expected, found = one_step(config), step_of(config, on(**layout))
    biggest = max(np.abs(x).max() for x in jax.tree.leaves(expected[0]))
    for one, other in zip(jax.tree.leaves(found[0]), jax.tree.leaves(expected[0]), strict=True):
        assert np.abs(one - other).max() < 1e-4 * biggest
    for one, other in zip(found[1:3], expected[1:3], strict=True):
        for name in other:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, err_msg=name)


def test_lengths_are_filled_up_for_the_devices():
    assert sequence.padded(1025) == 1025
    with jax.set_mesh(on(seq=4)):
        assert sequence.padded(1025) == 1028
