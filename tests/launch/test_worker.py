"""What a TPU worker runs: who it is, what it starts, and whose directory it writes."""

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

import pytest

from pit_jax import configfile, lease_store
from pit_jax.errors import ConfigError, PitError, StorageError
from pit_jax.launch import worker
from pit_jax.launch.group import Process
from pit_jax.launch.limits import Limits
from pit_jax.rundir import RunDir

from .fake_tpu import service as service
from .test_queue import ID, asked

ROOT = pathlib.Path(__file__).parent.parent.parent


@contextlib.contextmanager
def metadata(deaf: int = 0, **attributes: str):
    """A metadata server on loopback, yields HOST:PORT; of each name `deaf` questions fail."""
    questions: dict[str, int] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
            known = attributes.get(name.replace("-", "_"))
            there = known is not None and self.headers["Metadata-Flavor"] == "Google"
            questions[name] = questions.get(name, 0) + 1
            self.send_response(503 if questions[name] <= deaf else 200 if there else 404)
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


def words(run: RunDir, *more: str, on: str = "tpu") -> list[str]:
    given = list(more) or ["--config", str(run.path / "launch/config.json")]
    given += ["--workdir", str(run.path), "--launch", ID, "--name", "pit"]
    return given if on == "gke" else [*given, "--project", "my-project", "--zone", "us-west4-a"]


def ends(monkeypatch, *outcomes: int | Exception, says: bool = True):
    """A supervisor that ends at once, having said so in status.json unless not `says`.

    Each try has an outcome, and all after them the last one.
    """
    calls = []

    def supervise(plan, run, limits, name, launch, leads, owner):
        code = outcomes[min(len(calls), len(outcomes) - 1)]
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


def test_metadata_that_is_late_is_waited_for(monkeypatch):
    env = "MEGASCALE_SLICE_ID: '3'\n"
    with metadata(deaf=worker.ATTEMPTS - 1, agent_worker_number="2", tpu_env=env) as host:
        monkeypatch.setenv(worker.HOST, host)
        assert worker.number_and_slice() == (2, 3)


def test_without_an_answer_nobody_is_the_first_worker(monkeypatch, service, run):
    calls = ends(monkeypatch, 0)
    with metadata(deaf=worker.ATTEMPTS, agent_worker_number="0", tpu_env="x") as host:
        monkeypatch.setenv(worker.HOST, host)
        with pytest.raises(SystemExit) as ended:
            worker.main(words(run))
        assert ended.value.code == 5  # not 0: it is started again
        # The number has come by now, the slice has not.
        with pytest.raises(PitError, match="does not say tpu-env"):
            worker.number_and_slice()
    monkeypatch.setenv(worker.HOST, host)  # nobody listens there any more
    with pytest.raises(PitError, match="does not say agent-worker-number"):
        worker.number_and_slice()
    assert calls == service.calls == []


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


# The directory ---------------------------------------------------------------------------


def test_a_directory_of_another_launch_is_left_as_it_is(monkeypatch, service, machine, run):
    """The resource is of no use and goes."""
    machine(0)
    service.add(asked())
    run.write_status(state="running", final=False, launch="f" * 12)
    calls = ends(monkeypatch, ConfigError("is being written by host, process 7"))
    before = run.status()
    assert work(run) == 2
    assert len(calls) == 1
    assert run.status() == before
    assert service.state("pit") == "DELETING"


def test_a_lease_of_the_same_launch_is_waited_for(monkeypatch, service, machine, run):
    machine(0)
    service.add(asked())
    run.write_status(state="running", final=False, launch=ID)
    held = ConfigError("is being written by host, process 7")
    calls = ends(monkeypatch, held, held, 0)
    assert work(run) == 0
    assert len(calls) == 3
    assert run.status()["final"]
    assert service.state("pit") == "DELETING"


def test_a_lease_that_the_same_launch_keeps_ends_nothing(monkeypatch, service, machine, run):
    machine(0)
    service.add(asked())
    run.write_status(state="running", final=False, launch=ID)
    calls = ends(monkeypatch, ConfigError("is being written by host, process 7"))
    before = run.status()
    with pytest.raises(SystemExit) as ended:
        worker.main(words(run))
    assert ended.value.code == 5  # neither 0 nor one of pod.FINAL_CODES: it is started again
    assert len(calls) == worker.ATTEMPTS
    assert run.status() == before
    assert service.calls == []


@pytest.mark.parametrize("status", [{}, {"state": "running", "launch": ID, "final": False}])
def test_a_worker_is_no_stranger_to_itself(monkeypatch, service, machine, run, status):
    """The lease was written, only the answer was lost: the next try finds its own."""
    machine(0)
    if status:
        run.write_status(**status)
    replace, lost = lease_store.Disk.replace, [True]

    def losing(self, content, version):
        done = replace(self, content, version)
        if lost and lost.pop():
            raise StorageError("lease.json could not be written")
        return done

    monkeypatch.setattr(lease_store.Disk, "replace", losing)
    plan = [Process([sys.executable, "-c", ""])]
    limits = Limits(retries=0, hang_s=0, poll_s=0.01)
    monkeypatch.setattr(worker, "_plan", lambda args, run: (lambda _: plan, limits))
    assert work(run) == 0
    assert run.status()["state"] == "done"


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
