"""What a supervisor must not be talked into."""

import os
import signal
import subprocess
import threading

from .supervised import a as a


def test_a_run_is_not_done_because_others_than_process_0_are(a):
    """It writes the last checkpoint, the last rows and the result."""
    hung = ["deaf sleep=30", "exit=0"]
    assert a.supervise(hung, ["exit=0", "exit=0"], finish_s=2.0) == 0
    assert a.attempts == 2
    assert a.said()[0].startswith("process 0: killed by SIGKILL. Starting again in 0.01 s; 4 more")


def test_a_run_is_not_saved_because_others_than_process_0_say_so(a):
    a.on_line = lambda line: os.kill(os.getpid(), signal.SIGTERM) if line == "ready" else None
    words = ["deaf sleep=1 print=ready sleep=30", "told=exit=75 sleep=30"]
    assert a.supervise(words, grace_s=0.5) == 75
    assert a.said()[-1] == "did not save within 0.5 s and was killed; nothing is saved"


def test_somebody_who_keeps_pressing_is_heard(a):
    """However fast: each signal within a second of the last one would be lost otherwise."""
    ended = threading.Event()

    def press() -> None:
        while not ended.wait(0.1):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    a.on_line = lambda line: thread.start() if line == "ready" else None
    a_while = "deaf print=ready sleep=20"
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        assert a.supervise(a_while) == 130
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert "SIGINT again: killing the run" in a.said()


def test_a_log_that_is_damaged_ends_no_supervisor(a):
    log = a.run.path / "logs/process-0.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"before\n\xff\xfe\x00\n")
    assert a.supervise("print=after exit=0") == 0
    assert log.read_text().splitlines()[0] == "before"
    assert log.read_text().splitlines()[-1] == "after"


def test_a_process_that_cannot_be_started_is_a_crash(a, monkeypatch):
    real, failures = subprocess.Popen, [BlockingIOError(11, "Resource temporarily unavailable")]

    def start(*words, **options):
        if failures:
            raise failures.pop()
        return real(*words, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    assert a.supervise("exit=0") == 0
    assert a.said()[0].startswith("no process could be started: Resource temporarily unavailable.")
