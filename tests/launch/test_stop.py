"""`pit-jax launch stop`: what it deletes, and what it leaves for watchers and lists to know."""

import io

import grpc
import pytest

from pit_jax import cli, files
from pit_jax.errors import ConfigError, StorageError
from pit_jax.launch import records, tpu, upload
from pit_jax.lease_store import Disk

from .fake_tpu import service as service
from .test_commands import launched as launched
from .test_commands import quick as quick
from .test_commands import state
from .test_queue import ID, asked


def test_stop_deletes_and_no_watcher_creates_it_again(service, launched, capsys):
    run = launched()
    assert cli.run(["launch", "stop", "pit", "--yes"]) == 0
    assert service.state("pit") == "DELETING"
    assert upload.record(run)["stopped"]
    assert upload.record(run)["request"]  # the rest is as it was
    assert records.find("pit")["stopped"]
    assert "pit is being deleted" in capsys.readouterr().out
    assert cli.run(["launch", "stop", "pit", "--yes"]) == 0
    assert cli.run(["launch", "watch"]) == 2
    assert "nothing to watch" in capsys.readouterr().err


def test_stop_asks(service, launched, capsys, monkeypatch):
    launched()
    assert cli.run(["launch", "stop", "pit"]) == 2
    assert "add --yes" in capsys.readouterr().err
    answer = io.StringIO("n\n")
    answer.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", answer)
    assert cli.run(["launch", "stop", "pit"]) == 2
    assert "nothing was stopped" in capsys.readouterr().err
    assert service.count("DeleteQueuedResource") == 0
    assert "stopped" not in records.find("pit")


def test_several_are_stopped_with_one_question(service, launched, capsys, monkeypatch):
    launched()
    launched("other", 2)
    answer = io.StringIO("y\n")
    answer.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", answer)
    assert cli.run(["launch", "stop", "pit", "other"]) == 0
    assert "stop pit, other and delete their tpu resources? [y/N]" in capsys.readouterr().out
    assert [service.state(name) for name in ("pit", "other")] == ["DELETING"] * 2


def test_one_that_cannot_be_stopped_keeps_no_other_alive(service, launched, capsys):
    launched()
    launched("other", 2)
    service.add(asked(id="f" * 12))
    assert cli.run(["launch", "stop", "pit", "other", "--yes"]) == 2
    assert "was left alone" in capsys.readouterr().err
    assert service.state("other") == "DELETING"
    assert cli.run(["launch", "stop", "pit", "typo", "--yes"]) == 2
    assert service.count("DeleteQueuedResource") == 1  # a name that is none stops nothing


def test_what_has_failed_is_stopped_and_then_launched_again(service, launched, capsys):
    run = launched()
    state(service, "pit", ("FAILED", 8, "Quota exhausted"))
    with pytest.raises(ConfigError, match="pit has FAILED"):
        upload.check_free(run, None, tpu.alive)
    assert cli.run(["launch", "stop", "pit", "--yes"]) == 0
    upload.check_free(run, None, tpu.alive)


def test_stop_leaves_the_resource_of_another_launch_alone(service, launched, capsys):
    launched()
    service.add(asked(id="f" * 12))
    assert cli.run(["launch", "stop", "pit", "--yes"]) == 2
    assert "was left alone" in capsys.readouterr().err
    assert service.count("DeleteQueuedResource") == 0


def test_stop_that_was_refused_says_what_is_missing(service, launched, capsys):
    launched()
    denied = grpc.StatusCode.PERMISSION_DENIED
    service.fail("DeleteQueuedResource", denied, "tpu.queuedResources.delete denied")
    assert cli.run(["launch", "stop", "pit", "--yes"]) == 2
    assert "roles/tpu.admin" in capsys.readouterr().err
    assert "stopped" not in records.find("pit")


def test_stop_loses_nothing_that_a_watcher_writes_just_then(service, launched, monkeypatch):
    run, replace = launched(), Disk.replace

    def written_meanwhile(store, content, version):
        monkeypatch.setattr(Disk, "replace", replace)
        upload.note(run, ID, watch={"pending": True})
        return store.replace(content, version)

    monkeypatch.setattr(Disk, "replace", written_meanwhile)
    assert cli.run(["launch", "stop", "pit", "--yes"]) == 0
    assert upload.record(run)["stopped"]
    assert upload.record(run)["watch"] == {"pending": True}


def test_stop_where_no_record_can_be_written(service, launched, capsys, monkeypatch):
    def full(path, content):
        if path.parent == records.folder():
            raise StorageError("the disk is full")
        write(path, content)

    launched()
    write = files.write
    monkeypatch.setattr(files, "write", full)
    assert cli.run(["launch", "stop", "pit", "--yes"]) == 0
    printed = capsys.readouterr()
    assert "note: this machine's record of pit is not written: the disk is full" in printed.err
    assert "its run stays in" in printed.out
