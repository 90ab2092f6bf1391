"""`data latents`: the digits through a tiny autoencoder, whole, cut off, and refused."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from pit_jax import checkpoint, cli, configfile, encode, rundir, validation
from pit_jax.data import sources
from pit_jax.data.latents import LatentSource
from pit_jax.errors import ConfigError
from pit_jax.models.autoencoder import AutoencoderKL
from pit_jax.models.normalisation import Normalisation
from pit_jax.weights import autoencoder, autoencoder_names, tensors

MODEL = AutoencoderKL(
    channels=(4, 8), layers=1, latent=2, groups=2, image_channels=1, attends=False
)
DIGITS = "configs/digits_autoencoder.py"


def weights(scale: float = 0.3) -> dict:
    rng = np.random.default_rng(0)
    flat = {
        path: (scale * rng.normal(size=shape)).astype(np.float32)
        for path, shape in autoencoder_names.shapes(MODEL).items()
    }
    return tensors.unflatten(flat)


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("vae") / "tiny.safetensors"
    autoencoder.write(path, MODEL, weights(), Normalisation(0.5, 2.0), "tiny")
    return str(path)


def run(vae: str, out, *words: str) -> int:
    return cli.run(["data", "latents", "--config", DIGITS, "--vae", vae, "--out", str(out), *words])


@pytest.fixture(scope="module")
def store(vae, tmp_path_factory):
    """All digits, encoded over eight devices by the command line in three files a split."""
    out = tmp_path_factory.mktemp("latents") / "digits"
    assert run(vae, out, "--shards", "3", "--batch-size", "64") == 0
    return out


@pytest.mark.parametrize("split", ["train", "test"])
def test_latents_are_those_of_the_model_on_one_device(store, vae, split):
    """Of the image as it is, and of the mirrored image: mean and deviation."""
    found = LatentSource(store, split)
    images = sources.Digits(split)
    assert len(found) == len(images)
    np.testing.assert_array_equal(found.labels(), images.labels())
    rows = [*range(40), len(images) - 1]  # of the first and the last file
    pixels = np.stack([images[i][0] for i in rows]).astype(np.float32) / 127.5 - 1
    on_one = jax.jit(lambda x: MODEL.apply({"params": weights()}, x, method="encode"))
    stored = np.stack([found[i][0] for i in rows])  # (n, flips, mean and deviation, h, w, c)
    assert stored.shape == (41, 2, 2, 4, 4, 2)
    for flip, x in enumerate((pixels, pixels[:, :, ::-1])):
        mean, std = on_one(x)
        np.testing.assert_allclose(stored[:, flip, 0], mean, rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(stored[:, flip, 1], std, rtol=2e-3, atol=1e-3)
    assert np.abs(stored[:, 0] - stored[:, 1]).max() > 0.1  # the model knows left from right
    found.verify()


def test_the_manifest_names_the_autoencoder(store, vae):
    manifest = LatentSource(store, "train").manifest
    assert (manifest.encoder_dtype, manifest.source) == ("float32", "")
    assert "bicubic" in manifest.resize
    assert manifest.versions["jax"] == jax.__version__
    assert (manifest.image_set, manifest.image_size, manifest.flips) == ("digits", 8, 2)
    assert manifest.autoencoder == "tiny"
    assert manifest.autoencoder_sha256 == autoencoder.load(vae).sha256
    assert manifest.normalisation == Normalisation(0.5, 2.0)
    assert not (store / encode.WEIGHTS).exists()  # it lies where it was named


def test_cut_off_it_goes_on_to_equal_bytes(store, vae, tmp_path, monkeypatch, capsys):
    """Finished files stay; and where all is there, nothing is done."""
    words = ("--shards", "3", "--batch-size", "64")
    read = sources.Digits.__getitem__

    def failing(self, index):
        if self.name == "digits/train" and index == 700:  # of the second file
            raise RuntimeError("the power is gone")
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(sources.Digits, "__getitem__", failing)
        with pytest.raises(RuntimeError, match="the power is gone"):
            run(vae, tmp_path, *words)
    first = tmp_path / "train-00000-of-00003.array_record"
    assert [path.name for path in tmp_path.glob("*.array_record")] == [first.name]
    written = first.stat().st_mtime_ns
    with pytest.raises(ConfigError, match="split 'train' is not finished"):
        LatentSource(tmp_path, "train")
    capsys.readouterr()
    assert run(vae, tmp_path, "--batch-size", "64") == 0  # as many files as were begun with
    assert "latents of digits 958/1318" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == written
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in store.iterdir()}
    for path in store.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    with monkeypatch.context() as patch:
        patch.setattr(encode._Encoder, "examples", None)
        assert run(vae, tmp_path, "--batch-size", "64") == 0
        assert "every file is as it was written" in capsys.readouterr().out


def test_another_dtype_or_folder_does_not_go_on_in_the_same_store(store, vae, capsys):
    for word, sentence in (
        ("model.dtype=bfloat16", "encoder_dtype 'float32', not 'bfloat16'"),
        ("data.dir=elsewhere", "source '', not 'elsewhere'"),
    ):
        assert run(vae, store, f"--config.{word}") == 2
        line = capsys.readouterr().err
        assert sentence in line
        assert line.count("\n") == 1


def test_a_bucket_is_refused(vae, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    word = os.path.join(os.path.dirname(__file__), "..", DIGITS)
    line = ["data", "latents", "--config", word, "--vae", vae, "--out", "gs://bucket/latents"]
    assert cli.run(line) == 2
    assert "gs://bucket/latents is no local directory" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_line_at_the_end_is_what_a_diffusion_run_needs(vae, tmp_path, capsys):
    assert run(vae, tmp_path / "the set", "--splits", "test") == 0
    out = capsys.readouterr().out
    assert re.search(
        r"the set: 360 test images of digits as 4 × 4 × 2 latents, as they are and mirrored,"
        r" 0\.\d MB, by tiny \([0-9a-f]{12}\)",
        out,
    )
    words = shlex.split(re.search(r"train on them with (.*)", out)[1])
    c = configfile.load("configs/digits_diffusion.py:dit/2", words)
    assert not c.sample.clip  # though of the digits' pixels it is on
    assert len(sources.load(c.data, "test")) == 360
    assert c.autoencoder.weights == vae
    assert {path.name for path in (tmp_path / "the set").iterdir()} == {
        "latents.json",
        "test-00000-of-00001.array_record",
        "test-labels.npy",
    }


def test_two_processes_share_the_files_out_and_write_the_same(store, vae, tmp_path):
    """Each on eight devices of its own, which is what the one had."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pit_jax.cli", "data", "latents", "--config", DIGITS]
    command += ["--vae", vae, "--out", str(tmp_path), "--shards", "3", "--batch-size", "64"]
    both = []
    for number in range(2):
        environment = os.environ | {
            "PYTHONPATH": os.getcwd(),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        both.append(subprocess.Popen(command, env=environment, **pipes))
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    assert "latents of digits" in outputs[0]
    assert "latents of digits" not in outputs[1]  # process 0 speaks for all
    for path in store.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


# Of a run -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """Of an autoencoder with the sizes of MODEL, as a run leaves it after two steps."""
    c = configfile.load(DIGITS)
    sizes = ("channels", "layers", "latent", "groups", "attends")
    c.autoencoder.update({name: getattr(MODEL, name) for name in sizes})
    run = rundir.RunDir(tmp_path_factory.mktemp("runs") / "small")
    run.create()
    run.write_config(validation.resolve(c))
    run.write_status(state="done")
    saved = checkpoint.Checkpoints(run)
    saved.save(
        2, {"params": weights(scale=0.5), "ema": weights(scale=0.4), "step": np.int32(2)}, {}
    )
    saved.close()
    for step, mean, std in ((1, 7.0, 7.0), (2, 0.25, 1.7), (3, 9.0, 9.0)):  # 3 was never saved
        run.append_row({"step": step, "eval/latent_mean": mean, "eval/latent_std": std})
    return run.path


def test_a_runs_autoencoder_lies_beside_its_latents(run_directory, tmp_path, capsys):
    """Its averaged weights, and what the evaluation at their step found of its latents."""
    out = tmp_path / "latents"
    words = ("--splits", "train", "--batch-size", "64")
    assert run(str(run_directory), out, *words) == 0
    assert f"--config.autoencoder.weights={out}/autoencoder.safetensors" in capsys.readouterr().out
    loaded = autoencoder.load(out / "autoencoder.safetensors")
    assert loaded.name == "small at step 2"
    saved = checkpoint.Checkpoints(rundir.RunDir(run_directory)).read(2)["ema"]
    mine, expected = tensors.flatten(loaded.params), tensors.flatten(saved)
    assert all(np.array_equal(mine[name], expected[name]) for name in expected)
    found = LatentSource(out, "train")
    assert found.manifest.autoencoder_sha256 == loaded.sha256
    assert found.normalisation == Normalisation(0.25, 1 / 1.7)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(str(run_directory), out, *words) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    exported = tmp_path / "exported.safetensors"
    export = ["weights", "export", str(run_directory), str(exported), "--format", "pit_jax"]
    assert cli.run(export) == 0
    assert exported.read_bytes() == (out / "autoencoder.safetensors").read_bytes()


def test_a_run_that_was_never_evaluated_has_no_scale(run_directory, tmp_path, capsys):
    shutil.copytree(run_directory, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 2, "train/loss": 1}\n')
    assert run(str(tmp_path / "run"), tmp_path / "out") == 2
    assert "has no evaluation up to step 2 that says how its" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_weights_of_the_run_are_no_part_of_the_same_store(
    run_directory, vae, tmp_path, capsys
):
    shutil.copy(vae, tmp_path / encode.WEIGHTS)
    assert run(str(run_directory), tmp_path) == 2
    line = capsys.readouterr().err
    assert "autoencoder.safetensors holds tiny, not small at step 2: name another --out" in line


def test_a_run_of_something_else_or_without_a_checkpoint_is_refused(tmp_path, capsys):
    other = rundir.RunDir(tmp_path / "run")
    other.create()
    for spec, sentence in (
        ("configs/digits.py:pit", "was trained by task 'classification', it is no autoencoder"),
        (DIGITS, "run holds no checkpoint yet"),
    ):
        other.write_config(configfile.load(spec))
        other.write_status(state="running")
        assert run(str(other.path), tmp_path / "out") == 2
        line = capsys.readouterr().err
        assert sentence in line
        assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


# What cannot be -------------------------------------------------------------------------


def test_latents_that_are_not_finite_name_the_image(tmp_path, capsys):
    path = tmp_path / "vae.safetensors"
    autoencoder.write(path, MODEL, weights(scale=100), Normalisation(), "large")
    assert run(str(path), tmp_path / "out", "--splits", "test") == 2
    line = capsys.readouterr().err
    assert "digits/test: the latents of image 0 are not finite in float16" in line
    assert line.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.array_record"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--vae", "none.safetensors"], "weights none.safetensors: No such file"),
        (["--vae", "tests"], "tests holds no diffusion_pytorch_model.safetensors"),
        (["--batch-size", "12"], "--batch-size 12 does not divide over 8 device(s)"),
        (["--batch-size", "0"], "--batch-size 0 does not divide"),
        (["--shards", "400"], "360 example(s) cannot be shared out to 400 shards"),
        (["--shards", "0"], "360 example(s) cannot be shared out to 0 shards"),
        (["--splits", "half"], "digits has the splits train and test, not 'half'"),
        (["--shards"], "expected one argument"),
        (["--batchsize", "8"], "did you mean --batch-size?"),
        (["--config.data.corrupt=skip"], "latents of every image are stored"),
        (
            ["--config.task=diffusion", "--config.model.name=dit", "--config.data.name=latents"],
            "config.data.name='latents' is encoded already: name a set of images",
        ),
    ],
)
def test_mistakes_are_one_line(vae, tmp_path, capsys, words, sentence):
    assert run(vae, tmp_path / "out", "--splits", "test", *words) == 2
    line = capsys.readouterr().err
    assert line.startswith("pit-jax: ")
    assert sentence in line
    assert line.count("\n") == 1


