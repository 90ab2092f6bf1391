"""`pit-jax launch --target local`: what is started, and that it trains as one process does."""

import os
import pathlib
import shlex
import sys

import jax
import numpy as np
import pytest

from pit_jax import cli, configfile
from pit_jax.errors import ConfigError
from pit_jax.launch import local
from pit_jax.launch import supervisor as supervising
from pit_jax.launch.limits import Limits
from pit_jax.parallel import processes
from pit_jax.rundir import RunDir
from pit_jax.train import train

from .supervised import FAKE, QUICK

ROOT = pathlib.Path(__file__).parent.parent.parent
DIGITS = str(ROOT / "configs" / "digits.py") + ":pit"


def words(workdir: pathlib.Path, *more: str, config: str = DIGITS) -> list[str]:
    given = ["launch", "--target", "local", "--config", config, "--workdir", str(workdir)]
    return [*given, *more]


@pytest.fixture
def cpu(monkeypatch):
    """A machine of two cores without an accelerator, wherever the tests run."""
    monkeypatch.setattr(processes, "has_tpu", lambda: False)
    monkeypatch.setattr(processes, "has_gpu", lambda: False)


# What is started -------------------------------------------------------------------------


def test_dry_run_prints_commands_that_can_be_typed_and_makes_nothing(cpu, tmp_path, capsys):
    place = tmp_path / "my run"
    more = ("--processes", "2", "--devices-per-process", "3", "--config.optim.lr=0.1", "--dry-run")
    assert cli.run(words(place, *more)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines):
        typed = shlex.split(line)
        assert f"JAX_PROCESS_ID={number}" in typed
        assert "JAX_NUM_PROCESSES=2" in typed
        assert "JAX_COORDINATOR_ADDRESS=127.0.0.1:PORT" in typed
        flags = next(word for word in typed if word.startswith("XLA_FLAGS="))
        assert flags.count("device_count") == 1
        assert "device_count=3" in flags
        command = typed[typed.index("pit_jax.cli") + 1 :]
        assert cli.parser().parse_known_args(command)[0].verb == "train"
        assert command[-3:] == ["--workdir", str(place), "--config.optim.lr=0.1"]
    assert not place.exists()


def test_dry_run_asks_no_network_for_a_bucket(cpu, capsys, monkeypatch):
    def asked(path):
        raise AssertionError("a bucket's driver looks for credentials")

    monkeypatch.setattr(local, "RunDir", asked)
    assert cli.run(words("gs://my-bucket/run", "--dry-run")) == 0
    assert capsys.readouterr().out.rstrip().endswith("--workdir gs://my-bucket/run")
    assert cli.run(words("gs://my-bucket", "--dry-run")) == 2


def test_one_process_needs_nobody_to_find(cpu, tmp_path, capsys):
    assert cli.run(words(tmp_path / "run", "--dry-run")) == 0
    assert "JAX_" not in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux")
def test_cores_are_shared(cpu):
    cores = [set(share.cores) for share in local.shares_of(2, None)]
    assert set.union(*cores) == os.sched_getaffinity(0)
    if len(os.sched_getaffinity(0)) > 1:
        assert not cores[0] & cores[1]


