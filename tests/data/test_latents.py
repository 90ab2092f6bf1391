"""A store of latents: what was written is read, goes on where it stopped, or is refused."""

import dataclasses
import hashlib
import json
import pickle

import numpy as np
import pytest

from pit_jax.data import latents, store, store_writer
from pit_jax.data.latent_writer import Writer
from pit_jax.data.latents import LatentSource, Manifest
from pit_jax.errors import ConfigError, StorageError
from pit_jax.models.normalisation import Normalisation

MANIFEST = Manifest(
    image_set="digits",
    image_size=8,
    num_classes=10,
    shape=(2, 3, 4),
    flips=2,
    autoencoder="small",
    autoencoder_sha256="ab" * 32,
    normalisation=Normalisation((0, 1, 2, 3), 0.18215),
    encoder_dtype="float32",
    source="/a",
    resize="bicubic",
    versions={"jax": "1"},
)


def example(number: int) -> tuple[np.ndarray, int]:
    array = np.random.default_rng(number).normal(size=MANIFEST.record_shape())
    return array.astype(np.float32), number * 7 % 10


def fill(directory, split="train", count=11, shards=3, only=None, manifest=MANIFEST) -> list[int]:
    """Writes what is missing; the shards that were."""
    writer = Writer(directory, manifest, split, count, shards)
    missing = writer.missing()
    for shard in missing if only is None else only:
        writer.write(shard, (example(i) for i in writer.span(shard)))
    if only is None:
        writer.finish()
    return missing


def shard(directory, number: int, split="train", shards=3):
    return directory / f"{split}-{number:05d}-of-{shards:05d}.array_record"


def test_what_was_written_is_read(tmp_path):
    assert fill(tmp_path) == [0, 1, 2]
    fill(tmp_path, split="test", count=2, shards=1)
    source = LatentSource(tmp_path, "train")
    assert len(source) == 11
    assert (source.num_classes, source.manifest) == (10, MANIFEST)
    assert source.normalisation == MANIFEST.normalisation
    for number in (10, *range(11)):
        expected, label = example(number)
        array, found = source[number]
        assert found == label
        assert array.dtype == np.float16
        np.testing.assert_array_equal(array, expected.astype(np.float16))
    np.testing.assert_array_equal(source.labels(), [example(i)[1] for i in range(11)])
    with pytest.raises(IndexError):
        source[11]
    source.verify()
    again = pickle.loads(pickle.dumps(source))  # as worker processes receive it
    np.testing.assert_array_equal(again[4][0], source[4][0])
    assert len(LatentSource(tmp_path, "test")) == 2