def test_images_that_the_autoencoder_does_not_take_are_refused(vae, tmp_path, capsys):
    command = ["data", "latents", "--vae", vae, "--out", str(tmp_path / "out"), "--config"]
    for words, sentence in (
        (["configs/digits.py", "--config.data.mean=(0.1,)"], "which is 0.5 for both"),
        (
            ["configs/digits.py", "--config.data.eval_crop=0.875"],
            "eval_crop=0.875: latents are of whole images, as diffusion trains on them, so write"
            " --config.data.eval_crop=1.0",
        ),
        (["configs/digits.py", "--config.data.channels=3"], "takes images of 1 channel(s), but"),
        (["configs/digits.py", "--config.data.image_size=9"], "use a size that is a multiple of 2"),
    ):
        assert cli.run([*command, *words]) == 2
        line = capsys.readouterr().err
        assert sentence in line
        assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_broken_image_is_not_said_to_be_skippable(vae, tmp_path, capsys):
    """Latents are stored of every image: corrupt=skip is refused here."""
    path = tmp_path / "images" / "train" / "a" / "0.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no image")
    words = ["--config.data.name=folder", f"--config.data.dir={tmp_path}/images"]
    words += ["--config.data.num_classes=1", "--splits", "train"]
    assert run(vae, tmp_path / "out", *words) == 5
    assert "a/0.png cannot be decoded" in (line := capsys.readouterr().err)
    assert "mend it, or remove it" in line


def test_a_place_that_cannot_be_written_is_a_storage_fault(vae, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(vae, tmp_path / "file" / "out", "--shards", "3") == 5
    assert "could not be written" in capsys.readouterr().err


def test_another_autoencoder_is_refused_in_the_same_place(store, tmp_path, capsys):
    path = tmp_path / "vae.safetensors"
    autoencoder.write(path, MODEL, weights(scale=0.1), Normalisation(), "other")
    before = json.loads((store / "latents.json").read_text())
    assert run(str(path), store) == 2
    assert "holds other latents: autoencoder 'tiny', not 'other'" in capsys.readouterr().err
    assert json.loads((store / "latents.json").read_text()) == before
