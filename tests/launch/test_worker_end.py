"""How a TPU worker ends: what it says, what it deletes, and what systemd sees of it."""

import grpc
import pytest

from pit_jax.errors import ConfigError, StorageError
from pit_jax.launch import queue, verdict, worker

from .fake_tpu import service as service
from .test_queue import ID, asked
from .test_worker import ends, words, work
from .test_worker import machine as machine
from .test_worker import quick as quick
from .test_worker import run as run


@pytest.mark.parametrize("code", [0, 2, 3, 4, 5, 1, 134])
def test_the_leader_deletes_its_own_resource_at_the_end(monkeypatch, service, machine, run, code):
    machine(0)
    service.add(asked())
    ends(monkeypatch, code)
    assert work(run) == code
    assert service.state("pit") == "DELETING"


@pytest.mark.parametrize("code", [75, 130])
def test_who_is_told_to_stop_deletes_nothing(monkeypatch, service, machine, run, code):
    machine(0)
    service.add(asked())
    ends(monkeypatch, code)
    assert work(run) == code
    assert service.calls == []
    assert not run.status()["final"]


@pytest.mark.parametrize(("number", "slice_number"), [(1, 0), (0, 1)])
def test_the_others_delete_nothing(monkeypatch, service, machine, run, number, slice_number):
    machine(number, slice_number)
    service.add(asked())
    ends(monkeypatch, 3)
    assert work(run) == 3
    assert service.calls == []
    assert run.status() == {}


def test_a_second_boot_after_the_end_only_deletes(monkeypatch, service, machine, run):
    machine(0)
    service.add(asked())
    run.write_status(state="done", exit_code=0, final=True, launch=ID)
    calls = ends(monkeypatch, 0)
    assert work(run) == 0
    assert calls == []
    assert service.state("pit") == "DELETING"


def test_the_end_of_an_earlier_launch_is_not_ours(monkeypatch, service, machine, run):
    machine(0)
    run.write_status(state="failed", exit_code=2, final=True, launch="f" * 12)
    ends(monkeypatch, 0)
    assert work(run) == 0
    assert run.status()["launch"] == ID


def test_a_config_that_cannot_be_is_the_end(service, machine, run):
    machine(0)
    service.add(asked())
    run.write("launch/config.json", '{"model": {"depht": 3}}')
    assert work(run) == 2
    status = run.status()
    assert (status["state"], status["exit_code"], status["final"]) == ("failed", 2, True)
    assert "depht" in status["reason"]
    assert service.state("pit") == "DELETING"


def test_storage_that_stays_away_is_tried_again_and_then_the_end(
    monkeypatch, service, machine, run
):
    machine(0)
    service.add(asked())
    calls = ends(monkeypatch, StorageError("gs://bucket could not be read"))
    assert work(run) == 5
    assert len(calls) == worker.ATTEMPTS
    assert run.status()["reason"] == "gs://bucket could not be read"
    assert service.state("pit") == "DELETING"


def test_a_bug_of_the_supervisor_leaves_no_machine_behind(
    monkeypatch, service, machine, run, capsys
):
    machine(0)
    service.add(asked())
    ends(monkeypatch, RuntimeError("a bug"))
    assert work(run) == 1
    assert run.status()["reason"] == "RuntimeError: a bug"
    assert "Traceback" in capsys.readouterr().err
    assert service.state("pit") == "DELETING"


@pytest.mark.parametrize("error", [StorageError("no bucket"), RuntimeError("a bug")])
def test_another_worker_that_cannot_begin_is_started_again(
    monkeypatch, service, machine, run, error
):
    machine(1)
    ends(monkeypatch, error)
    with pytest.raises(type(error)):
        work(run)
    assert run.status() == {}


def test_the_others_say_why_they_end_the_run(service, machine, run):
    machine(2, 1)
    run.write("launch/config.json", '{"model": {"depht": 3}}')
    assert work(run) == 2
    code, reason = verdict.read(run, ID)
    assert code == 2
    assert reason.startswith("slice-1-worker-2: ")
    assert "depht" in reason
    assert run.status() == {}


@pytest.mark.parametrize(
    ("on", "code", "ends_with"),
    [("tpu", code, 0) for code in (0, 1, 2, 3, 4, 5, 134)]
    + [("tpu", 75, 75), ("tpu", 130, 130), ("gke", 0, 0), ("gke", 2, 2), ("gke", 75, 75)],
)
def test_systemd_sees_0_once_a_worker_has_settled(
    monkeypatch, service, machine, run, on, code, ends_with
):
    """Anything else, and it would start the worker again; GKE wants to know the run's code."""
    machine(0)
    ends(monkeypatch, code)
    with pytest.raises(SystemExit) as ended:
        worker.main(words(run, on=on))
    assert ended.value.code == ends_with


# Deleting --------------------------------------------------------------------------------


def test_a_deletion_is_tried_again(monkeypatch, service, machine, run, capsys):
    machine(0)
    service.add(asked())
    monkeypatch.setattr("pit_jax.launch.queue.PATIENCE_S", 0.01)
    service.fail("DeleteQueuedResource", grpc.StatusCode.INTERNAL, times=2)
    ends(monkeypatch, 0)
    assert work(run) == 0
    assert service.state("pit") == "DELETING"
    assert capsys.readouterr().err.count("was not deleted") == 2


class NoCredentials(queue.Client):
    """As while the metadata server is away; the first ones of a process."""

    left = 0

    def __init__(self, project: str, zone: str):
        type(self).left -= 1
        if self.left >= 0:
            raise ConfigError("there are no Google Cloud credentials here")
        super().__init__(project, zone)


def test_credentials_that_come_late_leave_no_slice_alive(monkeypatch, service, machine, run):
    machine(0)
    service.add(asked())
    monkeypatch.setattr(queue, "Client", NoCredentials)
    monkeypatch.setattr(NoCredentials, "left", worker.ATTEMPTS - 1)
    ends(monkeypatch, 0)
    assert work(run) == 0
    assert service.state("pit") == "DELETING"


def test_who_could_not_delete_is_started_again_and_does(monkeypatch, service, machine, run):
    machine(0)
    service.add(asked())
    monkeypatch.setattr(queue, "Client", NoCredentials)
    monkeypatch.setattr(NoCredentials, "left", worker.ATTEMPTS)
    calls = ends(monkeypatch, 3)
    with pytest.raises(SystemExit) as ended:
        worker.main(words(run))
    assert ended.value.code != 0
    with pytest.raises(SystemExit) as ended:
        worker.main(words(run))
    assert ended.value.code == 0
    assert service.state("pit") == "DELETING"
    assert len(calls) == 1


def test_a_resource_of_another_launch_is_left_alone(monkeypatch, service, machine, run, capsys):
    machine(0)
    service.add(asked(id="f" * 12))
    ends(monkeypatch, 0)
    assert work(run) == 0
    assert "not of this launch" in capsys.readouterr().err
    assert service.calls == [("GetQueuedResource", "pit")]


@pytest.mark.parametrize(
    ("why", "advice"), [("no", "roles/tpu.admin"), ("SERVICE_DISABLED", "gcloud services enable")]
)
def test_a_deletion_that_is_forbidden_says_what_is_missing(
    monkeypatch, service, machine, run, capsys, why, advice
):
    machine(0)
    service.add(asked())
    service.fail("DeleteQueuedResource", grpc.StatusCode.PERMISSION_DENIED, why, times=9)
    ends(monkeypatch, 3)
    assert work(run) == 3
    assert advice in capsys.readouterr().err
    assert service.count("DeleteQueuedResource") == 1
