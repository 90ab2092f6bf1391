"""What becomes of a run whose trainers end, crash, hang and are told to stop."""

import itertools
import json
import re
import threading

import pytest

from pit_jax import lease
from pit_jax.errors import ConfigError
from pit_jax.launch.limits import Limits
from pit_jax.rundir import RunDir

from .supervised import LAUNCH, Supervised, until
from .supervised import a as a

# Exit codes ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [2, 3, 4])
def test_what_would_end_the_same_way_again_is_not_tried_again(a, code):
    assert a.supervise(f"error=pit-jax:_wrong exit={code}", "exit=0") == code
    assert a.attempts == 1
    status = a.run.status()
    assert status["state"] == "failed"
    assert status["final"]
    assert status["exit_code"] == code
    assert status["launch"] == LAUNCH
    assert status["reason"] == f"exit code {code}: wrong"
    assert a.said() == [f"exit code {code}: it would end the same way again, so it is not retried"]


def test_done_is_done(a):
    assert a.supervise("print=hello beat=7 exit=0") == 0
    assert a.attempts == 1
    assert a.said() == []
    assert a.printed == ["hello"]
    status = a.run.status()
    assert status["state"] == "done"
    assert status["final"]
    assert status["exit_code"] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("exit=1", "exit code 1"),
        ("exit=5", "exit code 5"),
        ("exit=134", "killed by SIGABRT"),
        ("kill=SIGABRT", "killed by SIGABRT"),
        ("kill=SIGKILL", "killed by SIGKILL"),
        ("print=boom. exit=1", "exit code 1; its last line: boom"),
        ("error=pit-jax:_boom. print=more exit=1", "exit code 1: boom"),
    ],
)
def test_a_crash_is_tried_again(a, words, told):
    assert a.supervise(words, "exit=0", retries=1) == 0
    assert a.attempts == 2
    assert a.said() == [f"{told}. Starting again in 0.01 s; no more tries are left after that"]


def test_crashes_without_a_new_checkpoint_are_given_up_after_growing_pauses(a):
    assert a.supervise("save=3 exit=1", retries=4) == 1
    # The first one saved.
    assert a.attempts == 5
    pauses = [re.search(r"in ([0-9.]+) s; (\w+) more", line) for line in a.said()[:-1]]
    assert [found[1] for found in pauses] == ["0.01", "0.02", "0.04", "0.04"]
    assert [found[2] for found in pauses] == ["3", "2", "1", "no"]
    assert a.said()[-1] == "given up after 5 crashes since the checkpoint of step 3: exit code 1"
    assert a.run.status()["state"] == "failed"
    assert a.run.status()["final"]


def test_a_new_checkpoint_makes_up_for_crashes(a):
    saves = [f"save={step} exit=5" for step in (1, 2, 3, 4)]
    assert a.supervise(*saves, "exit=0", retries=1) == 0
    assert a.attempts == 5


def test_checkpoints_of_an_earlier_start_are_no_progress(a):
    assert a.supervise("save=9 exit=0") == 0
    assert a.supervise("save=8 exit=5", retries=1) == 5
    assert a.attempts == 2


def test_stops_that_nobody_asked_for_are_no_crashes(a):
    stops = [f"save={step} exit={code}" for step, code in ((1, 75), (2, 130), (3, 75))]
    assert a.supervise(*stops, "exit=0", retries=0) == 0
    assert a.attempts == 4
    assert a.said()[0] == "exit code 75. Starting again in 0.01 s"


@pytest.mark.parametrize("code", [75, 130])
def test_stops_that_save_nothing_new_are_given_up_after_growing_pauses(a, code):
    assert a.supervise(f"save=3 exit={code}", retries=2) == 1  # 75 would be started again
    assert a.attempts == 4  # the first one saved
    pauses = [re.search(r"in ([0-9.]+) s", line)[1] for line in a.said()[:-1]]
    assert pauses == ["0.01", "0.01", "0.02"]
    end = f"given up after 3 stops since the checkpoint of step 3: exit code {code}"
    assert a.said()[-1] == end
    status = a.run.status()
    assert (status["state"], status["exit_code"], status["final"]) == ("failed", 1, True)


# Several processes -------------------------------------------------------------------------


def test_the_group_ends_with_one_of_it_and_says_why(a):
    others = "deaf print=Terminated sleep=30"
    assert a.supervise([others, "sleep=0.2 error=pit-jax:_disk_full exit=5"], retries=0) == 5
    assert a.run.status()["reason"] == "exit code 5: disk full"
    assert a.said() == ["given up after a crash before a checkpoint: exit code 5: disk full"]


def test_others_may_finish_saving_when_one_has_saved(a):
    """Told to stop by somebody else, of whom the supervisor knows nothing."""
    saves = "sleep=0.4 save=8 exit=75"
    assert a.supervise([saves, "exit=75"], ["exit=0", "exit=0"]) == 0
    assert a.there("manifests/8.json")


