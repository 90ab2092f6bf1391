"""One writer a run directory: on a disk and in a bucket, whatever dies, sleeps or jumps."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from pit_jax import lease, lease_holder, lease_store, rundir
from pit_jax.errors import ConfigError, StorageError

SHORT = {"renew_s": 0.1, "ttl_s": 0.5}
HOLDS = """
import sys, time
from pit_jax import lease, rundir
with lease.held(rundir.RunDir(sys.argv[1]), renew_s=0.1, ttl_s=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""
# Never renews by itself, or it could be stopped in the middle of that.
ASKED = """
import sys
from pit_jax import lease, rundir
from pit_jax.errors import StorageError
with lease.held(rundir.RunDir(sys.argv[1]), renew_s=100, ttl_s=0.5) as held:
    print("held", flush=True)
    for line in sys.stdin:
        try:
            held.check()
            print("may", flush=True)
        except StorageError as error:
            print(error, flush=True)
"""


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path) -> str:
    """A run directory that is not there yet, on a disk and in a bucket."""
    if request.param == "disk":
        return str(tmp_path / "run")
    return request.getfixturevalue("bucket") + "/run"


def at(place: str) -> rundir.RunDir:
    return rundir.RunDir(place)


def content(place: str) -> dict | None:
    path = epath.Path(place) / lease.FILE
    return json.loads(path.read_text()) if path.exists() else None


def write(place: str, text: str) -> None:
    epath.Path(place).mkdir(parents=True, exist_ok=True)
    (epath.Path(place) / lease.FILE).write_text(text)


def elsewhere(monkeypatch) -> None:
    """From now on this is another machine, for all that a lease can tell."""
    monkeypatch.setattr(lease_holder, "_machine", lambda: "another")


@contextlib.contextmanager
def holder(place: str, ttl_s: float = 60.0):
    """Another process that holds the lease."""
    words = [sys.executable, "-c", HOLDS, place, str(ttl_s)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_it_names_its_holder_and_is_gone_afterwards(place):
    with lease.held(at(place), "me"):
        found = content(place)
        assert found["owner"] == "me"
        assert [p["pid"] for p in found["processes"]] == [os.getpid()]
    assert content(place) is None


def test_a_second_one_is_refused_at_once_and_told_by_whom(place):
    watched = []
    with holder(place) as process:
        started = time.monotonic()
        with (
            pytest.raises(
                ConfigError,
                match=rf"is being written by process {process.pid} on host \S+, which renewed its"
                r" lease \d s ago: end that run, or name another directory",
            ),
            lease.held(at(place), say=watched.append),
        ):
            pass
        assert not watched
        assert time.monotonic() - started < 20
        assert content(place)["processes"][0]["pid"] == process.pid


def test_the_lease_of_a_killed_process_is_taken_at_once(place):
    with holder(place) as process:
        process.kill()
        process.wait()
        started, watched = time.monotonic(), []
        with lease.held(at(place), "me", say=watched.append):
            assert not watched
            assert time.monotonic() - started < 20  # a wait would take the minute of its lease
            assert content(place)["owner"] == "me"


def test_a_number_used_again_is_not_the_holder(place):
    with holder(place) as process:
        process.kill()
        process.wait()
    found = content(place)
    found["processes"][0]["pid"] = os.getpid()
    write(place, json.dumps(found))
    with lease.held(at(place), "me"):
        assert content(place)["owner"] == "me"


def test_from_another_machine_it_is_watched_and_refused_when_it_is_renewed(place, monkeypatch):
    said = []
    with holder(place) as process:
        elsewhere(monkeypatch)
        with (
            pytest.raises(ConfigError, match=rf"written by process {process.pid} on host"),
            lease.held(at(place), say=said.append),
        ):
            pass
    assert len(said) == 1
    assert "holds the directory; it is taken over unless that renews" in said[0]


def test_from_another_machine_it_is_taken_over_once_it_has_run_out(place, monkeypatch):
    with holder(place, ttl_s=0.5) as process:
        process.kill()
        process.wait()
    elsewhere(monkeypatch)
    started = time.monotonic()
    with lease.held(at(place), "me", say=lambda line: None):
        assert 0.5 <= time.monotonic() - started < 20
        assert content(place)["owner"] == "me"


def test_the_same_owner_takes_it_and_the_last_one_gives_it_back(place, monkeypatch):
    """A supervisor and its trainer, which comes and goes."""
    monkeypatch.setenv(lease.OWNER, "supervisor")
    with lease.held(at(place), **SHORT):
        code = HOLDS.replace("time.sleep(60)", "")
        done = subprocess.run([sys.executable, "-c", code, place, "60"], capture_output=True)
        assert done.stdout == b"held\n", done.stderr
        assert content(place)["owner"] == "supervisor"
        with holder(place) as trainer:
            pids = {p["pid"] for p in content(place)["processes"]}
            assert pids == {os.getpid(), trainer.pid}
        deadline = time.monotonic() + 10  # the next renewal leaves the killed one out
        while len(content(place)["processes"]) > 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [p["pid"] for p in content(place)["processes"]] == [os.getpid()]
    assert content(place) is None


def test_clocks_may_jump(place, monkeypatch):
    with lease.held(at(place), "me", **SHORT) as held:
        for jump in (1e9, -1e9):
            monkeypatch.setattr(time, "time", lambda jump=jump: jump)
            before = content(place)["write"]
            deadline = time.monotonic() + 10
            while content(place)["write"] == before and time.monotonic() < deadline:
                time.sleep(0.02)
            held.check()
            with pytest.raises(ConfigError, match="is being written by"), lease.held(at(place)):
                pass


def test_a_lost_lease_is_noticed_before_the_next_write(place):
    run = at(place)
    with lease.held(run, "me", **SHORT) as held:
        run.write_status(state="running")
        found = content(place)
        found["processes"][0] |= {"host": "vm-7", "pid": 4711}
        write(place, json.dumps(found | {"owner": "another"}))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                held.check()
            except StorageError:
                break
            time.sleep(0.02)
        for written in (lambda: run.write_status(state="done"), lambda: run.write("x", "")):
            with pytest.raises(
                StorageError, match=r"was taken over by process 4711 on host vm-7: this run ends"
            ):
                written()
        assert run.status()["state"] == "running"
    assert content(place)["owner"] == "another"  # which it is left to
    run.write("x", "")  # and without a lease nobody asks


def test_who_slept_goes_on_if_nobody_took_it_and_ends_if_one_did(tmp_path):
    """SIGSTOP for longer than the lease lives: the holder itself may not write then."""
    place = str(tmp_path)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    process = subprocess.Popen([sys.executable, "-c", ASKED, place], **pipes)

    def asked() -> str:
        process.stdin.write("\n")
        return process.stdout.readline()

    try:
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.7)
        process.send_signal(signal.SIGCONT)
        assert asked() == "may\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.7)
        with lease.held(at(place), "me"):
            process.send_signal(signal.SIGCONT)
            assert "was taken over by process" in asked()
    finally:
        process.kill()
        process.communicate()