def test_the_manifest_says_what_lies_there(tmp_path):
    fill(tmp_path)
    written = json.loads((tmp_path / "latents.json").read_text())
    assert (written["schema"], written["dtype"], written["flips"]) == (1, "float16", 2)
    assert written["normalisation"] == {"shift": [0, 1, 2, 3], "scale": 0.18215}
    files = written["splits"]["train"]["files"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == set(files) | {"latents.json"}  # no note and no temporary file stays
    for name, facts in files.items():
        content = (tmp_path / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_a_stopped_writer_goes_on(tmp_path):
    """Finished shards stay as they are, damaged and missing ones are written, to equal bytes."""
    fill(tmp_path / "whole")
    part = tmp_path / "part"
    fill(part, only=[0, 2])

    def stopping():
        yield example(3)
        raise RuntimeError("preempted")

    with pytest.raises(RuntimeError, match="preempted"):  # told as it is: no fault of the disk
        Writer(part, MANIFEST, "train", 11, 3).write(1, stopping())
    assert not shard(part, 1).exists()
    assert not [path for path in part.iterdir() if path.suffix == ".tmp"]
    with pytest.raises(ConfigError, match=r"lacks 1 of 3 shards of train: train-00001-of-00003"):
        Writer(part, MANIFEST, "train", 11, 3).finish()
    with pytest.raises(ConfigError, match="split 'train' is not finished"):
        LatentSource(part, "train")
    kept = shard(part, 0).stat().st_mtime_ns
    content = shard(part, 2).read_bytes()
    shard(part, 2).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fill(part) == [1, 2]
    assert shard(part, 0).stat().st_mtime_ns == kept
    assert fill(part) == []
    for path in (tmp_path / "whole").iterdir():
        assert (part / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_finished_split_is_repaired(tmp_path):
    fill(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shard(tmp_path, 1).unlink()
    (tmp_path / "train-labels.npy").write_bytes(b"")
    assert fill(tmp_path) == [1]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("image_set", "cifar10", "image_set 'digits', not 'cifar10'"),
        ("image_size", 16, "image_size 8, not 16"),
        ("shape", (3, 2, 4), r"shape \[2, 3, 4\], not \[3, 2, 4\]"),
        ("flips", 1, "flips 2, not 1"),
        ("autoencoder_sha256", "cd" * 32, "autoencoder_sha256 'abab"),
        ("normalisation", Normalisation(scale=1), "normalisation {'shift'"),
        ("encoder_dtype", "bfloat16", "encoder_dtype 'float32', not 'bfloat16'"),
        ("source", "/b", "source '/a', not '/b'"),
        ("resize", "none", "resize 'bicubic', not 'none'"),
    ],
)
def test_other_latents_do_not_go_into_the_same_directory(tmp_path, field, value, sentence):
    fill(tmp_path, only=[0])
    before = (tmp_path / "latents.json").read_text()
    other = dataclasses.replace(MANIFEST, **{field: value})
    with pytest.raises(ConfigError, match=f"holds other latents: {sentence}"):
        Writer(tmp_path, other, "train", 11, 3)
    assert (tmp_path / "latents.json").read_text() == before


def test_other_versions_go_on_and_the_first_stay_on_record(tmp_path):
    fill(tmp_path, only=[0])
    assert fill(tmp_path, manifest=dataclasses.replace(MANIFEST, versions={"jax": "2"})) == [1, 2]
    assert LatentSource(tmp_path, "train").manifest.versions == {"jax": "1"}


def test_stores_of_old_are_read_but_not_gone_on_with(tmp_path):
    fill(tmp_path)
    change(tmp_path, encoder_dtype=None, source=None, resize=None, versions=None)
    assert LatentSource(tmp_path, "train").manifest.encoder_dtype == ""
    with pytest.raises(ConfigError, match="encoder_dtype None, not 'float32'"):
        Writer(tmp_path, MANIFEST, "train", 11, 3)


def test_a_store_is_known_by_the_autoencoders_weights_not_by_its_file(tmp_path):
    ours = dataclasses.replace(MANIFEST, weights_sha256="11" * 32)
    exported = dataclasses.replace(ours, autoencoder="vae", autoencoder_sha256="cd" * 32)
    fill(tmp_path, only=[0], manifest=ours)
    assert fill(tmp_path, manifest=exported) == [1, 2]
    assert LatentSource(tmp_path, "train").manifest == ours  # as it was begun
    others = dataclasses.replace(ours, weights_sha256="22" * 32)
    with pytest.raises(ConfigError, match="holds other latents: weights_sha256 '1111"):
        Writer(tmp_path, others, "train", 11, 3)


def test_a_store_that_does_not_say_the_weights_is_known_by_the_file(tmp_path):
    fill(tmp_path, only=[0])
    change(tmp_path, weights_sha256=None)
    ours = dataclasses.replace(MANIFEST, weights_sha256="11" * 32)
    with pytest.raises(ConfigError, match="holds other latents: autoencoder_sha256 'abab"):
        fill(tmp_path, manifest=dataclasses.replace(ours, autoencoder_sha256="cd" * 32))
    assert fill(tmp_path, manifest=ours) == [1, 2]
    assert LatentSource(tmp_path, "train").manifest.weights_sha256 == ""


def test_a_process_reads_no_other_shards_than_its_own(tmp_path, monkeypatch):
    fill(tmp_path)
    asked = []

    def noting(path):
        asked.append(path.name)
        return store.facts_of(path)

    monkeypatch.setattr(store_writer, "facts_of", noting)
    writer = Writer(tmp_path, MANIFEST, "train", 11, 3)
    shard(tmp_path, 0).unlink()  # another's
    shard(tmp_path, 1).write_bytes(b"")
    assert writer.missing(range(1, 3)) == [1]
    assert asked == [shard(tmp_path, 1).name, shard(tmp_path, 2).name]


def test_urls_are_refused_and_no_folder_is_made_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = "gs://bucket/latents"
    for use in (
        lambda: Writer(url, MANIFEST, "train", 11, 3),
        lambda: LatentSource(url, "train"),
        lambda: latents.manifest(url),
        lambda: latents.read(url),
    ):
        with pytest.raises(ConfigError, match="gs://bucket/latents is no local directory"):
            use()
    assert not list(tmp_path.iterdir())


def test_other_labels_are_refused(tmp_path):
    fill(tmp_path)
    path = tmp_path / "train-labels.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as long as it was
    with pytest.raises(StorageError, match=r"train-labels\.npy is not what was written"):
        LatentSource(tmp_path, "train")
    assert fill(tmp_path) == []  # no latents are encoded again for it
    assert path.read_bytes() == content


def test_other_counts_are_refused(tmp_path):
    fill(tmp_path, only=[0])
    with pytest.raises(ConfigError, match=r"train holds other latents: count 11, not 12"):
        Writer(tmp_path, MANIFEST, "train", 12, 3)
    with pytest.raises(ConfigError, match="shards 3, not 4"):
        Writer(tmp_path, MANIFEST, "train", 11, 4)
    with pytest.raises(ConfigError, match=r"2 example\(s\) cannot be shared out to 3 shards"):
        Writer(tmp_path, MANIFEST, "test", 2, 3)


def test_what_does_not_fit_a_record_is_refused(tmp_path):
    writer = Writer(tmp_path, MANIFEST, "train", 1, 1)
    array, label = example(0)

    def refused(sentence: str, *examples) -> None:
        with pytest.raises(ConfigError, match=sentence):
            writer.write(0, examples)
        assert {path.name for path in tmp_path.iterdir()} == {"latents.json"}

    refused(r"shape \(2, 2, 2, 3\), the manifest says \(2, 2, 2, 3, 4\)", (array[..., 0], label))
    refused("label 10 is not in 0 … 9", (array, 10))
    refused("latents up to 70000 are not finite in float16", (np.full_like(array, 7e4), 0))
    refused("latents up to nan are not finite", (np.full_like(array, np.nan), 0))
    refused("was given 2 examples, not 1", (array, label), (array, label))
    refused("was given 0 examples, not 1")


def change(directory, **fields) -> None:
    """Sets fields of latents.json, or removes those that are None."""
    path = directory / "latents.json"
    whole = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in whole.items() if v is not None}))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"normalisation": None}, "does not say its normalisation: encode the images again"),
        ({"normalisation": {"scale": 1}}, "does not say its normalisation"),
        ({"normalisation": {"scale": 0, "shift": 0}}, "normalisation.scale=0 is not above 0"),
        ({"shape": None, "flips": None}, "does not say its shape, flips"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16' is not 'float16'"),
        ({"schema": 2}, "is not of schema 1"),
        ({"splits": None}, "no split 'train' of latents, but: none"),
    ],
)
def test_a_manifest_that_lacks_something_is_refused_in_one_line(tmp_path, fields, sentence):
    fill(tmp_path)
    change(tmp_path, **fields)
    with pytest.raises(ConfigError, match=sentence) as info:
        LatentSource(tmp_path, "train")
    assert "\n" not in str(info.value)


