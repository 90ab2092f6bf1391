"""What `pit-jax launch logs` prints and waits for, and a local launch, which has but files."""

import threading
import time

import grpc
import pytest

from pit_jax import cli
from pit_jax.launch import logs, upload
from pit_jax.rundir import RunDir

from .fake_tpu import service as service
from .test_commands import at_work, state
from .test_commands import launched as launched
from .test_commands import quick as quick
from .test_queue import ID


def test_the_end_of_the_first_workers_log(service, launched, capsys):
    run = launched()
    run.write("logs/slice-0-worker-1.log", "other\n")
    run.write("logs/slice-0-worker-0.log", "".join(f"line {n}\n" for n in range(500)))
    assert cli.run(["launch", "logs", "pit", "--lines", "2"]) == 0
    assert capsys.readouterr().out == "line 498\nline 499\n"
    cli.run(["launch", "logs", "pit"])
    assert len(capsys.readouterr().out.splitlines()) == 100
    cli.run(["launch", "logs", "pit", "--worker", "slice-0-worker-1"])
    assert capsys.readouterr().out == "other\n"


def test_before_a_run_has_started_the_log_of_the_start_up_is_shown(service, launched, capsys):
    launched().write("logs/slice-0-worker-0-startup.log", "installing\n")
    cli.run(["launch", "logs", "pit"])
    assert capsys.readouterr().out == "installing\n"


@pytest.mark.parametrize("worker", ["../launch", "..", "slice-9", "/etc/passwd"])
def test_a_log_that_is_none(service, launched, capsys, worker):
    launched().write("logs/slice-0-worker-0.log", "x\n")
    assert cli.run(["launch", "logs", "pit", "--worker", worker]) == 2
    assert capsys.readouterr().out == ""


def test_no_log_yet(service, launched, capsys):
    launched()
    assert cli.run(["launch", "logs", "pit"]) == 2
    assert "pit has no log yet: its resource is ACCEPTED" in capsys.readouterr().err


QUOTA = ("FAILED", 8, "Quota 'TPUV5sLitepod' exhausted")
LOG = ("logs/slice-0-worker-0.log", "a\n")


