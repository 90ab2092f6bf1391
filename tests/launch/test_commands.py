"""Looking after launches: what status and watch print and do, on TPU and on GKE."""

import json
import threading
import time

import pytest

from pit_jax import cli
from pit_jax.errors import ConfigError
from pit_jax.launch import decision, gke, known, logs, queue, records, tpu, upload, watch
from pit_jax.rundir import RunDir

from .fake_tpu import service as service
from .test_queue import ID, asked


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(queue, "PATIENCE_S", 0.2)
    monkeypatch.setattr(known, "LOOK_S", 0.2)
    monkeypatch.setattr(logs, "FOLLOW_S", 0.02)


@pytest.fixture
def launched(service, tmp_path):
    """Makes a launch: its resource, its directory, the local record."""

    def make(name: str = "pit", number: int = 0, known: bool = True, **fields) -> RunDir:
        run = RunDir(tmp_path / name)
        fields = {"id": f"{number:012x}" if number else ID} | fields
        request = asked(name, **fields)
        made = upload.write_record(run, **tpu.described(request))
        if known:
            records.keep(made)
        service.add(request)
        return run

    return make


def state(service, name: str, entry) -> None:
    service.histories.setdefault(name, [])
    service._left[name] = [entry]
    queue.Client("my-project", "us-west4-a").get(name)


def at_work(run: RunDir, launch: str = ID) -> None:
    run.write_status(state="running", step=120, total=50_000, launch=launch, final=False)
    rows = [{"step": n, "time": 1.0, "train/loss": 2.0 - n / 100} for n in (40, 80)]
    rows.append({"step": 80, "time": 2.0, "eval/accuracy": 0.851})
    run.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


# status ----------------------------------------------------------------------------------


def test_damaged_records_are_passed_over(launched, capsys):
    launched()
    nowhere = '{"name": "e", "target": "tpu", "workdir": "runs/e", "zone": null}'
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"name": 7}'), ("d", "\0"), ("e", nowhere)):
        (records.folder() / f"{name}.json").write_text(text)
    assert [record["name"] for record in records.all_of()] == ["pit"]
    assert cli.run(["launch", "stop", "e", "--yes"]) == 2
    assert "no launch e on TPU or GKE was made" in capsys.readouterr().err


@pytest.mark.parametrize(("field", "value"), [("workdir", []), ("name", {}), ("project", None)])
def test_a_damaged_file_of_the_launch_hides_no_record(service, launched, capsys, field, value):
    run = launched()
    run.write(upload.RECORD, json.dumps({**upload.record(run), field: value}))
    assert cli.run(["launch", "status", "pit"]) == 0
    assert "my-project" in capsys.readouterr().out


def test_status_tells_all_that_is_known(service, launched, capsys):
    run = launched(spot=True)
    at_work(run)
    run.write("heartbeat.json", '{"step": 121, "time": "2026-01-01T00:00:00+00:00", "attempt": 3}')
    run.write("logs/slice-0-worker-0.log", "hello\n")
    state(service, "pit", "ACTIVE")
    assert cli.run(["launch", "status", "pit"]) == 0
    lines = dict(
        line.split(None, 1) for line in capsys.readouterr().out.splitlines() if " " in line.strip()
    )
    assert lines["launch"] == f"pit ({ID})"
    assert lines["target"] == "tpu, my-project, us-west4-a"
    assert lines["accelerator"] == "v5litepod-16, spot"
    assert lines["resource"] == "ACTIVE"
    assert lines["run"] == "running"
    assert lines["step"] == "120/50k"
    assert lines["accuracy"] == "0.851"
    assert "step 121, attempt 3" in lines["heartbeat"]
    assert lines["logs"] == "slice-0-worker-0"


def test_status_has_one_name_for_one_number(service, launched, capsys):
    run = launched()
    run.append_row({"step": 120, "time": 0.0, "train/loss": 0.25, "eval/loss": 0.75})
    run.write_status(state="running", step=120, total=200, launch=ID)
    assert cli.run(["launch", "status", "pit"]) == 0
    names = {line[:15].strip(): line[15:].strip() for line in capsys.readouterr().out.splitlines()}
    assert (names["training loss"], names["held-out loss"]) == ("0.25", "0.75")
    assert "loss" not in names


