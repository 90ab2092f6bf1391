"""Features of images and of views of them: which views, when they are made, and what fits."""

import jax
import numpy as np
import pytest
from PIL import Image

from pit_jax import evaluate, rundir, validation
from pit_jax.data import pipeline, sources
from pit_jax.data.resize import random_view, simple_view
from pit_jax.errors import ConfigError
from pit_jax.evals import features, linear_probe
from pit_jax.tasks.images import ImageTask
from pit_jax.train import train

from ..saved_runs import save_run

CLASSES, EACH = 3, 5


@pytest.fixture
def pictures(tmp_path, tiny):
    """The config of a run on smooth pictures of several sizes, larger than the model's."""
    rng = np.random.default_rng(0)
    for number in range(CLASSES * EACH):
        path = tmp_path / "set" / "train" / "abc"[number % CLASSES] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        coarse.resize((20 + number, 30 - number), Image.Resampling.BICUBIC).save(path)
    tiny.data.update(name="folder", dir=str(tmp_path / "set"), eval_split="train")
    tiny.data.update(image_size=8, channels=3, num_classes=CLASSES)
    tiny.data.augmentation.update(crop="resized", flip=0.5)
    tiny.model.patch = 4
    tiny.train.update(batch_size=8, steps=1)
    tiny.eval.update(what=("linear",), views=3)
    return tiny


@pytest.fixture
def probed(monkeypatch):
    """What the linear probe was given, one array of views a time it was asked."""
    given = []

    def accuracy(train_features, *others, **options):
        given.append(np.array(train_features))
        return linear_probe.Result(0.5, 0.1, None)

    monkeypatch.setattr(linear_probe, "accuracy", accuracy)
    return given


@pytest.fixture
def pixels(monkeypatch):
    """Features are the pixels that the model would see, in grey levels."""

    def vectors(self, params, batch, images):
        mean, std = (np.asarray(x, np.float32) for x in (self.mean, self.std))
        vector = (255 * (images * std + mean)).reshape(len(images), -1)
        return {"vector": vector, "label": batch["label"], "mask": batch["mask"]}

    monkeypatch.setattr(ImageTask, "_vectors", vectors)


@pytest.mark.parametrize("crop", ["resized", "pad"])
def test_a_run_and_eval_of_its_checkpoint_take_the_same_views(
    pictures, probed, crop, tmp_path, one_device
):
    pictures.data.augmentation.update(crop=crop, pad=2)
    config = validation.resolve(pictures)
    train(config, tmp_path / "run", devices=one_device)
    evaluate.evaluate(config, tmp_path / "run", devices=one_device, which=["linear"])
    in_training, alone = probed
    assert in_training.shape == (3, CLASSES * EACH, 16)
    np.testing.assert_array_equal(in_training, alone)
    for a, b in ((0, 1), (0, 2), (1, 2)):  # of padded crops few are drawn twice
        assert (np.abs(alone[a] - alone[b]).max(-1) > 1e-3).mean() > 0.7


@pytest.mark.parametrize("crop", ["resized", "simple"])
def test_views_are_crops_of_the_whole_image(pictures, probed, pixels, crop, tmp_path, one_device):
    """Those of (view, number of the image), whatever the batch; the first is evaluation's."""
    options = pictures.data.augmentation
    options.update(crop=crop, flip=0.0, pad=2)
    save_run(validation.resolve(pictures), tmp_path / "run")
    for size in (8, 5):
        config = rundir.RunDir(tmp_path / "run").config()
        config.eval.batch_size = size
        evaluate.evaluate(config, tmp_path / "run", devices=one_device, which=["linear"])
    found, others = (x.reshape(3, -1, 8, 8, 3) for x in probed)
    np.testing.assert_array_equal(found, others)
    source = sources.load(pictures.data, "train")
    first = pipeline.Reader(source, pictures.data, train=False)
    np.testing.assert_allclose(found[0], first.images, atol=1e-3)
    for view in (1, 2):
        for index in range(len(source)):
            image = source[index][0]
            generator = np.random.Generator(np.random.Philox(key=(view << 32, index)))
            if crop == "simple":
                chosen = simple_view(image.shape[:2], 8, generator, 2)
            else:
                chosen = random_view(image.shape[:2], 8, generator, options.scale, options.ratio)
            np.testing.assert_allclose(found[view, index], chosen.of(image), atol=1e-3)


