"""Files are replaced as a whole, and only files; places that cannot be are refused."""

import logging
import math
import os
import time

import pytest

from pit_jax import cli, files, waiting
from pit_jax.data import latents, sources, store
from pit_jax.errors import ConfigError, StorageError


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "target").write_text("old")
    (tmp_path / "link").symlink_to("there/target")
    files.write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "target").read_text() == "new"
    (tmp_path / "ahead").symlink_to("there/not-yet")
    files.write(tmp_path / "ahead", "made")
    assert (tmp_path / "there" / "not-yet").read_text() == "made"
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == ["not-yet", "target"]


def _fifo(path):
    os.mkfifo(path)


def _read_only(path):
    path.write_text("old")
    path.chmod(0o444)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_fifo, "it is a device or the like and no file"),
        (lambda path: path.symlink_to("/dev/null"), "it is a device or the like and no file"),
        (lambda path: path.mkdir(), "it is a directory and no file"),
        (_read_only, "it is read-only"),
    ],
)
def test_what_is_no_file_to_write_is_refused_and_stays(tmp_path, make, reason):
    make(tmp_path / "x")
    before = os.lstat(tmp_path / "x")
    with pytest.raises(StorageError, match=f"x could not be written: {reason}"):
        files.write(tmp_path / "x", "new")
    after = os.lstat(tmp_path / "x")
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("", "--workdir '' names no file or directory"),
        ("a\0b", r"--workdir 'a\\x00b' names no file or directory"),
        ("foo://x", "--workdir foo://x: write a local path or one of gs://, s3://"),
        ("gs://", "--workdir gs:// names no bucket: write gs://BUCKET/..."),
        ("gs://bucket/x", "pip install gcsfs"),
        ("s3://bucket/x", "pip install s3fs"),
    ],
)
def test_a_place_that_cannot_be_is_refused(monkeypatch, place, sentence):
    def missing(path):
        raise ImportError(path)

    monkeypatch.setattr(files.fsspec_backend, "fs", missing)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=sentence):
        files.check_place(place, "--workdir")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, b"\xff\xfe", '{"a":' * 100_000])
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"Expecting|deep|decode"):
        files.parse_json(text)


def test_whole_numbers_are_exact_as_long_as_they_are_sizes():
    assert files.parse_json("[123456789012345678, -3]") == [123456789012345678, -3]
    assert files.parse_json("1" + "0" * 400) == math.inf
    assert files.parse_json("-1" + "0" * 5000) == -math.inf


def test_text_that_cannot_be_shown_is_replaced():
    assert files.printable("a\0b\x1b[31m\ud800 é ✓\n") == "a�b�[31m� é ✓\n"


@pytest.mark.parametrize(
    ("error", "what", "line"),
    [
        (FileNotFoundError("http://h/upload/storage/v1/b/bb/o?name=x"), "written", "is there a bu"),
        (FileNotFoundError("b/bb/o/x"), "read", "it is not there"),
        (OSError("Forbidden: https://h/upload/b/bb/o?x=1\nme may not"), "written", "Forbidden: me"),
        (RuntimeError("403 POST http://h/upload/b/bb/o: me may not"), "written", "403 me may not"),
        (RuntimeError("https://h/upload/b/bb/o"), "written", "RuntimeError"),
    ],
)
def test_no_address_of_a_bucket_s_server_is_a_reason(error, what, line):
    told = str(files.storage_error("gs://bb/x", error, what))
    assert told.startswith(f"gs://bb/x could not be {what}: {line}")
    assert "http" not in told
    assert "upload" not in told


def test_an_address_in_another_error_stays(tmp_path):
    assert "http://h/x" in str(files.storage_error(tmp_path, OSError("no answer of http://h/x")))


def test_a_bucket_out_of_reach_is_told_by_us_alone(caplog):
    """Its driver would log a traceback as well, which Python prints."""
    try:
        raise OSError("no network")
    except OSError:
        logging.getLogger("gcsfs").exception("out of retries")
        logging.getLogger("gcsfs.credentials").warning("no credentials")
    assert not caplog.records


@pytest.fixture
def silent(monkeypatch):
    """A bucket that takes its time to answer, as one without a network does: a minute."""
    monkeypatch.setattr(waiting, "SILENT_S", 0.01)
    monkeypatch.setattr(waiting, "_HEARD", set())
    return files


def out_of_reach(path) -> None:
    with files.told(path, "read"):
        time.sleep(0.1)
        raise OSError("no network")


def test_a_bucket_that_is_silent_is_said_to_be_waited_for_once(silent, capsys):
    for name in ("a", "b"):
        with pytest.raises(StorageError):
            out_of_reach(f"gs://silent/{name}")
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("waiting for gs://silent to answer: is there a network")


def test_a_bucket_that_has_answered_is_not_waited_for(silent, capsys):
    with pytest.raises(StorageError), silent.told("gs://there/a", "read"):
        raise FileNotFoundError("a")
    with silent.told("gs://there/large"):
        time.sleep(0.1)
    with silent.told("/a/disk"):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_what_a_driver_raises_anywhere_is_a_storage_fault(monkeypatch, capsys):
    import aiohttp

    def show(args, overrides):
        """Shows."""
        raise aiohttp.ClientConnectionError("no network")

    monkeypatch.setattr(cli, "show", show)
    assert cli.run(["show", "--config", "gs://b/x"]) == 5
    said = capsys.readouterr().err
    assert said == "pit-jax: what lies in the cloud was not reached: no network\n"


@pytest.mark.parametrize("name", ["folder", "cifar10", "latents", "cifar10@32"])
def test_data_in_a_bucket_is_refused_by_name(name, tiny):
    tiny.data.update(name=name, dir="gs://bucket/data")
    with pytest.raises(ConfigError, match=r"data\.dir=gs://bucket/data: data is read from a disk"):
        sources.open_split(tiny.data, "train")


def test_a_name_that_array_record_cannot_be_given_is_refused():
    with pytest.raises(ConfigError, match="under a name that is not UTF-8"):
        store.local(os.fsdecode(b"a\xffb"), latents.KIND)