def test_status_says_why_it_failed(service, launched, capsys):
    run = launched()
    state(service, "pit", ("FAILED", 8, "There is no more capacity in the zone"))
    run.write_status(state="failed", exit_code=3, final=True, launch=ID, reason="loss is nan")
    cli.run(["launch", "status", "pit"])
    printed = capsys.readouterr().out
    assert "FAILED: There is no more capacity in the zone" in printed
    assert "failed, exit code 3, for good" in printed
    assert "loss is nan" in printed


def test_a_name_that_nobody_knows(service, launched, capsys):
    launched()
    assert cli.run(["launch", "status", "pti"]) == 2
    said = capsys.readouterr().err
    assert "no launch pti on TPU or GKE was made from this machine (pit): did you mean pit?" in said
    assert "a --target local one: name its directory" in said
    place = ["--project", "my-project", "--zone", "us-west4-a"]
    assert cli.run(["launch", "status", "pti", *place]) == 2
    assert "there is no queued resource pti in my-project" in capsys.readouterr().err
    assert cli.run(["launch", "status", "$(id)", *place]) == 2
    assert "lower-case letters" in capsys.readouterr().err


def test_a_launch_of_another_machine_is_found_by_its_place(service, tmp_path, capsys):
    run = RunDir(tmp_path / "far")
    script = f"#!/bin/bash\nWORKDIR='{run.path}'\n"
    request = asked(script=script)
    upload.write_record(run, **tpu.described(request))
    at_work(run)
    service.add(request)
    place = ["--project", "my-project", "--zone", "us-west4-a"]
    assert cli.run(["launch", "status", "pit", *place]) == 0
    assert "120/50k" in capsys.readouterr().out


def test_two_launches_of_one_name(launched, capsys):
    launched()
    records.keep({**records.find("pit"), "zone": "us-east1-c"})
    assert len(records.all_of()) == 2
    assert cli.run(["launch", "status", "pit"]) == 2
    assert "add --project and --zone" in capsys.readouterr().err
    assert records.find("pit", zone="us-east1-c")["zone"] == "us-east1-c"


def test_the_directory_of_a_launch_is_as_good_as_its_name(service, launched, capsys, tmp_path):
    launched(known=False)
    assert cli.run(["launch", "status", str(tmp_path / "pit")]) == 0
    assert f"pit ({ID})" in capsys.readouterr().out
    assert cli.run(["launch", "stop", str(tmp_path / "pit"), "--yes"]) == 0
    assert service.state("pit") == "DELETING"


def test_a_verb_that_is_mistyped(capsys):
    assert cli.run(["launch", "stpo", "r1"]) == 2
    assert "did you mean launch stop?" in capsys.readouterr().err
    assert cli.run(["launch", "r1"]) == 2
    assert "there is list, status, logs, stop, watch" in capsys.readouterr().err


# GKE -------------------------------------------------------------------------------------


@pytest.fixture
def on_gke(monkeypatch, tmp_path):
    """A launch on GKE, and what its cluster was asked to delete."""
    deleted = []
    run = RunDir(tmp_path / "jobs")
    fields = {"id": ID, "name": "jobs", "target": "gke", "namespace": "default", "context": "c"}
    records.keep(upload.write_record(run, **fields, accelerator="v5litepod-16", slices=1))
    monkeypatch.setattr(gke, "state", lambda record: "ACTIVE")
    monkeypatch.setattr(gke, "delete", lambda record: deleted.append(record["name"]) or True)
    return deleted


