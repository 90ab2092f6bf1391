"""What a TPU worker runs: who it is, what it starts, and when it deletes its own slice."""

import contextlib
import http.server
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest

from pit_jax import configfile
from pit_jax.errors import ConfigError, StorageError
from pit_jax.launch import worker
from pit_jax.rundir import RunDir

from .fake_tpu import service as service
from .test_queue import ID, asked

ROOT = pathlib.Path(__file__).parent.parent.parent


@contextlib.contextmanager
def metadata(**attributes: str):
    """A metadata server on loopback; yields HOST:PORT."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
            known = attributes.get(name.replace("-", "_"))
            there = known is not None and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if there else 404)
            self.end_headers()
            self.wfile.write((known or "").encode() if there else b"")

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("TPU_WORKER_ID", "MEGASCALE_SLICE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(worker, "PAUSE_S", 0.01)


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine worker `number` of a slice."""

    def be(number: int, slice_number: int = 0) -> None:
        monkeypatch.setenv("TPU_WORKER_ID", str(number))
        monkeypatch.setenv("MEGASCALE_SLICE_ID", str(slice_number))

    return be


@pytest.fixture
def run(tmp_path, resolved) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.write("launch/config.json", configfile.to_json(resolved))
    return made


def words(run: RunDir, *more: str) -> list[str]:
    given = list(more) or ["--config", str(run.path / "launch/config.json")]
    given += ["--workdir", str(run.path), "--launch", ID, "--name", "pit"]
    return [*given, "--project", "my-project", "--zone", "us-west4-a"]


def ends(monkeypatch, code: int | Exception, says: bool = True):
    """A supervisor that ends at once, having said so in status.json unless not `says`."""
    calls = []

    def supervise(plan, run, limits, name, launch, leads):
        calls.append((plan(1), limits, name, leads))
        if isinstance(code, Exception):
            raise code
        if leads and says:
            final = code not in (75, 130)
            run.write_status(state="x", exit_code=code, final=final, launch=launch)
        return code

    monkeypatch.setattr(worker, "supervise", supervise)
    return calls


def work(run: RunDir, *more: str) -> int:
    return worker.work(worker.parser().parse_args(words(run, *more)))


# Who this is -----------------------------------------------------------------------------


def test_the_metadata_says_who_this_is(monkeypatch):
    env = "ACCELERATOR_TYPE: 'v5litepod-16'\nMEGASCALE_SLICE_ID: '3'\nZONE: 'us-west4-a'\n"
    with metadata(agent_worker_number="2", tpu_env=env) as host:
        monkeypatch.setenv(worker.HOST, host)
        assert worker.number_and_slice() == (2, 3)
    with metadata(agent_worker_number="0", tpu_env="ZONE: 'us-west4-a'") as host:
        monkeypatch.setenv(worker.HOST, host)
        assert worker.number_and_slice() == (0, 0)


def test_the_environment_says_who_this_is_on_gke(monkeypatch, machine):
    with metadata() as host:
        monkeypatch.setenv(worker.HOST, host)
        machine(5, 1)
        assert worker.number_and_slice() == (5, 1)


def test_a_machine_that_is_no_worker_is_refused(monkeypatch):
    with metadata() as host:
        monkeypatch.setenv(worker.HOST, host)
        with pytest.raises(ConfigError, match="agent-worker-number"):
            worker.number_and_slice()


# What it starts --------------------------------------------------------------------------


def test_it_trains_the_uploaded_config(monkeypatch, service, machine, run):
    machine(3, 1)
    calls = ends(monkeypatch, 0)
    assert work(run) == 0
    [([process], limits, name, leads)] = calls
    assert (name, leads) == ("slice-1-worker-3", False)
    assert process.words[1:] == [
        *("-m", "pit_jax.cli", "train", "--config", str(run.path / "launch/config.json")),
        *("--workdir", str(run.path)),
    ]
    assert (limits.retries, limits.hang_s) == (5, 1800)


def test_it_works_through_a_shard_of_a_sweep(monkeypatch, service, machine, run):
    machine(0)
    calls = ends(monkeypatch, 0)
    sweep = ["--sweep", "study/experiments/x.py:tiny", "--shard", "1/3", "--directory", "gs://b/s"]
    assert work(run, *sweep, "--override=--config.train.steps=5") == 0
    assert calls[0][0][0].words[3:] == [
        *("sweep", "study/experiments/x.py:tiny", "--workdir", "gs://b/s", "--shard", "1/3"),
        "--config.train.steps=5",
    ]


# Its end ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("holder", "state"), [("f" * 12, "DELETING"), (ID, "CREATING")])
def test_a_directory_of_another_is_left_as_it_is(monkeypatch, service, machine, run, holder, state):
    """A resource of no use goes; not one that another supervisor of this launch may run on."""
    machine(0)
    service.add(asked())
    run.write_status(state="running", final=False, launch=holder)
    ends(monkeypatch, ConfigError("is being written by host, process 7"))
    before = run.status()
    assert work(run) == 2
    assert run.status() == before
    assert service.state("pit") == state


def test_a_deletion_is_tried_again(monkeypatch, service, machine, run, capsys):
    machine(0)
    service.add(asked())
    monkeypatch.setattr("pit_jax.launch.queue.PATIENCE_S", 0.01)
    service.fail("DeleteQueuedResource", grpc.StatusCode.INTERNAL, times=2)
    ends(monkeypatch, 0)
    assert work(run) == 0
    assert service.state("pit") == "DELETING"
    assert capsys.readouterr().err.count("was not deleted") == 2


def test_a_deletion_that_is_forbidden_says_which_role(monkeypatch, service, machine, run, capsys):
    machine(0)
    service.add(asked())
    service.fail("DeleteQueuedResource", grpc.StatusCode.PERMISSION_DENIED, "no", times=9)
    ends(monkeypatch, 3)
    assert work(run) == 3
    assert "roles/tpu.admin" in capsys.readouterr().err
    assert service.count("DeleteQueuedResource") == 1


# The whole of it -------------------------------------------------------------------------


def test_a_real_run_ends_and_takes_its_resource_along(service, run):
    service.add(asked())
    with metadata(agent_worker_number="0") as host:
        done = subprocess.run(
            [sys.executable, "-m", "pit_jax.launch.worker", *words(run)],
            env={**os.environ, worker.HOST: host},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    status = run.status()
    assert (status["state"], status["final"], status["launch"]) == ("done", True, ID)
    assert service.state("pit") == "DELETING"
    assert "10/10" in (run.path / "logs/slice-0-worker-0.log").read_text()
    assert json.loads((run.path / "heartbeat.json").read_text())["launch"] == ID


def test_a_preempted_run_saves_and_leaves_its_resource(service, run, resolved):
    resolved.train.steps = 100_000
    resolved.eval.every = "100000 steps"
    resolved.checkpoint.every = "100000 steps"
    run.write("launch/config.json", configfile.to_json(resolved))
    service.add(asked())
    with metadata(agent_worker_number="0") as host:
        process = subprocess.Popen(
            [sys.executable, "-m", "pit_jax.launch.worker", *words(run)],
            env={**os.environ, worker.HOST: host},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 240
            while not run.rows() and time.monotonic() < deadline:
                assert process.poll() is None
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 75
        finally:
            process.kill()
    assert run.status()["state"] == "preempted"
    assert service.state("pit") == "CREATING"
    assert [path.name for path in (run.path / "manifests").iterdir()]