def test_gpus_are_shared(cpu, monkeypatch):
    monkeypatch.setattr(processes, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    made = local.attempt(["x"], local.shares_of(2, None), None, "1")
    assert [p.share.environment for p in made] == [
        (("CUDA_VISIBLE_DEVICES", "0,1"),),
        (("CUDA_VISIBLE_DEVICES", "2,3"),),
    ]
    with pytest.raises(ConfigError, match="--processes 5: there are 4 GPUs"):
        local.shares_of(5, None)
    with pytest.raises(ConfigError, match="--devices-per-process is for CPUs"):
        local.shares_of(2, 4)


def test_a_tpu_is_for_one_process(cpu, monkeypatch):
    monkeypatch.setattr(processes, "has_tpu", lambda: True)
    assert len(local.shares_of(1, None)) == 1
    with pytest.raises(ConfigError, match="--processes 2: one process at a time can use a TPU"):
        local.shares_of(2, None)


def test_a_port_is_new_each_time(cpu):
    assert len({local.free_port() for _ in range(5)}) > 1


# How it ends, with stand-ins ---------------------------------------------------------------


@pytest.fixture
def told(cpu, monkeypatch):
    """Has the trainers do as they are told, quickly."""

    def tell(words: str) -> None:
        command = [sys.executable, FAKE]
        monkeypatch.setattr(local, "_words", lambda place, *_: [*command, place, *words.split()])

    def quick(config, run):
        return Limits(config.launch.retries, config.launch.hang_s, **QUICK)

    monkeypatch.setattr(Limits, "of", quick)
    return tell


def test_it_ends_with_the_code_of_the_run_and_one_line_why(told, tmp_path, capsys):
    told("error=pit-jax:_NaN exit=3")
    place = tmp_path / "run"
    assert cli.run(words(place, "--processes", "2")) == 3
    assert capsys.readouterr().err == f"pit-jax: {place}: exit code 3: NaN\n"


def test_retries_are_those_of_the_config(told, tmp_path, capsys):
    told("print=started exit=1")
    assert cli.run(words(tmp_path / "run", "--config.launch.retries=2")) == 1
    assert capsys.readouterr().out.splitlines().count("started") == 3


def test_it_trains_the_resolved_config(told, tmp_path):
    told("exit=0")
    place = tmp_path / "run"
    assert cli.run(words(place, "--config.optim.lr=0.25")) == 0
    assert configfile.load(str(place / "launch/config.json")).optim.lr == 0.25


def test_the_directory_of_another_run_is_refused_and_stays(told, tmp_path, capsys, resolved):
    told("file=started exit=0")
    run = RunDir(tmp_path / "run")
    run.write_config(resolved)
    for more in ((), ("--dry-run",)):
        assert cli.run(words(run.path, *more)) == 2
        assert "already holds another run" in capsys.readouterr().err
    assert [p.name for p in run.path.iterdir()] == ["config.json"]


def test_a_launch_that_is_refused_changes_nothing_for_the_one_that_runs(told, tmp_path, capsys):
    """Its config may differ in what may differ, such as the length."""
    place = tmp_path / "run"
    told("exit=0")
    assert cli.run(words(place)) == 0
    before = (place / "launch/config.json").read_bytes()
    from pit_jax import lease

    with lease.held(RunDir(place), "another"):
        assert cli.run(words(place, "--config.train.log_every=77")) == 2
        error = capsys.readouterr().err
        assert "is being written by" in error
        assert error.count("\n") == 1
    assert (place / "launch/config.json").read_bytes() == before


# Real trainers -----------------------------------------------------------------------------


CHANGES = ["--config.model.width=16", "--config.model.depth=2", "--config.model.heads=2"]
CHANGES += ["--config.train.batch_size=32", "--config.train.log_every=1", "--config.mesh.data=2"]
CHANGES += ["--config.train.tensorboard=False", "--config.train.steps=24"]
CHANGES += ["--config.eval.every=12 steps", "--config.checkpoint.every=6 steps"]
CHANGES += ["--config.launch.heartbeat_s=10"]


def test_two_processes_train_as_one_does_and_a_finished_run_stays(cpu, tmp_path, monkeypatch):
    """That kills change no bit of it is shown by test_faults.py."""
    one, two = RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    train(configfile.load(DIGITS, CHANGES), one.path, devices=jax.devices()[:2])

    given = words(two.path, "--processes", "2", "--devices-per-process", "1", *CHANGES)
    assert cli.run(given) == 0
    assert two.environments()[0]["device_count"] == 2
    for name in ("train/loss", "train/grad_norm", "eval/accuracy", "eval/loss"):
        series = [{r["step"]: r[name] for r in run.rows() if name in r} for run in (one, two)]
        assert series[0].keys() == series[1].keys()
        np.testing.assert_allclose([*series[1].values()], [*series[0].values()], rtol=1e-3)

    said = []
    monkeypatch.setattr(supervising, "_print", said.append)
    before = two.rows()
    assert cli.run(given) == 0
    assert sum("is done: step 24 of 24. accuracy" in line for line in said) == 1
    assert two.rows() == before
    assert two.status()["state"] == "done"
    assert two.status()["final"]
