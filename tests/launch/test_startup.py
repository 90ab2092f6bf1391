"""The start-up script, run on machines made of stand-ins."""

import json
import pathlib
import shutil
import subprocess

import pytest

from pit_jax.errors import ConfigError
from pit_jax.launch import startup

from .machine import Machine

WORKDIR = "gs://bucket/runs/pit"
ID = "0123456789ab"
WHEEL = "pit_jax-0.1.0+g1a2b3c4.dirty-py3-none-any.whl"


def script(**changes) -> str:
    words = dict(
        name="pit",
        launch=ID,
        project="my-project",
        zone="us-west4-a",
        workdir=WORKDIR,
        arguments=["--config", f"{WORKDIR}/launch/config.json", "--launch", ID],
        wheel=WHEEL,
    )
    return startup.script(**(words | changes))


@pytest.fixture
def machine(tmp_path: pathlib.Path) -> Machine:
    return uploaded(Machine(tmp_path))


def uploaded(made: Machine) -> Machine:
    launch = made.bucket("bucket/runs/pit/launch")
    launch.mkdir(parents=True)
    for name in (WHEEL, "constraints.txt", "config.json"):
        (launch / name).write_text(name)
    return made


def shipped(machine: Machine, worker: str = "slice-0-worker-0") -> str:
    return machine.bucket(f"bucket/runs/pit/logs/{worker}-startup.log").read_text()


# Installing ----------------------------------------------------------------------------


def test_the_script_is_bash():
    for text in (script(), script(data="gs://b/d", data_mode="mount", study="study")):
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert text.startswith("#!/bin/bash\n")
        if shutil.which("shellcheck"):
            words = ["shellcheck", "--shell=bash", "--severity=warning", "-"]
            done = subprocess.run(words, input=text, text=True, capture_output=True)
            assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("new", [True, False])
def test_it_installs_the_wheel_and_starts_the_worker(machine, new):
    """On the image's own Python if that is new enough, on one that uv brings if not."""
    if new:
        machine.set("new-python")
    assert machine.boot(script()) == 0
    python = f"{machine.path}/bin/python3" if new else "3.12"
    root = machine.path / "root"
    assert machine.called("uv venv") == [f"uv venv --quiet --python {python} {root}/venv"]
    (install,) = machine.called("uv pip install")
    assert install.endswith(f"pit_jax[tpu,launch] @ file://{root}/launch/{WHEEL}")
    assert f"--constraint {root}/launch/constraints.txt" in install
    assert (root / "launch" / WHEEL).read_text() == WHEEL
    worker = machine.wait("worker ")
    place = f"{WORKDIR}/launch/config.json"
    assert worker == f"worker -m pit_jax.launch.worker --config {place} --launch {ID}"
    assert machine.wait("in ") == f"in {root}/launch"
    assert machine.wait("TFDS") == "TFDS_DATA_DIR="
    assert "starting the worker" in shipped(machine)


def test_pip_is_brought_where_it_is_missing(machine):
    machine.unset("pip")
    assert machine.boot(script()) == 0
    assert machine.called("apt-get install")
    machine.wait("worker ")


def test_a_requirement_is_installed_with_what_a_worker_needs(machine):
    text = script(wheel="", requirement="pit_jax==0.2; python_version > '3'")
    assert machine.boot(text) == 0
    (install,) = machine.called("uv pip install")
    assert 'pit_jax[launch,tpu]==0.2; python_version > "3"' in install
    assert not [line for line in machine.calls if WHEEL in line]


def test_a_second_boot_installs_nothing_again_and_starts_the_worker(machine):
    assert machine.boot(script()) == 0
    machine.idle()
    first = len(machine.called("uv"))
    assert machine.boot(script()) == 0
    machine.idle()
    assert len(machine.called("worker ")) == 2
    assert len(machine.called("uv")) == first
    # Another launch on the same machine is another version.
    assert machine.boot(script(launch="ffffffffffff")) == 0
    assert len(machine.called("uv")) > first


def test_a_worker_that_runs_is_not_started_again_and_is_told_of_a_shutdown(machine):
    machine.set("worker-stays")
    assert machine.boot(script()) == 0
    machine.wait("worker waits")
    assert machine.boot(script()) == 0
    assert len(machine.called("worker -m")) == 1
    machine.terminate()
    machine.wait("worker had SIGTERM")


def test_a_study_is_brought_too(machine):
    study = machine.bucket("bucket/runs/pit/launch/study/experiments")
    study.mkdir(parents=True)
    (study / "demo.py").write_text("x")
    assert machine.boot(script(study="study")) == 0
    assert (machine.path / "root/launch/study/experiments/demo.py").read_text() == "x"
    machine.wait("worker ")


# The worker ----------------------------------------------------------------------------


def test_under_systemd_the_worker_is_a_unit_of_its_own(machine):
    (machine.path / "system/run/systemd/system").mkdir(parents=True)
    assert machine.boot(script()) == 0
    (unit,) = machine.called("systemd-run")
    assert "--unit=pit-jax" in unit
    assert "--property=KillMode=mixed" in unit  # SIGTERM to the supervisor alone
    assert f"{machine.path}/root/venv/bin/python -m pit_jax.launch.worker --config" in unit
    assert machine.boot(script()) == 0
    assert len(machine.called("systemd-run")) == 1


def test_a_worker_is_named_by_slice_and_number(machine):
    machine.set("number", "3")
    machine.set("tpu-env", "ZONE: 'us-west4-a'\nMEGASCALE_SLICE_ID: '1'\n")
    assert machine.boot(script()) == 0
    assert "this is slice-1-worker-3" in shipped(machine, "slice-1-worker-3")
    machine.wait("worker ")