def ends(run):
    return lambda: run.write_status(state="done", exit_code=0, final=True, launch=ID)


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_without_a_log_a_resource_that_failed_is_the_end(service, launched, capsys, follow):
    launched()
    state(service, "pit", QUOTA)
    assert cli.run(["launch", "logs", "pit", *follow]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "its resource is FAILED (Quota 'TPUV5sLitepod' exhausted)" in line
    assert "yet" not in line
    service.resources.clear()
    assert cli.run(["launch", "logs", "pit", *follow]) == 2
    assert "its resource is gone" in capsys.readouterr().err


def test_following_ends_where_nobody_writes_any_more(service, launched, capsys):
    launched().write(*LOG)
    state(service, "pit", "ACTIVE")
    service._left["pit"] = ["ACTIVE", QUOTA]
    assert cli.run(["launch", "logs", "pit", "--follow"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "a\n"
    [line] = printed.err.splitlines()
    assert "its resource is FAILED (Quota 'TPUV5sLitepod' exhausted), and the run has not" in line


def test_following_says_what_it_waits_for_each_change_once(service, launched, capsys):
    run = launched()
    states = [*["WAITING_FOR_RESOURCES"] * 3, "PROVISIONING", "ACTIVE", "ACTIVE"]
    service._left["pit"] = [*states, lambda: run.write(*LOG), "ACTIVE", ends(run)]
    assert cli.run(["launch", "logs", "pit", "--follow"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "a\n"
    assert printed.err.splitlines() == [
        *("waiting: WAITING_FOR_RESOURCES", "waiting: PROVISIONING", "ACTIVE"),
    ]


def test_following_says_what_the_last_worker_said(service, launched, capsys):
    """It gave its resource back, as where the start-up failed, and nobody watches."""
    run = launched()
    run.write(*LOG)
    run.write_status(state="failed", exit_code=1, final=False, launch=ID, reason="no pip")
    service.resources.clear()
    assert cli.run(["launch", "logs", "pit", "--follow"]) == 2
    said = capsys.readouterr().err
    assert "its resource is gone, and the run has not ended: no pip" in said


def test_following_goes_on_where_a_watcher_creates_it_again(service, launched, capsys):
    run = launched()
    run.write(*LOG)
    upload.note(run, ID, watch={"recreations": 1, "step": 0, "pending": True})
    state(service, "pit", ("FAILED", 8, "no capacity"))
    service._left["pit"] = [("FAILED", 8, "no capacity"), "FAILED", "FAILED", ends(run), "FAILED"]
    assert cli.run(["launch", "logs", "pit", "--follow"]) == 0


def test_following_goes_on_where_the_cloud_cannot_be_asked(service, launched, capsys):
    run = launched()
    run.write(*LOG)
    denied = grpc.StatusCode.PERMISSION_DENIED
    service.fail("GetQueuedResource", denied, "tpu.queuedResources.get denied", times=3)
    service._left["pit"] = ["ACTIVE", ends(run), "ACTIVE"]
    assert cli.run(["launch", "logs", "pit", "--follow"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "a\n"
    assert printed.err.count("note: ") == 1


def test_logs_of_what_was_stopped_before_it_wrote_one(service, launched, capsys):
    launched()
    cli.run(["launch", "stop", "pit", "--yes"])
    assert cli.run(["launch", "logs", "pit", "--follow"]) == 2
    assert "it was stopped before a worker wrote one" in capsys.readouterr().err


def test_following_prints_each_line_once_until_the_run_ends(service, launched, capsys):
    """The file is rewritten as a whole, and its beginning is dropped."""
    run = launched()
    lines = [f"line {n}" for n in range(60)]

    def write() -> None:
        for end in range(1, 61):
            kept = lines[max(0, end - 20) : end]
            run.write("logs/slice-0-worker-0.log", "".join(f"{line}\n" for line in kept))
            time.sleep(0.01)
        run.write_status(state="done", exit_code=0, final=True, launch=ID)

    writer = threading.Thread(target=write)
    writer.start()
    assert cli.run(["launch", "logs", "pit", "--follow"]) == 0
    writer.join()
    assert capsys.readouterr().out.splitlines() == lines


def test_the_last_lines_come_after_the_status(service, launched, capsys, monkeypatch):
    run = launched()
    run.write(*LOG)
    run.write_status(state="done", exit_code=0, final=True, launch=ID)
    monkeypatch.setattr("time.sleep", lambda s: run.write("logs/slice-0-worker-0.log", "a\nb\n"))
    assert cli.run(["launch", "logs", "pit", "--follow"]) == 0
    assert capsys.readouterr().out == "a\nb\n"


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ("", "ab", "ab"),
        ("ab", "ab", ""),
        ("ab", "abc", "c"),
        ("abc", "bcd", "d"),
        ("aaab", "abaa", "aa"),
        ("aab", "baab", "aab"),
        ("abc", "xyz", "xyz"),
        ("abc", "", ""),
        ("aa", "aaa", "a"),
    ],
)
def test_what_is_new_in_a_log(before, after, new):
    assert [*logs.added([*before], [*after])] == [*new]


def test_what_a_worker_printed_does_not_reach_the_terminal_raw(service, launched, capsys):
    launched().write("logs/slice-0-worker-0.log", b"\x1b[2Jgone \xff\n")
    cli.run(["launch", "logs", "pit"])
    assert "\x1b" not in capsys.readouterr().out


# A launch of --target local ----------------------------------------------------------------


@pytest.fixture
def local(tmp_path, monkeypatch):
    """Such a run in runs/here, as it stands while it is at work."""
    monkeypatch.chdir(tmp_path)
    run = RunDir(tmp_path / "runs" / "here")
    at_work(run)
    run.write("logs/process-0.log", "a\n")
    return run


def test_the_status_of_a_local_launch_is_that_of_its_directory(local, capsys):
    assert cli.run(["launch", "status", "runs/here"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["launch"] == f"runs/here ({ID})"
    assert (lines["target"], lines["run"], lines["step"]) == ("local", "running", "120/50k")
    assert lines["logs"] == "process-0"
    assert not {"resource", "accelerator", "created"} & lines.keys()


def test_following_a_local_launch_ends_with_it(local, capsys):
    def stops() -> None:
        time.sleep(0.1)
        local.write("logs/process-0.log", "a\nb\n")
        local.write_status(state="preempted", exit_code=130, final=False, reason="SIGINT")

    stopping = threading.Thread(target=stops)
    stopping.start()
    assert cli.run(["launch", "logs", "runs/here", "--follow"]) == 0
    stopping.join()
    assert capsys.readouterr().out == "a\nb\n"


def test_a_local_launch_is_stopped_and_watched_where_it_runs(local, capsys):
    for verb in ("stop", "watch"):
        assert cli.run(["launch", verb, "runs/here"]) == 2
        said = capsys.readouterr().err
        assert "runs/here was launched with --target local, which stays in the foreground" in said


def test_a_directory_without_a_run(local, capsys):
    assert cli.run(["launch", "status", "runs/heer"]) == 2
    assert "runs/heer holds no run that was launched" in capsys.readouterr().err
