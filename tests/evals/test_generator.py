"""Images by label and index: any number, decoded from latents, never a NaN; and a picture."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from pit_jax import configfile, validation
from pit_jax.config import base
from pit_jax.data.latents import MANIFEST, Manifest
from pit_jax.errors import ConfigError, NonFiniteLoss
from pit_jax.evals import generator, samples
from pit_jax.evals.generator import Generator, choose_labels
from pit_jax.models.autoencoder import AutoencoderKL
from pit_jax.models.normalisation import Normalisation
from pit_jax.parallel import mesh as meshes
from pit_jax.weights import autoencoder, autoencoder_names, tensors

VAE = AutoencoderKL(channels=(4, 8), layers=1, latent=2, groups=4, image_channels=3, attends=False)
NORMALISATION = Normalisation(shift=0.25, scale=(0.5, 2.0))


class Stub:
    """A task whose image says its label, its index, the seed and the parameters."""

    def __init__(self, config):
        self.config = config
        self.sizes: list[int] = []

    def generate(self, params, batch, extra):
        self.sizes.append(len(batch["index"]))  # once for each size that is compiled
        data = self.config.data
        said = 100 * batch["label"] + batch["index"] + 1000 * extra.astype(jnp.int32) + params
        shape = (len(said), data.image_size, data.image_size, data.channels)
        return jnp.broadcast_to(said.astype(jnp.float32)[:, None, None, None], shape)

    def levels(self, x):
        return x / 10


def settings(**fields) -> object:
    config = base()
    config.task = "diffusion"
    config.data.update(name="digits", image_size=8, channels=1, num_classes=10)
    config.sample.batch_size = 8
    for name, value in fields.items():
        group, leaf = name.split("__")
        config[group][leaf] = value
    return config


def stub_mesh(devices) -> jax.sharding.Mesh:
    return meshes.make_mesh({"data": -1, "fsdp": 1, "seq": 1, "model": 1}, devices)


def stub(config, devices, params=0.0) -> tuple[Generator, Stub]:
    mesh = stub_mesh(devices)
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, meshes.batch_spec())

    def read(function):
        return jax.jit(function, in_shardings=(whole, split, whole), out_shardings=whole)

    steps = types.SimpleNamespace(read=read, batch_sharding=split)
    task = Stub(config)
    return Generator(config, task, steps, jnp.float32(params), mesh), task


@pytest.mark.parametrize("count", [1, 8, 13, 16])
@pytest.mark.parametrize("number", [1, 8])
def test_any_number_of_images_comes_in_order(count, number):
    made_by, task = stub(settings(), jax.devices()[:number])
    labels, indices = np.arange(count) % 3, 40 + np.arange(count)
    images = made_by.images(labels, indices)
    assert images.dtype == np.uint8
    assert images.shape == (count, 8, 8, 1)
    expected = np.rint((100 * labels + indices) / 10)
    np.testing.assert_array_equal(images[:, 3, 4, 0], expected)
    sizes = {min(8, -(-count // number) * number)}  # no larger batch than is wanted
    assert set(task.sizes) == sizes
    lengths = [len(x) for x in made_by.batches(labels, indices)]
    assert sum(lengths) == count
    assert all(length == max(lengths) for length in lengths[:-1])


def test_seed_and_weights_reach_the_task(one_device):
    made_by, _ = stub(settings(sample__seed=1), one_device)
    index = np.arange(2)
    np.testing.assert_array_equal(made_by.images(0 * index, index)[:, 0, 0, 0], [100, 100])
    other = made_by.with_params(jnp.float32(500))
    np.testing.assert_array_equal(other.images(0 * index, index)[:, 0, 0, 0], [150, 150])
    np.testing.assert_array_equal(made_by.images(0 * index, index)[:, 0, 0, 0], [100, 100])


def test_the_batch_size_falls_back_and_must_divide():
    config = settings(sample__batch_size=0, eval__batch_size=16, train__batch_size=24)
    assert stub(config, jax.devices())[0].batch_size == 16
    config.eval.batch_size = 0
    assert stub(config, jax.devices())[0].batch_size == validation.sample_batch(config) == 24
    with pytest.raises(
        ConfigError, match=r"samples in batches of 12 do not divide over the 8 devices"
    ) as e:
        stub(settings(sample__batch_size=12), jax.devices())
    assert "write config.sample.batch_size=16" in str(e.value)


def test_grey_levels_are_rounded_and_limited():
    levels = np.array([-3.0, 0.49, 0.51, 254.6, 300.0])
    np.testing.assert_array_equal(generator.to_bytes(levels), [0, 0, 1, 255, 255])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_sample_that_is_not_finite_is_named(one_device):
    made_by, task = stub(settings(), one_device)
    task.generate = lambda params, batch, extra: jnp.where(
        batch["index"][:, None, None, None] == 11, jnp.nan, jnp.zeros((8, 8, 8, 1))
    )
    made_by.images(np.zeros(8, int), np.arange(8))
    sentence = r"1 of 5 samples are not finite, index 11 first \(sampler ddpm, 250 steps"
    with pytest.raises(NonFiniteLoss, match=sentence):
        made_by.images(np.zeros(13, int), np.arange(13))


# Latents ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> tuple[str, dict]:
    rng = np.random.default_rng(0)
    flat = {
        path: (0.25 * rng.normal(size=shape)).astype(np.float32)
        for path, shape in autoencoder_names.shapes(VAE).items()
    }
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    params = tensors.unflatten(flat)
    autoencoder.write(path, VAE, params, NORMALISATION, "tiny")
    return str(path), params


def latents(path: str, **fields) -> object:
    given = {"data__name": "latents", "data__image_size": 4, "data__channels": 2}
    return settings(**given | {"autoencoder__weights": path} | fields)


@pytest.mark.parametrize("number", [1, 8])
def test_latents_are_decoded_as_they_were_normalised(vae, number):
    path, params = vae
    made_by, task = stub(latents(path), jax.devices()[:number])
    task.generate = lambda params, batch, extra: (
        batch["index"][:, None, None, None] * jnp.linspace(-0.2, 0.2, 32).reshape(1, 4, 4, 2)
    )
    indices = np.arange(11)
    images = made_by.images(0 * indices, indices)
    assert made_by.image_shape == (8, 8, 3)
    assert images.shape == (11, 8, 8, 3)
    x = indices[:, None, None, None] * np.linspace(-0.2, 0.2, 32, dtype=np.float32).reshape(4, 4, 2)
    stored = x / np.array([0.5, 2.0]) + 0.25
    decoded = VAE.clone(dtype="float32").apply(
        {"params": params}, jnp.float32(stored), method="decode"
    )
    expected = np.clip((np.asarray(decoded, np.float64) + 1) * 127.5, 0, 255)
    assert images.std() > 20
    assert np.abs(images - expected).max() < 0.502
    said = made_by.provenance("balanced")["decoder"]
    sums = {name: getattr(made_by.decoder, name) for name in ("sha256", "weights_sha256")}
    assert said == {"name": "tiny", "path": path} | sums


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("bad", [np.nan, 3e38])
def test_what_the_decoder_makes_of_a_finite_sample_must_be_finite(vae, one_device, bad):
    path, _ = vae
    made_by, task = stub(latents(path), one_device)
    task.generate = lambda params, batch, extra: (
        batch["index"][:, None, None, None] * jnp.full((1, 4, 4, 2), 0.1)
    )
    decode, calls = made_by._decode, []

    def wrong(x):
        calls.append(len(x))
        levels = np.array(decode(x))
        if len(calls) == 2:
            levels[3, 0, 0, 0] = np.float32(bad) * np.float32(10)  # NaN, or infinite
        return levels

    made_by._decode = wrong
    sentence = r"1 of 8 samples are not finite once tiny decoded, index 11 first"
    with pytest.raises(NonFiniteLoss, match=sentence):
        made_by.images(np.zeros(16, int), np.arange(16))
    assert len(calls) == 2


def test_a_decoder_that_overflows_does_not_make_white(vae, one_device):
    path, params = vae
    last = params["decoder"]["conv_out"] | {"bias": np.full(3, 3e38, np.float32)}
    params = params | {"decoder": params["decoder"] | {"conv_out": last}}
    loaded = dataclasses.replace(autoencoder.load(path), params=params)
    decode = generator._decoding(loaded, stub_mesh(one_device))
    assert np.isposinf(np.asarray(decode(jnp.ones((1, 4, 4, 2))))).all()


def test_a_decoder_that_does_not_fit_is_refused(vae, one_device):
    with pytest.raises(ConfigError, match=r"config.autoencoder.weights is empty"):
        stub(latents(""), one_device)
    with pytest.raises(ConfigError, match=r"has latents of 2 channels, but config.data.channels=4"):
        stub(latents(vae[0], data__channels=4), one_device)


def test_the_store_of_the_latents_knows_its_autoencoder(vae, one_device, tmp_path):
    def stored(sha256: str, normalisation: Normalisation):
        facts = (4, 4, 2), 1, "tiny", sha256, normalisation
        whole = Manifest("digits", 8, 10, *facts).as_json()
        (tmp_path / MANIFEST).write_text(json.dumps(whole))
        return latents(vae[0], data__dir=str(tmp_path))

    sha256 = autoencoder.load(vae[0]).sha256
    made_by, _ = stub(stored(sha256, NORMALISATION), one_device)
    assert made_by.decoder.sha256 == sha256
    with pytest.raises(ConfigError, match=r"is not tiny \(999999999999\), which made the latents"):
        stub(stored("9" * 64, NORMALISATION), one_device)
    with pytest.raises(ConfigError, match="another was asked for"):
        stub(stored(sha256, Normalisation(scale=3.0)), one_device)


# Labels -----------------------------------------------------------------------------------


def test_labels_are_a_function_of_the_index():
    config, indices = settings(), np.array([0, 1, 9, 10, 23])
    labels, choice = choose_labels(config, indices)
    np.testing.assert_array_equal(labels, [0, 1, 9, 0, 3])
    assert choice == "balanced"
    labels, choice = choose_labels(config, indices, [3, 7])
    np.testing.assert_array_equal(labels, [3, 7, 7, 3, 7])
    assert choice == [3, 7]
    labels, _ = choose_labels(config, indices, "unconditional")
    np.testing.assert_array_equal(labels, [10] * 5)
    labels, choice = choose_labels(settings(diffusion__conditional=False), indices)
    np.testing.assert_array_equal(labels, [10] * 5)
    assert choice == "unconditional"


def test_random_labels_are_a_function_of_seed_and_index():
    config, indices = settings(sample__labels="random"), np.arange(4000)
    labels, choice = choose_labels(config, indices)
    assert (choice, labels.dtype) == ("random", np.int32)
    mixed = indices[::-7]
    np.testing.assert_array_equal(choose_labels(config, mixed)[0], labels[mixed])
    counts = np.bincount(labels, minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert len(set(counts)) > 1  # balanced ones would be 400 each
    balanced = settings()
    assert choose_labels(balanced, indices)[1] == "balanced"
    np.testing.assert_array_equal(choose_labels(balanced, indices, "random")[0], labels)
    other, _ = choose_labels(settings(sample__labels="random", sample__seed=1), indices)
    assert (other != labels).mean() > 0.8
    unknowing = settings(sample__labels="random", diffusion__conditional=False)
    assert choose_labels(unknowing, indices)[1] == "unconditional"
    assert configfile.load("configs/imagenet256_latent.py:dit-xl/2").sample.labels == "random"


@pytest.mark.parametrize(
    ("fields", "wanted", "sentence"),
    [
        ({}, [3, 10], r"labels 3 10: write numbers from 0 to 9"),
        ({}, [-1], r"labels -1: write numbers"),
        ({}, "all", r"labels 'all': write numbers"),
        ({"diffusion__label_drop": 0.0}, "unconditional", "was always told the class"),
        ({"diffusion__conditional": False}, [3], "labels 3: this network knows no classes"),
        ({"diffusion__conditional": False}, "balanced", "knows no classes"),
    ],
)
def test_labels_that_cannot_be_are_refused(fields, wanted, sentence):
    with pytest.raises(ConfigError, match=sentence):
        choose_labels(settings(**fields), np.arange(4), wanted)


# The picture ------------------------------------------------------------------------------


def picture(config, one_device) -> tuple[dict, list[tuple[np.ndarray, np.ndarray]], dict]:
    """What "samples" yields, what it asks to generate, and what it draws."""
    asked, drawn = [], {}

    def batches(labels, indices):
        asked.append((labels, indices))
        levels = (20 * (labels % 10 + 1)).astype(np.uint8)
        yield np.broadcast_to(levels[:, None, None, None], (len(labels), 8, 8, 1))

    made_by = types.SimpleNamespace(batches=batches, with_params=lambda params: made_by)
    context = types.SimpleNamespace(
        config=config,
        state=types.SimpleNamespace(eval_params=0),
        kept={"generator": made_by},
        draw=drawn.__setitem__,
        until_stopped=iter,
    )
    return dict(samples.evaluate(context)), asked, drawn


def test_a_picture_has_a_row_a_class(one_device):
    config = settings(eval__pictures=3, data__num_classes=4)
    found, ((labels, indices),), drawn = picture(config, one_device)
    assert found == {}
    np.testing.assert_array_equal(labels, np.arange(4).repeat(3))
    np.testing.assert_array_equal(indices, np.arange(12))
    pixels = drawn["samples"]
    assert pixels.dtype == np.uint8
    for label in range(4):  # three images of it; a letter's edge may be as grey by chance
        assert 0 <= (pixels == 20 * (label + 1)).sum() - 3 * 3 * 96**2 < 100


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"data__num_classes": 1000}, np.arange(0, 1000, 100)),
        ({"data__num_classes": 7}, np.arange(7)),
        ({"diffusion__conditional": False}, [10]),
    ],
)
def test_a_picture_has_ten_rows_at_most(one_device, fields, expected):
    _, ((labels, _),), _ = picture(settings(eval__pictures=2, **fields), one_device)
    np.testing.assert_array_equal(labels[::2], expected)
