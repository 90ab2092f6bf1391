"""Printing never ends a run: what cannot be written is left out, and files stay whole."""

import io
import os
import subprocess
import sys
import threading

import pytest

from pit_jax import metrics, printing

# `pit-jax` with a verb that only prints, as `train` and `show` do.
PRINTS = """
import os, sys
from pit_jax import cli, metrics
from pit_jax.parallel import processes
def play(args, overrides):
    "Plays."
    progress = metrics.Progress(1, "x")
    print("8 × 8")
    progress.say("9 × 9")
    progress.warn("5 × 5")
    import rich.console
    rich.console.Console().print("4 × 4")
    sys.stderr.write("6 × 6")
    with open(os.environ["FILE"], "w") as file:
        file.write("whole")
        print(file.fileno() > 2)
cli.train = cli.show = play
processes.restart_with_huge_pages = lambda: None
cli.main()
"""


@pytest.fixture
def played(tmp_path):
    """Runs it by a shell with redirections: its exit code and output."""

    def play(verb: str, redirection: str, **environment: str) -> tuple[int, bytes]:
        program, file = tmp_path / "program.py", tmp_path / "file"
        program.write_text(PRINTS)
        words = "train --config x --workdir x" if verb == "train" else "show --config x"
        script = f"{sys.executable} {program} {words} {redirection}"
        added = os.environ | {"PYTHONPATH": os.getcwd(), "FILE": str(file)} | environment
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {script}"], capture_output=True, env=added
        )
        assert file.read_text() == "whole"
        assert b"Traceback" not in done.stderr
        assert b"Exception ignored" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    return play


def test_what_is_printed_is_what_was_said(played):
    code, said = played("train", "")
    assert code == 0
    assert said.decode() == "8 × 8\n9 × 9\n4 × 4\nTrue\n5 × 5\n6 × 6"


def test_a_terminal_that_does_not_know_a_character(played):
    code, said = played("train", "", PYTHONIOENCODING="ascii")
    assert code == 0
    assert said == b"8 ? 8\n9 ? 9\n4 ? 4\nTrue\n5 \\xd7 5\n6 \\xd7 6"


@pytest.mark.parametrize("where", ["| true", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_nobody_reads(played, where):
    assert played("show", where)[0] == 0


def test_a_full_disk_ends_only_what_was_to_be_printed(played):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    assert played("train", ">/dev/full")[0] == 0
    code, said = played("show", ">/dev/full")
    assert code == 5
    assert b"pit-jax: what was printed is not complete: No space left on device" in said


def test_a_stream_that_does_not_wait_is_waited_for():
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    before = sys.stdout
    stream = printing._stream(writes, before)
    got = []

    def read():
        with os.fdopen(reads, "rb") as file:
            got.append(file.read())

    thread = threading.Thread(target=read)
    thread.start()
    stream.write("x" * (1 << 20))
    stream.flush()
    os.close(writes)
    thread.join()
    assert len(got[0]) == 1 << 20


@pytest.mark.parametrize("stream", ["closed", "ascii", "none"])
def test_a_caller_s_own_stream_ends_no_run(stream, monkeypatch):
    made = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", None if stream == "none" else made)
    with metrics.Progress(1, "x") as progress:
        if stream == "closed":
            made.close()
        progress.say("8 × 8")
    if stream == "ascii":
        assert made.buffer.getvalue() == b"8 ? 8\n"
