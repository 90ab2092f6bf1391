"""The pre-training task: its masks, its pictures, a whole run, and what is made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pit_jax import checkpoint, evaluate, rundir, step, validation
from pit_jax.errors import ConfigError
from pit_jax.lengths import Clock
from pit_jax.models import mae
from pit_jax.models.embed import unpatchify
from pit_jax.parallel import mesh as meshes
from pit_jax.tasks import build
from pit_jax.train import train
from pit_jax.weights import exchange

from ..saved_runs import stopped


@pytest.fixture
def small(tiny):
    """A masked autoencoder of the digits, 64 pixels of which 16 are seen; unresolved."""
    tiny.task = "mae"
    tiny.mae.update(decoder_width=8, decoder_depth=1, decoder_heads=2)
    tiny.eval.update(what=("reconstruction",), pictures=5)
    tiny.optim.lr = 5e-3
    return tiny


def digits(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return {"image": image, "label": np.zeros(count, np.int32)}


def params_of(task, seed: int = 0):
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


def test_every_example_and_step_has_a_mask_of_its_own(small):
    task = build(validation.resolve(small))
    augment = jax.jit(task.augment)
    first = np.asarray(augment(digits(32), jax.random.key(0))["keep"])
    again = np.asarray(augment(digits(32), jax.random.key(0))["keep"])
    other = np.asarray(augment(digits(32), jax.random.key(1))["keep"])
    assert first.shape == (32, 16)
    np.testing.assert_array_equal(first, again)
    assert len({tuple(row) for row in (*first, *other)}) == 64
    # a row's mask depends on the row alone, not on how many stand beside it
    np.testing.assert_array_equal(augment(digits(8), jax.random.key(0))["keep"], first[:8])


def test_a_held_out_image_has_the_same_mask_in_any_batch(small):
    task = build(validation.resolve(small))
    batch = digits(12)
    masks = np.asarray(task.fixed_masks(batch))
    assert len({tuple(row) for row in masks}) == 12
    order = np.random.default_rng(1).permutation(12)
    for rows in (order, slice(3, 4)):
        some = {name: x[rows] for name, x in batch.items()}
        np.testing.assert_array_equal(task.fixed_masks(some), masks[rows])


@pytest.mark.parametrize("normalise", [False, True])
def test_the_reconstruction_shows_what_was_seen_and_what_was_predicted(small, normalise):
    small.model.patch = 2
    small.mae.normalise_target = normalise
    task = build(validation.resolve(small))
    params = params_of(task)
    batch = digits(8) | {"mask": np.ones(8, np.float32)}
    found = jax.jit(task.reconstruct)(params, batch, 0)
    assert found["original"].shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(found["original"], batch["image"][:5])
    first = {name: x[:5] for name, x in batch.items()}
    keep = task.fixed_masks(first)
    hidden = np.asarray(mae.masked(keep, 16)).reshape(5, 4, 4).repeat(2, 1).repeat(2, 2)[..., None]
    seen = hidden == 0
    for name in ("masked", "reconstructed"):
        np.testing.assert_allclose(found[name][seen], found["original"][seen], atol=1e-3)
    np.testing.assert_allclose(found["masked"][~seen], 127.5, atol=1e-3)
    # the hidden patches are the prediction, in grey levels and with the patch's own moments
    normalised = task.normalise(first)
    predicted = task.model.apply({"params": params}, normalised, keep)  # (5, 16, 4)
    if normalise:
        patches = np.asarray(mae.target(normalised, 2, False), np.float64)
        spread = np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
        predicted = predicted * spread + patches.mean(-1, keepdims=True)
    expected = np.clip(255 * (np.asarray(unpatchify(predicted, 8, 2)) * 0.5 + 0.5), 0, 255)
    np.testing.assert_allclose(found["reconstructed"][~seen], expected[~seen], atol=0.05)


# A whole run ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, one_device):
    """(config, run directory) of a run that went as far as it should."""
    from pit_jax.config import base

    c = base()
    c.task = "mae"
    c.model.update(width=16, depth=2, heads=2, position_std=0.1)
    c.mae.update(decoder_width=8, decoder_depth=1, decoder_heads=2)
    c.data.update(name="digits", image_size=8, channels=1)
    c.optim.update(lr=1e-2, ema=0.9, warmup="5 steps")
    c.train.update(batch_size=64, steps=60, log_every=5)
    c.eval.update(every="50%", what=("reconstruction", "knn", "fewshot"), shots=(20,), pictures=4)
    c.checkpoint.update(every="30 steps", keep=5)
    config = validation.resolve(c)
    path = tmp_path_factory.mktemp("mae") / "run"
    train(config, path, devices=one_device)
    return config, path


def test_it_learns_and_says_so(pretrained):
    _, path = pretrained
    rows = rundir.RunDir(path).rows()
    losses = [row["train/loss"] for row in rows]
    assert losses[-1] < 0.8 * losses[0]
    last = rows[-1]
    assert last["eval/examples"] == 360
    assert 0 < last["eval/loss"] < rows[0]["train/loss"]
    assert last["eval/knn_accuracy"] > 0.3
    # of 360 images ten classes' chance has 0.16 in one run of ten thousand
    assert last["eval/fewshot_20_examples"] == 200
    assert last["eval/fewshot_20_accuracy"] > 0.3


def test_pictures_lie_in_the_run_and_in_tensorboard(pretrained):
    _, path = pretrained
    names = sorted(p.name for p in (path / "pictures").iterdir())
    assert names == ["reconstruction-30.png", "reconstruction-60.png"]
    picture = np.asarray(Image.open(path / "pictures" / names[-1]))
    height, width, channels = picture.shape
    assert (channels, height) == (3, 3 * (96 + 4) + 4)
    assert width > 4 * 100
    events = b"".join(p.read_bytes() for p in (path / "events").iterdir())
    assert events.count(b"reconstruction") >= 2
    assert events.count(b"\x89PNG") == 2


def test_evaluated_alone_it_gives_the_logged_figures_on_another_mesh(pretrained):
    config, path = pretrained
    last = rundir.RunDir(path).rows()[-1]
    other = config.copy_and_resolve_references()
    other.eval.batch_size = 24
    before = (path / "pictures" / "reconstruction-60.png").read_bytes()
    found = evaluate.evaluate(other, path, devices=jax.devices())
    assert found["eval/loss"] == pytest.approx(last["eval/loss"], rel=1e-5)
    after = np.asarray(Image.open(path / "pictures" / "reconstruction-60.png"), int)
    (path / "before.png").write_bytes(before)
    assert np.abs(after - np.asarray(Image.open(path / "before.png"), int)).max() <= 1
    probes = evaluate.evaluate(other, path, devices=jax.devices(), which=("knn",))
    assert set(probes) == {"step", "eval/knn_accuracy"}
    # one of 360 images may fall the other way by rounding
    assert probes["eval/knn_accuracy"] == pytest.approx(last["eval/knn_accuracy"], abs=0.006)


def test_stopped_and_resumed_it_gives_the_same_bits(pretrained, tmp_path, one_device):
    config, path = pretrained
    run = stopped(path, tmp_path / "run", 30)
    train(config, run.path, devices=one_device)
    assert {"event": "resume", "step": 30} in run.rows()
    whole = rundir.RunDir(path)
    a, b = ([row.get("train/loss") for row in r.rows() if "event" not in row] for r in (run, whole))
    assert a == b
    a, b = (checkpoint.Checkpoints(r).read(60) for r in (run, whole))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def three_losses(config, sizes, devices):
    config.mesh.update(data=1, fsdp=1, seq=1, model=1)
    config.mesh.update(sizes)
    config = validation.resolve(config)
    mesh = meshes.make_mesh(config.mesh, devices)
    steps = step.build(build(config), config, mesh, Clock(32, 1437, 10))
    with jax.set_mesh(mesh):
        state = steps.init(jax.random.key(0))
        losses = []
        for number in range(3):
            batch = jax.device_put(digits(32, number), steps.batch_sharding)
            state, metrics = steps.train(state, batch)
            losses.append(float(metrics["loss"]))
    return losses


def test_a_mesh_gives_the_values_of_one_device(small, one_device):
    alone = three_losses(small, {}, one_device)
    assert alone[0] != alone[1]
    for sizes in ({"data": 2, "fsdp": 2, "model": 2}, {"data": 4, "seq": 2}):
        found = three_losses(small, sizes, jax.devices())
        np.testing.assert_allclose(found, alone, rtol=1e-4, err_msg=str(sizes))


def test_in_bfloat16_the_loss_stays_close_and_parameters_are_float32(small, one_device):
    losses = []
    for dtype in ("float32", "bfloat16"):
        small.model.dtype = dtype
        task = build(validation.resolve(small))
        ready = jax.jit(task.augment)(digits(32), jax.random.key(0))
        params = jax.jit(task.init)(jax.random.key(0))
        assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        loss, grads = jax.jit(
            jax.value_and_grad(lambda p, b, t=task: t.loss(p, b, jax.random.key(0))[0])
        )(params, ready)
        assert loss.dtype == jnp.float32
        assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


# Fine-tuning ----------------------------------------------------------------------------


def tuning(config, path, **model):
    c = config.copy_and_resolve_references()
    c.task, c.init_task, c.init_from = "classification", "mae", str(path)
    c.model.update(model)
    c.optim.update(layer_decay=0.65, ema=0.0, lr=0.0)
    c.train.update(steps=2, tensorboard=False, label_smoothing=0.1)
    c.data.augmentation.update(randaugment=9.0, erasing=0.25, mixup=0.8, cutmix=1.0)
    c.eval.what = ("accuracy", "knn")
    c.eval.every = c.checkpoint.every = "2 steps"
    return validation.resolve(c)


@pytest.mark.parametrize(
    ("pool", "source"), [("cls", "run"), ("patches", "run"), ("patches", "Hugging Face's")]
)
def test_fine_tuning_takes_the_encoder_and_lists_it(
    pretrained, tmp_path, one_device, capsys, pool, source
):
    config, path = pretrained
    start = path
    if source != "run":
        start = tmp_path / "directory"
        exchange.export_weights(str(path), str(start), "huggingface", lambda line: None)
    train(tuning(config, start, pool=pool), tmp_path / "tuned", devices=one_device)
    said = capsys.readouterr().out
    assert f"weights from {start}" in said
    lines = {line.split()[0]: line for line in said.splitlines() if line.startswith("  ")}
    assert "embed (4)" in lines["loaded"]
    assert "trunk (32)" in lines["loaded"]
    assert "head (2)" in lines["new"]
    assert "decoder" in lines["dropped"]
    assert ("pool_norm (2)" in lines["new"]) == (pool == "patches")
    # With a learning rate of 0 the encoder is still what was pre-trained: its average.
    saved = checkpoint.Checkpoints(rundir.RunDir(path))
    old = saved.read_weights(60)
    new = checkpoint.Checkpoints(rundir.RunDir(tmp_path / "tuned")).read_weights(2)
    for group in ("embed", "trunk"):
        for x, y in zip(jax.tree.leaves(old[group]), jax.tree.leaves(new[group]), strict=True):
            np.testing.assert_array_equal(x, y)
    # and neighbours are what the encoder says, wherever it was loaded
    row = rundir.RunDir(tmp_path / "tuned").rows()[-1]
    if pool == "cls":
        expected = rundir.RunDir(path).rows()[-1]["eval/knn_accuracy"]
        assert row["eval/knn_accuracy"] == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model.width": 32, "model.mlp": 0}, r"with model\.width=16, the config has 32"),
        ({"model.patch": 2}, r"with model\.patch=1, the config has 2"),
        ({"data.image_size": 16}, r"with data\.image_size=8, the config has 16"),
        ({"model.depth": 3}, r"with model\.depth=2, the config has 3"),
        ({"model.pool": "mean"}, r"with model\.pool='cls', the config has 'mean'"),
        ({"init_from": ""}, r"config\.init_from is empty, but config\.init_task='mae'"),
        ({"init_from": ""}, r"scratch with --config\.init_task= --config\.optim\.layer_decay=1\.0"),
        ({"init_from": "/none"}, r"config\.init_from=/none does not exist"),
        ({"init_from": "tests"}, "config.init_from: .*tests is no run directory"),
    ],
    ids=str,
)
def test_what_cannot_be_fine_tuned_is_refused_in_one_line(
    pretrained, tmp_path, one_device, change, sentence
):
    config, path = pretrained
    c = tuning(config, path)
    for name, value in change.items():
        node, _, leaf = name.rpartition(".")
        (c[node] if node else c)[leaf] = value
    with pytest.raises(ConfigError, match=sentence) as refusal:
        train(validation.resolve(c), tmp_path / "tuned", devices=one_device)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "tuned").exists()  # nothing half-made


def test_a_run_of_another_task_or_without_a_checkpoint_is_refused(pretrained, tmp_path, one_device):
    config, path = pretrained
    other = tuning(config, path)
    run = rundir.RunDir(tmp_path / "other")
    run.create()
    run.write_config(validation.resolve(other))
    with pytest.raises(ConfigError, match=r"by task 'classification', not by config\.init_task='m"):
        train(tuning(config, run.path), tmp_path / "tuned", devices=one_device)
    empty = rundir.RunDir(tmp_path / "empty")
    empty.create()
    empty.write_config(config)
    with pytest.raises(ConfigError, match=r"config\.init_from=.*empty holds no checkpoint"):
        train(tuning(config, empty.path), tmp_path / "tuned", devices=one_device)


def test_more_labels_than_there_are_are_refused(pretrained, tmp_path, one_device):
    config, path = pretrained
    c = tuning(config, path)
    c.data.per_class = 500
    with pytest.raises(ConfigError, match=r"per_class=500, but digits/train has fewer of classes"):
        train(validation.resolve(c), tmp_path / "many", devices=one_device)