def test_another_that_hangs_when_one_is_done_is_killed(a):
    assert a.supervise(["exit=0", "deaf sleep=30"], finish_s=0.1) == 0


# Hanging -------------------------------------------------------------------------------------


def test_a_step_that_hangs_is_reported_with_stacks_and_started_again(a):
    hangs = "stacks beat=3 sleep=30"
    assert a.supervise([hangs, hangs], ["exit=0", "exit=0"], hang_s=2.5) == 0
    assert a.said() == [
        "no step for 2.5 s; where every thread is:",
        "no step for 2.5 s. Starting again in 0.01 s; 4 more tries are left after that",
    ]
    assert sum("fake_trainer.py" in line and "in do" in line for line in a.printed) >= 2
    log = (a.run.path / "logs/process-0.log").read_text()
    assert "most recent call first" in log


def test_the_same_step_again_is_a_sign_of_life(a):
    """As the batches of an evaluation are."""
    assert a.supervise("beat=3 sleep=0.8 " * 4 + "exit=0", hang_s=2.5) == 0
    assert a.attempts == 1


def test_a_run_that_never_comes_to_its_first_step_hangs(a):
    assert a.supervise("sleep=30", "exit=0", hang_s=2.0) == 0
    assert a.attempts == 2


# What others can read -------------------------------------------------------------------------


def test_the_heartbeat_says_the_step(a):
    found = {}

    def read(line: str) -> None:
        if line == "now":
            until(lambda: a.there("heartbeat.json"))
            found.update(json.loads((a.run.path / "heartbeat.json").read_text()))

    a.on_line = read
    assert a.supervise("exit=1", "beat=42 sleep=0.3 print=now sleep=0.1 exit=0") == 0
    assert found["step"] == 42
    assert found["attempt"] == 2
    assert found["launch"] == LAUNCH
    assert set(found) == {"step", "time", "host", "attempt", "launch"}


def test_the_state_can_be_followed(a):
    states = []
    a.on_line = lambda line: states.append(a.run.status()) if line == "now" else None
    assert a.supervise("print=now exit=1", "print=now exit=0") == 0
    assert [s["state"] for s in states] == ["starting", "restarting"]
    assert [s.get("exit_code") for s in states] == [None, 1]
    assert states[1]["reason"] == "exit code 1; its last line: now"
    assert not any(s["final"] for s in states)


def test_a_run_that_is_done_stays_so_while_it_is_looked_at(a):
    """Or a trainer would take it for one whose last evaluation was cut off."""
    a.run.write_status(state="done", exit_code=0, final=True, launch="older")
    states = []
    a.on_line = lambda line: states.append(a.run.status())
    assert a.supervise("print=now exit=0") == 0
    assert states[0]["state"] == "done"
    assert not states[0]["final"]
    assert states[0]["launch"] == LAUNCH


# Who may write ---------------------------------------------------------------------------------


def test_trainers_share_the_lease_and_nobody_else_gets_it(a, tmp_path):
    other = Supervised(tmp_path / "run")
    refusals = []

    def second(line: str) -> None:
        if line.startswith("PIT_JAX_OWNER="):
            owner = json.loads((a.run.path / "lease.json").read_text())["owner"]
            assert line == f"PIT_JAX_OWNER={owner}"
            with pytest.raises(ConfigError, match="is being written by") as refusal:
                other.supervise("file=started exit=0")
            refusals.append(str(refusal.value))

    a.on_line = second
    assert a.supervise("environment=PIT_JAX_OWNER exit=1", "environment=PIT_JAX_OWNER exit=0") == 0
    assert len(refusals) == 2
    assert other.attempts == 0
    assert len({line for line in a.printed if line.startswith("PIT_JAX")}) == 1
    assert not a.there(lease.FILE)


def test_a_full_disk_ends_no_supervisor(a, monkeypatch):
    """A status that cannot be written is said, and the run goes on."""
    from pit_jax.errors import StorageError

    count = itertools.count()
    write = RunDir.write

    def full(self, name, content):
        if name == "status.json" and next(count) < 2:
            raise StorageError(f"{name} could not be written: no space left")
        write(self, name, content)

    monkeypatch.setattr(RunDir, "write", full)
    assert a.supervise("exit=5", "exit=0") == 0
    assert a.said()[0] == "status.json could not be written: no space left"
    assert a.run.status()["final"]


def test_limits_are_those_of_the_config(resolved, tmp_path):
    resolved.launch.update(retries=7, hang_s=90)
    limits = Limits.of(resolved, RunDir(tmp_path))
    assert (limits.retries, limits.hang_s, limits.heartbeat_s) == (7, 90, 10)


def test_it_works_outside_the_main_thread(a):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(a.supervise("exit=0")))
    thread.start()
    thread.join(20)
    assert codes == [0]
