"""The whole latent path by the command line: train an autoencoder, encode, train a DiT on the
latents, sample, decode, and measure; with models that learn next to nothing."""

import json

import numpy as np
from PIL import Image

from pit_jax import cli, configfile
from pit_jax.config import flatten

from .saved_runs import save_run

DIGITS = "configs/digits_diffusion.py:dit/2"
AUTOENCODER = "configs/digits_autoencoder.py"


def words(*changes: str) -> list[str]:
    return [f"--config.{change}" for change in changes]


def test_both_names_of_the_papers_model_mean_its_recipe():
    pit, dit = (configfile.load(f"configs/imagenet256_latent.py:{x}") for x in ("pit-l", "dit-l/1"))
    assert flatten(pit) == flatten(dit)
    assert (dit.train.batch_size, dit.train.epochs, dit.optim.warmup) == (2048, 400.0, "5%")
    assert configfile.load("configs/imagenet256_latent.py:dit-l/4").train.batch_size == 256


def test_from_images_to_figures(tmp_path, capsys):
    def run(*line: str) -> str:
        code = cli.run(line)
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    autoencoder, store, dit = (str(tmp_path / name) for name in ("autoencoder", "store", "dit"))
    few = words("train.batch_size=32", "train.steps=3", "train.tensorboard=False")
    small = words("autoencoder.layers=1", "autoencoder.attends=False")
    run("train", "--config", AUTOENCODER, "--workdir", autoencoder, *few, *small)
    images = ("--config", AUTOENCODER, "--vae", autoencoder)
    assert "--config.data.name=latents" in run("data", "latents", *images, "--out", store)
    manifest = json.loads((tmp_path / "store" / "latents.json").read_text())
    side, _, channels = manifest["shape"]

    weights = f"{store}/autoencoder.safetensors"
    latents = words(
        *(f"data.{x}" for x in (f"dir={store}", "name=latents", f"image_size={side}")),
        *(f"data.channels={channels}", f"autoencoder.weights={weights}"),
        *("model.width=16", "model.depth=2", "eval.what=('loss',)", "eval.batch_size=32"),
        *("sample.steps=3", "sample.clip=False", "sample.batch_size=16"),
    )
    run("train", "--config", DIGITS, "--workdir", dit, *latents, *few)

    out = tmp_path / "samples"
    run("sample", "--workdir", dit, "--num", "12", "--batch-size", "8", "--out", str(out))
    pictures = sorted((out / "images").glob("*.png"))
    assert len(pictures) == 12
    assert np.asarray(Image.open(pictures[0])).shape[:2] == (8, 8)
    with np.load(out / "samples.npz") as found:
        assert found["arr_0"].shape == (12, 8, 8, 3)
    said = json.loads((out / "sample.json").read_text())
    assert manifest["autoencoder_sha256"] in json.dumps(said)  # what decoded is what encoded

    classifier, reference = str(tmp_path / "classifier"), str(tmp_path / "reference.npz")
    config = configfile.load("configs/digits.py:vit/2", words("model.width=16", "model.depth=2"))
    save_run(config, classifier)
    stats = ("--config", "configs/digits.py:vit/2", "--features", classifier, "--num", "40")
    run("data", "stats", *stats, "--out", reference)
    measures = words(f"eval.features={classifier}", f"eval.reference={reference}", "sample.num=12")
    from pit_jax import evaluate, rundir

    resolved = configfile.override(rundir.RunDir(dit).config(), measures)
    found = evaluate.evaluate(resolved, dit, which=("generation",))
    assert found["eval/classifier_vit_2_distance"] > 0
    assert 0 <= found["eval/classifier_vit_2_recall"] <= 1
    assert not any("fid" in name for name in found)
