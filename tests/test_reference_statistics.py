"""`pit-jax data stats`: what is written of a data set is what numpy finds in it."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from pit_jax import cli, configfile, reference_statistics, validation
from pit_jax.data import pipeline, sources
from pit_jax.errors import ConfigError, StorageError
from pit_jax.evals import reference
from pit_jax.evals.networks import Network
from pit_jax.parallel import mesh as meshes

DIGITS = ["data", "stats", "--config", "configs/digits.py:pit"]


def digits(split: str) -> np.ndarray:
    source = sources.Digits(split)
    return np.stack([source[i][0] for i in range(len(source))])


@pytest.fixture
def config(tiny):
    return validation.resolve(tiny)


@pytest.fixture
def network(monkeypatch):
    """In Inception's place: an image's rows, and what it was asked for."""
    asked = []

    def load(features, resize, mesh):
        asked.append((features, resize))
        split = NamedSharding(mesh, meshes.batch_spec())
        whole = NamedSharding(mesh, PartitionSpec())

        def function(images):
            rows = images.astype("float32").mean((2, 3))
            return {"pool": rows, "spatial": rows[:, :3]}

        jitted = jax.jit(function, in_shardings=split, out_shardings=whole)
        given = ("inception", features, "1" * 64, 8, jitted, split)
        return Network(*given, resize=resize)

    monkeypatch.setattr(reference_statistics.classifier, "network", load)
    return asked


@pytest.mark.parametrize("devices", [1, 8])
def test_statistics_are_those_of_every_image(config, network, tmp_path, devices):
    path, lines = str(tmp_path / "stats.npz"), []
    chosen = jax.devices()[:devices]
    reference_statistics.write(config, path, "fid.pth", devices=chosen, say=lines.append)
    found = reference.read(path)
    rows = digits("train").astype(np.float64).mean((2, 3))
    np.testing.assert_allclose(found.description.pool.mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.description.pool.covariance, np.cov(rows.T), rtol=1e-5)
    np.testing.assert_allclose(found.description.spatial.mean, rows.mean(0)[:3], rtol=1e-6)
    np.testing.assert_allclose(found.description.features, rows, rtol=1e-6)
    assert found.description.count == 1437
    assert network == [("fid.pth", "tensorflow")]
    features = {"name": "inception", "path": "fid.pth", "sha256": "1" * 64, "resize": "tensorflow"}
    assert found.provenance == {
        "data": "digits", "split": "train", "per_class": 0, "of": 1437, "images": 1437,
        "image_size": 8, "halve": False, "features": features,
    }  # fmt: skip
    (line,) = lines
    assert line.startswith(f"statistics of 1437 images of digits/train written to {path}")


def test_a_part_comes_from_all_over_the_set(config, network, tmp_path):
    path, lines = str(tmp_path / "stats.npz"), []
    reference_statistics.write(config, path, "fid.pth", "test", 100, say=lines.append)
    assert lines[0].startswith("statistics of 100 images of digits/test written to")
    found = reference.read(path)
    chosen = np.arange(100) * 360 // 100
    rows = digits("test")[chosen].astype(np.float64).mean((2, 3))
    np.testing.assert_allclose(found.description.features, rows, rtol=1e-6)
    assert found.provenance["of"] == 360
    assert found.provenance["images"] == 100
    spread = reference_statistics._spread(sources.Digits("test"), 100)
    np.testing.assert_array_equal(spread.labels(), sources.Digits("test").labels()[chosen])


def test_images_themselves(capsys, tmp_path):
    path = tmp_path / "images.npz"
    assert cli.run([*DIGITS, "--images", "--split", "test", "--out", str(path)]) == 0
    assert "360 images of digits/test written to" in capsys.readouterr().out
    images = np.concatenate(list(reference.image_batches(path, 100)))
    np.testing.assert_array_equal(images, digits("test").repeat(3, -1))


def test_images_are_of_the_configs_size(config, tmp_path):
    """Of another size and colour than the model's, from a folder; two of them sorted last."""
    for label in range(2):
        folder = tmp_path / "data" / "train" / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(3):
            colour = (200 * label, 10 * number, 0)
            Image.new("RGB", (20, 16), colour).save(folder / f"{number}.png")
    config.data.update(name="folder", dir=str(tmp_path / "data"), num_classes=2, channels=3)
    path = tmp_path / "images.npz"
    reference_statistics.write(config, str(path), images=True, count=4, say=len)
    images = np.concatenate(list(reference.image_batches(path, 100)))
    assert images.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(images[:, 0, 0, 0], [0, 0, 200, 200])
    np.testing.assert_array_equal(images[:, 0, 0, 1], [0, 10, 0, 10])


