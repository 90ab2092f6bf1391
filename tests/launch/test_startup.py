"""The start-up script, run on machines made of stand-ins."""

import json
import pathlib
import shutil
import subprocess

import pytest

from pit_jax.errors import ConfigError
from pit_jax.launch import startup, verdict
from pit_jax.rundir import RunDir

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
    root = machine.path / "disk"
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
    machine.idle()
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
    assert (machine.path / "disk/launch/study/experiments/demo.py").read_text() == "x"
    machine.wait("worker ")


# The worker ----------------------------------------------------------------------------


def test_under_systemd_the_worker_is_a_unit_of_its_own(machine):
    (machine.path / "system/run/systemd/system").mkdir(parents=True)
    assert machine.boot(script()) == 0
    (unit,) = machine.called("systemd-run")
    assert "--unit=pit-jax" in unit
    assert "--property=KillMode=mixed" in unit  # SIGTERM to the supervisor alone
    assert f"{machine.path}/disk/venv/bin/python -m pit_jax.launch.worker --config" in unit
    for state in ("active", "activating"):  # while it runs, and until it is started again
        machine.set("unit", f"{state}\n")
        assert machine.boot(script()) == 0
        assert len(machine.called("systemd-run")) == 1


def test_systemd_starts_a_worker_again_that_has_not_settled(machine):
    """systemd.service(5): on-failure is every exit but with 0, unless systemd itself stops it."""
    (machine.path / "system/run/systemd/system").mkdir(parents=True)
    assert machine.boot(script()) == 0
    (unit,) = machine.called("systemd-run")
    given = dict(w.removeprefix("--property=").split("=", 1) for w in unit.split() if "=" in w)
    assert given["Restart"] == "on-failure"
    assert given["OOMPolicy"] == "continue"  # a trainer that is killed for memory does not stop it
    # No limit would ever be reached if the interval passed before so many starts.
    assert int(given["RestartSec"]) * int(given["StartLimitBurst"]) < int(
        given["StartLimitIntervalSec"]
    )
    assert machine.start_again() == 0
    assert "the worker speaks" in shipped(machine)
    machine.set("worker-fails")
    assert machine.start_again() == 1
    machine.unset("worker-fails")
    machine.set("worker-dies")
    assert machine.start_again() == 137
    assert "exit code 137" in shipped(machine)
    assert len(machine.called("worker ")) == 3
    assert len(machine.called("uv pip install")) == 1


def test_a_worker_that_somebody_terminates_says_so_to_systemd(machine):
    machine.set("worker-stays")
    assert machine.boot(script()) == 0
    machine.wait("worker waits")
    machine.terminate()
    machine.idle()
    assert "exit code 75" in machine.log


def test_a_worker_is_named_by_slice_and_number(machine):
    machine.set("number", "3")
    machine.set("tpu-env", "ZONE: 'us-west4-a'\nMEGASCALE_SLICE_ID: '1'\n")
    assert machine.boot(script()) == 0
    assert "this is slice-1-worker-3" in shipped(machine, "slice-1-worker-3")
    machine.wait("worker ")


def test_without_the_attribute_the_host_name_has_the_number(machine):
    machine.unset("number")
    machine.unset("tpu-env")
    assert machine.boot(script()) == 0
    assert "this is slice-0-worker-5" in shipped(machine, "slice-0-worker-5")
    machine.wait("worker ")


def test_a_machine_that_nobody_numbered_is_not_the_first(machine):
    machine.unset("number")
    (machine.path / "bin/hostname").write_text("#!/bin/bash\necho t1v-n-0a1b2c-w-\n")
    assert machine.boot(script()) == 2
    assert "does not say which worker" in shipped(machine, "unknown")
    assert not machine.bucket("bucket/runs/pit/status.json").exists()
    assert not machine.called("gcloud compute")


def test_metadata_that_does_not_answer_is_asked_until_it_does(machine):
    """Neither the worker's number nor the slice's is 0 for want of an answer."""
    machine.set("number", "3")
    machine.set("tpu-env", "MEGASCALE_SLICE_ID: '1'\n")
    machine.set("deaf", "\n" * 12)
    assert machine.boot(script()) == 0
    assert len(machine.called("curl")) == 14
    assert "this is slice-1-worker-3" in machine.log
    machine.wait("worker ")


def test_the_log_of_a_worker_that_fails_at_once_is_shipped(machine):
    """Nor does what the script ships on its way out replace it."""
    machine.set("worker-fails")
    machine.set("slow-ship")
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


# Failing -------------------------------------------------------------------------------


def test_what_needs_the_network_is_tried_for_a_while(machine):
    machine.set("no-packages")
    assert machine.boot(script()) == 1
    assert len(machine.called("uv venv")) == 8
    assert machine.called("sleep")[:3] == ["sleep 1", "sleep 2", "sleep 4"]
    assert "Failed to fetch" in shipped(machine)
    # The first worker lets go of the slice. The run has not ended: it may be created again.
    status = json.loads(machine.bucket("bucket/runs/pit/status.json").read_text())
    assert (status["state"], status["exit_code"], status["final"]) == ("failed", 1, False)
    assert status["launch"] == ID
    (deleted,) = machine.called("gcloud compute")
    assert deleted.startswith("gcloud compute tpus queued-resources delete pit ")
    assert "--project my-project --zone us-west4-a --force" in deleted
    # The next slice of this launch begins anew.
    machine.unset("no-packages")
    assert machine.boot(script()) == 0
    machine.wait("worker ")


def test_requirements_without_a_solution_are_final_at_once(machine):
    machine.set("no-solution")
    assert machine.boot(script()) == 2
    assert len(machine.called("uv pip install")) == 1
    status = json.loads(machine.bucket("bucket/runs/pit/status.json").read_text())
    assert (status["exit_code"], status["final"]) == (2, True)
    assert "have no solution" in status["reason"]
    assert "No solution found when resolving" in shipped(machine)


def test_another_worker_that_fails_leaves_the_slice_alone(tmp_path):
    machine = uploaded(Machine(tmp_path, number=2))
    machine.set("no-packages")
    assert machine.boot(script()) == 1
    assert "Failed to fetch" in shipped(machine, "slice-0-worker-2")
    assert not machine.called("gcloud compute")
    assert not machine.bucket("bucket/runs/pit/status.json").exists()
    assert verdict.read(RunDir(machine.bucket("bucket/runs/pit")), ID) is None


def test_another_worker_that_would_fail_again_says_so_to_the_first(tmp_path):
    machine = uploaded(Machine(tmp_path, number=2))
    assert machine.boot(script(data="gs://data-bucket/typo", data_mode="stage")) == 2
    run = RunDir(machine.bucket("bucket/runs/pit"))
    reason = "start-up: there is nothing at gs://data-bucket/typo, or the workers may not read it"
    assert verdict.read(run, ID) == (2, f"slice-0-worker-2: {reason}")
    assert verdict.read(run, "ffffffffffff") is None
    assert run.status() == {}
    assert not machine.called("gcloud compute")


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
