"""Resized copies: what was written is read, by names that say which, or it is refused."""

import json
import types

import numpy as np
import pytest

from pit_jax import configfile, rundir, validation
from pit_jax.data import copies, known, pipeline, sources, store
from pit_jax.data.copies import CROPPED, LEFT_OUT, Manifest, Writer
from pit_jax.errors import ConfigError, StorageError
from pit_jax.train import train

from .images import noise

COUNT, SIZE, BAD = 11, 4, (3, 7)
MANIFEST = Manifest("noise", SIZE, 3, 10, CROPPED, "/a", {"pit_jax": "1"})
IMAGES, LABELS = noise(COUNT, SIZE, SIZE, 3), np.arange(COUNT) * 7 % 10
GOOD = np.delete(np.arange(COUNT), BAD)


def example(number: int) -> tuple[np.ndarray | None, int]:
    return (None, LEFT_OUT) if number in BAD else (IMAGES[number], int(LABELS[number]))


def fill(root, split: str = "train", only=None, manifest: Manifest = MANIFEST) -> None:
    writer = Writer(root, manifest, split, COUNT, 3)
    for shard in writer.missing() if only is None else only:
        writer.write(shard, (example(i) for i in writer.span(shard)))
    if only is None:
        writer.finish()


@pytest.fixture
def root(tmp_path):
    """noise@4 in tmp_path, finished; two of its images were left out."""
    fill(tmp_path / "noise@4")
    return tmp_path / "noise@4"


@pytest.fixture
def data(tiny, tmp_path):
    tiny.data.update(name="noise@4", dir=str(tmp_path), image_size=SIZE, channels=3)
    return tiny.data


def shard(root, number: int = 1):
    return root / f"train-{number:05d}-of-00003.array_record"