def test_views_of_cropped_images_are_flipped_with_the_probability_of_training(
    pictures, probed, pixels, tmp_path, one_device
):
    save_run(validation.resolve(pictures), tmp_path / "run")
    config = rundir.RunDir(tmp_path / "run").config()
    evaluate.evaluate(config, tmp_path / "run", devices=one_device, which=["linear"])
    source, flipped = sources.load(config.data, "train"), []
    for view in (1, 2):
        reader = pipeline.Reader(source, config.data, train=True, seed=view << 32)
        numbers = np.arange(len(source))
        crops = reader(numbers, numbers)["image"]
        for vector, crop in zip(probed[0][view], crops, strict=True):
            image = vector.reshape(8, 8, 3)
            same, mirrored = (np.abs(image - x).max() < 1e-3 for x in (crop, crop[:, ::-1]))
            assert same != mirrored
            flipped.append(mirrored)
    assert 5 <= sum(flipped) <= 25  # of 30


def test_an_image_that_cannot_be_decoded_is_left_out_of_every_view(
    pictures, probed, pixels, tmp_path, one_device
):
    path = tmp_path / "set" / "train" / "b" / "4.png"
    path.write_bytes(path.read_bytes()[:60])
    pictures.data.corrupt = "skip"
    save_run(validation.resolve(pictures), tmp_path / "run")
    config = rundir.RunDir(tmp_path / "run").config()
    evaluate.evaluate(config, tmp_path / "run", devices=one_device, which=["linear"])
    assert probed[0].shape == (3, CLASSES * EACH - 1, 8 * 8 * 3)


# What fits --------------------------------------------------------------------------------


@pytest.fixture
def digits(tiny, tmp_path):
    """A run on the 1437 digits with features of 16 numbers: 91,968 bytes a view."""
    tiny.eval.views = 10
    save_run(validation.resolve(tiny), tmp_path / "run")
    return tmp_path / "run"


VIEW = 4 * 16 * 1437


@pytest.mark.parametrize(
    ("machine", "device", "which", "line"),
    [
        # beside the views of each of two devices the machine holds one for itself, and the
        # parts of one while they are joined
        (10 * VIEW, None, "linear", r"eval\.views=3 or less"),
        (12.5 * VIEW, 4.5 * VIEW, "linear", r"eval\.views=4 or less"),
        (3.5 * VIEW, 1e9, "linear", r"eval\.views=2 or less"),
        (1e9, 0.5 * VIEW, "linear", r"leave the probe out, or train on fewer by config\.data\.per"),
        (1.5 * VIEW, 1e9, "knn", "leave the probe out"),
    ],
)
def test_what_does_not_fit_is_refused_before_an_image_is_read(
    digits, monkeypatch, machine, device, which, line
):
    def reader(*args, **kwargs):
        raise AssertionError("read")

    monkeypatch.setattr(pipeline, "Reader", reader)
    monkeypatch.setattr(features, "machine_memory", lambda: machine)
    monkeypatch.setattr(features, "device_memory", lambda _: device)
    monkeypatch.setattr(features, "_state", lambda _: 0)
    config = rundir.RunDir(digits).config()
    asked = (config, digits, None, jax.devices()[:2], [which])
    with pytest.raises(ConfigError, match=line) as refused:
        evaluate.evaluate(*asked)
    assert "1,437 training images × 16 numbers" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_views_that_a_refusal_names_are_not_refused(digits, monkeypatch, probed):
    monkeypatch.setattr(features, "machine_memory", lambda: 10 * VIEW)
    config = rundir.RunDir(digits).config()
    config.eval.views = 3
    evaluate.evaluate(config, digits, devices=jax.devices()[:2], which=["linear"])
    assert len(probed[0]) == 3


def test_a_device_holds_the_state_beside_the_features(digits, monkeypatch):
    config = rundir.RunDir(digits).config()
    config.eval.views = 1
    state = sum(x.nbytes for x in _leaves(config, digits))
    asked = (config, digits, None, jax.devices()[:1], ["linear"])
    monkeypatch.setattr(features, "device_memory", lambda _: state + VIEW // 2)
    with pytest.raises(ConfigError, match="beside the state"):
        evaluate.evaluate(*asked)


def _leaves(config, path):
    from pit_jax.parallel import mesh as meshes
    from pit_jax.restored import restore

    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    return jax.tree.leaves(restore(config, path, mesh).state)


def test_a_run_that_could_never_probe_is_refused_at_its_first_evaluation(
    tiny, monkeypatch, tmp_path, one_device
):
    tiny.eval.what = ("accuracy", "linear")
    tiny.train.update(steps=1, batch_size=64)
    monkeypatch.setattr(features, "machine_memory", lambda: VIEW)
    with pytest.raises(ConfigError, match="leave the probe out"):
        train(validation.resolve(tiny), tmp_path / "run", devices=one_device)
