"""What an export says of its images, and what a start hears of another's."""

import json

import numpy as np
import pytest
from PIL import Image

from pit_jax import rundir, validation
from pit_jax.data import identity, resize
from pit_jax.data.augmentation import normalise
from pit_jax.errors import ConfigError
from pit_jax.weights import (
    exchange,
    huggingface_directory,
    initial,
    otherwise,
    preprocessor,
    tensors,
)

from ..saved_runs import save_run
from .test_huggingface import our_weights


@pytest.fixture
def make(tiny):
    def config(**data):
        tiny.model.update(width=16, depth=1, heads=2, patch=2)
        tiny.data.update(data)
        return validation.resolve(tiny)

    return config


def as_we_see(image: np.ndarray, data) -> np.ndarray:
    """An image as evaluation hands it to the model, (S, S, C) float32."""
    squashed = data.name.endswith("-squash")
    look = resize.whole_view if squashed else resize.center_view
    words = (image.shape[:2], data.image_size)
    view = look(*words) if squashed else look(*words, data.eval_crop)
    return np.asarray(normalise(view.of(image)[None], data.mean, data.std)[0])


@pytest.mark.parity
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((8, 8), {}),
        ((48, 72), {}),
        ((64, 48), {"eval_crop": 0.875, "image_size": 14}),
        ((40, 40), {"eval_crop": 0.8, "mean": (0.485,), "std": (0.229,)}),
        ((41, 57), {"name": "tiny@8-squash"}),
    ],
)
def test_transformers_sees_what_we_see(make, tmp_path, channels, shape, changes, monkeypatch):
    """The same boxes and filters: exactly where PIL resizes ours, too. Our own resizer rounds
    between its two passes in another order: a level, and more where bicubic overshoots."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = make(channels=channels, **changes)
    if channels == 3 and "mean" in changes:
        config.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    directory = tmp_path / "hf"
    huggingface_directory.write(directory, our_weights(config), config)
    processor = transformers.AutoImageProcessor.from_pretrained(directory)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 6, channels), dtype=np.uint8)
    image = np.kron(coarse, np.ones((12, 12, 1), np.uint8))[: shape[0], : shape[1]]
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    theirs = processor(picture, return_tensors="np")["pixel_values"][0]
    ours = as_we_see(image, config.data)
    monkeypatch.setattr(resize, "fast", None)
    by_pil = as_we_see(image, config.data)
    assert theirs.shape == (channels, config.data.image_size, config.data.image_size)
    for seen, most in ((by_pil, 1e-3), (ours, 5)):
        levels = (np.moveaxis(theirs, 0, -1) - seen) * 255 * np.asarray(config.data.std)
        assert np.abs(levels).max() < most


def test_what_it_says(make):
    said = preprocessor.describe(make(eval_crop=0.875, image_size=224, channels=3).data)
    assert said["size"] == {"shortest_edge": 256}
    assert said["crop_size"] == {"height": 224, "width": 224}
    assert said["image_mean"] == [0.5, 0.5, 0.5]
    assert said["do_convert_rgb"]
    squashed = preprocessor.describe(make(name="x@8-squash", image_size=8, channels=1).data)
    assert squashed["size"] == {"height": 8, "width": 8}
    assert not squashed["do_center_crop"]
    assert not squashed["do_convert_rgb"]


@pytest.mark.parametrize(
    ("said", "mean", "std"),
    [
        ({"image_mean": [0.5], "image_std": [0.25]}, 0.5, 0.25),
        ({"image_mean": [0.5], "image_std": [0.5], "rescale_factor": 1 / 127.5}, 0.25, 0.25),
        ({"do_normalize": False}, 0, 1),
        ({"do_normalize": False, "do_rescale": False}, 0, 1 / 255),
        ({"image_mean": [127.5], "image_std": [127.5], "do_rescale": False}, 0.5, 0.5),
    ],
)
def test_a_range_of_pixels_is_a_mean_and_a_deviation(tmp_path, said, mean, std):
    """x → (scale · x − m) / s of whole levels is (x / 255 − mean) / std."""
    (tmp_path / preprocessor.FILE).write_text(json.dumps(said))
    found = preprocessor.fields(tmp_path)
    np.testing.assert_allclose(found["data.mean"], mean)
    np.testing.assert_allclose(found["data.std"], std)
    assert "data.order" not in found


def test_what_does_not_say_it_is_not_guessed(tmp_path):
    assert preprocessor.fields(tmp_path) == {}
    (tmp_path / preprocessor.FILE).write_text('{"image_mean": [0.5]}')
    assert preprocessor.fields(tmp_path) == {}
    for content in ("{", "[]", '{"image_mean": "grey", "image_std": [1]}'):
        (tmp_path / preprocessor.FILE).write_text(content)
        with pytest.raises(ConfigError, match=r"preprocessor_config\.json cannot be read") as info:
            preprocessor.fields(tmp_path)
        assert "\n" not in str(info.value)


def test_a_start_from_other_pixels_is_said_in_one_line(make, tmp_path):
    config = make(channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    huggingface_directory.write(tmp_path, our_weights(config), config)
    found = initial.find(str(tmp_path), config)
    assert otherwise.seen(found.fields, config) == []
    config.init_from = str(tmp_path)
    config.data.update(mean=(0.5,), std=(0.5,))
    (line,) = otherwise.seen(found.fields, config)
    assert "pixels normalised by mean (0.485, 0.456, 0.406) and standard deviation" in line
    assert "here by mean (0.5,) and standard deviation (0.5,)" in line
    assert "--config.data.mean='(0.485, 0.456, 0.406)' --config.data.std='(0.229, " in line
    assert "\n" not in line
    # one value a channel is the same as one for all
    config.data.update(mean=(0.5, 0.5, 0.5), std=(0.5,))
    assert otherwise.seen({"data.mean": [0.5], "data.std": [0.5] * 3}, config) == []
    for unknown in ({}, {"data.mean": [0.1], "data.std": [0.1], "data.name": "latents"}):
        assert otherwise.seen(unknown, config) == []
    said = json.loads((tmp_path / preprocessor.FILE).read_text()) | {"do_flip_channel_order": True}
    (tmp_path / preprocessor.FILE).write_text(json.dumps(said))
    first, _ = otherwise.seen(initial.find(str(tmp_path), config).fields, config)
    assert "in the order blue, green, red" in first


def test_an_export_that_cannot_be_writes_nothing(make, tmp_path):
    config = make()
    params = our_weights(config)
    config.model.layer_scale = 0.1
    with pytest.raises(ConfigError, match="layer_scale"):
        huggingface_directory.write(tmp_path / "hf", params, config)
    assert not (tmp_path / "hf").exists()


def test_names_and_pixels_go_through_an_import(make, tmp_path):
    config = make(channels=3, mean=(0.4,), std=(0.3,))
    names = [f"kind {number}" for number in range(config.data.num_classes)]
    huggingface_directory.write(tmp_path / "hf", our_weights(config), config, names)
    target = str(tmp_path / "x.safetensors")
    exchange.import_weights(str(tmp_path / "hf"), target, None, False, lambda _: None)
    _, fields = tensors.read(target)
    assert fields["classes"] == names
    assert fields["data.mean"] == [0.4] * 3
    found = initial.find(target, config)
    assert list(found.classes) == names
    assert otherwise.seen(found.fields, config) == []


def test_a_run_exports_the_names_it_kept(make, tmp_path):
    config, digits = make(), tuple("0123456789")
    names = tuple(f"digit {number}" for number in digits)
    save_run(config, tmp_path / "run")
    splits = identity.Split("train", 1437), identity.Split("test", 360)
    identity.keep(rundir.RunDir(tmp_path / "run"), identity.Identity("x", names, *splits))
    for layout, target in (("huggingface", "hf"), ("pit_jax", "ours.safetensors")):
        exchange.export_weights(
            str(tmp_path / "run"), str(tmp_path / target), layout, lambda _: None
        )
        assert tuple(initial.find(str(tmp_path / target), config).classes) == names
    said = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert said["id2label"]["3"] == "digit 3"
    assert (tmp_path / "hf" / preprocessor.FILE).exists()