def test_who_cannot_renew_for_as_long_as_it_lives_may_not_write(place, monkeypatch):
    with lease.held(at(place), "me", **SHORT) as held:

        def fails(*anything):
            raise StorageError("gone")

        monkeypatch.setattr(held._store, "read", fails)
        held.check()
        time.sleep(0.6)
        with pytest.raises(StorageError, match=r"could not be renewed for \d s: another run may"):
            held.check()
        monkeypatch.undo()


def test_a_lease_deleted_by_hand_is_written_again(place):
    with lease.held(at(place), "me", renew_s=0.1, ttl_s=30) as held:
        (epath.Path(place) / lease.FILE).unlink()
        deadline = time.monotonic() + 10
        while content(place) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert content(place)["owner"] == "me"
        held.check()


@pytest.mark.parametrize(
    "text", ["", "{", "5", "\udc80", '{"owner": 3, "processes": "x"}', '{"processes": [{}, 1]}']
)
def test_an_unreadable_one_is_watched_and_then_taken(tmp_path, text, monkeypatch):
    monkeypatch.setattr(lease_holder, "TTL_S", 0.3)
    (tmp_path / lease.FILE).write_bytes(text.encode(errors="surrogateescape"))
    started = time.monotonic()
    with lease.held(at(str(tmp_path)), "me", say=lambda line: None):
        assert 0.3 <= time.monotonic() - started < 20
        assert content(str(tmp_path))["owner"] == "me"


@pytest.mark.parametrize("before", ["nothing", "dead"])
def test_of_many_that_want_it_at_once_one_gets_it(place, before):
    if before == "dead":
        with holder(place) as process:
            process.kill()
            process.wait()
    together, ended = threading.Barrier(20), threading.Event()
    held, refused = [], []

    def want() -> None:
        run = at(place)
        together.wait()
        try:
            with lease.held(run):
                held.append(run)
                ended.wait(30)
        except ConfigError:
            refused.append(run)

    threads = [threading.Thread(target=want) for _ in range(20)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(held) + len(refused) < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    ended.set()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 19)


def test_of_many_processes_one_gets_it(place):
    words = [sys.executable, "-c", HOLDS, place, "60"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    group = [subprocess.Popen(words, **pipes) for _ in range(6)]
    try:
        deadline = time.monotonic() + 60
        while sum(p.poll() is None for p in group) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        living = [p for p in group if p.poll() is None]
        assert len(living) == 1
        assert living[0].stdout.readline() == "held\n"
    finally:
        for process in group:
            process.kill()
        errors = [process.communicate()[1] for process in group]
    assert sum("is being written by process" in error for error in errors) == 5


def test_a_directory_that_cannot_be_written_is_a_storage_fault(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"lease.json could not be written: "),
        lease.held(at(str(tmp_path / "file" / "run"))),
    ):
        pass


def test_who_was_stopped_while_it_wrote_keeps_nobody_waiting_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_store, "_LOCKED_S", 0.1)
    with open(tmp_path / ".lease.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (
            pytest.raises(StorageError, match="a process that has stopped holds its lock"),
            lease.held(at(str(tmp_path))),
        ):
            pass
    with lease.held(at(str(tmp_path))):  # the lock ended with its process
        pass


def test_it_costs_a_start_little(tmp_path):
    seconds = []
    for number in range(5):
        started = time.perf_counter()
        with lease.held(at(str(tmp_path / str(number)))):
            pass
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5  # no waiting
