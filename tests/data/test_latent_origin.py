"""Whose latents a run learns: kept when it begins, and compared ever after."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from pit_jax import config, configfile, evaluate, rundir, sample, tasks, train
from pit_jax.data import identity, latent_origin, latents
from pit_jax.data.latent_writer import Writer
from pit_jax.data.latents import Manifest
from pit_jax.errors import ConfigError, StorageError
from pit_jax.evals import generation
from pit_jax.evals.networks import Network
from pit_jax.models.autoencoder import AutoencoderKL
from pit_jax.models.normalisation import Normalisation
from pit_jax.weights import autoencoder, autoencoder_names, initial, tensors

VAE = AutoencoderKL(channels=(4, 8), layers=1, latent=2, groups=2, image_channels=1, attends=False)
SCALE = Normalisation(0.25, 0.5)


def weights(seed=0) -> dict:
    rng = np.random.default_rng(seed)
    shapes = autoencoder_names.shapes(VAE).items()
    return tensors.unflatten(
        {name: (0.2 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes}
    )


def write_vae(path, normalisation=SCALE, seed=0) -> autoencoder.Loaded:
    autoencoder.write(path, VAE, weights(seed), normalisation, path.stem)
    return autoencoder.load(path)


def write_store(directory, made_by: autoencoder.Loaded, normalisation=SCALE, old=False) -> str:
    """`old`: it does not say the weights."""
    facts = ("made up", 8, 10, (4, 4, 2), 2, "small", made_by.sha256, normalisation)
    facts = Manifest(*facts, weights_sha256="" if old else made_by.weights_sha256)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        writer = Writer(directory, facts, split, 20, 1)
        writer.write(0, ((rng.normal(size=(2, 2, 4, 4, 2)), i % 10) for i in range(20)))
        writer.finish()
    return str(directory)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Stores by name: that of the run, a copy, one of another autoencoder, one otherwise scaled."""
    root = tmp_path_factory.mktemp("stores")
    ours = write_vae(root / "small.safetensors")
    other = write_vae(root / "other.safetensors", seed=1)
    write_store(root / "ours", ours)
    write_store(root / "moved", ours)
    write_store(root / "old", ours, old=True)
    autoencoder.write_diffusers(root / "exported", VAE, weights(), SCALE)
    write_store(root / "others", other)
    write_store(root / "scaled", ours, Normalisation(0.25, 1.0))
    return root


def settings(places, store: str, *changes: str):
    words = ("model.width=16", "model.depth=1", "model.heads=2", "train.batch_size=8")
    words += ("train.steps=2", "eval.batch_size=8", "eval.what=('loss',)")
    words += ("train.tensorboard=False", "sample.steps=2", "sample.num=8", "sample.batch_size=8")
    words += ("data.name=latents", f"data.dir={places / store}", "data.image_size=4")
    words += ("data.channels=2", f"autoencoder.weights={places / 'small.safetensors'}")
    words += ("sample.clip=False",)
    spec = "configs/digits_diffusion.py:dit/2"
    return configfile.load(spec, [f"--config.{word}" for word in (*words, *changes)])


def one() -> list:
    return jax.devices()[:1]


@pytest.fixture(scope="module")
def run(places, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    train.train(settings(places, "ours"), path, devices=one())
    return path


def test_a_run_keeps_whose_latents_it_learns(places, run):
    kept = json.loads((run / "data.json").read_text())
    assert kept["training"] == {"split": "train", "examples": 20}
    assert kept["latents"] == {
        "autoencoder": "small",
        "autoencoder_sha256": autoencoder.sha256(places / "small.safetensors"),
        "weights_sha256": autoencoder.load(places / "small.safetensors").weights_sha256,
        "normalisation": {"shift": 0.25, "scale": 0.5},
        "image_set": "made up",
        "image_size": 8,
    }
    found = identity.latents_of(rundir.RunDir(run))
    assert found == latent_origin.of_store(settings(places, "ours").data)


@pytest.mark.parametrize(
    ("store", "sentence"),
    [
        ("others", r"was encoded by small \([0-9a-f]{12}\), but .*run was trained on latents of"),
        ("scaled", r"has Normalisation\(shift=0.25, scale=1.0\), but .*run was trained with"),
    ],
)
def test_it_neither_goes_on_nor_is_asked_on_other_latents(places, run, tmp_path, store, sentence):
    weights = f"autoencoder.weights={'' if store == 'scaled' else places / 'other.safetensors'}"
    other = settings(places, store, "train.steps=3", weights)
    before = sorted(path.name for path in run.iterdir())
    for use in (
        lambda: train.train(other, run, devices=one()),
        lambda: evaluate.evaluate(other, run, devices=one(), which=("loss",)),
        lambda: sample.sample(other, run, tmp_path / "samples", devices=one()),
    ):
        with pytest.raises(ConfigError, match=sentence) as info:
            use()
        assert "\n" not in str(info.value)
    other.resume = str(run)
    with pytest.raises(ConfigError, match=sentence):
        train.train(other, tmp_path / "new", devices=one())
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in run.iterdir()) == before


def test_the_store_may_move(places, run):
    moved = settings(places, "moved")
    assert train.train(moved, run, devices=one()).step == 2  # it is done


def test_without_the_store_the_run_still_knows_its_decoder(places, run, tmp_path):
    """And not just any of as many channels."""
    gone = settings(places, "gone")
    with np.load(sample.sample(gone, run, tmp_path / "samples", devices=one())) as found:
        assert found["arr_0"].shape == (8, 8, 8, 3)  # grey, as RGB
    gone.autoencoder.weights = str(places / "other.safetensors")
    with pytest.raises(ConfigError, match=r"other.safetensors is not small \([0-9a-f]{12}\)"):
        sample.sample(gone, run, tmp_path / "others", devices=one())


