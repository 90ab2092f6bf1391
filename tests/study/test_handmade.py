"""Features made by hand: what they see, that the classifier's penalty is chosen honestly, and
the file that they are kept in."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from experiments import locality_spectrum
from pit_jax import installation
from pit_jax.config import base
from pit_jax.data import sources
from pit_jax.errors import ConfigError
from pit_jax.study import handmade
from tests.study.fake_runs import fake_run

ROOT = Path(__file__).parent.parent.parent
libraries = pytest.mark.skipif(
    not (importlib.util.find_spec("cv2") and importlib.util.find_spec("skimage")),
    reason="OpenCV or scikit-image is not installed",
)
ROW = {"label": "HOG, linear", "metric": "eval/linear_accuracy", "value": 0.99, "features": 324}


def digits():
    c = base()
    c.data.update(name="digits", image_size=8, channels=1)
    return c.data


@libraries
def test_histograms_count_directions():
    """Of a ramp from left to right all gradients point one way, of its transpose the other."""
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 32, 1))
    found = handmade.hog(np.stack([ramp, ramp.swapaxes(0, 1)])).reshape(2, -1, 9)
    assert (found > 0).sum(-1).tolist() == [[1] * 36] * 2  # 3 × 3 blocks of 4 cells
    first, second = found.argmax(-1)
    assert len(set(first)) == len(set(second)) == 1
    assert set(first) != set(second)
    flat = handmade.hog(np.full((1, 32, 32, 1), 100, np.uint8))
    assert not flat.any()


@libraries
def test_descriptors_are_of_unit_length_and_turn_with_the_image():
    """Rotated by half a turn, blocks come in the opposite order, and so do cells and bins."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 4), dtype=np.uint8).repeat(8, 0).repeat(8, 1)[..., None]
    turned = np.ascontiguousarray(image[::-1, ::-1])
    a, b = handmade.dense_sift(np.stack([image, turned])).reshape(2, 9, 4, 4, 8)
    np.testing.assert_allclose(np.linalg.norm(a.reshape(9, -1), axis=-1), 1, rtol=1e-5)
    back = np.roll(b[::-1, ::-1, ::-1], 4, axis=-1)  # half a turn of 8 directions is 4
    # OpenCV centres on whole pixels, and the middle of 16 is none.
    cosine = (a.reshape(9, -1) * back.reshape(9, -1)).sum(-1)
    assert cosine.min() > 0.8
    assert (a.reshape(9, -1) * b.reshape(9, -1)).sum(-1).min() < 0.6  # it can fail
    grey = handmade.dense_sift(np.repeat(image[None], 3, -1))
    assert grey.shape == (1, 9 * 128)


@libraries
def test_small_images_are_enlarged_and_large_ones_are_not():
    for side, channels, blocks in ((8, 1, 9), (32, 3, 9), (48, 3, 25)):
        images = np.random.default_rng(0).integers(0, 256, (2, side, side, channels), np.uint8)
        assert handmade.hog(images).shape == (2, blocks * 36)
        assert handmade.dense_sift(images).shape == (2, blocks * 128)
        assert handmade.pixels(images).shape == (2, side * side * channels)


