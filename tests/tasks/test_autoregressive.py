"""Saying pixels from those before them: what the model knows when, and that it is a likelihood."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax import checkpoint, evaluate, rundir, validation
from pit_jax.errors import ConfigError
from pit_jax.models import igpt
from pit_jax.parallel import rules
from pit_jax.perf import flops
from pit_jax.tasks import build
from pit_jax.train import train

from ..short_runs import change, losses, losses_by_dtype


@pytest.fixture
def small(tiny):
    """An autoregressive model of the digits in four grey levels; unresolved."""
    tiny.task, tiny.model.name = "autoregressive", "igpt"
    tiny.autoregressive.levels = 4
    tiny.eval.what = ("likelihood",)
    tiny.train.batch_size = 8
    return tiny


def random_params(task, spread: float = 0.4):
    """Nothing in them is zero or one, so that everything matters."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (spread * rng.normal(size=x.shape)).astype(np.float32), shapes)


def test_colours_are_levels_of_each_channel():
    values = np.arange(256, dtype=np.float32).reshape(1, 16, 16, 1) / 255
    for levels in (2, 3, 16, 256):
        found = np.asarray(igpt.quantise(values, levels))[0]
        np.testing.assert_array_equal(found, [v * levels // 256 for v in range(256)])
        assert found[-1] == levels - 1
    image = np.array([[[[0, 0, 0], [255, 0, 0]], [[0, 128, 255], [255, 255, 255]]]]) / 255
    found = igpt.quantise(image, 4)[0]
    np.testing.assert_array_equal(found, [0, 3 * 16, 2 * 4 + 3, 63])
    # what augmentation may leave outside [0, 1] is the darkest or the brightest
    np.testing.assert_array_equal(igpt.quantise(np.full((1, 1, 1, 1), 1.2), 4), [[3]])
    np.testing.assert_array_equal(igpt.quantise(np.full((1, 1, 1, 1), -0.2), 4), [[0]])


@pytest.mark.parametrize(("position", "order"), [("learned", "raster"), ("sincos2d", "hilbert")])
def test_a_pixel_changes_nothing_that_is_said_before_it(small, position, order):
    small.model.update(position=position, order=order)
    small.data.image_size = 4
    task = build(validation.resolve(small))
    params = random_params(task)
    logits = jax.jit(lambda p, images: task.model.apply({"params": p}, task.sequence(images)))
    image = np.random.default_rng(1).random((1, 4, 4, 1)).astype(np.float32)
    before = np.asarray(logits(params, image))
    for place, pixel in enumerate(task.indices):
        changed = image.copy().reshape(-1)
        changed[pixel] = (changed[pixel] + 0.5) % 1
        after = np.asarray(logits(params, changed.reshape(image.shape)))
        np.testing.assert_array_equal(after[0, : place + 1], before[0, : place + 1])
        if place < 15:  # the test can fail: what comes next does depend on it
            assert np.abs(after[0, place + 1] - before[0, place + 1]).max() > 1e-3


def test_the_order_is_that_in_which_pixels_are_said(small):
    """Column by column an image reads as its transpose does row by row."""
    image = np.random.default_rng(1).random((2, 8, 8, 1)).astype(np.float32)
    small.model.order = "columns"
    found = build(validation.resolve(small)).sequence(image)
    small.model.order = "raster"
    rows = build(validation.resolve(small)).sequence(image.swapaxes(1, 2))
    np.testing.assert_array_equal(found, rows)
    assert found.shape == (2, 64)


def test_fixed_positions_go_with_the_pixel_that_is_said(small):
    """Sincos positions of any order are the rows of the raster's table."""
    small.model.update(position="sincos2d", order="snake")
    tasks = [build(validation.resolve(small))]
    small.model.order = "raster"
    tasks.append(build(validation.resolve(small)))
    colours = jnp.zeros((1, 64), jnp.int32)  # after the start token all alike

    def tokens(task) -> np.ndarray:
        shapes = jax.eval_shape(task.init, jax.random.key(0))["embed"]
        params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
        m = task.model
        part = igpt.Tokens(m.colours, m.indices, m.width, m.position, m.position_std, jnp.float32)
        return np.asarray(part.apply({"params": params}, colours))[0]

    snake, raster = (tokens(task) for task in tasks)
    np.testing.assert_array_equal(snake, raster[tasks[0].indices])
    assert not np.array_equal(snake, raster)


@pytest.mark.parametrize("order", ["raster", "random"])
def test_the_probabilities_of_all_images_add_up_to_one(small, order):
    """Every image of 2 × 2 pixels and two colours: the chain rule, through the evaluation."""
    small.data.image_size = 2
    small.autoregressive.levels = 2
    small.model.order = order
    task = build(validation.resolve(small))
    params = random_params(task)
    filling = {"label": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1)}
    nats = jax.jit(lambda p, image: task.evaluate(p, {"image": image[None]} | filling)["loss"])
    worlds = [np.reshape(w, (2, 2, 1)) for w in itertools.product((0, 255), repeat=4)]
    found = np.array([np.exp(-4 * float(nats(params, world.astype(np.uint8)))) for world in worlds])
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert found.max() > 1.5 / 16  # and they are not all alike


def test_before_training_every_colour_is_as_likely(small):
    small.data.channels = 3
    task = build(validation.resolve(small))
    params = jax.jit(task.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8),
        "label": np.zeros(4, np.int32),
        "mask": np.array([1, 1, 1, 0], np.float32),  # the last row only fills up
    }
    sums = jax.jit(task.evaluate)(params, batch)
    assert float(sums["examples"]) == 3
    assert float(sums["loss"]) / 3 == pytest.approx(np.log(4**3), rel=1e-6)
    assert float(sums["bits_per_dim"]) / 3 == pytest.approx(np.log2(4), rel=1e-6)
    key = jax.random.key(0)
    loss, logged = jax.jit(lambda p, b: task.loss(p, task.augment(b, key), key))(params, batch)
    assert float(loss) == pytest.approx(np.log(4**3), rel=1e-6)
    assert set(logged) == {"loss", "bits_per_dim"}


