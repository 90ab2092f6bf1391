"""A set that was prepared in part is refused, and no images of it are called corrupt."""

import shutil

import pytest

from pit_jax import cli
from pit_jax.data import sources
from pit_jax.errors import ConfigError, StorageError

TFDS = "tests/fixtures/tfds"


@pytest.fixture
def data(tiny, tmp_path):
    """Two versions of a set; the newer one is what is read."""
    for version in ("1.0.0", "2.0.0"):
        shutil.copytree(f"{TFDS}/tiny_digits/1.0.0", tmp_path / "tiny_digits" / version)
    info = tmp_path / "tiny_digits" / "2.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"1.0.0"', '"2.0.0"'))
    tiny.data.update(name="tiny_digits", dir=str(tmp_path), num_classes=4, corrupt="skip")
    return tiny.data


@pytest.mark.parametrize("split", ["train", "train[:25%]", "test+train"])
def test_a_set_without_one_of_its_files_is_refused(data, tmp_path, split):
    (path,) = (tmp_path / "tiny_digits" / "2.0.0").glob("*-train.array_record-*")
    path.unlink()
    with pytest.raises(StorageError) as caught:
        sources.load(data, split)
    files = 2 if "+" in split else 1
    assert str(caught.value) == (
        f"tiny_digits/{split} lacks 1 of its {files} files, {path} first: it was prepared or"
        " copied in part"
    )
    assert len(sources.load(data, "test")) == 20


def test_a_set_that_is_being_prepared_is_not_read(data, tmp_path):
    """TensorFlow Datasets gives a directory its name when it is finished."""
    folder = tmp_path / "tiny_digits" / "2.0.0"
    folder.rename(folder.with_name("2.0.0.incomplete.K3J5"))
    assert sources.load(data, "train").version == "1.0.0"
    shutil.rmtree(tmp_path / "tiny_digits" / "1.0.0")
    with pytest.raises(ConfigError, match="data set tiny_digits is not in"):
        sources.load(data, "train")


def test_no_copy_is_made_of_it(data, tmp_path, capsys):
    (path,) = (tmp_path / "tiny_digits" / "2.0.0").glob("*-train.array_record-*")
    path.unlink()
    words = ["tiny_digits", "--resize", "4", "--skip-corrupt", "--data-dir", str(tmp_path)]
    assert cli.run(["data", "prepare", *words]) == 5
    assert "lacks 1 of its 1 files" in capsys.readouterr().err
    assert not (tmp_path / "tiny_digits@4").exists()