def test_a_launch_on_gke_is_listed_and_stopped_like_any_other(
    on_gke, service, launched, capsys, monkeypatch
):
    launched()
    assert cli.run(["launch", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if line.startswith(" jobs ")]
    assert line.split()[1:3] == ["v5litepod-16", "ACTIVE"]
    assert cli.run(["launch", "status", "jobs"]) == 0
    assert "gke, c, default" in capsys.readouterr().out
    assert cli.run(["launch", "stop", "jobs", "--yes"]) == 0
    assert "jobs is being deleted" in capsys.readouterr().out
    assert on_gke == ["jobs"]
    monkeypatch.setattr(gke, "delete", lambda record: False)
    assert cli.run(["launch", "stop", "jobs", "--yes"]) == 0
    assert "jobs: there is no JobSet of it any more" in capsys.readouterr().out
    assert service.count("DeleteQueuedResource") == 0


def test_a_cluster_out_of_reach(on_gke, capsys, monkeypatch):
    def unreachable(record):
        raise ConfigError("the cluster c does not answer")

    monkeypatch.setattr(gke, "state", unreachable)
    assert cli.run(["launch", "list"]) == 0
    assert "note: jobs: the cluster c does not answer" in capsys.readouterr().out
    assert cli.run(["launch", "status", "jobs"]) == 0
    assert "note: jobs: the cluster c does not answer" in capsys.readouterr().out


def test_what_is_on_gke_is_not_watched(on_gke, capsys):
    assert cli.run(["launch", "watch", "jobs"]) == 2
    assert "starts it again by itself" in capsys.readouterr().err
    assert cli.run(["launch", "watch"]) == 2


# A bucket --------------------------------------------------------------------------------


def test_a_run_in_a_bucket_is_listed_followed_and_stopped(service, bucket, capsys, monkeypatch):
    monkeypatch.setattr(logs, "FOLLOW_IN_A_BUCKET_S", 0.05)
    run = RunDir(f"{bucket}/pit")
    request = asked(workdir=str(run.path))
    records.keep(upload.write_record(run, **tpu.described(request)))
    service.add(request)
    at_work(run)
    assert cli.run(["launch", "list"]) == 0
    assert "120/50k" in capsys.readouterr().out

    def write() -> None:
        for end in range(1, 6):
            text = "".join(f"line {number}\n" for number in range(end))
            run.write("logs/slice-0-worker-0.log", text)
            time.sleep(0.1)
        run.write_status(state="done", exit_code=0, final=True, launch=ID)

    writer = threading.Thread(target=write)
    writer.start()
    assert cli.run(["launch", "logs", "pit", "--follow"]) == 0
    writer.join()
    assert capsys.readouterr().out.splitlines() == [f"line {number}" for number in range(5)]
    assert cli.run(["launch", "stop", "pit", "--yes"]) == 0
    assert upload.record(run)["stopped"]


# watch -----------------------------------------------------------------------------------


def test_watch_ends_with_the_launches(service, launched, capsys, monkeypatch):
    run = launched()
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    monkeypatch.setattr(decision, "GRACE_S", 0.0)
    run.write_status(state="done", exit_code=0, final=True, launch=ID)
    assert cli.run(["launch", "watch"]) == 0
    assert "pit: done, exit code 0" in capsys.readouterr().out
    assert service.resources == {}


PLACE = ["--project", "my-project", "--zone", "us-west4-a"]


def test_watch_finds_what_other_machines_launched(service, launched, capsys, monkeypatch, tmp_path):
    script = f"#!/bin/bash\nWORKDIR={tmp_path}/pit\n"
    run = launched(known=False, script=script)
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    monkeypatch.setattr(decision, "GRACE_S", 0.0)
    run.write_status(state="done", exit_code=0, final=True, launch=ID)
    assert cli.run(["launch", "watch"]) == 2
    assert "add both --project and --zone" in capsys.readouterr().err
    assert cli.run(["launch", "watch", *PLACE]) == 0
    assert "pit: done, exit code 0" in capsys.readouterr().out


def test_watch_says_why_it_found_nothing(service, capsys):
    assert cli.run(["launch", "watch", *PLACE]) == 2
    assert "there is nothing to watch in my-project, us-west4-a" in capsys.readouterr().err
    service.stop()
    assert cli.run(["launch", "watch", *PLACE]) == 2
    assert "Cloud TPU was not reached" in capsys.readouterr().err


def test_watch_says_what_it_gave_up(service, launched, capsys, monkeypatch):
    launched()
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    service._left["pit"] = [("FAILED", 3, "no such accelerator")]
    assert cli.run(["launch", "watch", "pit"]) == 2
    assert "given up: pit" in capsys.readouterr().err
    assert cli.run(["launch", "watch"]) == 2  # it is not taken up again by itself
