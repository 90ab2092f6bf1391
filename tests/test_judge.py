"""What judges a task: one table for checkpoints, closing lines, lists, comparisons, searches."""

import math

import pytest

from pit_jax import judge
from pit_jax.config import EVALUATIONS, TASKS
from pit_jax.errors import ConfigError
from pit_jax.study import compare, progress

from .study.fake_runs import fake_run


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_judge_that_an_evaluation_yields(task):
    judges = judge.of(task)
    assert judges
    assert all(set(metric.evaluations) <= set(EVALUATIONS) for metric in judges)


@pytest.mark.parametrize(
    ("evaluation", "name", "score", "line"),
    [
        (
            {"eval/loss": 3.0, "eval/accuracy": 0.5, "eval/accuracy_top5": 0.75},
            "accuracy", 0.5, "accuracy 50.0 %, accuracy top5 75.0 %",
        ),
        ({"eval/loss": 0.1, "eval/rmse": 0.72}, "rmse", -0.72, "RMSE 0.720 m"),
        ({"eval/loss": 0.25, "eval/examples": 9}, "loss", -0.25, "held-out loss 0.2500"),
        ({"eval/loss": 0.25, "eval/fid": 12.5}, "fid", -12.5, "FID 12.5, held-out loss 0.2500"),
        (
            {"eval/loss": 0.25, "eval/digits_distance": 3.0, "eval/digits_precision": 1.0},
            "digits_distance", -3.0, "digits distance 3, held-out loss 0.2500",
        ),
        (
            {"eval/loss": 0.25, "eval/linear_accuracy": 0.5, "eval/knn_accuracy": 0.25},
            "linear_accuracy", 0.5,
            "linear accuracy 50.0 %, held-out loss 0.2500, knn accuracy 25.0 %",
        ),
        ({"eval/bits_per_dim": 2.0, "eval/loss": 1.0}, "bits_per_dim", -2.0, "bits a number 2, "),
        ({"eval/psnr": 20.0, "eval/loss": 1.0}, "psnr", 20.0, "PSNR 20.00 dB, held-out loss"),
    ],
)  # fmt: skip
def test_a_run_is_judged_alike_everywhere(tmp_path, evaluation, name, score, line):
    assert judge.score(evaluation) == (f"eval/{name}", score)
    assert judge.told(evaluation).startswith(line)
    assert progress.Progress(None, evaluation=dict(evaluation)).main()[0] == name
    for seed in range(2):
        run = fake_run(tmp_path / str(seed), None, seed, steps=1)
        run.append_row({"step": 20, "time": 1.0, **evaluation})
        run.write_status(state="done", step=20, result=evaluation)
    assert compare.compare([tmp_path / "0", tmp_path / "1"]).metric == f"eval/{name}"


def test_what_judges_nothing_or_is_not_finite_has_no_score():
    for found in ({}, {"eval/examples": 9}, {"eval/locality/attention_distance": 2.0}):
        assert judge.score(found) is None
    assert judge.score({"eval/rmse": math.nan, "eval/loss": 0.5}) is None


def test_a_search_looks_for_what_judges_the_task():
    assert judge.objective("classification", ("accuracy",)) == "eval/accuracy"
    assert judge.objective("depth", ("depth",)) == "-eval/rmse"
    assert judge.objective("mae", ("reconstruction",)) == "-eval/loss"
    assert judge.objective("mae", ("reconstruction", "linear")) == "eval/linear_accuracy"
    assert judge.objective("diffusion", ("loss", "samples")) == "-eval/loss"
    assert judge.objective("autoregressive", ("likelihood",)) == "-eval/bits_per_dim"
    with pytest.raises(ConfigError, match="does not say what trials are judged by"):
        judge.objective("diffusion", ("generation",))
