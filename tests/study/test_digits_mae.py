"""The experiment that pre-trains on digits: what it makes of runs, and that it goes on."""

import json

import pytest

from experiments import digits_mae
from pit_jax import rundir
from pit_jax.errors import ConfigError

TINY = ["train.steps=2", "model.width=16", "model.depth=2", "eval.every=2 steps"]
TINY = [f"--config.{word}" for word in TINY]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("digits-mae")


@pytest.fixture(scope="module")
def first(workdir):
    return digits_mae.one_seed(workdir, 3, TINY)


def test_a_seed_is_a_run_pre_trained_one_tuned_from_it_and_one_from_scratch(workdir, first):
    before, found = first
    tuned, scratch = (rundir.RunDir(workdir / f"{n}-seed3").config() for n in ("tuned", "scratch"))
    assert tuned.init_from == before.path
    assert scratch.init_from == ""
    assert tuned.optim.layer_decay < scratch.optim.layer_decay == 1
    assert tuned.data.per_class_seed == scratch.data.per_class_seed == 3
    assert before.seed == tuned.train.seed == scratch.train.seed == 3
    last = [json.loads(x) for x in (workdir / "tuned-seed3/metrics.jsonl").read_text().splitlines()]
    assert found["tuned"] == last[-1]["eval/accuracy"]
    assert found["seconds"] > 0


def test_what_was_trained_is_taken_as_it_is(workdir, first):
    _, again = digits_mae.one_seed(workdir, 3, TINY)
    assert again == first[1]
    for name in ("pretrained", "tuned", "scratch"):
        assert len(rundir.RunDir(workdir / f"{name}-seed3").environments()) == 1


def test_a_run_of_another_config_stays(workdir, first):
    kept = (workdir / "pretrained-seed3/metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="width"):
        digits_mae.one_seed(workdir, 3, [*TINY, "--config.model.width=32"])
    assert (workdir / "pretrained-seed3/metrics.jsonl").read_bytes() == kept