def refused(data, kind: type[Exception], split: str = "train") -> str:
    with pytest.raises(kind) as caught:
        sources.load(data, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_written_is_read_without_those_left_out(root, data):
    source = sources.load(data, "train")
    assert isinstance(source, copies.CopySource)
    assert (len(source), source.native_shape, source.channels) == (len(GOOD), (4, 4), 3)
    for row, number in enumerate(GOOD):
        image, label = source[row]
        np.testing.assert_array_equal(image, IMAGES[number])
        assert label == LABELS[number]
    np.testing.assert_array_equal(source.labels(), LABELS[GOOD])
    with pytest.raises(IndexError):
        source[len(GOOD)]
    source.verify()


@pytest.mark.parametrize("gigabytes", [4.0, 0.0])
def test_in_memory_and_as_a_stream_it_is_the_same(root, data, gigabytes):
    data.in_memory_gb = gigabytes
    reader = pipeline.Reader(sources.load(data, "train"), data, train=True)
    assert reader.held == bool(gigabytes)
    order = np.random.default_rng(0).permutation(len(GOOD))
    found = reader(order, order)
    np.testing.assert_array_equal(found["image"], IMAGES[GOOD][order])
    np.testing.assert_array_equal(found["label"], LABELS[GOOD][order])
    assert found["mask"].all()


def test_memory_is_filled_without_reading_image_by_image(root, data, monkeypatch):
    monkeypatch.setattr(copies.CopySource, "__getitem__", None)
    assert len(pipeline.Reader(sources.load(data, "train"), data, train=False).images) == len(GOOD)


def test_what_evaluation_cuts_out_of_the_centre_is_cut_out_of_a_copy_too(root, data):
    data.eval_crop = 0.5
    source = sources.load(data, "train")
    held = pipeline.Reader(source, data, train=False)
    data.in_memory_gb = 0.0
    streamed = pipeline.Reader(source, data, train=False)
    rows = np.arange(len(GOOD))
    np.testing.assert_array_equal(held.images, streamed(rows, rows)["image"])
    assert (held.images != IMAGES[GOOD]).any()


def test_few_examples_a_class_can_be_taken_of_a_copy(root, data):
    data.update(per_class=1, num_classes=10)
    with pytest.raises(ConfigError, match="fewer of classes 1, 9"):  # of images 3 and 7
        sources.training(data)


def test_a_record_is_the_label_and_the_pixels():
    """The format, by the bytes: other programs may read it."""
    writer = object.__new__(Writer)
    writer.manifest = MANIFEST
    record = writer.record(IMAGES[0], 258 % 10, "")
    assert record == b"\x08\0\0\0" + IMAGES[0].tobytes()
    assert writer.record(None, LEFT_OUT, "") == b"\xff\xff\xff\xff"


@pytest.mark.parametrize(
    ("image", "label", "sentence"),
    [
        (IMAGES[0], 10, "label 10 is not in 0 … 9"),
        (IMAGES[0], -1, "label -1 is not in 0 … 9"),
        (IMAGES[0][:3], 0, r"an image is \(3, 4, 3\) uint8, not \(4, 4, 3\) uint8"),
        (IMAGES[0].astype(float), 0, r"is \(4, 4, 3\) float64, not"),
        (None, 3, "an image is nothing"),
    ],
)
def test_what_does_not_fit_a_record_is_refused(tmp_path, image, label, sentence):
    writer = Writer(tmp_path, MANIFEST, "train", 1, 1)
    with pytest.raises(ConfigError, match=sentence):
        writer.write(0, [(image, label)])
    assert {path.name for path in tmp_path.iterdir()} == {"copy.json"}


def test_another_size_is_refused_before_anything_is_read(tiny):
    tiny.data.update(name="imagenet2012@64", image_size=28)
    with pytest.raises(ConfigError) as caught:
        validation.resolve(tiny)
    assert str(caught.value) == (
        "config.data.name='imagenet2012@64' is a copy at 64 × 64 pixels, but"
        " config.data.image_size=28: write 64, or name the copy imagenet2012@28"
    )


def test_a_name_says_the_set_the_size_and_how():
    assert known.copy_of("imagenet2012:5.1.0@64") == ("imagenet2012:5.1.0", 64, False)
    assert known.copy_of("folder@28-squash") == ("folder", 28, True)
    assert str(known.copy_of("folder@28-squash")) == "folder@28-squash"
    assert known.copy_of("imagenet2012") is None
    for name in ("imagenet2012@", "@64", "a@064", "a@64-crop", "a@6@4", "a@-1"):
        with pytest.raises(ConfigError, match="names no resized copy: write SET@SIZE"):
            known.copy_of(name)


def test_a_copy_is_known_before_it_is_there(tmp_path):
    """So that a config is shown, and compiled for a TPU, without it."""
    data = types.SimpleNamespace(name="imagenet2012@64", dir=str(tmp_path), per_class=0, split="")
    assert sources.num_examples(data, "train") == 1_281_167
    assert sources.native_shape(data) == (64, 64)
    data.name = "noise@4"
    assert sources.native_shape(data) == (4, 4)
    assert sources.num_examples(data, "train") is None
    fill(tmp_path / "noise@4")
    assert sources.num_examples(data, "train") == COUNT


def test_a_config_of_resized_crops_takes_them_on_the_device(tmp_path):
    """As the docstring of configs/imagenet64.py says it."""
    words = ["data.name=imagenet2012@64", "data.in_memory_gb=16", f"data.dir={tmp_path}"]
    config = configfile.load("configs/imagenet64.py", [f"--config.{word}" for word in words])
    images = noise(2, 64, 64, 3)
    manifest = Manifest("imagenet2012:5.1.0", 64, 3, 1000, CROPPED)
    writer = Writer(copies.directory(config.data), manifest, "train", 2, 1)
    writer.write(0, zip(images, (998, 3), strict=True))
    writer.finish()
    source = sources.load(config.data, "train")
    reader = pipeline.Reader(source, config.data, train=True)
    assert reader.held
    np.testing.assert_array_equal(reader.images, images)
    assert pipeline.device_config(config, source).data.augmentation.crop == "resized"
    assert 1_281_167 * images[0].nbytes < 16e9  # all of it would be held, too


def test_a_run_says_which_copy_it_read(tmp_path, tiny, one_device, capsys):
    root, run = tmp_path / "digits@8", rundir.RunDir(tmp_path / "run")
    examples = [(noise(8, 8, 1), 3), (None, LEFT_OUT), (noise(8, 8, 1), 9)]
    for split in ("train", "test"):
        writer = Writer(root, Manifest("digits", 8, 1, 10, CROPPED), split, len(examples), 1)
        writer.write(0, examples)
        writer.finish()
    tiny.data.update(name="digits@8", dir=str(tmp_path))
    tiny.train.steps = 1
    train(validation.resolve(tiny), run.path, devices=one_device)
    (said,) = {environment["copy"] for environment in run.environments()}
    digest = sources.load(tiny.data, "train").digest()
    assert said == f"digits@8 in {root} ({digest[:12]}, 1 image left out)"
    assert f"2 training and 2 evaluation examples of {said}," in capsys.readouterr().out
    assert run.config().data.name == "digits@8"


def test_other_files_have_another_digest(root, data, tmp_path):
    first = sources.load(data, "train").digest()
    (tmp_path / "again").mkdir()
    data.dir = str(tmp_path / "again")
    fill(tmp_path / "again" / "noise@4")
    assert sources.load(data, "train").digest() == first
    path = tmp_path / "again" / "noise@4" / "copy.json"
    whole = json.loads(path.read_text())
    whole["splits"]["train"]["files"][shard(root).name]["sha256"] = "ab" * 32
    path.write_text(json.dumps(whole))
    assert sources.load(data, "train").digest() != first


def test_what_is_not_there_or_not_wanted_is_refused(root, data, tmp_path):
    assert "has no split 'val' of resized images, but: train" in refused(data, ConfigError, "val")
    data.num_classes = 7
    assert "num_classes=7, but noise@4/train has 10 classes" in refused(data, ConfigError)
    data.update(num_classes=10, channels=1)
    assert "write config.data.channels=3" in refused(data, ConfigError)
    data.update(channels=3, name="noise@4-squash")
    assert refused(data, ConfigError) == (
        f"there is no copy noise@4-squash in {tmp_path}: make it with `pit-jax data prepare noise"
        f" --resize 4 --squash --data-dir {tmp_path}`"
    )
    root.rename(tmp_path / "noise@4-squash")
    assert f"images of 4 × 4 pixels ({CROPPED}): give the directory its" in refused(
        data, ConfigError
    )
    data.update(name="noise@4", dir="gs://bucket/sets")
    assert "gs://bucket/sets: data is read from a disk" in refused(data, ConfigError)


def test_a_half_written_copy_is_refused(data, tmp_path):
    fill(tmp_path / "noise@4", only=[0, 2])
    assert refused(data, ConfigError) == (
        f"{tmp_path}/noise@4: split 'train' is not finished: run `pit-jax data prepare noise"
        f" --resize 4 --data-dir /a --out {tmp_path}` again, which goes on where it stopped"
    )


def test_a_manifest_that_lacks_something_or_is_damaged_is_refused(root, data):
    path = root / "copy.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in whole.items() if k not in ("size", "channels")}))
    assert "does not say its size, channels: copy the images again" in refused(data, ConfigError)
    path.write_text("{")
    assert "copy.json cannot be read" in refused(data, StorageError)


def test_damage_is_told_whether_it_is_held_or_streamed(root, data):
    path = shard(root)
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    assert f"{path} has {len(content) - 3} bytes, not {len(content)}" in refused(data, StorageError)
    for place in (content.index(IMAGES[5].tobytes()) + 9, content.index(IMAGES[4].tobytes())):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        source = sources.load(data, "train")
        with pytest.raises(StorageError, match=f"{path.name} is not what was written: run `pit"):
            pipeline.Reader(source, data, train=True)
        with pytest.raises(StorageError, match="1 of 4 files are not what was written"):
            source.verify()
    with pytest.raises(StorageError, match="image 4 cannot be read"):  # its bytes are the last
        source[list(GOOD).index(4)]
    assert source[0][1] == LABELS[0]  # the other shards still are


def test_other_labels_are_refused(root, data):
    path = root / store.labels_name("train")
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\1\0\0\0")
    assert "train-labels.npy is not what was written: run `pit-jax" in refused(data, StorageError)