def test_without_a_metadata_server_the_host_name_has_the_number(machine):
    machine.set("no-metadata")
    assert machine.boot(script()) == 0
    assert "this is slice-0-worker-5" in shipped(machine, "slice-0-worker-5")
    machine.wait("worker ")


def test_the_log_of_a_worker_that_fails_at_once_is_shipped(machine):
    machine.set("worker-fails")
    assert machine.boot(script()) == 0
    machine.idle()
    assert "exit code 1" in shipped(machine)
    assert "ImportError: libtpu" in shipped(machine)


def test_a_launch_that_has_ended_is_not_started_again_and_lets_go_of_its_slice(machine):
    status = {"state": "done", "final": True, "launch": ID}
    machine.bucket("bucket/runs/pit/status.json").write_text(json.dumps(status, indent=1))
    assert machine.boot(script()) == 0
    assert not machine.called("uv")
    assert len(machine.called("gcloud compute tpus queued-resources delete pit")) == 1
    # That of an earlier launch says nothing about this one.
    assert machine.boot(script(launch="ffffffffffff")) == 0
    machine.wait("worker ")


# Data ----------------------------------------------------------------------------------


def test_data_is_copied_once_and_the_run_knows_where(machine):
    source = machine.bucket("data-bucket/sets/cifar100")
    source.mkdir(parents=True)
    (source / "train.array_record").write_text("pixels")
    text = script(data="gs://data-bucket/sets", data_mode="stage")
    assert machine.boot(text) == 0
    copied = machine.path / "root/data/cifar100/train.array_record"
    assert copied.read_text() == "pixels"
    assert machine.wait("TFDS") == f"TFDS_DATA_DIR={machine.path}/root/data"
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


def test_a_bucket_is_mounted_read_only_with_a_cache(machine):
    text = script(data="gs://data-bucket/sets/all", data_mode="mount")
    assert machine.boot(text) == 0
    root = machine.path / "root"
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
    data = machine.path / "root/data"
    assert machine.called("mount ") == [f"mount -o {options} /dev/sdb {data}"]
    assert machine.wait("TFDS") == f"TFDS_DATA_DIR={data}"


def test_without_a_disk_nothing_is_guessed(machine):
    assert machine.boot(script(data_mode="disk")) == 2
    assert "not exactly one holds a file system" in shipped(machine)


# Failing -------------------------------------------------------------------------------


def test_what_needs_the_network_is_tried_for_a_while(machine):
    machine.set("no-packages")
    assert machine.boot(script()) == 1
    assert len(machine.called("uv venv")) == 8
    assert machine.called("sleep")[:3] == ["sleep 1", "sleep 2", "sleep 4"]
    assert "no solution found" in shipped(machine)
    # The first worker marks the run as ended and lets go of the slice.
    status = json.loads(machine.bucket("bucket/runs/pit/status.json").read_text())
    assert (status["exit_code"], status["final"]) == (1, True)
    (deleted,) = machine.called("gcloud compute")
    assert deleted.startswith("gcloud compute tpus queued-resources delete pit ")
    assert "--project my-project --zone us-west4-a --force" in deleted


def test_another_worker_that_fails_leaves_the_slice_alone(tmp_path):
    machine = uploaded(Machine(tmp_path, number=2))
    machine.set("no-packages")
    assert machine.boot(script()) == 1
    assert "no solution found" in shipped(machine, "slice-0-worker-2")
    assert not machine.called("gcloud compute")
    assert not machine.bucket("bucket/runs/pit/status.json").exists()


def test_a_machine_without_a_network_ends(machine):
    machine.set("offline")
    assert machine.boot(script()) == 1
    assert "did not work" in machine.log


# Quoting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hostile",
    ["$(touch owned)", "`touch owned`", "'; touch owned; '", '"; touch owned; "', "a\ntouch owned"]
    + ["a b", "-rf", "*", "${IFS}", "\\", "ü€", "x" * 200],
)
def test_nothing_that_a_user_wrote_is_run(machine, hostile):
    """Patterns refuse these long before; the script does not rely on that."""
    fields = ("name", "launch", "project", "zone", "workdir", "wheel", "data", "study")
    words = dict.fromkeys(fields, hostile) | {"data_mode": "stage"}
    text = script(**words, arguments=[hostile, "--config"])
    machine.boot(text, PIT_JAX_PAUSE="0")
    settings = text.split("set -Eeuo")[0]
    shell = ["NAME", "LAUNCH", "PROJECT", "ZONE", "WORKDIR", "WHEEL", "DATA", "STUDY"]
    shown = ' "$'.join(["printf '%s|'", *(f'{name}"' for name in [*shell, "{ARGUMENTS[0]}"])])
    done = subprocess.run(["bash", "-c", settings + shown], capture_output=True, text=True)
    assert done.stdout == f"{hostile}|" * 9
    assert not list(machine.path.rglob("owned"))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("pit_jax==0.2", "pit_jax[launch,tpu]==0.2"),
        ("pit-jax[study]>=0.2", "pit-jax[launch,study,tpu]>=0.2"),
        ("git+https://host/pit@1a2b", "pit_jax[launch,tpu]@ git+https://host/pit@1a2b"),
    ],
)
def test_requirements(given, meant):
    assert startup.with_extras(given).replace(" @", "@") == meant


@pytest.mark.parametrize("given", ["torch==2", "pit_jax==", "--index-url=x", "a b c", ""])
def test_requirements_of_something_else_are_refused(given):
    with pytest.raises(ConfigError, match="--requirement"):
        startup.with_extras(given)
