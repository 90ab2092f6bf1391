"""Points run in processes of their own: at once, again after a failure, never twice."""

import os
import signal
import threading
import time

import pytest

from pit_jax import beat
from pit_jax.errors import FINAL, ConfigError
from pit_jax.parallel import processes
from pit_jax.study import child

from . import sweeps

PAIR = (
    'return [{"label": "b", "init_from": "run:a"}, {"label": "a"}, {"label": "c", "train.seed": 7}]'
)


def test_every_point_runs_once_and_a_second_start_runs_none(tmp_path, monkeypatch):
    sweeps.play(monkeypatch)
    ended = []
    watcher, error = sweeps.run(tmp_path, jobs=2, ended=ended.append)
    assert error is None
    assert watcher.most_at_once == 2
    assert sorted(sweeps.starts(tmp_path / "runs")) == [(f"seed={i}", 0) for i in range(3)]
    assert [job.progress.main() for job in sorted(ended, key=lambda j: j.point.index)] == [
        ("accuracy", pytest.approx(1 - 0.01 * i)) for i in range(3)
    ]
    watcher, error = sweeps.run(tmp_path)
    assert error is None
    assert watcher.told == []
    assert len(sweeps.starts(tmp_path / "runs")) == 3


def test_what_failed_is_tried_again_while_the_rest_goes_on(tmp_path, monkeypatch):
    plans = {"seed=0": [1, -signal.SIGKILL], "seed=1": [5, 5, 5], "seed=2": []}
    sweeps.play(monkeypatch, plans)
    watcher, error = sweeps.run(tmp_path, retries=2)
    assert (error.exit_code, str(error)) == (1, "1 of 3 points did not end well: 1")
    found = sweeps.starts(tmp_path / "runs")
    assert [step for label, step in found if label == "seed=0"] == [0, 10, 10]
    assert [label for label, _ in found].index("seed=2") < 4  # not after all tries of the others
    assert watcher.of(0)[-1] == watcher.of(2)[-1] == "done"
    assert len([1 for label, _ in found if label == "seed=1"]) == 3
    assert watcher.notes("failed") == {1: "exit code 5: it was told to end with 5"}
    assert watcher.notes("waiting")[0] == (
        "killed by SIGKILL: it was told to end with -9; it is tried again"
    )


@pytest.mark.parametrize("code", FINAL)
def test_what_would_fail_again_is_not_tried_again(tmp_path, monkeypatch, code):
    sweeps.play(monkeypatch, {"seed=0": [code] * 9})
    watcher, error = sweeps.run(tmp_path, "return seeds(2)")
    assert error.exit_code == 1
    assert watcher.of(0) == ["running", "failed"]
    assert watcher.of(1) == ["running", "done"]


def test_stops_that_save_are_no_failures_and_others_are_given_up(tmp_path, monkeypatch):
    """The first start saves step 10, and later ones end at step 15 before they save."""
    sweeps.play(monkeypatch, {"seed=0": [75, 75, 75, 75, 75], "seed=1": [75, 75]})
    watcher, error = sweeps.run(tmp_path, "return seeds(2)", retries=2)
    assert str(error) == "1 of 2 points did not end well: 0"
    assert [step for label, step in sweeps.starts(tmp_path / "runs") if label == "seed=0"] == [
        *(0, 10, 10, 10)
    ]
    assert watcher.of(1)[-1] == "done"


def test_of_a_run_that_was_killed_the_status_says_so(tmp_path, monkeypatch):
    sweeps.play(monkeypatch, {"": [-signal.SIGKILL]})
    sweeps.run(tmp_path, "return seeds(1)", retries=0)
    directory, (point,) = sweeps.points_of(tmp_path, "return seeds(1)")
    status = directory.run(point).status()
    assert (status["state"], status["exit_code"]) == ("failed", 137)


def test_a_stop_that_comes_twice_at_once_is_one(tmp_path, monkeypatch):
    """As when a session ends: SIGHUP of the terminal, SIGTERM of the system."""
    sweeps.play(monkeypatch)

    def both():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = when(said(tmp_path, "step 13\n"), both)
    watcher, error = sweeps.run(tmp_path, "return seeds(1)")
    thread.join()
    assert (error.exit_code, watcher.of(0)) == (75, ["running", "stopped"])
    assert watcher.notes("stopped")[0].startswith("saved at step")


def test_a_run_waits_for_the_one_that_it_starts_from(tmp_path, monkeypatch):
    sweeps.play(monkeypatch)
    watcher, error = sweeps.run(tmp_path, PAIR, jobs=3)
    assert error is None
    order = [(i, state) for i, state, _ in watcher.told]
    assert order.index((1, "done")) < order.index((0, "running"))
    assert order.index((2, "running")) < order.index((1, "done"))


def test_what_starts_from_a_failed_run_is_skipped_and_says_why(tmp_path, monkeypatch):
    sweeps.play(monkeypatch, {"a": [3]})
    watcher, error = sweeps.run(tmp_path, PAIR)
    assert str(error) == "2 of 3 points did not end well: 0, 1"
    assert watcher.notes("skipped") == {0: "it starts from point 1 (a), which failed"}
    assert watcher.of(2) == ["running", "done"]


