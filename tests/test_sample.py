"""`pit-jax sample`: the same images on any mesh, resumed to the same bits, or refused."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from pit_jax import checkpoint, cli, files, image_files, rundir, signals
from pit_jax import sample as sampling
from pit_jax.errors import ConfigError, Stopped
from pit_jax.evals import reference
from pit_jax.evals.generator import Generator
from pit_jax.parallel import mesh as meshes
from pit_jax.restored import restore

from .saved_runs import config_of, diffusion, save_run

NUM = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    save_run(diffusion(), path)
    return path


@pytest.fixture(scope="module")
def eight(run, tmp_path_factory):
    """All images, sampled on 8 devices without a break."""
    out = tmp_path_factory.mktemp("eight") / "out"
    sampling.sample(config_of(run), run, out)
    return out


def written(out) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((out / "images").iterdir())}


def pixels(out) -> np.ndarray:
    return np.concatenate(list(reference.image_batches(out / "samples.npz", 5)))


def test_images_are_written_one_by_one_and_all_together(eight, run):
    assert list(written(eight)) == [f"{i:06d}.png" for i in range(NUM)]
    found = reference.read(eight / "samples.npz")
    assert found.images == (NUM, 8, 8, 3)
    images = pixels(eight)
    assert images.std() > 20
    assert len({x.tobytes() for x in images}) == NUM
    for index, image in enumerate(images):
        with Image.open(eight / "images" / f"{index:06d}.png") as file:
            assert file.mode == "L"
            np.testing.assert_array_equal(image, np.asarray(file)[..., None].repeat(3, -1))
    np.testing.assert_array_equal(np.load(eight / "samples.npz")["arr_1"], np.arange(NUM) % 10)
    said = json.loads((eight / "sample.json").read_text())
    expected = {
        "run": str(run), "checkpoint_step": 7, "ema": True, "num": NUM, "sampler": "ddpm",
        "steps": 3, "guidance": 1.5, "eta": 0.0, "clip": True, "seed": 0, "labels": "balanced",
        "decoder": None, "batch_size": 8, "image_shape": [8, 8, 1], "done": True,
        "guidance_channels": 0, "guidance_interval": [0.0, 1.0],
    }  # fmt: skip
    assert {name: said[name] for name in expected} == expected
    assert said["checkpoint_sha256"] == files.sha256(run / "manifests" / "7.json")
    assert said["npz_sha256"] == files.sha256(eight / "samples.npz")
    assert said["environment"]["mesh"]["data"] == 8
    assert found.provenance["guidance"] == 1.5


def test_other_devices_make_the_same_images(eight, run, tmp_path, one_device):
    sampling.sample(config_of(run), run, tmp_path / "one", devices=one_device)
    one, other = (pixels(out).astype(int) for out in (tmp_path / "one", eight))
    assert np.abs(one - other).max() <= 1
    assert (one == other).mean() > 0.99


def test_two_processes_make_the_same_files(eight, run, tmp_path):
    """Each on four devices, which together are the eight of one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pit_jax.cli", "sample", "--workdir", str(run)]
    both = []
    for number in range(2):
        environment = os.environ | {
            "PYTHONPATH": os.getcwd(),
            "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4"),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        words = [*command, "--out", str(tmp_path / "out")]
        both.append(subprocess.Popen(words, env=environment, **pipes))
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    assert "12 images in" in outputs[0]
    assert "images" not in outputs[1]  # process 0 speaks for all, and writes
    out = tmp_path / "out"
    assert written(out) == written(eight)
    assert (out / "samples.npz").read_bytes() == (eight / "samples.npz").read_bytes()
    mesh = json.loads((out / "sample.json").read_text())["environment"]["mesh"]
    assert mesh["data"] == 8


