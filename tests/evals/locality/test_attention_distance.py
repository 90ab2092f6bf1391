"""Mean attention distance: closed forms, and a float64 forward pass of whole models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import tasks, validation
from pit_jax.errors import NotOffered
from pit_jax.evals.locality import attention_distance as attention
from pit_jax.models import order
from pit_jax.models.transformer import Block

from . import encoder

EVERYTHING = 10**6
measure = jax.jit(attention.mean_distances, static_argnums=4)


def raster(side: int) -> np.ndarray:
    return np.stack(np.divmod(np.arange(side**2, dtype=np.int32), side), axis=1)


def random_params(task, seed: int = 0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return jax.tree.map(lambda x: (0.4 * rng.normal(size=x.shape)).astype(np.float32), shapes)


def digits(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "image": rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8),
        "label": rng.integers(0, 10, count).astype(np.int32),
        "mask": np.ones(count, np.float32),
    }


@pytest.mark.parametrize("side", [5, 9])  # one block of queries, and two
def test_heads_without_queries_look_everywhere_alike(side):
    places = raster(side)
    k = np.random.default_rng(0).normal(size=(2, side**2, 3, 4))
    found = measure(jnp.zeros(k.shape), k, places, EVERYTHING, False)
    mean = np.mean([np.hypot(*(a - b)) for a in places for b in places])
    np.testing.assert_allclose(found, np.full((2, 3), mean), rtol=1e-5)
    np.testing.assert_allclose(
        attention.uniform(places, np.array([EVERYTHING, 0]), False), [mean, 0], rtol=1e-5
    )


def test_a_head_that_looks_at_itself_has_distance_0():
    one_hot = 100 * jnp.eye(25)[None, :, None]  # (1, 25, 1, 25)
    np.testing.assert_allclose(
        measure(one_hot, one_hot, raster(5), EVERYTHING, False), 0, atol=1e-6
    )


@pytest.mark.parametrize(("limit", "causal"), [(EVERYTHING, False), (2, False), (EVERYTHING, True)])
def test_distances_are_the_weighted_mean_of_what_is_seen(limit, causal):
    places = raster(9)[order.indices("snake", 9)]
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 2, 81, 3, 4))
    squared = np.square(places[:, None] - places).sum(-1)
    seen = (squared <= limit) & (np.tri(81, dtype=bool) if causal else True)
    scores = np.where(seen, np.einsum("bqhd,bkhd->bhqk", q, k) / 2, -np.inf)
    weights = np.exp(scores)
    expected = encoder.distances(weights, places, 0)
    found = measure(q, k, places, limit, causal)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    if limit == 2:
        assert np.max(found) <= np.sqrt(2)


def test_scores_of_all_pairs_are_never_held():
    shape = jax.ShapeDtypeStruct((2, 4096, 4, 16), jnp.float32)
    compiled = measure.lower(shape, shape, raster(64), EVERYTHING, False).compile()
    scores = 4 * 2 * 4 * 4096**2  # bytes
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 10


def test_every_layer_of_a_classifier_is_measured_by_its_own_window(tiny):
    """Three layers, of which two are scanned; the middle one sees as far as 1.5 pixels."""
    tiny.model.update(depth=3, window=(-1, 1.5, -1))
    task = tasks.build(validation.resolve(tiny))
    params, batch, places = random_params(task), digits(3), raster(8)
    limits = np.array([EVERYTHING, 2, EVERYTHING])
    read = attention.reader(task, places, limits, prefix=1, causal=False)
    found = jax.jit(read)(params, batch, 0)["distance"]  # (B, layers, H)
    near = np.ones((65, 65), bool)
    near[1:, 1:] = np.linalg.norm(places[:, None] - places, axis=-1) <= 1.5
    x = encoder.embed(params["embed"], np.asarray(task.normalise(batch), np.float64))
    seen = (np.ones_like(near), near, np.ones_like(near))
    _, weights = encoder.run(params["trunk"], x, 2, seen)
    expected = encoder.distances(weights, places, 1)
    np.testing.assert_allclose(found, expected.swapaxes(0, 1), rtol=2e-4)
    assert found.shape == (3, 3, 2)
    assert np.max(found[:, 1]) < 1.5 < np.min(found[:, 0])


def test_the_encoder_of_a_masked_autoencoder_sees_all_tokens(tiny):
    tiny.task = "mae"
    tiny.mae.update(decoder_width=8, decoder_depth=1, decoder_heads=2)
    task = tasks.build(validation.resolve(tiny))
    params, batch = random_params(task), digits(2)
    read = attention.reader(task, raster(8), np.full(2, EVERYTHING), prefix=1, causal=False)
    found = jax.jit(read)(params, batch, 0)["distance"]
    x = encoder.embed(params["embed"], np.asarray(task.normalise(batch), np.float64))
    _, weights = encoder.run(params["trunk"], x, 2)
    np.testing.assert_allclose(
        found, encoder.distances(weights, raster(8), 1).swapaxes(0, 1), rtol=2e-4
    )


def test_conditioned_blocks_are_measured_in_the_middle_of_the_process(tiny):
    tiny.task = "diffusion"
    tiny.model.name = "dit"
    tiny.diffusion.timesteps = tiny.sample.steps = 40
    task = tasks.build(validation.resolve(tiny))
    params, batch = random_params(task), digits(2)
    read = attention.reader(task, raster(8), np.full(2, EVERYTHING), prefix=0, causal=False)
    found = jax.jit(read)(params, batch, 0)["distance"]
    images = task.normalise(batch)
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (8, 8, 1)))(
        task.keys(batch)
    )
    alpha = np.cumprod(1 - task.process.schedule.betas.astype(np.float64))[20]
    noised = np.sqrt(alpha) * np.asarray(images, np.float64) + np.sqrt(1 - alpha) * noise
    angles = 20 * 10000.0 ** (-np.arange(128) / 128)
    time = np.concatenate([np.cos(angles), np.sin(angles)])
    time = encoder.dense(time, params["time"]["first"])
    c = encoder.dense(encoder.silu(time), params["time"]["second"])
    c = c + params["label"]["table"][batch["label"]]
    x = encoder.embed(params["embed"], np.asarray(noised))
    _, weights = encoder.run(params["trunk"], x, 2, c=c)
    np.testing.assert_allclose(
        found, encoder.distances(weights, raster(8), 0).swapaxes(0, 1), rtol=1e-3
    )


def test_nothing_is_kept_for_it_where_nobody_measures(resolved, monkeypatch):
    """The program of a training step is the one that blocks without `sow` would have."""
    task = tasks.build(resolved)
    params = jax.eval_shape(task.init, jax.random.key(0))
    batch = {"image": jnp.zeros((2, 8, 8, 1)), "target": jnp.zeros((2, 10))}

    def program() -> str:
        # A function of its own each time: traces are kept by function.
        gradient = jax.grad(lambda params: task.loss(params, batch, jax.random.key(0))[0])
        return str(jax.make_jaxpr(gradient)(params))

    as_it_is = program()
    monkeypatch.setattr(Block, "sow", lambda *args: False)
    assert program() == as_it_is


def test_a_model_without_attention_is_refused(tiny):
    tiny.model.name = "convnet"
    task = tasks.build(validation.resolve(tiny))
    read = attention.reader(task, raster(8), np.zeros(1, int), prefix=0, causal=False)
    with pytest.raises(NotOffered, match="ConvNet 3×3 has no attention between patches"):
        jax.eval_shape(read, jax.eval_shape(task.init, jax.random.key(0)), digits(1), 0)
