"""What a worker prints, kept in its run's directory."""

import os

from pit_jax.errors import StorageError
from pit_jax.launch import log
from pit_jax.rundir import RunDir


def followed(run: RunDir, content: bytes, keep: int = 100) -> tuple[log.Log, log.Output, list[str]]:
    printed: list[str] = []
    made = log.Log(run, "worker", printed.append, keep)
    reads, writes = os.pipe()
    output = made.follow(os.fdopen(reads, "rb"))
    os.write(writes, content)
    os.close(writes)
    output.join(10)
    return made, output, printed


def kept(run: RunDir) -> list[str]:
    return (run.path / "logs/worker.log").read_text().splitlines()


def test_the_last_lines_are_kept_and_all_are_printed(tmp_path):
    run = RunDir(tmp_path)
    content = "".join(f"line {number}\n" for number in range(10)).encode()
    made, output, printed = followed(run, content, keep=3)
    made.flush(now=True)
    assert printed == content.decode().splitlines()
    assert kept(run) == ["line 7", "line 8", "line 9"]
    assert output.reason() == "; its last line: line 9"


def test_lines_of_an_earlier_start_stay_in_front(tmp_path):
    run = RunDir(tmp_path)
    for content in (b"one\n", b"two\n"):
        followed(run, content)[0].flush(now=True)
    assert kept(run) == ["one", "two"]


def test_what_is_no_text_becomes_some(tmp_path):
    made, _output, printed = followed(RunDir(tmp_path), b"\xff\x1b[31mred\r\nno end")
    made.flush(now=True)
    assert len(printed) == 2
    assert printed[1] == "no end"
    assert all(character.isprintable() for character in printed[0])


def test_a_line_without_an_end_takes_no_memory_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "_LONGEST", 10)
    _, _output, printed = followed(RunDir(tmp_path), b"x" * 25 + b"\n")
    assert printed == ["x" * 10, "x" * 10, "x" * 5]


def test_the_error_of_the_command_is_the_reason_whatever_follows(tmp_path):
    _, output, _ = followed(RunDir(tmp_path), b"pit-jax: no space left\nabort\n\n  \n")
    assert output.reason() == ": no space left"
    assert len(followed(RunDir(tmp_path), b"pit-jax: " + b"x" * 5000)[1].reason()) == 502


def test_it_is_written_once_in_a_while(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    made, _, _ = followed(run, b"one\n")
    made.flush()
    assert not (tmp_path / "logs").exists()
    monkeypatch.setattr(made, "_every_s", 0.0)
    made.flush()
    assert kept(run) == ["one"]
    made.say("restarting")
    made.flush()
    assert kept(run)[1].endswith(" supervisor: restarting")


def test_in_a_bucket_that_is_once_a_minute(tmp_path, monkeypatch):
    monkeypatch.setattr(log.files, "in_bucket", lambda path: True)
    assert log.Log(RunDir(tmp_path), "worker", print)._every_s == 60


def test_what_cannot_be_written_is_written_later(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    made, _, _ = followed(run, b"one\n")
    with monkeypatch.context() as patched:

        def full(*words):
            raise StorageError("no space left")

        patched.setattr(run, "write", full)
        made.flush(now=True)
    made.flush(now=True)
    assert kept(run) == ["one"]