@pytest.mark.parametrize(("depth", "half"), [(1, 1), (3, 2), (4, 2)])
def test_what_a_probe_reads_are_the_normed_features_of_the_middle(small, depth, half):
    """The whole model gives them too, once its upper layers add nothing and its final norm is
    that of the first of them."""
    small.model.depth = depth
    task = build(validation.resolve(small))
    params = random_params(task)
    images = np.random.default_rng(1).random((2, 8, 8, 1)).astype(np.float32)
    found = jax.jit(task.represent)(params, images)
    trunk = jax.tree.map(np.copy, params["trunk"])
    norm = params["norm"]
    if half < depth:
        blocks, last = trunk["blocks"], trunk["last"]
        norm = (
            last["norm1"] if half == depth - 1 else {k: v[half] for k, v in blocks["norm1"].items()}
        )
        for name in ("out", "down"):
            for x in blocks[name].values():
                x[half:] = 0
            for x in last[name].values():
                x[:] = 0
    silenced = params | {"trunk": trunk, "norm": norm}
    apply = jax.jit(lambda p, x: task.model.apply({"params": p}, task.sequence(x), head=False))
    np.testing.assert_allclose(found, apply(silenced, images).mean(1), rtol=1e-4, atol=1e-5)
    assert found.shape == (2, 16)


def test_norms_biases_and_embeddings_are_kept_from_weight_decay(small):
    params = jax.eval_shape(build(validation.resolve(small)).init, jax.random.key(0))
    decayed = set()
    rules.map_with_path(
        lambda path, _: rules.matches(path, rules.NO_DECAY_RULES) or decayed.add(path), params
    )
    assert decayed
    assert all(path.endswith("/kernel") for path in decayed)


def test_its_cost_by_hand(small):
    small.model.depth = 1
    c = validation.resolve(small)
    block = 2 * 64 * 12 * 16**2 + 4 * 64**2 * 16
    assert flops.autoregressive(c.model, c.data, 4).computed == block + 2 * 64 * 16 * 4


def batch(seed: int) -> dict[str, np.ndarray]:
    image = np.random.default_rng(seed).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    return {"image": image, "label": np.zeros(8, np.int32)}