def test_the_pixels_of_imagenet64_are_learned_as_they_are_measured(tmp_path):
    """Cut out of the centre, also of what is not square, and flipped on the devices."""
    rng = np.random.default_rng(0)
    for label, shape in enumerate([(80, 64, 3), (64, 100, 3), (64, 64, 3)]):
        folder = tmp_path / "train" / f"class{label}"
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / "0.png")
    words = ("data.name=folder", f"data.dir={tmp_path}", "data.num_classes=3")
    words = [f"--config.{word}" for word in (*words, "data.eval_split=train")]
    config = configfile.load("configs/imagenet64_pixels.py:dit-b/4", words)
    source = sources.training(config.data)
    trained, measured = (pipeline.Reader(source, config.data, train=t) for t in (True, False))
    at = np.arange(3)
    images = trained(at, at + 7)["image"]
    np.testing.assert_array_equal(images, measured(at, at)["image"])
    np.testing.assert_array_equal(images[0], np.asarray(source[0][0])[8:72])
    on_device = pipeline.device_config(config, source).data.augmentation
    assert (on_device.crop, on_device.flip) == ("none", 0.5)


def test_mistakes_are_one_line(capsys, config, network, tmp_path):
    def refused(*words: str) -> str:
        out = ["--out", str(tmp_path / "x.npz")]
        assert cli.run([*DIGITS, *out, *words]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "either --features FILE for statistics, or --images" in refused()
    assert "either --features" in refused("--features", "fid.pth", "--images")
    assert "--num 0: digits/train has 1437 examples" in refused("--images", "--num", "0")
    assert "--num 2000: digits/train has" in refused("--images", "--num", "2000")
    assert "digits has the splits train and test" in refused("--images", "--split", "all")
    assert "a file name that ends with .npz" in refused("--images", "--out", "x.png")
    skip = "--config.data.corrupt=skip"
    assert "begins with their number, so write 'refuse'" in refused("--images", skip)
    for what in (["--images"], ["--features", "fid.pth"]):
        line = refused(*what, "--config.data.eval_crop=0.875")
        assert "with whole ones, as diffusion trains on them, so write --config.data.eval_c" in line
    config.task, config.data.name, config.model.name = "diffusion", "latents", "dit"
    with pytest.raises(ConfigError, match="'latents' has no images"):
        reference_statistics.write(config, "x.npz", "fid.pth")
    assert list(tmp_path.iterdir()) == []


def test_an_inception_file_that_is_not_there_is_named(capsys, tmp_path):
    words = ["--features", str(tmp_path / "none.pth"), "--out", str(tmp_path / "x.npz")]
    assert cli.run([*DIGITS, *words]) == 2
    assert "pt_inception-2015-12-05-6726825d.pth" in capsys.readouterr().err


def test_a_broken_image_is_not_said_to_be_skippable_where_none_may_lack(config, tmp_path):
    """A file of images is begun with their number; statistics leave out what config says."""
    for name in "ab":
        path = tmp_path / "train" / name / "0.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no image")
    config.data.update(name="folder", dir=str(tmp_path), num_classes=2)
    for few in (0, 1):
        config.data.per_class = few
        with pytest.raises(StorageError, match=r"\(.*\); mend it, or remove it$"):
            reference_statistics.write(config, str(tmp_path / "x.npz"), images=True)
    assert not (tmp_path / "x.npz").exists()
