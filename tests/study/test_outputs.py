"""Where compare writes: nothing that is compared is overwritten, and nothing but files."""

import os

import pytest

from pit_jax import cli

from .fake_runs import fake_run, fake_sweep


def compare(capsys, *words):
    code = cli.run(["compare", *map(str, words)])
    err = capsys.readouterr().err
    assert err.count("\n") == (code != 0), err
    return code, err


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A sweep of two runs beside a folder with a link to it."""
    path = tmp_path_factory.mktemp("outputs") / "study"
    for seed in range(2):
        fake_run(path / f"seed={seed}-1", 0.5, seed)
    fake_sweep(path, {"seed=0": "seed=0-1", "seed=1": "seed=1-1"})
    for name in ("configs", "logs"):
        (path / name).mkdir()
    (path.parent / "link").symlink_to("study")
    return path


@pytest.mark.parametrize(
    "name",
    ["seed=0-1/config.json", "seed=1-1/new.csv", "sweep.json", "handmade.json", "search.db"]
    + ["configs/x.json", "logs/x", "./seed=0-1/../seed=1-1/status.json", "../link/sweep.json"],
)
def test_a_file_of_what_is_compared_is_refused(study, capsys, name):
    before = {p: p.read_bytes() for p in study.rglob("*") if p.is_file()}
    code, err = compare(capsys, study, "--csv", study / name)
    assert code == 2
    assert "which is compared: name another" in err
    assert {p: p.read_bytes() for p in study.rglob("*") if p.is_file()} == before


def test_a_single_run_is_kept_too_and_reports_may_lie_beside_the_runs(study, capsys):
    run = study / "seed=0-1"
    assert compare(capsys, run, "--csv", run / "status.json")[0] == 2
    assert compare(capsys, f"{run}/", "--json", study.parent / "link" / run.name / "x")[0] == 2
    assert compare(capsys, study, "--csv", study / "r.csv", "--out", study / "R.HTML")[0] == 0
    assert (study / "r.csv").exists()
    (study / "r.csv").unlink()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--csv", ""], "--csv '' names no file"),
        (["--csv", "foo://x"], "--csv foo://x: write a local path"),
        (["--csv", "{}/fifo"], "it is no regular file"),
        (["--json", "/dev/null"], "--json /dev/null cannot be written: it is no regular file"),
        (["--csv", "{}"], "it is no regular file"),
        (["--csv", "{}/closed"], "it is read-only"),
        (["--csv", "{}/no/x"], "there is no directory"),
        (["--csv", "{}/x", "--json", "{}/./x"], "--csv and --json are both"),
        (["--csv", "{}/x.svg", "--plot", "{}/to-x"], "a plot is an SVG file"),
        (["--csv", "{}/x", "--json", "{}/to-x"], "--csv and --json are both"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path, capsys, words, sentence
):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "closed").write_text("old")
    (tmp_path / "closed").chmod(0o444)
    (tmp_path / "to-x").symlink_to("x")
    before = sorted(os.listdir(tmp_path))
    code, err = compare(capsys, "no-run", *(w.format(tmp_path) for w in words))
    assert code == 2
    assert sentence in err
    assert sorted(os.listdir(tmp_path)) == before


def test_nothing_is_written_if_one_of_them_cannot_be_made(study, capsys, tmp_path, monkeypatch):
    def fails(found):
        raise KeyError("in the middle")

    monkeypatch.setattr("pit_jax.study.report.to_html", fails)
    words = ["--csv", tmp_path / "x.csv", "--out", tmp_path / "x.html"]
    with pytest.raises(KeyError):
        cli.run(["compare", str(study), *map(str, words)])
    assert not list(tmp_path.iterdir())
