"""What becomes of a run that is told to stop, and of one whose supervisor is killed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from pit_jax import signals

from .supervised import Supervised, until
from .supervised import a as a

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="a death of the parent tells on Linux")


def interrupts(a: Supervised, line: str, number: int) -> None:
    """Has the supervisor told to stop when that line is printed, each time."""
    a.on_line = lambda found: os.kill(os.getpid(), number) if line in found else None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_and_the_checkpoint_waited_for(a, number, code):
    interrupts(a, "ready", number)
    told = "told=sleep=0.3,save=12,exit=75 print=ready sleep=30"
    assert a.supervise([told, told.replace("print=ready ", "")]) == code
    assert a.attempts == 1
    assert a.there("manifests/12.json")
    status = a.run.status()
    assert status["state"] == "preempted"
    assert status["exit_code"] == code
    assert not status["final"]
    assert status["reason"] == f"stopped by {number.name}"
    assert a.said() == [f"{number.name}: waiting for the run to save; once more kills it"]


def test_a_later_signal_kills(a, monkeypatch):
    monkeypatch.setattr(signals, "together_s", lambda number: 0.0)
    a.on_line = lambda line: os.kill(os.getpid(), signal.SIGTERM) if " " not in line else None
    # Not asked for by the supervisor's own lines, which have spaces.
    assert a.supervise("told=print=no print=ready sleep=30 sleep=30") == 75
    assert a.said()[1:] == [
        "SIGTERM again: killing the run",
        "killed by SIGKILL; nothing is saved",
    ]


def test_signals_within_a_second_are_one(a):
    a.on_line = lambda line: [os.kill(os.getpid(), signal.SIGTERM) for _ in "ab" if line == "ready"]
    assert a.supervise("told=sleep=0.1,save=1,exit=75 print=ready sleep=30") == 75
    assert a.there("manifests/1.json")
    assert len(a.said()) == 1


def test_a_second_ctrl_c_kills_at_any_pace_at_which_people_press_it(a):
    def press(line: str) -> None:
        if " " not in line:
            time.sleep(0.3 if line == "no" else 0)
            os.kill(os.getpid(), signal.SIGINT)

    a.on_line = press
    assert a.supervise("told=print=no print=ready sleep=30 sleep=30") == 130
    assert a.said()[1] == "SIGINT again: killing the run"


def test_a_run_that_does_not_save_in_time_is_killed(a):
    interrupts(a, "ready", signal.SIGTERM)
    assert a.supervise("save=4 deaf print=ready sleep=30", grace_s=0.2) == 75
    last = "did not save within 0.2 s and was killed; the checkpoint of step 4 is the last one"
    assert a.said()[-1] == last


def test_of_processes_told_to_stop_one_that_crashes_ends_the_others(a):
    interrupts(a, "ready", signal.SIGTERM)
    began = time.monotonic()
    assert a.supervise(["told=print=boom,exit=1 sleep=0.3 print=ready sleep=30", "deaf sleep=30"])
    assert time.monotonic() - began < 20
    assert a.said()[-1] == "process 0: exit code 1; its last line: boom; nothing is saved"


def test_of_processes_told_to_stop_one_without_a_handler_leaves_the_others_time(a):
    """As one is that has nothing more to do, while process 0 still writes the manifest."""
    interrupts(a, "ready", signal.SIGTERM)
    saves = "told=sleep=0.4,save=2,exit=75 sleep=0.2 print=ready sleep=30"
    assert a.supervise([saves, "sleep=30"]) == 75
    assert a.there("manifests/2.json")


def test_a_run_that_was_done_when_it_was_told_to_stop_is_done(a):
    interrupts(a, "ready", signal.SIGTERM)
    assert a.supervise("told=exit=0 print=ready sleep=30") == 0
    assert a.run.status()["state"] == "done"
    assert a.run.status()["final"]


def test_a_signal_in_a_pause_ends_it(a):
    interrupts(a, "Starting again", signal.SIGINT)
    began = time.monotonic()
    assert a.supervise("exit=1", pause_s=30.0, longest_pause_s=30.0) == 130
    assert time.monotonic() - began < 20
    assert a.attempts == 1


def test_handlers_are_put_back(a):
    before = signal.getsignal(signal.SIGTERM)
    a.supervise("exit=0")
    assert signal.getsignal(signal.SIGTERM) is before


ALONE = """
import pathlib, sys
from tests.launch.supervised import Supervised
from pit_jax import printing
printing.prepare()
a = Supervised(pathlib.Path(sys.argv[1]))
a.on_line = lambda line: printing.line(line, sys.stdout)
sys.exit(a.supervise([sys.argv[2], sys.argv[2]]))
"""


@LINUX
def test_trainers_of_a_killed_supervisor_save_although_nobody_reads_what_they_print(tmp_path):
    words = "told=print=one,sleep=0.1,print=two,save=5,grandchild=0,exit=75 file=ready sleep=30"
    root = pathlib.Path(__file__).parent.parent.parent
    path = tmp_path / "run"
    path.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, str(path), words], cwd=root, stdout=subprocess.DEVNULL
    )
    until(lambda: (path / "ready").exists())
    process.kill()
    process.wait()
    until(lambda: not running(path))
    assert (path / "manifests" / "5.json").exists()


def test_nobody_reading_what_is_printed_ends_nothing(tmp_path):
    """As in `pit-jax launch ... | head`."""
    root = pathlib.Path(__file__).parent.parent.parent
    words = "sleep=0.2 print=one sleep=0.1 print=two save=1 exit=0"
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, str(tmp_path / "run"), words],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(20) == 0
    assert (tmp_path / "run/manifests/1.json").exists()


def running(path: pathlib.Path) -> list[int]:
    """Processes whose command line names a directory."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(path).encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:  # it has ended
            continue
    return [number for number in found if number != os.getpid()]
