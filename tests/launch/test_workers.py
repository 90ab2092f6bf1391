"""Supervisors of one run on several machines: the one of process 0 leads."""

import threading
import time

import pytest

from pit_jax.launch import verdict

from .supervised import LAUNCH
from .supervised import a as a


def test_a_worker_that_does_not_lead_writes_its_log_alone(a):
    told = ("exit=1", "beat=1 sleep=0.2 exit=0")
    assert a.supervise(*told, leads=False, finish_s=0.05) == 0
    assert [p.name for p in a.run.path.iterdir()] == ["logs"]


@pytest.mark.parametrize("launch", [LAUNCH, "another"])
def test_a_worker_that_does_not_lead_ends_when_the_run_has(a, launch):
    a.run.write_status(state="failed", exit_code=3, final=True, launch=launch)
    wanted = 3 if launch == LAUNCH else 1
    assert a.supervise("exit=134", "exit=1", leads=False, retries=1) == wanted
    assert a.attempts == (1 if launch == LAUNCH else 2)


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("failed", 5)])
def test_done_for_its_part_it_waits_for_the_verdict_on_the_run(a, state, code):
    a.run.write_status(state="running", launch=LAUNCH)

    def end() -> None:
        a.run.write_status(state=state, exit_code=code, final=True, launch=LAUNCH)

    ended = threading.Timer(0.2, end)
    ended.start()
    assert a.supervise("exit=0", leads=False) == 0
    assert ended.finished.is_set()
    assert a.attempts == 1


def test_done_for_its_part_it_starts_again_with_the_leader(a):
    """Process 0 has failed in the end, when the others were done."""
    a.run.write_status(state="restarting", exit_code=5, final=False, launch=LAUNCH)

    def over(line: str) -> None:
        if "the leader starts again" in line:
            a.run.write_status(state="done", exit_code=0, final=True, launch=LAUNCH)

    a.on_line = over
    assert a.supervise("exit=0", leads=False, retries=0) == 0
    assert a.attempts == 1
    assert any("the leader starts again" in line for line in a.said())


# Verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [2, 3, 4])
def test_what_ends_the_run_elsewhere_is_told_to_the_leader(a, code):
    assert a.supervise(f"error=pit-jax:_no_data exit={code}", leads=False) == code
    assert verdict.read(a.run, LAUNCH) == (code, f"process-0: exit code {code}: no data")
    assert verdict.read(a.run, "another") is None
    assert not a.there("status.json")


@pytest.mark.parametrize("words", ["exit=0", "exit=5", "exit=75"])
def test_nothing_else_is(a, words):
    a.run.write_status(state="done", exit_code=0, final=True, launch=LAUNCH)
    a.supervise(words, leads=False, retries=0)
    assert not a.there("verdicts")


def test_the_leader_ends_with_another_worker_rather_than_try_again(a):
    verdict.write(a.run, "slice-0-worker-3", LAUNCH, 2, "exit code 2: no data")
    assert a.supervise("kill=SIGABRT", "exit=0") == 2
    assert a.attempts == 1
    status = a.run.status()
    assert (status["state"], status["exit_code"], status["final"]) == ("failed", 2, True)
    assert status["reason"] == "slice-0-worker-3: exit code 2: no data"
    assert a.said() == ["ended by slice-0-worker-3: exit code 2: no data"]


def test_a_leader_that_waits_for_that_worker_is_ended(a):
    """Not at once: of what ends all of them its own trainer may be about to tell."""
    verdict.write(a.run, "slice-0-worker-3", LAUNCH, 2, "exit code 2: no data")
    began = time.monotonic()
    assert a.supervise("sleep=30", "exit=0", finish_s=0.3) == 2
    assert 0.3 < time.monotonic() - began < 10
    assert a.attempts == 1


def test_what_its_own_trainer_says_comes_first(a):
    verdict.write(a.run, "slice-0-worker-3", LAUNCH, 2, "exit code 2: no data")
    assert a.supervise("error=pit-jax:_not_finite sleep=0.2 exit=3", finish_s=30) == 3
    assert a.run.status()["reason"] == "exit code 3: not finite"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"launch": "0123456789ab"}', '{"launch": 1, "exit_code": 2}']
)
def test_a_damaged_verdict_and_one_on_an_earlier_launch_say_nothing(a, content):
    a.run.write("verdicts/slice-0-worker-1.json", content)
    verdict.write(a.run, "slice-0-worker-3", "earlier", 2, "exit code 2: no data")
    assert a.supervise("exit=5", "exit=0") == 0
    assert a.attempts == 2
