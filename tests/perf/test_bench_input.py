"""The bench of the input: its JSON, its table, what is measured, and what is refused."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from pit_jax import cli
from pit_jax.data import resize
from pit_jax.data.decode import decode
from pit_jax.perf import bench_input

CONFIG = "configs/imagenet28.py:pit-s"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bench_input, "_FILES", 4)
    monkeypatch.setattr(bench_input, "_TURN_S", 0.01)


def measure(tmp_path, *overrides: str) -> dict:
    out = tmp_path / "bench.json"
    words = ["--config", CONFIG, "--input-only", "--steps", "2", "--json", str(out)]
    assert cli.run(["bench", *words, *overrides]) == 0
    return json.loads(out.read_text())


def test_it_is_measured_on_made_files_of_real_size_where_the_set_is_not_here(tmp_path, capsys):
    found = measure(tmp_path, f"--config.data.dir={tmp_path}")
    files = found["files"]
    assert files["made"]
    assert (files["height"], files["width"], files["count"]) == (375, 500, 4)
    assert files["kinds"] == {"RGB JPEG": 4}
    assert 90e3 < files["bytes"] < 120e3
    assert found["ratio_to_pil"] == found["pil"]["image_s"] / found["ours"]["image_s"]
    assert found["ratio_to_pil"] > 1  # about 2 for 28 pixels
    assert found["ours"]["images_per_s"] == 1 / found["ours"]["image_s"]
    assert sum(found["ours"]["scales"].values()) == pytest.approx(1)
    assert found["ours"]["scales"]["1/4"] > 0.4
    assert 0 < found["difference"]["mean"] < 2
    printed = capsys.readouterr()
    assert "imagenet2012 is not here: JPEGs of 500×375 are made of photographs" in printed.err
    assert f"pit_jax is {found['ratio_to_pil']:.2f} times as fast as PIL" in printed.out
    assert max(len(line) for line in printed.out.splitlines()) <= 80


def folder(root) -> list[str]:
    """Three JPEGs, one of them grey, a PNG that is called one, and half of a file."""
    path = root / "train" / "a"
    path.mkdir(parents=True)
    for number, file in enumerate(bench_input.photographs(60, 90, 5)):
        with Image.open(io.BytesIO(file)) as image:
            if number == 1:
                image.convert("L").save(path / "1.jpg")
            elif number == 2:
                image.save(path / "2.jpg", "PNG")
            else:
                (path / f"{number}.jpg").write_bytes(file[: 1500 if number == 3 else None])
    (root / "train" / "b").mkdir()
    words = (f"dir={root}", "name=folder", "num_classes=2")
    return [f"--config.data.{word}" for word in words]


def test_the_configs_own_files_are_measured_and_counted_where_they_are_here(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(bench_input, "_FILES", 8)
    found = measure(tmp_path, *folder(tmp_path))
    files = found["files"]
    assert not files["made"]
    assert files["kinds"] == {"RGB JPEG": 2, "L JPEG": 1, "RGB PNG": 1}
    assert files["broken"] == 1
    assert "2 RGB JPEG, 1 L JPEG, 1 RGB PNG, 1 broken left out" in capsys.readouterr().out


def test_pil_is_given_levels_of_16_bits_as_they_are_meant():
    levels, file = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16, io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    found = bench_input._pil(file.getvalue(), 1, lambda shape: resize.center_view(shape, 64))
    np.testing.assert_array_equal(found[..., 0], levels >> 8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", ["resized", "none"])
def test_both_sides_take_the_same_views(tmp_path, channels, crop, monkeypatch):
    """At a size that nothing is scaled for the two agree in every pixel, if PIL resizes."""
    monkeypatch.setattr(resize, "fast", None)
    words = [f"--config.data.channels={channels}", f"--config.data.augmentation.crop={crop}"]
    words += ["--config.data.mean=(0.5,)", "--config.data.std=(0.5,)"]
    words += ["--config.data.augmentation.randaugment=0.0", f"--config.data.dir={tmp_path}"]
    found = measure(tmp_path, *words, "--config.data.image_size=200")
    assert found["ours"]["scales"]["1/1"] == 1
    assert found["difference"] == {"mean": 0, "max": 0}


def test_made_files_differ_from_each_other():
    images = [decode(file, 3) for file in bench_input.photographs(30, 40, 4)]
    assert all(image.shape == (30, 40, 3) for image in images)
    apart = [np.abs(a.astype(int) - b).mean() for a in images for b in images if a is not b]
    assert min(apart) > 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--config", "configs/digits.py:pit"], "images of digits have the model's 8 pixels"),
        (["--config", "configs/digits.py:pit", "--config.data.image_size=16"], "not kept as files"),
        (["--config", CONFIG, "--against", "torch"], "leave out --against"),
        (["--config", CONFIG, "--steps", "1"], "--steps 1: at least 2"),
        (["--config", CONFIG, "--config.data.name=folder", "--config.data.dir=no"], "folder no/"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_said_in_one_line(words, sentence, capsys):
    assert cli.run(["bench", *words, "--input-only"]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert "\n" not in said