def test_a_mesh_gives_the_values_of_one_device(small, one_device):
    small.optim.lr = 1e-2  # from the same loss to different ones
    alone = losses(small, {}, one_device, batch, 3)
    assert alone[0] == pytest.approx(np.log(4), rel=1e-5)
    assert alone[2] != pytest.approx(alone[1], rel=1e-3)
    shared = losses(small, {"seq": 2, "model": 2}, jax.devices()[:4], batch, 3)
    np.testing.assert_allclose(shared, alone, rtol=1e-4)


def test_in_bfloat16_the_loss_stays_close_and_is_float32(small):
    found = losses_by_dtype(small, random_params, batch)
    assert [loss.dtype for loss in found] == [jnp.float32, jnp.float32]
    wide, narrow = (float(loss) for loss in found)
    assert narrow == pytest.approx(wide, rel=0.03)
    assert narrow != wide


def test_a_run_learns_is_probed_and_resumes_to_the_same_bits(small, tmp_path, one_device):
    small.optim.update(lr=1e-2, ema=0.9, schedule="constant")
    small.train.update(batch_size=32, steps=16, log_every=4)
    small.eval.update(every="16 steps", what=("likelihood", "linear"))
    small.checkpoint.every = "8 steps"
    config = validation.resolve(small)
    whole = train(config, tmp_path / "whole", devices=one_device)
    assert whole.metrics["eval/loss"] < 0.8 * np.log(4)
    in_bits = whole.metrics["eval/loss"] / np.log(2)
    assert whole.metrics["eval/bits_per_dim"] == pytest.approx(in_bits, rel=1e-5)
    assert whole.metrics["eval/examples"] == 360
    assert whole.metrics["eval/linear_accuracy"] > 0.5
    half = config.copy_and_resolve_references()
    half.train.steps, half.eval.what = 8, ("likelihood",)
    train(half, tmp_path / "parts", devices=one_device)
    half.train.steps = 16
    train(half, tmp_path / "parts", devices=one_device)
    runs = [rundir.RunDir(tmp_path / name) for name in ("whole", "parts")]
    a, b = (checkpoint.Checkpoints(run).read(16) for run in runs)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
    alone = evaluate.evaluate(config, tmp_path / "whole", devices=one_device)
    assert alone["eval/loss"] == pytest.approx(whole.metrics["eval/loss"], rel=1e-6)
    # and its weights start no model that computes something else
    other = config.copy_and_resolve_references()
    other.init_from, other.autoregressive.levels = str(tmp_path / "whole"), 8
    with pytest.raises(ConfigError, match=r"with autoregressive\.levels=4, the config has 8"):
        train(validation.resolve(other), tmp_path / "other", devices=one_device)
    other.task, other.model.name, other.eval.what = "classification", "vit", ("accuracy",)
    with pytest.raises(ConfigError, match=r"with model\.name='igpt', the config has 'vit'"):
        train(validation.resolve(other), tmp_path / "other", devices=one_device)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"autoregressive.levels": 1}, r"autoregressive\.levels=1 must be at least 2"),
        (
            {"autoregressive.levels": 17, "data.channels": 3},
            r"levels=17 makes 4,913 colours of 3 channels.*write at most 16 \(4096 colours\)",
        ),
        ({"model.name": "vit"}, r"task 'autoregressive' needs config\.model\.name='igpt'"),
        ({"task": "classification"}, r"model\.name='igpt' is no classifier"),
        ({"model.patch": 2}, r"model\.patch=2 has no place in 'igpt': leave it at 1"),
        ({"model.embed": "dictionary"}, r"model\.embed='dictionary' has no place in 'igpt'"),
        ({"model.window": (1.0,)}, r"model\.window=\(1\.0,\) has no place in 'igpt'"),
        ({"model.token_drop": 0.5}, r"model\.token_drop=0\.5 has no place in 'igpt'"),
        ({"data.augmentation.mixup": 0.8}, r"mixup has no place in task 'autoregressive'"),
        ({"data.name": "latents"}, "data.name='latents' is for task 'diffusion'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_line(small, fields, sentence):
    change(small, fields)
    with pytest.raises(ConfigError, match=sentence) as refusal:
        validation.resolve(small)
    assert "\n" not in str(refusal.value)