def test_a_killed_run_goes_on_to_the_same_bits(eight, run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    write = sampling.files.write

    def interrupted(path, content):
        if path.name == "000010.png":  # in the middle of the second batch, and of a file
            (path.parent / f".{path.name}.tmp").write_bytes(content[:20])
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(sampling.files, "write", interrupted)
    words = ["sample", "--workdir", str(run), "--out", str(out)]
    assert cli.run(words) == 130
    assert capsys.readouterr().err == "pit-jax: interrupted\n"
    found = set(written(out))  # others may have been written at the same time
    assert {f"{i:06d}.png" for i in range(8)} <= found <= set(written(eight)) - {"000010.png"}
    assert not (out / "samples.npz").exists()
    assert json.loads((out / "sample.json").read_text())["done"] is False
    monkeypatch.undo()
    # What a crash of the machine may leave: a file cut off, one of another size, one changed.
    whole = (out / "images" / "000006.png").read_bytes()
    (out / "images" / "000006.png").write_bytes(whole[:-9])
    Image.new("L", (4, 4)).save(out / "images" / "000002.png")
    changed = bytearray((out / "images" / "000004.png").read_bytes())
    changed[-20] ^= 1
    (out / "images" / "000004.png").write_bytes(changed)
    kept = (out / "images" / "000003.png").stat().st_mtime_ns
    assert cli.run(words) == 0
    line = f"{out}: {len(found) - 3} of 12 images are there already"
    assert line in capsys.readouterr().out
    assert written(out) == written(eight)
    np.testing.assert_array_equal(pixels(out), pixels(eight))
    assert (out / "images" / "000003.png").stat().st_mtime_ns == kept


def test_what_is_done_is_not_done_again_and_more_can_be_asked_for(
    eight, run, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    sampling.sample(config_of(run, sample__num=9), run, out)
    batches = []
    batch = Generator.batch

    def counted(self, labels, indices, size):
        batches.append(list(indices))
        return batch(self, labels, indices, size)

    monkeypatch.setattr(Generator, "batch", counted)
    content = (out / "samples.npz").read_bytes()
    sampling.sample(config_of(run, sample__num=9), run, out)
    assert batches == []
    assert (out / "samples.npz").read_bytes() == content
    sampling.sample(config_of(run), run, out)
    assert batches == [[8, 9, 10, 11]]  # and of the batch before nothing
    assert written(out) == written(eight)
    np.testing.assert_array_equal(pixels(out), pixels(eight))
    with pytest.raises(ConfigError, match="is of 12 images: num cannot become 9"):
        sampling.sample(config_of(run, sample__num=9), run, out)


def test_a_damaged_npz_is_written_again(eight, run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(eight, out)
    whole = (out / "samples.npz").read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for content in (bytes(changed), whole[:-5]):
        (out / "samples.npz").write_bytes(content)
        sampling.sample(config_of(run), run, out)
        assert (out / "samples.npz").read_bytes() == whole
        assert json.loads((out / "sample.json").read_text())["done"] is True


def test_more_images_on_other_devices_go_on_though_the_batch_is_larger_than_all(
    run, tmp_path, one_device
):
    out, config = tmp_path / "out", {"sample__batch_size": 16}
    sampling.sample(config_of(run, sample__num=4, **config), run, out, devices=one_device)
    four = written(out)
    assert json.loads((out / "sample.json").read_text())["batch_size"] == 16
    sampling.sample(config_of(run, sample__num=9, **config), run, out)
    assert len(written(out)) == 9
    assert {name: written(out)[name] for name in four} == four
    said = json.loads((out / "sample.json").read_text())
    assert (said["num"], said["batch_size"]) == (9, 16)
    assert sampling._begin(sampling.epath.Path(out), said | {"batch_size": 8}) == said


def test_a_signal_ends_it_after_the_batch(eight, run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    batch = Generator.batch

    def signalled(self, labels, indices, size):
        if indices[0] == 0:  # a second signal would end the process
            signal.raise_signal(signal.SIGTERM)
        return batch(self, labels, indices, size)

    monkeypatch.setattr(Generator, "batch", signalled)
    words = ["sample", "--workdir", str(run), "--out", str(out)]
    handler = signal.getsignal(signal.SIGTERM)
    assert cli.run(words) == 75
    assert signal.getsignal(signal.SIGTERM) == handler
    assert signals.stopped(signal.SIGINT, "").exit_code == 130
    line = "SIGTERM: 8 of 12 images are written; start again to go on"
    assert capsys.readouterr().err == f"pit-jax: {line}\n"
    found = written(out)
    assert found == {name: written(eight)[name] for name in [f"{i:06d}.png" for i in range(8)]}
    assert {p.name for p in out.iterdir()} == {"images", "sample.json"}
    monkeypatch.undo()
    assert cli.run(words) == 0
    assert written(out) == written(eight)
    np.testing.assert_array_equal(pixels(out), pixels(eight))


def test_a_signal_while_all_images_are_put_together_leaves_no_half_file(tmp_path):
    target = sampling.epath.Path(tmp_path)
    image_files.write(target, np.arange(70), np.zeros((70, 8, 8, 1), np.uint8))
    asked = iter([0, signal.SIGTERM])
    with pytest.raises(Stopped, match=r"all 70 images are written, samples.npz is not") as e:
        sampling._finish(target, {}, np.zeros(70, np.int32), (8, 8, 1), lambda: next(asked))
    assert e.value.exit_code == 75
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    ("fields", "arguments", "sentence"),
    [
        (
            {"sample__sampler": "ddim", "sample__steps": 4, "sample__seed": 1},
            {},
            "sampler was 'ddpm', now 'ddim'; steps was 3, now 4; seed was 0, now 1",
        ),
        ({"sample__guidance": 2.0}, {"ema": False}, "ema was True, now False; guidance was 1.5"),
        ({"sample__batch_size": 16}, {"labels": [3, 7]}, r"labels was 'balanced', now \[3, 7\]"),
    ],
)
def test_other_samples_in_the_same_place_are_refused(eight, run, fields, arguments, sentence):
    before = (eight / "sample.json").read_text()
    with pytest.raises(ConfigError, match=f"holds other samples: {sentence}"):
        sampling.sample(config_of(run, **fields), run, eight, **arguments)
    assert (eight / "sample.json").read_text() == before


def test_labels_seed_and_weights_matter(eight, run, tmp_path):
    first = pixels(eight)
    for name, seed, arguments in (("labels", 0, {"labels": [3, 7]}), ("ema", 1, {"ema": False})):
        config = config_of(run, sample__num=8, sample__seed=seed)
        sampling.sample(config, run, tmp_path / name, **arguments)
        assert (pixels(tmp_path / name) != first[:8]).mean() > 0.2
    same = pixels(tmp_path / "labels")[3]  # index 3 has label 7 here, 3 there
    assert (same != first[3]).any()
    labels = np.load(tmp_path / "labels" / "samples.npz")["arr_1"]
    np.testing.assert_array_equal(labels, [3, 7] * 4)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_sample_that_is_not_finite_leaves_nothing_half_written(run, tmp_path, capsys):
    """Of a checkpoint whose average holds what is no number."""
    broken = rundir.RunDir(tmp_path / "run")
    shutil.copytree(run, broken.path)
    config = broken.config()
    found = restore(config, broken.path, meshes.make_mesh(config.mesh, jax.devices()[:1]))
    saved = checkpoint.Checkpoints(broken)
    saved.save(8, found.state.replace(ema=jax.tree.map(lambda x: x * np.nan, found.state.ema)), {})
    saved.finish()
    saved.close()
    words = ["sample", "--workdir", str(broken.path), "--out", str(tmp_path / "out")]
    assert cli.run(words) == 3
    assert capsys.readouterr().err == (
        "pit-jax: 8 of 8 samples are not finite, index 0 first (sampler ddpm, 3 steps, guidance"
        " 1.5): other sampler options or another checkpoint may help\n"
    )
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["sample.json"]


def test_one_step_is_noise_and_it_is_said(run, tmp_path, capsys):
    words = ["sample", "--workdir", str(run), "--num", "8", "--out"]
    assert cli.run([*words, str(tmp_path / "one"), "--steps", "1"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--steps 1 of a Gaussian diffusion is timestep 0, as in public DiT")
    assert line.endswith("Write --steps 2 or more")
    assert cli.run([*words, str(tmp_path / "two"), "--steps", "2"]) == 0
    assert capsys.readouterr().err == ""


def test_samples_go_on_with_the_same_decoder_in_another_file(tmp_path):
    """Samples of old, which do not say its weights, with the same file; nor their spacing."""
    target = sampling.epath.Path(tmp_path)
    old = {"num": 3, "decoder": {"name": "a", "path": "/a", "sha256": "1"}}
    new = {"num": 3, "decoder": {"name": "b", "path": "/b", "sha256": "2", "weights_sha256": "3"}}
    new["spacing"] = "linspace"

    def goes_on(before: dict, now: dict) -> bool:
        (tmp_path / "sample.json").write_text(json.dumps(before))
        try:
            return sampling._begin(target, now) == before
        except ConfigError:
            return False

    assert goes_on(new, new | {"decoder": new["decoder"] | {"sha256": "4"}})
    assert not goes_on(new, new | {"decoder": new["decoder"] | {"weights_sha256": "4"}})
    assert goes_on(old, new | {"decoder": new["decoder"] | {"sha256": "1"}})
    assert not goes_on(old, new)
    assert not goes_on(new, new | {"spacing": "leading"})
