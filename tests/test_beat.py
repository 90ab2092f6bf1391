"""Signs of life that a trainer gives to its supervisor."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from pit_jax import beat
from pit_jax.train import train


def test_a_beat_says_the_step_and_the_same_step_again_is_another(tmp_path, monkeypatch):
    path = tmp_path / "beat"
    assert beat.read(path) is None
    monkeypatch.setenv(beat.VARIABLE, str(path))
    beats = beat.Beat()
    assert beat.read(path)[0] is None
    beats(99)
    before = beat.read(path)
    assert before[0] == 99
    os.utime(path, (1, 1))  # long ago: file systems tell time in ticks
    beats(99)
    assert beat.read(path)[0] == 99
    assert beat.read(path)[1] > 10**9
    beats(7)
    assert path.read_text().strip() == "7"
    beats.close()
    beats(8)
    assert beat.read(path)[0] == 7


def test_without_a_supervisor_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(beat.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    beat.Beat()(1)
    before = signal.getsignal(signal.SIGUSR1)
    beat.print_stacks_when_asked()
    assert signal.getsignal(signal.SIGUSR1) is before
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setenv(beat.VARIABLE, str(tmp_path / "missing" / "beat"))
    beats = beat.Beat()
    beats(1)
    beats.close()
    assert beat.read(tmp_path / "missing" / "beat") is None


def test_on_a_full_disk_it_is_seen_that_the_run_lives(tmp_path, monkeypatch):
    path = tmp_path / "beat"
    monkeypatch.setenv(beat.VARIABLE, str(path))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    beats = beat.Beat()
    os.utime(path, ns=(0, 0))
    assert beat.read(path) == (None, 0)
    beats(1)
    step, when = beat.read(path)
    assert step is None
    assert when > 0


@pytest.mark.skipif(beat.STACKS is None, reason="no SIGUSR1")
def test_stacks_of_all_threads_are_printed_when_asked_for():
    code = """
import os, signal, sys, threading
from pit_jax import beat
beat.print_stacks_when_asked()
def waiting(): event.wait()
event = threading.Event()
threading.Thread(target=waiting).start()
os.kill(os.getpid(), signal.SIGUSR1)
event.set()
"""
    environment = os.environ | {beat.VARIABLE: "somewhere"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr.count("hread 0x") == 2
    assert "in waiting" in done.stderr


def test_a_run_beats_after_each_step_and_each_batch_of_an_evaluation(
    tmp_path, resolved, one_device, monkeypatch
):
    found = []

    class Recorded(beat.Beat):
        def __call__(self, step: int) -> None:
            found.append(step)

    monkeypatch.setattr(beat, "Beat", Recorded)
    resolved.train.steps = 4
    resolved.eval.update(every="2 steps", batch_size=120)  # 360 examples
    train(resolved, tmp_path / "run", devices=one_device)
    assert sorted(found) == found
    counts = [found.count(step) for step in (1, 2, 3, 4)]
    assert counts[0] == counts[2] == 1
    assert counts[1] == counts[3] == 1 + 3