def test_one_point_alone_takes_along_what_it_starts_from(tmp_path, monkeypatch):
    sweeps.play(monkeypatch)
    assert sweeps.run(tmp_path, PAIR, select="0")[1] is None
    assert sweeps.starts(tmp_path / "runs") == [("a", 0), ("b", 0)]


def when(holds, act):
    """Acts in a thread once something holds."""

    def wait():
        while not holds():
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def said(tmp_path, words):
    """Whether a run has written these words to starts.txt."""

    def holds():
        path = tmp_path / "runs" / "starts.txt"
        return path.exists() and words in path.read_text()

    return holds


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_asked_to_stop_it_has_the_runs_save_and_goes_on_there(tmp_path, monkeypatch, number, code):
    sweeps.play(monkeypatch)
    thread = when(said(tmp_path, "step 13\n"), lambda: os.kill(os.getpid(), number))
    watcher, error = sweeps.run(tmp_path, "return seeds(2)")
    thread.join()
    assert error.exit_code == code
    assert "2 of 2 points are left; the same command goes on" in str(error)
    assert watcher.of(0) == ["running", "stopped"]
    assert watcher.of(1) == []
    watcher, error = sweeps.run(tmp_path, "return seeds(2)")
    assert error is None
    assert watcher.of(0) == ["running", "done"]
    assert sweeps.steps(tmp_path / "runs")["seed=0"] == list(range(1, 41))  # nothing twice


def test_asked_where_every_thread_is_it_asks_the_runs(tmp_path, monkeypatch):
    """As a supervisor does, whose sweep hangs because a run of it does."""
    sweeps.play(monkeypatch)
    monkeypatch.setenv(beat.VARIABLE, str(tmp_path / "beat"))
    before = signal.getsignal(signal.SIGUSR1)
    thread = when(said(tmp_path, "step 13\n"), lambda: os.kill(os.getpid(), signal.SIGUSR1))
    watcher, error = sweeps.run(tmp_path, "return seeds(1)")
    thread.join()
    assert error is None
    assert " stacks\n" in (tmp_path / "runs" / "starts.txt").read_text()
    assert watcher.of(0) == ["running", "done"]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_asked_twice_it_kills_the_runs(tmp_path, monkeypatch):
    sweeps.play(monkeypatch, slow=400)

    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    thread = when(said(tmp_path, "starts"), twice)
    began = time.monotonic()
    watcher, error = sweeps.run(tmp_path, "return seeds(1)")
    thread.join()
    assert error.exit_code == 130
    assert watcher.of(0) == ["running", "stopped"]
    directory, (point,) = sweeps.points_of(tmp_path, "return seeds(1)")
    assert directory.run(point).status()["state"] == "failed"
    assert time.monotonic() - began < 10  # a step takes two seconds, all of them 80


def test_a_point_that_another_process_runs_is_left_alone_until_it_ends(tmp_path, monkeypatch):
    sweeps.play(monkeypatch)
    directory, found = sweeps.points_of(tmp_path, "return seeds(2)")
    lock = directory.claim(found[0])  # as the other process would
    assert directory.is_taken(found[0])
    assert directory.claim(found[0]) is None
    assert not directory.is_taken(found[1])
    thread = when(said(tmp_path, "step 30\n"), lambda: os.close(lock))
    watcher, error = sweeps.run(tmp_path, "return seeds(2)")
    thread.join()
    assert error is None
    assert watcher.of(0) == ["elsewhere", "waiting", "running", "done"]
    assert sweeps.starts(tmp_path / "runs") == [("seed=1", 0), ("seed=0", 0)]
    assert not directory.is_taken(found[0])


def test_a_machine_is_shared_out(monkeypatch):
    def parts(jobs):
        return [share.cores for share in child.shares(jobs)]

    monkeypatch.setattr(processes, "has_tpu", lambda: False)
    monkeypatch.setattr(processes, "has_gpu", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5, 6})
    assert parts(1) == [()]  # all of it
    assert parts(2) == [(0, 1), (2, 5, 6)]
    assert parts(6) == [(0,), (1,), (2,), (5,), (6,), (0,)]
    monkeypatch.setattr(processes, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,4")
    assert [dict(s.environment)["CUDA_VISIBLE_DEVICES"] for s in child.shares(2)] == ["2", "3,4"]
    with pytest.raises(ConfigError, match="there are 3 GPUs here"):
        child.shares(4)
    monkeypatch.setattr(processes, "has_tpu", lambda: True)
    with pytest.raises(ConfigError, match="one process at a time can use a TPU"):
        child.shares(2)


def test_a_run_sees_its_share_of_the_cores_only(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    share = child.Share(cores=(cores[-1],))
    told = tmp_path / "told"
    program = f"import os; open({str(told)!r}, 'w').write(str(os.sched_getaffinity(0)))"
    words = child.command(share, [os.sys.executable, "-c", program])
    assert os.spawnv(os.P_WAIT, words[0], words) == 0
    assert told.read_text() == str({cores[-1]})
