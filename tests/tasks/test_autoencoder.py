"""The autoencoder task: its loss, its figures, a whole run, and what is made of it."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pit_jax import checkpoint, cli, configfile, evaluate, rundir, validation
from pit_jax.errors import ConfigError
from pit_jax.models.autoencoder import AutoencoderKL
from pit_jax.tasks import build
from pit_jax.train import train
from pit_jax.weights import autoencoder, tensors

CONFIG = "configs/digits_autoencoder.py"


def shrink(c) -> None:
    """Makes a config that of an autoencoder of the digits, 8×8×1 → 4×4×2."""
    c.task, c.model.name = "autoencoder", "autoencoder"
    sizes = {"channels": (4, 8), "layers": 1, "latent": 2, "groups": 2, "attends": False}
    c.autoencoder.update(sizes, kl_weight=0.5)
    c.eval.update(what=("reconstruction",), pictures=5)


@pytest.fixture
def small(tiny):
    shrink(tiny)
    return tiny


def digits(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return {"image": image, "label": np.zeros(count, np.int32)}


def test_every_example_and_step_has_noise_of_its_own(small):
    task = build(validation.resolve(small))
    augment = jax.jit(task.augment)
    first = np.asarray(augment(digits(32), jax.random.key(0))["noise"])
    other = np.asarray(augment(digits(32), jax.random.key(1))["noise"])
    assert first.shape == (32, 4, 4, 2)
    assert len({row.tobytes() for row in (*first, *other)}) == 64
    # a row's noise depends on the row alone, not on how many stand beside it
    np.testing.assert_array_equal(augment(digits(8), jax.random.key(0))["noise"], first[:8])


@pytest.fixture(scope="module")
def ready():
    """(task, params, its encoder and its decoder as functions of params and an array)."""
    from pit_jax.config import base

    c = base()
    shrink(c)
    c.data.update(name="digits", image_size=8, channels=1)
    c.train.steps = 1
    task = build(validation.resolve(c))
    halves = (
        jax.jit(lambda p, x, method=method: task.model.apply({"params": p}, x, method=method))
        for method in ("encode", "decode")
    )
    return task, jax.jit(task.init)(jax.random.key(0)), *halves


def test_the_loss_is_that_of_the_sums_over_an_image(ready):
    """|x − decoded| + weight · KL, both summed, then divided by the 64 numbers."""
    task, params, encode, decode = ready
    batch = jax.jit(task.augment)(digits(8), jax.random.key(1))
    loss, logged = jax.jit(task.loss)(params, batch, jax.random.key(2))
    mean, std = encode(params, batch["image"])
    decoded = decode(params, mean + std * batch["noise"])
    x, y, m, s = (np.asarray(a, np.float64) for a in (batch["image"], decoded, mean, std))
    absolute = np.abs(x - y).sum((1, 2, 3))
    divergence = (0.5 * (m**2 + s**2 - 1 - np.log(s**2))).sum((1, 2, 3))
    np.testing.assert_allclose(loss, (absolute + 0.5 * divergence).mean() / 64, rtol=1e-5)
    np.testing.assert_allclose(logged["l1"].value, absolute.mean() / 64, rtol=1e-5)
    np.testing.assert_allclose(logged["kl"].value, divergence.mean(), rtol=1e-5)


def test_figures_are_those_of_numpy_and_filling_rows_count_nothing(ready):
    task, params, encode, decode = ready
    batch = digits(8) | {"mask": np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)}
    sums = jax.device_get(jax.jit(task.evaluate)(params, batch))
    x = batch["image"] / 255
    mean, std = encode(params, np.float32(2 * x - 1))
    decoded = np.asarray(decode(params, mean), np.float64)
    error = ((np.clip(decoded / 2 + 0.5, 0, 1) - x) ** 2).mean((1, 2, 3))
    m, s = (np.asarray(a, np.float64) for a in (mean, std))
    expected = {
        "mse": error,
        "psnr": -10 * np.log10(error),
        "l1": np.abs(decoded - (2 * x - 1)).mean((1, 2, 3)),
        "latent_mean": m.mean((1, 2, 3)),
        "latent_square": (m**2 + s**2).mean((1, 2, 3)),
        "examples": np.ones(8),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(sums[name], values[:5].sum(), rtol=1e-4, atol=1e-5)
    found = jax.jit(task.vectors)(params, batch, 0)["vector"]
    np.testing.assert_allclose(found, m.mean((1, 2)), atol=1e-5)


# A whole run ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one_device):
    """(config, run directory) of a run that went as far as it should."""
    from pit_jax.config import base

    c = base()
    shrink(c)
    c.autoencoder.kl_weight = 1e-4
    c.data.update(name="digits", image_size=8, channels=1)
    c.optim.update(lr=1e-2, ema=0.9)
    c.train.update(batch_size=64, steps=40, log_every=1)
    c.eval.update(every="100%", pictures=4)
    c.checkpoint.every = "100%"
    config = validation.resolve(c)
    path = tmp_path_factory.mktemp("autoencoder") / "run"
    train(config, path, devices=one_device)
    return config, path


def test_it_learns_and_says_how_its_latents_spread(trained):
    _, path = trained
    rows = rundir.RunDir(path).rows()
    assert rows[-1]["train/loss"] < 0.6 * rows[0]["train/loss"]
    last = rows[-1]
    assert last["eval/examples"] == 360
    # a mean of logarithms is below the logarithm of the mean
    assert last["eval/psnr"] >= -10 * math.log10(last["eval/mse"])
    assert last["eval/loss"] == pytest.approx(last["eval/l1"] + 1e-4 * last["eval/kl"] / 64)
    assert last["eval/latent_std"] > 0


def test_a_picture_shows_originals_and_reconstructions(trained):
    _, path = trained
    names = sorted(p.name for p in (path / "pictures").iterdir())
    assert names == ["reconstruction-40.png"]
    height, _, channels = np.asarray(Image.open(path / "pictures" / names[-1])).shape
    assert (channels, height) == (3, 2 * (96 + 4) + 4)


def test_evaluated_alone_it_gives_the_logged_figures_on_another_mesh(trained):
    config, path = trained
    last = rundir.RunDir(path).rows()[-1]
    other = config.copy_and_resolve_references()
    other.eval.batch_size = 24
    found = evaluate.evaluate(other, path, devices=jax.devices()[:2])
    for name in ("loss", "mse", "psnr", "latent_mean", "latent_std"):
        assert found[f"eval/{name}"] == pytest.approx(last[f"eval/{name}"], rel=1e-4), name


@pytest.mark.parametrize("layout", ["pit_jax", "huggingface"])
def test_exported_weights_decode_alike_and_know_their_scale(trained, tmp_path, capsys, layout):
    config, path = trained
    target = tmp_path / ("file.safetensors" if layout == "pit_jax" else "directory")
    assert cli.run(["weights", "export", str(path), str(target), "--format", layout]) == 0
    loaded = autoencoder.load(target)
    last = rundir.RunDir(path).rows()[-1]
    assert loaded.normalisation.scale == pytest.approx(1 / last["eval/latent_std"])
    assert loaded.normalisation.shift == pytest.approx(last["eval/latent_mean"])
    assert loaded.model == build(config).model
    # the average is what was evaluated
    saved = checkpoint.Checkpoints(rundir.RunDir(path)).read(40)["ema"]
    found, expected = tensors.flatten(loaded.params), tensors.flatten(saved)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_weights_of_a_run_that_was_never_evaluated_have_no_scale(trained, tmp_path, capsys):
    _, path = trained
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    rows = [row for row in rundir.RunDir(copy).rows() if "eval/loss" not in row]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["weights", "export", str(copy), str(tmp_path / "x"), "--format", "pit_jax"]
    assert cli.run(words) == 2
    assert "no evaluation up to step 40 that says how its latents are scaled" in (
        capsys.readouterr().err
    )


# Sizes ----------------------------------------------------------------------------------


def test_show_and_tables_name_it(capsys):
    assert cli.run(["show", "--config", CONFIG]) == 0
    out = capsys.readouterr().out
    assert "model                      autoencoder f2c2" in out
    assert "tokens an image            16" in out


@pytest.mark.parametrize("attends", [True, False])
def test_the_compiler_counts_the_same(attends):
    """But for the border, where it leaves out what is multiplied by the padding's zeros."""
    fields = {
        "data.image_size": 128,
        "data.channels": 3,
        "autoencoder.channels": (64, 96, 128),
        "autoencoder.groups": 32,
        "autoencoder.layers": 2,
        "autoencoder.attends": attends,
    }
    c = configfile.load(CONFIG, [f"--config.{name}={value}" for name, value in fields.items()])
    task = build(c)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    compiled = jax.jit(lambda p, x: task.model.apply({"params": p}, x)[0]).lower(shapes, image)
    assert task.flops().computed == pytest.approx(compiled.cost_analysis()["flops"], rel=0.04)
    assert task.flops().tokens == 32 * 32


