"""What a pod ends with, and what the controllers of Job and JobSet make of it."""

import re
import shlex

import pytest

from pit_jax.errors import StorageError
from pit_jax.launch import pod, worker
from pit_jax.launch.jobset import JobSet
from pit_jax.rundir import RunDir

from .fake_cluster import IMAGE

MANIFEST = JobSet("pit", "0" * 12, "gs://my-bucket/pit", "v5litepod-16", IMAGE).manifest()


def job_of(manifest: dict) -> dict:
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def action(manifest: dict, code: int | None, disrupted: bool = False) -> str:
    """What JobSet does when a pod ended with `code`: the two rule lists, read as documented.

    The first rule of a list that matches decides. A Job that fails without one has run out of
    its back-off limit; a JobSet without one restarts, and counts that.
    """
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job_of(manifest)["podFailurePolicy"]["rules"]):
        on = rule.get("onExitCodes")
        if on:
            assert on["operator"] == "In"
            assert on["values"] == sorted(set(on["values"]))  # demanded by the API
            hit, why = code in on["values"], f"failed with exit code {code}"
        else:
            (condition,) = rule["onPodConditions"]
            assert condition == {"type": "DisruptionTarget", "status": "True"}
            hit, why = disrupted, "has condition DisruptionTarget"
        if hit:
            assert rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            message = f"Pod default/x {why} matching FailJob rule at index {index}"
            break
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("code", "disrupted", "does"),
    [
        (2, False, "FailJobSet"),  # config
        (3, False, "FailJobSet"),  # non-finite loss
        (4, False, "FailJobSet"),  # does not fit
        (1, False, "FailJobSet"),  # given up by the supervisor
        (134, False, "FailJobSet"),
        (5, False, "RestartJobSet"),  # storage, so that status.json could not be made final
        (137, False, "RestartJobSet"),  # killed from outside, with its supervisor
        (139, False, "RestartJobSet"),
        (75, False, "RestartJobSetAndIgnoreMaxRestarts"),  # saved on SIGTERM
        (143, False, "RestartJobSetAndIgnoreMaxRestarts"),
        (137, True, "RestartJobSetAndIgnoreMaxRestarts"),  # preempted
        (1, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (2, True, "RestartJobSetAndIgnoreMaxRestarts"),
    ],
)
def test_exit_codes_decide_whether_it_is_started_again(code, disrupted, does):
    assert action(MANIFEST, code, disrupted) == does


def pod_ends(workdir, launch: str) -> int:
    words = f"--config x --workdir {workdir} --launch {launch} --name pit"
    with pytest.raises(SystemExit) as ended:
        pod.main(shlex.split(words))
    return ended.value.code


@pytest.mark.parametrize(
    ("code", "final", "ends_with", "does"),
    [
        (5, True, 1, "FailJobSet"),  # given up: a restart would only end again
        (137, True, 1, "FailJobSet"),
        (139, True, 1, "FailJobSet"),
        (134, True, 134, "FailJobSet"),
        (2, True, 2, "FailJobSet"),
        (3, True, 3, "FailJobSet"),
        (5, False, 5, "RestartJobSet"),
        (137, False, 137, "RestartJobSet"),
        (75, False, 75, "RestartJobSetAndIgnoreMaxRestarts"),
    ],
)
def test_a_run_that_is_over_is_not_started_again(
    code, final, ends_with, does, monkeypatch, tmp_path
):
    run = RunDir(tmp_path)
    run.write_status(state="failed", exit_code=code, final=final, launch="0" * 12)
    monkeypatch.setattr(worker, "work", lambda args: code)
    assert pod_ends(tmp_path, "0" * 12) == ends_with
    assert action(MANIFEST, ends_with) == does
    assert run.status()["exit_code"] == code
    assert pod_ends(tmp_path, "1" * 12) == code  # another launch's end says nothing of this one
    if final:
        for other in (0, 75, 134):  # a worker that learnt of the end, or was left alone by it
            monkeypatch.setattr(worker, "work", lambda args, other=other: other)
            assert pod_ends(tmp_path, "0" * 12) == ends_with


def test_a_pod_of_a_run_that_is_done_has_succeeded(monkeypatch, tmp_path):
    RunDir(tmp_path).write_status(state="done", exit_code=0, final=True, launch="0" * 12)
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    assert pod_ends(tmp_path, "0" * 12) == 0


def test_a_pod_that_comes_after_the_end_says_so(monkeypatch, tmp_path, capsys):
    RunDir(tmp_path).write_status(state="failed", exit_code=139, final=True, launch="0" * 12)
    monkeypatch.setenv("TPU_WORKER_ID", "3")
    assert pod_ends(tmp_path, "0" * 12) == 1
    assert "has ended before, with exit code 139" in capsys.readouterr().out


def test_what_cannot_be_read_changes_no_code(monkeypatch, tmp_path):
    def broken(run):
        raise StorageError("the bucket is away")

    monkeypatch.setattr(worker, "work", lambda args: 137)
    monkeypatch.setattr(RunDir, "status", broken)
    assert pod_ends(tmp_path, "0" * 12) == 137


def test_a_job_alone_restarts_no_pod():
    assert job_of(MANIFEST)["backoffLimit"] == 0
    assert (
        job_of(MANIFEST)["template"]["spec"]["restartPolicy"] == "Never"
    )  # a pod failure policy demands it