def test_other_directories_and_splits_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no latents: it has no latents\.json"):
        LatentSource(tmp_path, "train")
    fill(tmp_path)
    with pytest.raises(ConfigError, match="no split 'test' of latents, but: train"):
        LatentSource(tmp_path, "test")
    (tmp_path / "latents.json").write_text("{")
    with pytest.raises(StorageError, match=r"latents\.json cannot be read"):
        LatentSource(tmp_path, "train")


def test_damaged_shards_are_refused(tmp_path):
    fill(tmp_path)
    content = shard(tmp_path, 1).read_bytes()
    shard(tmp_path, 1).write_bytes(content[:-5])
    with pytest.raises(StorageError, match=r"train-00001-of-00003.array_record has \d+ bytes, not"):
        LatentSource(tmp_path, "train")
    shard(tmp_path, 1).unlink()
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        LatentSource(tmp_path, "train")
    shard(tmp_path, 1).write_bytes(bytes(len(content)))  # as long as it was, but nothing in it
    source = LatentSource(tmp_path, "train")
    with pytest.raises(StorageError, match=r"1 of 4 files are not what was written, train-00001"):
        source.verify()
    with pytest.raises(StorageError, match="latents 4 cannot be read"):
        source[4]
    assert source[0][1] == example(0)[1]  # the other shards still are


def test_a_disk_that_takes_nothing_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"latents\.json could not be written"):
        Writer(tmp_path / "file", MANIFEST, "train", 1, 1)
