"""Processes that start and end together, and what is said of their end."""

import os
import pathlib
import signal
import sys
import time

import pytest

from pit_jax.launch.group import Group, Process
from pit_jax.launch.log import Log
from pit_jax.study.child import Share

from .supervised import Supervised


@pytest.fixture
def start(tmp_path):
    """Starts a group of stand-ins and returns it with all that they print."""
    told = Supervised(tmp_path / "run")
    told.run.path.mkdir()
    groups = []

    def group(*processes: str | Process) -> tuple[Group, list[str]]:
        printed = []
        made = [told.process(p) if isinstance(p, str) else p for p in processes]
        groups.append(Group(made, Log(told.run, "w", printed.append), tmp_path, {"ALL": "yes"}))
        return groups[-1], printed

    group.words = lambda words: told.process(words).words
    yield group
    for made in groups:
        made.kill()


def wait(group: Group) -> tuple[int, str]:
    until(lambda: group.ended)
    return group.close()


def until(reached) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("codes", "wanted"),
    [
        ((0, 0), 0),
        ((134, 5), 5),
        ((134, 2), 2),
        ((75, 134), 75),
        ((134, 1), 1),
        ((0, 134), 134),
        ((139, 134), 139),
        ((5, 3), 3),
    ],
)
def test_the_exit_code_is_of_the_process_that_explained_itself(start, codes, wanted):
    group, _ = start(*(f"error=pit-jax:_{code} exit={code}" for code in codes))
    code, how = wait(group)
    assert code == wanted
    assert how.endswith(f": {wanted}")


def test_the_last_words_are_the_error(start):
    words = start.words("print=step")
    code = "print('step 3\\npit-jax: no space left\\n  at exit\\n'); raise SystemExit(5)"
    group, _ = start(Process([*words[:1], "-c", code]), "print=aborting exit=134")
    assert wait(group) == (5, "exit code 5: no space left")


def test_killed_processes_say_nothing_of_the_whole(start):
    group, _ = start("deaf sleep=30", "print=boom exit=1")
    until(lambda: group.look() or group.alone_s())
    group.kill()
    assert group.ended
    assert wait(group) == (1, "process 1: exit code 1; its last line: boom")


def test_a_grandchild_that_is_left_over_is_killed(start):
    """It would hold the accelerator, the port or the pipe."""
    group, printed = start("grandchild=60 exit=134")
    began = time.monotonic()
    assert wait(group)[0] == 134
    assert time.monotonic() - began < 20
    number = int(printed[0])
    until(lambda: not lives(number))


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has started is known on Linux")
def test_what_a_killed_one_started_in_a_session_of_its_own_is_killed(start):
    """As a sweep starts its runs: SIGTERM alone would not end one that hangs."""
    group, printed = start("session=60 print=ready sleep=60")
    until(lambda: "ready" in printed)
    group.kill()
    assert wait(group)[0] == 137
    number = int(printed[0])
    until(lambda: not lives(number))


def lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    stat = pathlib.Path(f"/proc/{number}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_the_one_that_was_killed_is_named_and_not_what_the_others_made_of_it(start):
    lost = "error=pit-jax:_another_process_of_this_run_is_gone exit=134"
    group, _ = start(f"sleep=0.2 {lost}", "kill=SIGKILL")
    assert wait(group) == (137, "process 1: killed by SIGKILL")


def test_what_all_of_them_refuse_is_told_once(start):
    group, printed = start(*["error=pit-jax:_no_data exit=2"] * 3)
    assert wait(group) == (2, "exit code 2: no data")
    assert len([line for line in printed if line.endswith("pit-jax: no data")]) == 1


def test_a_signal_reaches_all_that_live(start):
    group, _ = start("told=exit=75 print=ready sleep=30", "told=exit=130 print=ready sleep=30")
    until(lambda: group.look() or _.count("ready") + _.count("[1] ready") == 2)
    group.send(signal.SIGTERM)
    assert wait(group) == (75, "process 0: exit code 75; its last line: ready")


def test_each_has_its_own_environment_and_beats(start):
    words = start.words("environment=MINE environment=ALL environment=PIT_JAX_BEAT beat=4 exit=0")
    group, printed = start(Process(words, {"MINE": "0"}), Process(words, {"MINE": "1"}))
    before = group.last_beat
    wait(group)
    group.look()
    assert {"MINE=0", "ALL=yes", "[1] MINE=1", "[1] ALL=yes"} <= set(printed)
    assert len({line.partition("PIT_JAX_BEAT=")[2] for line in printed if "BEAT" in line}) == 2
    assert group.step() == 4
    assert group.last_beat > before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux")
def test_each_has_its_cores(start):
    core = min(os.sched_getaffinity(0))
    group, printed = start(Process(start.words("cores exit=0"), {}, Share((core,))))
    wait(group)
    assert printed == [f"[{core}]"]


def test_beats_of_the_attempt_before_are_none(start):
    wait(start("beat=9 exit=0")[0])
    group, _ = start("sleep=0.1 exit=0")
    assert group.step() is None
    wait(group)


def test_what_cannot_be_started_leaves_nothing_running(start, monkeypatch):
    from pit_jax.study import child

    numbers = iter([child.command, None])
    monkeypatch.setattr(child, "command", lambda *words: next(numbers)(*words))
    with pytest.raises(TypeError):
        start("file=ran sleep=30", "exit=0")


def test_it_is_shown_as_one_would_type_it():
    process = Process([sys.executable, "a b"], {"X": "1 2"}, Share((), (("Y", "3"),)))
    assert process.shown() == f"X='1 2' Y=3 {sys.executable} 'a b'"