# What cannot be -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.name=vit"], "task 'autoencoder' needs config.model.name='autoencoder'"),
        (["autoencoder.groups=5"], "groups=5 does not divide all of config.autoencoder.channels"),
        (["autoencoder.channels=()"], "autoencoder.channels=(): whole numbers of 1 or more"),
        (["autoencoder.channels=(8, 0)"], "autoencoder.channels=(8, 0): 0 must be at least 1"),
        (["data.image_size=9"], "data.image_size=9 is no multiple of 2"),
        (["data.mean=(0.1,)"], "images in [-1, 1], which is 0.5 for both"),
        (["data.augmentation.mixup=0.5"], "mixup has no place in task 'autoencoder'"),
        (["data.eval_crop=0.9"], "eval_crop=0.9 has no place in task 'autoencoder'"),
        (["mesh.model=2"], "config.mesh.model=2 has no place in task 'autoencoder'"),
        (["model.attention=splash"], "config.model.attention='splash' has no place"),
        (["model.remat=full"], "config.model.remat='full' is not offered by the autoencoder"),
        (["optim.layer_decay=0.5"], "config.optim.layer_decay=0.5 has no place"),
        (["data.name=latents"], "'latents' is for task 'diffusion', not 'autoencoder'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words, sentence):
    with pytest.raises(ConfigError) as caught:
        configfile.load(CONFIG, [f"--config.{word}" for word in words])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fields_of_transformers_do_not_stand_in_the_way():
    c = configfile.load(CONFIG, ["--config.model.patch=3", "--config.model.heads=5"])
    assert build(c).model == AutoencoderKL(
        channels=(16, 32), layers=1, latent=2, groups=8, image_channels=1
    )
