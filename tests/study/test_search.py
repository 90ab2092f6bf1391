"""Adaptive search by Optuna: trials are runs, and the database knows what became of them."""

import os
import signal
import sqlite3
import sys

import pytest

from pit_jax import cli, installation
from pit_jax.study import scheduler

from . import sweeps
from .test_scheduler import said, when

optuna = pytest.importorskip("optuna")
SPACE = """
def space():
    return {"optim.lr": log_uniform(1e-4, 1.0), "train.seed": choice(0, 1)}
"""


def search(capsys, tmp_path, trials, *words, space=SPACE):
    file = sweeps.study(tmp_path, more=space)
    words = ["sweep", str(file), "--workdir", str(tmp_path / "runs"), "--search", trials, *words]
    code = cli.run(list(map(str, words)))
    output = capsys.readouterr()
    return code, output.out, output.err


def trials(tmp_path, url=None):
    url = url or f"sqlite:///{tmp_path / 'runs' / 'search.db'}"
    [name] = optuna.get_all_study_names(url)
    return optuna.load_study(study_name=name, storage=url).trials


def test_trials_are_runs_whose_objective_the_database_is_told(tmp_path, monkeypatch, capsys):
    sweeps.play(monkeypatch, {"trial=1": [3]})
    code, out, err = search(capsys, tmp_path, 4, "--jobs", 2)
    assert code == 1
    assert err == "pit-jax: 1 of 4 points did not end well: 1\n"
    found = trials(tmp_path)
    assert [t.state.name for t in found] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    for trial in found[2:]:
        lr, seed = trial.params["optim.lr"], trial.params["train.seed"]
        assert trial.value == pytest.approx(1 / (1 + abs(lr - 0.01)) - 0.01 * seed)
    best = max((t for t in found if t.value is not None), key=lambda t: t.value)
    assert f"best eval/accuracy: {best.value:.4g}, trial {best.number} (lr=" in out
    # The same command has nothing left to do; a larger number goes on.
    assert search(capsys, tmp_path, 4)[0] == 0
    assert len(sweeps.starts(tmp_path / "runs")) == 4
    assert search(capsys, tmp_path, 5)[0] == 0
    assert sweeps.starts(tmp_path / "runs")[-1] == ("trial=4", 0)
    assert cli.run(["sweep", str(tmp_path / "study.py"), "--workdir", str(tmp_path / "runs")]) == 2
    assert "holds a search and no sweep" in capsys.readouterr().err


def test_a_trial_that_was_cut_off_is_taken_up_and_not_asked_anew(tmp_path, monkeypatch, capsys):
    sweeps.play(monkeypatch)
    thread = when(said(tmp_path, "step 13\n"), lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert search(capsys, tmp_path, 2)[0] == 75
    thread.join()
    [cut] = trials(tmp_path)
    assert cut.state.name == "RUNNING"
    code, out, _ = search(capsys, tmp_path, 2)
    assert code == 0
    assert "1 of 2 trials, 1 to resume" in out
    found = trials(tmp_path)
    assert [t.state.name for t in found] == ["COMPLETE", "COMPLETE"]
    assert found[0].params == cut.params
    assert sweeps.steps(tmp_path / "runs")["trial=0"] == list(range(1, 41))
    # Killed after a run's end and before the database was told, it tells it now.
    database = sqlite3.connect(tmp_path / "runs" / "search.db")
    with database:
        database.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 1")
    database.close()
    assert search(capsys, tmp_path, 2)[0] == 0
    assert trials(tmp_path)[1].value == found[1].value
    assert len(sweeps.starts(tmp_path / "runs")) == 3


def test_a_trial_that_cannot_be_fails_and_the_search_goes_on(tmp_path, monkeypatch, capsys):
    sweeps.play(monkeypatch)
    create = optuna.create_study
    at_random = optuna.samplers.RandomSampler(seed=0)
    monkeypatch.setattr(optuna, "create_study", lambda **rest: create(sampler=at_random, **rest))
    space = "def space():\n    return {'model.patch': choice(1, 3)}\n"
    code, out, _ = search(capsys, tmp_path, 8, space=space)
    assert code == 0
    found = trials(tmp_path)
    assert {(t.params["model.patch"], t.state.name) for t in found} == {
        (1, "COMPLETE"),
        (3, "FAIL"),
    }
    assert "(patch=3) cannot be: config.model.patch=3 does not divide" in out
    assert len(sweeps.starts(tmp_path / "runs")) == 1  # patch 1 again is known already


def test_machines_with_their_own_disks_share_a_database(tmp_path, monkeypatch, capsys):
    sweeps.play(monkeypatch)
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    # Cut off on the first machine, a trial is not the second one's to take up.
    thread = when(said(tmp_path / "one", "starts"), lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert search(capsys, tmp_path / "one", 2, "--storage", url)[0] == 75
    thread.join()
    assert search(capsys, tmp_path / "two", 2, "--storage", url)[0] == 0
    assert [t.state.name for t in trials(tmp_path, url)] == ["RUNNING", "COMPLETE"]
    assert search(capsys, tmp_path / "one", 2, "--storage", url)[0] == 0
    assert [t.state.name for t in trials(tmp_path, url)] == ["COMPLETE", "COMPLETE"]


def test_a_missing_objective_fails_the_trial_and_says_what_there_is(tmp_path, monkeypatch, capsys):
    sweeps.play(monkeypatch)
    code, out, err = search(capsys, tmp_path, 1, space=SPACE + 'objective = "-eval/fid"\n')
    assert (code, err) == (1, "pit-jax: none of the 1 trials has an eval/fid\n")
    assert "has no eval/fid, but eval/accuracy: it counts as failed" in " ".join(out.split())
    assert [t.state.name for t in trials(tmp_path)] == ["FAIL"]


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ("", "defines no space(): write"),
        ("def space(): return {}", "space() should return {field: distribution, ...}"),
        ("def space(): return {'optim.lr': (1, 2)}", "optim.lr=(1, 2) is no distribution"),
        ("def space(): return {'optim.rl': uniform(0, 1)}", "config.optim.rl is not a field"),
        ("def space(): return {'optim.lr': uniform(-1, 1)}", "config.optim.lr=-1.0 must be"),
        ("def space(): return {'optim.lr': log_uniform(0, 1)}", "no values from 0.0 to 1.0"),
        ("def space(): return {'model.depth': integer(4, 2)}", "no values from 4 to 2"),
        ("def space(): return {'model.depth': uniform(1, 2)}", "of type int"),
        (SPACE + "objective = 'accuracy'", "should be the name of an evaluation"),
    ],
)
def test_a_wrong_space_is_one_line_and_nothing_is_made(tmp_path, capsys, space, sentence):
    code, _, err = search(capsys, tmp_path, 2, space=space)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_prints_the_space_and_touches_nothing(tmp_path, capsys):
    code, out, _ = search(capsys, tmp_path, 3, "--dry-run")
    assert code == 0
    assert "optim.lr" in out
    assert "0.0001 to 1, logarithmic" in out
    assert not (tmp_path / "runs").exists()