def test_the_same_weights_in_another_file_are_the_same_autoencoder(places):
    """As diffusers' directory; a store that knows only the file knows only the file."""
    for place, store in (("exported", "ours"), ("small.safetensors", "old")):
        c = settings(places, store, f"autoencoder.weights={places / place}")
        origin = latent_origin.of_store(c.data)
        assert latent_origin.load_autoencoder(c, origin).normalisation == SCALE
    c = settings(places, "old", f"autoencoder.weights={places / 'exported'}")
    with pytest.raises(ConfigError, match=r"exported is not small \([0-9a-f]{12}\)"):
        latent_origin.load_autoencoder(c, latent_origin.of_store(c.data))
    new, old = (latent_origin.of_store(settings(places, x).data) for x in ("ours", "old"))
    new.check_same(old, "here", "there")  # both say the file


def test_a_start_from_a_run_on_other_latents_is_said_in_one_line(places, run):
    def starting(store: str):
        return settings(places, store, f"init_from={run}", "autoencoder.weights=")

    for store in ("ours", "moved", "old"):
        assert identity.latents_differ(starting(store)) is None
    theirs = identity.latents_of(rundir.RunDir(run))
    for store in ("scaled", "others"):
        warning = identity.latents_differ(starting(store))
        ours = latent_origin.of_store(starting(store).data)
        assert str(ours) != str(theirs)
        assert f"{run} learned latents of {theirs};" in warning
        assert f"{places / store} holds those of {ours}" in warning
        assert "\n" not in warning
    empty, lines = types.SimpleNamespace(params={}, ema=(), replace=lambda **_: None), []
    initial.state(starting("others"), types.SimpleNamespace(init=lambda _: empty), lines.append)
    assert lines[0] == warning


def test_the_autoencoder_is_compared_before_anything_is_written(places, tmp_path):
    wrong = f"autoencoder.weights={places / 'other.safetensors'}"
    for store, change, sentence in (
        ("ours", wrong, "other.safetensors is not small"),
        ("scaled", "train.steps=2", "another was asked for"),  # same file, other normalisation
        ("gone", "train.steps=2", "gone holds no latents"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            train.train(settings(places, store, change), tmp_path / "run", devices=one())
        assert not (tmp_path / "run").exists()


def test_latents_are_neither_clipped_nor_drawn_without_their_autoencoder(places):
    """It is the config alone that is refused: no file need be there."""
    with pytest.raises(
        ConfigError, match=r"latents reach beyond: write --config\.sample\.clip=Fal"
    ):
        settings(places, "none", "sample.clip=True")
    for what in ("('loss','samples')", "('generation',)"):
        words = (f"eval.what={what}", "eval.features=none.pth", "eval.reference=none.npz")
        with pytest.raises(
            ConfigError, match=r"are not images yet: write config\.autoencoder\.wei"
        ):
            settings(places, "none", *words, "autoencoder.weights=")
        settings(places, "none", *words, "autoencoder.weights=none.safetensors")


def test_what_the_decoder_makes_must_be_what_the_network_looks_at(places):
    words = ("eval.what=('generation',)", "eval.features=runs/small", "eval.reference=none.npz")
    looks = Network("small", "runs/small", "1" * 64, 4, None, None, image_shape=(4, 4, 1))
    sentence = "generated images are 8 × 8 × 1, but runs/small classifies 4 × 4 × 1"
    with pytest.raises(ConfigError, match=sentence):
        generation.check_start(settings(places, "ours", *words), lambda *_: looks, one())


def test_building_a_task_reads_no_weights(places, monkeypatch):
    for name in ("find", "load", "sha256"):
        monkeypatch.setattr(autoencoder, name, None)
    task = tasks.build(settings(places, "ours", "autoencoder.weights=/none"))
    assert task.normalisation == SCALE


def test_what_a_run_of_old_never_kept_is_not_compared(places, tmp_path):
    run = rundir.RunDir(tmp_path)
    c = settings(places, "others", "autoencoder.weights=")
    origin = identity.check_start(c, run, True)
    splits = [latents.LatentSource(c.data.dir, split) for split in ("train", "test")]
    identity.keep(run, identity.of_sources(c.data, *splits, origin))
    with pytest.raises(ConfigError, match="was encoded by"):  # but it keeps it from now on
        identity.check_start(settings(places, "ours"), run, True)
    before = (tmp_path / "data.json").read_text()
    other = identity.of_sources(c.data, *splits, latent_origin.of_store(c.data))
    identity.keep(run, dataclasses.replace(other, name="another"))
    assert (tmp_path / "data.json").read_text() == before
    assert identity.check_start(config.base(), run, True) is None  # no latents, none to compare


def test_the_file_that_runs_of_old_kept_is_still_known(places, tmp_path):
    origin = latent_origin.of_store(settings(places, "others").data)
    (tmp_path / "latents.json").write_text(json.dumps(dataclasses.asdict(origin)))
    run = rundir.RunDir(tmp_path)
    assert identity.latents_of(run) == origin
    with pytest.raises(ConfigError, match="was encoded by"):
        identity.check_start(settings(places, "ours"), run, True)


@pytest.mark.parametrize("content", ["{", "[]", '{"normalisation": {"scale": 0}}', '{"a": 1}'])
@pytest.mark.parametrize("name", ["data.json", "latents.json"])
def test_a_damaged_file_is_told_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(StorageError, match=rf"{name} cannot be read") as info:
        identity.latents_of(rundir.RunDir(tmp_path))
    assert "\n" not in str(info.value)
