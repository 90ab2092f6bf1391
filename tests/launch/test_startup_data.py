"""How the start-up script brings the data, on machines made of stand-ins."""

import json

import pytest

from .test_startup import ID, script, shipped
from .test_startup import machine as machine


def test_data_is_copied_once_and_the_run_knows_where(machine):
    source = machine.bucket("data-bucket/sets/cifar100")
    source.mkdir(parents=True)
    (source / "train.array_record").write_text("pixels")
    text = script(data="gs://data-bucket/sets", data_mode="stage")
    assert machine.boot(text) == 0
    copied = machine.path / "disk/data/cifar100/train.array_record"
    assert copied.read_text() == "pixels"
    assert machine.wait("TFDS") == f"TFDS_DATA_DIR={machine.path}/disk/data"
    copies = len(machine.called("gcloud storage rsync"))
    machine.idle()
    assert machine.boot(text) == 0
    assert len(machine.called("gcloud storage rsync")) == copies == 1


def test_data_that_does_not_fit_is_refused_before_it_is_copied(machine):
    machine.set("size", str(150 * 10**9))
    assert machine.boot(script(data="gs://data-bucket/sets", data_mode="stage")) == 2
    assert not machine.called("gcloud storage rsync")
    assert not machine.called("worker ")
    status = json.loads(machine.bucket("bucket/runs/pit/status.json").read_text())
    assert status["state"] == "failed"
    assert status["exit_code"] == 2
    assert status["final"] is True
    assert status["launch"] == ID
    line = "takes 150.0 GB, a twentieth more to be safe, and the worker's disk has 90.0 GB"
    assert line in status["reason"]
    assert "--data-mode mount" in status["reason"]
    assert line in shipped(machine)


def test_a_twentieth_of_the_space_stays_free(machine):
    (machine.bucket("data-bucket/sets")).mkdir(parents=True)
    machine.set("free", str(104 * 10**9))
    machine.set("size", str(100 * 10**9))
    text = script(data="gs://data-bucket/sets", data_mode="stage")
    assert machine.boot(text) == 2
    machine.bucket("bucket/runs/pit/status.json").unlink()
    machine.set("free", str(106 * 10**9))
    assert machine.boot(text) == 0
    machine.wait("worker ")


@pytest.mark.parametrize("mode", ["stage", "mount"])
def test_a_place_without_data_is_refused(machine, mode):
    machine.set("size", "0")
    (machine.path / "bin/gcsfuse").write_text("#!/bin/bash\n")
    (machine.path / "bin/gcsfuse").chmod(0o755)
    assert machine.boot(script(data="gs://data-bucket/sets", data_mode=mode)) == 2
    assert "nothing at gs://data-bucket/sets" in shipped(machine)


def test_a_place_that_does_not_exist_is_refused_at_once(machine):
    assert machine.boot(script(data="gs://data-bucket/typo", data_mode="stage")) == 2
    assert len(machine.called("gcloud storage du")) == 1
    status = json.loads(machine.bucket("bucket/runs/pit/status.json").read_text())
    line = "start-up: there is nothing at gs://data-bucket/typo, or the workers may not read it"
    assert (status["reason"], status["final"]) == (line, True)


def test_a_place_that_cannot_be_looked_at_is_tried_again(machine):
    (machine.path / "bin/gcloud-itself").write_bytes((machine.path / "bin/gcloud").read_bytes())
    (machine.path / "bin/gcloud-itself").chmod(0o755)
    (machine.path / "bin/gcloud").write_text(
        '#!/bin/bash\ncase "$*" in *du*) echo "ERROR: Broken pipe" >&2\n'
        '[ "$(echo x >>"$MACHINE/tries"; wc -l <"$MACHINE/tries")" -gt 2 ] || exit 1 ;; esac\n'
        'exec gcloud-itself "$@"\n'
    )
    machine.bucket("data-bucket/sets").mkdir(parents=True)
    assert machine.boot(script(data="gs://data-bucket/sets", data_mode="stage")) == 0
    assert len(machine.called("gcloud storage du")) == 1
    machine.wait("worker ")


def test_a_bucket_is_mounted_read_only_with_a_cache(machine):
    text = script(data="gs://data-bucket/sets/all", data_mode="mount")
    assert machine.boot(text) == 0
    root = machine.path / "disk"
    assert machine.called("apt-get install") == ["apt-get install -y -qq gcsfuse"]
    assert (
        "gcsfuse-jammy" in (machine.path / "system/etc/apt/sources.list.d/gcsfuse.list").read_text()
    )
    (mounted,) = machine.called("gcsfuse")
    assert "-o ro" in mounted
    assert f"--cache-dir {root}/gcsfuse" in mounted
    assert mounted.endswith(f"--only-dir sets/all data-bucket {root}/data")
    assert machine.wait("TFDS") == f"TFDS_DATA_DIR={root}/data"
    machine.idle()
    assert machine.boot(text) == 0  # as long as it is mounted
    assert len(machine.called("gcsfuse")) == 1


@pytest.mark.parametrize(
    ("kind", "options"), [("ext4", "ro,noload"), ("xfs", "ro,norecovery"), ("squashfs", "ro")]
)
def test_an_attached_disk_is_mounted_read_only(machine, kind, options):
    machine.set("disks", f"/dev/sda  disk\n/dev/sdb {kind} disk\n/dev/sdc ext4 /var disk\n")
    assert machine.boot(script(data_mode="disk")) == 0
    data = machine.path / "disk/data"
    assert machine.called("mount ") == [f"mount -o {options} /dev/sdb {data}"]
    assert machine.wait("TFDS") == f"TFDS_DATA_DIR={data}"


def test_without_a_disk_nothing_is_guessed(machine):
    assert machine.boot(script(data_mode="disk")) == 2
    assert "not exactly one holds a file system" in shipped(machine)