def test_wrong_words_and_a_missing_optuna_say_what_to_do(tmp_path, monkeypatch, capsys):
    assert "--search 0: at least 1" in search(capsys, tmp_path, 0)[2]
    assert "--search: several machines" in search(capsys, tmp_path, 1, "--only", "0/2")[2]
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = search(capsys, tmp_path, 1)
    assert code == 2
    assert not (tmp_path / "runs").exists()
    monkeypatch.undo()
    assert "--storage: " in search(capsys, tmp_path, 1, "--storage", "nonsense")[2]
    assert installation.extra("study") in err


def test_values_that_a_database_does_not_know_come_back_as_they_were(tmp_path, monkeypatch, capsys):
    sweeps.play(monkeypatch)
    seen = []
    build = scheduler.Scheduler._add
    monkeypatch.setattr(
        scheduler.Scheduler, "_add", lambda self, point: seen.append(point) or build(self, point)
    )
    space = "def space():\n    return {'optim.betas': choice((0.9, 0.95), (0.8, 0.9))}\n"
    assert search(capsys, tmp_path, 1, space=space)[0] == 0
    assert seen[0].config.optim.betas in ((0.9, 0.95), (0.8, 0.9))


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ("{1: uniform(0, 1)}", "1 should be a field such as 'optim.lr'"),
        ("{'optim.lr': uniform('a', 1)}", "optim.lr: 'a' should be a number"),
        ("{'model.width': integer('8', 16)}", "model.width: '8' should be a number"),
        ("{'model.width': integer(8, 10**400)}", "should have whole numbers of at most 2**53"),
        ("{'model.width': integer(8.5, 16)}", "should have whole numbers of at most 2**53"),
        ("{'optim.lr': uniform(0, 10**400)}", "config.optim.lr=inf must be finite"),
        ("{'eval.what': choice(('accuracy',), ('depth',))}", "offers accuracy"),
    ],
)
def test_a_space_that_cannot_be_is_refused_before_anything_is_written(
    tmp_path, capsys, space, sentence
):
    for dry in ([], ["--dry-run"]):
        code, _, err = search(capsys, tmp_path, 1, *dry, space=f"def space(): return {space}")
        assert (code, err.count("\n")) == (2, 1)
        assert sentence in err
        assert not (tmp_path / "runs").exists()


def test_a_search_refuses_at_the_start_what_its_runs_would(tmp_path, capsys):
    for words, sentence in (
        (["--config.eval.what=('depth',)"], "offers accuracy"),
        (["--jobs", 0], "--jobs 0: at least 1"),
        (["--storage", ""], "--storage '': write the URL"),
        (["--storage", f"sqlite:///{tmp_path}/no/x.db"], "unable to open database"),
        (["--only", ""], "several machines share a --storage, and no --only"),
    ):
        code, _, err = search(capsys, tmp_path, 1, *words)
        assert (code, err.count("\n")) == (2, 1)
        assert sentence in err
        assert not (tmp_path / "runs").exists()


def test_a_search_without_a_possible_trial_fails(tmp_path, capsys):
    space = "def space(): return {'model.width': choice(9, 11), 'model.heads': choice(2, 4)}"
    code, out, err = search(capsys, tmp_path, 2, space=space)
    assert (code, err) == (1, "pit-jax: none of the 2 trials has an eval/accuracy\n")
    assert "cannot be: " in out


def test_a_search_that_stops_and_resumes_suggests_the_same_and_shows_all(
    tmp_path, monkeypatch, capsys
):
    sweeps.play(monkeypatch, slow=0)
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    _, whole, _ = search(capsys, tmp_path / "once", 12)  # past the first ten, which are at random
    search(capsys, tmp_path / "twice", 11)
    _, rest, _ = search(capsys, tmp_path / "twice", 12)
    one, two = ([t.params for t in trials(tmp_path / name)] for name in ("once", "twice"))
    assert one == two
    assert len({params["optim.lr"] for params in one}) == 12
    [seed] = {
        line.rpartition(", seed ")[2]
        for line in (whole + rest).splitlines()
        if "seed " in line and "to resume" in line
    }
    assert int(seed) >= 0
    table = rest[rest.index("#") :]
    assert all(f"trial={number} " in table for number in range(12))
    assert len(sweeps.starts(tmp_path / "twice" / "runs")) == 12