def test_the_penalty_is_that_which_does_best_on_training_images_held_out():
    """Against scikit-learn's own search over the same split."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit

    images, labels = handmade.images(digits(), "train")
    images, labels = images[:150], labels[:150]
    vectors = handmade.pixels(images) + np.random.default_rng(0).normal(0, 0.5, (150, 64))
    classifier, strength = handmade.fit(vectors, labels, seed=3)
    split = StratifiedShuffleSplit(1, test_size=0.1, random_state=3)
    search = GridSearchCV(
        LogisticRegression(max_iter=1000), {"C": handmade.STRENGTHS}, cv=split
    ).fit(vectors, labels)
    assert strength == search.best_params_["C"]
    assert len(set(search.cv_results_["mean_test_score"])) > 1
    np.testing.assert_allclose(classifier.coef_, search.best_estimator_.coef_, atol=1e-3)


@libraries
def test_it_measures_on_images_that_it_did_not_train_on():
    data = digits()
    data.per_class = 20
    found = handmade.measure("HOG, linear", data)
    assert found["metric"] == "eval/linear_accuracy"
    assert found["features"] == 324
    assert found["C"] in handmade.STRENGTHS
    assert 0.9 < found["value"] < 1
    assert found["value"] * 360 == pytest.approx(round(found["value"] * 360))
    assert handmade.measure("pixels, linear", data)["value"] < found["value"]


def test_without_the_libraries_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(
        ConfigError, match="HOG and SIFT need .*" + re.escape(installation.extra("study"))
    ):
        handmade.hog(np.zeros((1, 32, 32, 1), np.uint8))


# The file ---------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written(tmp_path):
    assert handmade.read(tmp_path) == []
    assert handmade.content(tmp_path) is None
    data = digits()
    handmade.write(tmp_path, "tiny", data, [ROW])
    assert handmade.read(str(tmp_path)) == [ROW]
    found = json.loads((tmp_path / "handmade.json").read_text())
    assert (found["schema"], found["scale"], found["rows"]) == (1, "tiny", [ROW])
    assert found["data"] == handmade.used(data)
    assert found["data"]["image_size"] == 8
    other = digits()
    other.per_class = 20
    assert handmade.used(other) != found["data"]


GOOD = {"schema": 1, "scale": "tiny", "data": {}, "rows": [ROW]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "it cannot be read"),
        ("\x00", "it cannot be read"),
        ("[{}]", "it is not {schema, scale, data, rows}"),
        ({"scale": "tiny", "rows": [ROW]}, "it is not {schema, scale, data, rows}"),
        (GOOD | {"schema": 2}, "its schema is 2 and not 1"),
        (GOOD | {"scale": None}, "its scale is no text"),
        (GOOD | {"rows": {}}, "its rows are no list"),
        (GOOD | {"rows": [ROW, {}]}, "its row 1 has no finite value"),
        (GOOD | {"rows": [ROW | {"value": float("nan")}]}, "its row 0 has no finite value"),
        (GOOD | {"rows": [ROW | {"value": True}]}, "its row 0 has no finite value"),
        (GOOD | {"rows": [ROW | {"metric": ""}]}, "its row 0 lacks a label or a metric"),
        (GOOD | {"rows": [ROW, ROW]}, "two of its rows are of one label and metric"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line(tmp_path, text, said):
    content = text if isinstance(text, str) else json.dumps(text)
    (tmp_path / "handmade.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        handmade.read(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/handmade.json: {said}")


def test_it_reads_without_jax_and_without_the_libraries():
    code = "import sys; from pit_jax.study import handmade; print(handmade.read('nowhere'),"
    code += " {'jax', 'cv2', 'skimage', 'sklearn'} & set(sys.modules))"
    words = [sys.executable, "-c", code]
    assert subprocess.check_output(words, cwd=ROOT, text=True) == "[] set()\n"


# Beside a sweep ---------------------------------------------------------------------------


def test_held_out_digits_are_training_digits_that_are_not_trained_on(tmp_path):
    locality_spectrum.hold_out(str(tmp_path))
    data = digits()
    whole = list(sources.load(data, "train"))
    data.update(name="folder", dir=str(tmp_path))
    parts = [list(sources.load(data, split)) for split in ("train", "validation")]
    assert [len(part) for part in parts] == [1150, 287]
    assert {label for _, label in parts[1]} == set(range(10))

    def as_set(examples):
        return sorted((label, image.tobytes()) for image, label in examples)

    assert as_set(parts[0] + parts[1]) == as_set(whole)


@pytest.fixture
def measured(monkeypatch):
    """What was asked to be measured, which is not done."""
    asked = []

    def measure(label, data):
        asked.append((label, data.name))
        return ROW | {"label": label}

    monkeypatch.setattr(handmade, "measure", measure)
    return asked


def test_what_is_there_of_the_same_images_is_not_measured_again(tmp_path, measured, capsys):
    rows = locality_spectrum.handmade_rows(str(tmp_path), "")
    assert measured == [(label, "digits") for label in handmade.FEATURES]
    assert locality_spectrum.handmade_rows(str(tmp_path), "tiny") == rows
    assert len(measured) == 3
    data = digits()
    data.eval_crop = 0.5
    handmade.write(tmp_path, "tiny", data, rows[:1])
    assert locality_spectrum.handmade_rows(str(tmp_path), "") == rows
    assert len(measured) == 6
    assert "of other images: measured again" in capsys.readouterr().err


def test_the_scale_is_that_of_the_sweep_and_another_is_refused(tmp_path, measured):
    def sweep(file, scale):
        record = {"file": file, "argument": scale, "points": []}
        (tmp_path / "sweep.json").write_text(json.dumps(record))

    sweep("locality_spectrum.py", "paper")
    with pytest.raises(ConfigError, match="a sweep of scale 'paper' and not 'tiny'"):
        locality_spectrum.handmade_rows(str(tmp_path), "tiny")
    locality_spectrum.handmade_rows(str(tmp_path), "")
    assert {name for _, name in measured} == {"cifar100"}
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(ConfigError, match=r"handmade\.json of scale 'paper' and not 'tiny'"):
        locality_spectrum.handmade_rows(str(tmp_path), "")
    sweep("demo.py", "")
    with pytest.raises(ConfigError, match=r"the sweep of demo\.py: name that of locality"):
        locality_spectrum.handmade_rows(str(tmp_path), "")


def test_runs_stand_beside_the_features(tmp_path, measured, capsys):
    for seed, accuracy in enumerate((0.95, 0.97)):
        fake_run(tmp_path / f"run{seed}", accuracy, seed, model__patch=2)
    locality_spectrum.main(str(tmp_path), "")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["dense", "SIFT,", "linear", "–", "99.0", "1", "324"] in lines
    assert ["ViT/2", "96.0", "–", "2", "1,000"] in lines


def test_a_bucket_is_read_and_written(measured, monkeypatch):
    """gs://bucket, and not gs:/bucket here: on a file system in memory."""

    class Bucket(MemoryFileSystem):
        protocol, store, pseudo_dirs = "gs", {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(str(path).removeprefix("gs:/"))

    bucket = Bucket()
    monkeypatch.setattr(
        "etils.epath.backend._FileSystemSpecBackend._get_filesystem", lambda self, name: bucket
    )
    for _ in range(2):
        rows = locality_spectrum.handmade_rows("gs://bucket/spectrum", "")
        assert len(rows) == len(measured) == 3
    assert list(bucket.store) == ["/bucket/spectrum/handmade.json"]
    assert not Path("gs:").exists()


def test_a_broken_file_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "handmade.json").write_text("[{}]")
    words = [sys.executable, "-m", "experiments.locality_spectrum", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("locality_spectrum: ")
    assert done.stderr.count("\n") == 1
