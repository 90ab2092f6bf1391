"""status.json says how a start ended, whatever ended it, and a refused one leaves nothing."""

import contextlib
import os
import sys
import types

import pytest

from pit_jax import cli, evaluate, lease, metrics, optim, outcome, rundir, train
from pit_jax.data import pipeline
from pit_jax.errors import ConfigError, NonFiniteLoss, Stopped, StorageError


def left(path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (None, "done", 0),
        (Stopped(75, "SIGTERM"), "preempted", 75),
        (Stopped(130, "SIGINT"), "preempted", 130),
        (StorageError("full"), "failed", 5),
        (NonFiniteLoss("nan"), "failed", 3),
        (RuntimeError("a bug"), "failed", 1),
        (KeyboardInterrupt(), "failed", 130),
    ],
)
def test_it_says_how_it_ended(tmp_path, error, state, code):
    run = rundir.RunDir(tmp_path)
    raised = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with raised, outcome.Outcome(run, 3, writes=True) as status:
        status.running(total=9)
        status.step = 4
        status.done({"eval/loss": 1.0})
        if error:
            raise error
    found = run.status()
    assert (found["state"], found["exit_code"], found["step"]) == (state, code, 4)
    assert found["total"] == 9
    assert ("result" in found) == (error is None)


def test_other_processes_write_nothing(tmp_path):
    with outcome.Outcome(rundir.RunDir(tmp_path), 3, writes=False) as status:
        status.running(total=9)
        status.done({})
    assert left(tmp_path) == []


def broken(*_, **__):
    raise StorageError("the disk is full")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (rundir.RunDir, "add_environment"),  # before the loop
        (pipeline.Pipeline, "train"),  # likewise, after the first status
        (metrics.Writers, "close"),  # after the loop
    ],
)
def test_what_fails_before_and_after_the_loop_is_told(
    where, name, resolved, tmp_path, one_device, monkeypatch
):
    resolved.train.steps = resolved.train.log_every = 1
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(StorageError, match="the disk is full"):
        train.train(resolved, tmp_path / "run", devices=one_device)
    found = rundir.RunDir(tmp_path / "run").status()
    assert (found["state"], found["exit_code"]) == ("failed", 5)


@pytest.mark.parametrize("what", ["loss", "weights"])
def test_a_state_that_is_not_finite_is_neither_evaluated_nor_saved(
    what, resolved, tmp_path, one_device, monkeypatch
):
    """The loss of step 2, at which it evaluates and saves; the weights that step 1 makes."""
    resolved.train.steps = 2
    resolved.optim.update(name="sgd", clip=0.0, warmup="0 steps", schedule="constant")
    rate = 1e30 if what == "loss" else 1e39  # more than the field takes
    monkeypatch.setattr(optim, "schedule", lambda *_: lambda count: rate)
    resolved.eval.every = "2 steps" if what == "loss" else "1 steps"
    resolved.checkpoint.every = "2 steps"
    monkeypatch.setattr(evaluate, "run", lambda *_: pytest.fail("it was evaluated"))
    sentence = "step 2: loss" if what == "loss" else "step 1: its update made weights that are not"
    with pytest.raises(NonFiniteLoss, match=sentence):
        train.train(resolved, tmp_path / "run", devices=one_device)
    run = rundir.RunDir(tmp_path / "run")
    assert (run.status()["state"], run.status()["exit_code"]) == ("failed", 3)
    assert not (tmp_path / "run" / "checkpoints" / "2").exists()


def test_a_full_disk_still_takes_the_words(tmp_path, monkeypatch):
    """Where a new file of the same size would not fit."""
    run = rundir.RunDir(tmp_path)
    full = pytest.raises(StorageError, match="the disk is full")
    with full, outcome.Outcome(run, 3, writes=True) as status:
        status.running(total=9)
        monkeypatch.setattr(rundir.files, "write", broken)
        run.write("env.json", "{}")
    assert (run.status()["state"], run.status()["exit_code"]) == ("failed", 5)
    with pytest.raises(StorageError, match="the disk is full"):
        rundir.RunDir(tmp_path / "other").write_status(state="running")  # there is no old one


# What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        "--config.train.wandb=x",  # not installed
        "--config.eval.what=('generation',)",  # not this task's
        "--config.mesh.model=3",
        "--config.data.num_classes=3",
        "--config.init_from=none",
        "--config.resume=none",
    ],
)
@pytest.mark.parametrize("place", ["new/below/run", "there"])
def test_a_refused_start_leaves_nothing(field, place, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "there").mkdir()
    words = ["train", "--config", "configs/digits.py:pit", "--workdir", str(tmp_path / place)]
    assert cli.run([*words, "--config.train.batch_size=8", field]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert left(tmp_path) == ["there"]


def test_weights_and_biases_that_takes_no_run_leaves_nothing(
    resolved, tmp_path, monkeypatch, one_device
):
    def init(**_):
        raise RuntimeError("no key is known:\nlog in")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    resolved.train.wandb = "digits"
    with pytest.raises(ConfigError, match=r"accepts no run: no key is known: log in$"):
        train.train(resolved, tmp_path / "run", devices=one_device)
    assert not rundir.RunDir(tmp_path / "run").exists()


def test_the_lock_goes_with_the_lease(tmp_path):
    with lease.held(rundir.RunDir(tmp_path)):
        assert left(tmp_path) == [".lease.lock", "lease.json"]
    assert left(tmp_path) == []


def test_a_lock_that_was_deleted_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """Waiting for a lock whose holder ends the lease, and deletes it."""
    from pit_jax import lease_store

    store = lease_store.Disk(rundir.RunDir(tmp_path).path / "lease.json")
    opened, real = [], os.open

    def slow(path, *words):
        descriptor = real(path, *words)
        if not opened:
            os.unlink(path)
        opened.append(path)
        return descriptor

    monkeypatch.setattr(lease_store.os, "open", slow)
    assert store.replace(b"x", None)
    assert len([path for path in opened if str(path).endswith(".lease.lock")]) == 2
    assert (tmp_path / ".lease.lock").exists()
