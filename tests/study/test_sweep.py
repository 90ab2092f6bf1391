"""`pit-jax sweep`: what it prints, refuses and writes; shared, killed and started again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pit_jax import cli
from pit_jax.study import collect

from . import sweeps

FILE = "configs/digits.py"


def run(capsys, *words):
    code = cli.run(["sweep", *map(str, words)])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_a_sweep_runs_prints_and_writes_what_it_did(tmp_path, monkeypatch, capsys):
    sweeps.play(monkeypatch, {"patch=1_seed=1": [3]})
    file = sweeps.study(tmp_path, "return grid({'model.patch': (1, 2)}, seeds(2))")
    words = [f"{file}:vit/2", "--workdir", tmp_path / "runs", "--jobs", "2"]
    code, out, err = run(capsys, *words)
    assert code == 1
    assert err == "pit-jax: 1 of 4 points did not end well: 1\n"
    assert "4 points, 0 done" in out
    assert "point 2 (patch=2,seed=0): done, 100.0 %" in out
    assert "point 1 (patch=1,seed=1) failed: exit code 3: it was told to end with 3" in out
    assert f"next: pit-jax compare {tmp_path}/runs" in out
    assert max(map(len, out.splitlines())) <= 80 + len(str(tmp_path))
    record = json.loads((tmp_path / "runs" / "sweep.json").read_text())
    assert record["docstring"].startswith("Is it so?")
    assert (record["file"], record["argument"]) == ("study.py", "vit/2")
    assert record["published"][0]["note"] == "table 1"
    point = record["points"][3]
    assert point["index"] == 3
    assert point["label"] == "patch=2,seed=1"
    assert point["overrides"] == {"model.patch": 2, "train.seed": 1}
    assert point["directory"] == f"patch=2_seed=1-{point['hash']}"
    # The next start goes on with what is left, and compare finds all of it.
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert "4 points, 3 done" in out
    assert len(sweeps.starts(tmp_path / "runs")) == 5
    found = collect.collect([tmp_path / "runs"])
    assert [r.point for r in found.runs] == [p["label"] for p in record["points"]]


def test_a_dry_run_shows_the_points_and_touches_nothing(tmp_path, monkeypatch, capsys):
    sweeps.play(monkeypatch, {"a": [3]})
    file = sweeps.study(tmp_path, 'return [{"label": "a"}, {"label": "b", "init_from": "run:a"}]')
    words = [file, "--workdir", tmp_path / "runs", "--config.mesh.data=1000"]
    before = sorted(tmp_path.iterdir())
    code, out, _ = run(capsys, *words, "--dry-run")
    assert code == 0
    assert sorted(tmp_path.iterdir()) == before
    assert "init_from=a" in out
    assert "2 points, 0 done" in out
    run(capsys, *words, "--retries", "0")
    held = sorted(p for p in tmp_path.rglob("*") if "pycache" not in str(p))
    code, out, _ = run(capsys, *words, "--dry-run")
    assert "failed, step 15" in " ".join(out.split())
    assert sorted(p for p in tmp_path.rglob("*") if "pycache" not in str(p)) == held
    assert max(map(len, out.splitlines())) <= 80


def test_shards_on_one_disk_run_everything_once(tmp_path, monkeypatch, capsys):
    sweeps.play(monkeypatch)
    file = sweeps.study(tmp_path, "return seeds(5)")
    for flag in ("--shard", "--only"):
        for k in range(2):
            assert run(capsys, file, "--workdir", tmp_path / "runs", flag, f"{k}/2")[0] == 0
    assert sorted(sweeps.starts(tmp_path / "runs")) == [(f"seed={i}", 0) for i in range(5)]


def test_a_directory_that_belongs_to_something_else_is_refused(tmp_path, monkeypatch, capsys):
    sweeps.play(monkeypatch)
    file = sweeps.study(tmp_path, "return seeds(1)")
    runs = tmp_path / "runs"
    assert run(capsys, f"{file}:pit", "--workdir", runs)[0] == 0
    assert "holds the sweep of study.py:pit" in run(capsys, file, "--workdir", runs)[2]
    [one] = runs.glob("*/status.json")
    assert "holds a single run" in run(capsys, file, "--workdir", one.parent)[2]
    assert "cannot be written" in run(capsys, file, "--workdir", "/proc/none")[2]
    # What an edited sweep leaves behind is named.
    sweeps.study(tmp_path, "return seeds(1, first=1)")
    assert one.parent.name in run(capsys, f"{file}:pit", "--workdir", runs)[1]


@pytest.mark.parametrize(
    ("body", "words", "sentence"),
    [
        ("return []", [], "the sweep is empty: sweep() returned no points"),
        ("return None", [], "sweep() should return a list of dictionaries"),
        ("return 1 / 0", [], "ZeroDivisionError: division by zero"),
        ("yield {'model.patch': 3}; yield {}", [], "point 0 (patch=3): config.model.patch=3 does"),
        ("yield {'model.depth': 0}", [], "point 0: config.model.depth=0 must be at least 1"),
        ("return seeds(2)", ["--only", "2"], "--only 2: the points are 0 to 1"),
        ("return seeds(2)", ["--shard", "1"], "--shard 1: write K/N such as 0/4"),
        ("return seeds(2)", ["--jobs", "0"], "--jobs 0: at least 1"),
        ("return seeds(2)", ["--retries", "-1"], "--retries -1: 0 or more"),
        ("return seeds(2)", ["--storage", "sqlite://"], "--storage is the database of a --search"),
        ("return seeds(2)", ["--job", "2"], "unexpected argument --job; did you mean --jobs?"),
        ("return seeds(2)", ["--config.modl.patch=1"], "config.modl.patch is not a field; did"),
        ("return seeds(2)", ["--only", ""], "--only '': write a point's INDEX"),
        ("return seeds(2)", ["--shard", ""], "--shard '': write K/N such as 0/4"),
        ("return seeds(2)", ["--only", "9" * 5000], "write a point's INDEX, or SHARD/TOTAL"),
        ("return seeds(2)", ["--jobs", str(10**18)], "at least 1 and at most 4096"),
        ("return seeds(2)", ["--foo"], "unexpected argument --foo\n"),
        ("return seeds('3')", [], "seeds: '3' should be a whole number from 0 on"),
        ("return grid(5)", [], "grid: 5 should be {field: values} or a list of points"),
        ("return chain({'model.patch': (1, 2)})", [], "should be a list of points such as"),
        ("return seeds(2)\nsweep_ = sweep\nasync def sweep(): pass", [], "sweep() is async"),
        ("return seeds(2)\nPUBLISHED = [1]", [], "PUBLISHED[0] should be {"),
        ("return seeds(2)\nPUBLISHED = 5", [], "PUBLISHED=5 should be a list of"),
        ("return seeds(2)\nPUBLISHED = None", [], "PUBLISHED=None should be a list of"),
        *(
            (f"return seeds(2)\nPUBLISHED[0][{key!r}] = {value}", [], "PUBLISHED[0] should be {")
            for key, value in (
                ("value", "float('nan')"),
                ("value", "float('inf')"),
                ("value", "True"),
                ("value", "10**400"),
                ("note", "object()"),
                ("metric", "5"),
            )
        ),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_made(tmp_path, capsys, body, words, sentence):
    file = sweeps.study(tmp_path, body)
    for dry in ([], ["--dry-run"]):  # which refuses what the start refuses
        code, _, err = run(capsys, file, "--workdir", tmp_path / "runs", *words, *dry)
        assert code == 2
        assert sentence in err
        assert err.count("\n") == 1
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("workdir", "sentence"),
    [
        ("", "--workdir '' names no file or directory"),
        ("foo://x", "--workdir foo://x: write a local path or one of gs://, s3://"),
        ("{}/file", "/file is a file and no directory"),
        ("{}/file/below", "/file is a file and no directory"),
        ("{}/" + 300 * "x", "cannot be written: File name too long"),
    ],
)
def test_a_directory_that_cannot_be_is_refused_dry_or_not(tmp_path, capsys, workdir, sentence):
    file = sweeps.study(tmp_path, "return seeds(1)")
    (tmp_path / "file").write_text("mine")
    for dry in ([], ["--dry-run"]):
        code, _, err = run(capsys, file, "--workdir", workdir.format(tmp_path), *dry)
        assert code == 2
        assert sentence in err
        assert err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_point_that_gets_another_label_keeps_its_directory(tmp_path, monkeypatch, capsys):
    """seeds(2) calls its points seed=0 and seed=1; alone the same run is called PiT."""
    sweeps.play(monkeypatch)
    runs = tmp_path / "runs"
    for number in (2, 1):
        file = sweeps.study(tmp_path, f"return seeds({number})")
        assert run(capsys, file, "--workdir", runs)[0] == 0
    assert len(list(runs.glob("*/status.json"))) == 2
    assert len(sweeps.starts(runs)) == 2
    record = json.loads((runs / "sweep.json").read_text())
    assert record["points"][0]["directory"].startswith("seed=0-")
    assert record["points"][0]["label"] == "PiT"
    # What starts from it is given the directory that it really has.
    body = "return [{'label': 'a', 'train.seed': 0}, {'label': 'b', 'init_from': 'run:a'}]"
    file = sweeps.study(tmp_path, body.replace("'run:a'", "'run:a', 'train.seed': 5"))
    assert run(capsys, file, "--workdir", runs)[0] == 0
    [config] = runs.glob("b-*/config.json")
    assert json.loads(config.read_text())["init_from"] == str(next(runs.glob("seed=0-*")))
    # A directory of the same hash that holds another run is left alone.
    [own] = runs.glob("seed=0-*")
    tree = json.loads((own / "config.json").read_text())
    tree["optim"]["lr"] = 0.5
    (own / "config.json").write_text(json.dumps(tree))
    file = sweeps.study(tmp_path, "return seeds(1)")
    assert run(capsys, file, "--workdir", runs)[0] == 0
    assert len(list(runs.glob("PiT-*/status.json"))) == 1


@pytest.mark.parametrize("content", ["[1]", '"x"', "[" * 100_000, '{"state": [1], "step": "x"}'])
def test_a_damaged_status_or_log_is_a_run_to_go_on_with(tmp_path, monkeypatch, capsys, content):
    sweeps.play(monkeypatch)
    file = sweeps.study(tmp_path, "return seeds(1)")
    words = (file, "--workdir", tmp_path / "runs")
    assert run(capsys, *words)[0] == 0
    [status] = (tmp_path / "runs").glob("*/status.json")
    status.write_text(content)
    with (status.parent / "metrics.jsonl").open("a") as log:
        log.write('{"step": 3, "train/loss": "x", "perf/left_s": [], "time": null}\n')
    assert "interrupted" not in run(capsys, *words, "--dry-run")[1]
    assert run(capsys, *words)[0] == 0
    assert len(sweeps.starts(tmp_path / "runs")) == 2


def test_a_sweep_file_that_is_damaged_or_cannot_be_read(tmp_path, monkeypatch, capsys):
    sweeps.play(monkeypatch)
    file = sweeps.study(tmp_path, "return seeds(1)")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "sweep.json").write_text('{"file": 5, "points": []}')
    assert "holds the sweep of no known file" in run(capsys, file, "--workdir", runs)[2]
    (runs / "sweep.json").unlink()
    (runs / "sweep.json").mkdir()
    code, _, err = run(capsys, file, "--workdir", runs)
    assert (code, err.count("\n")) == (5, 1)
    assert "sweep.json could not be read" in err


def test_a_file_without_a_sweep_says_what_to_write(tmp_path, capsys):
    _, _, err = run(capsys, f"{FILE}:pit", "--workdir", tmp_path / "runs")
    assert "defines no sweep(): write `def sweep(): return grid(" in err
    assert f"pit-jax train --config {FILE}:pit" in err


def test_killed_it_takes_its_runs_along_and_loses_only_unsaved_steps(tmp_path, monkeypatch):
    """SIGKILL at once of the sweep: the runs save and end. Two more sweeps then share the rest."""
    sweeps.play(monkeypatch)
    file = sweeps.study(tmp_path, "return seeds(4)")
    workdir = tmp_path / "runs"
    words = [
        sys.executable,
        "-c",
        sweeps.PLAYED,
        "sweep",
        file,
        "--workdir",
        workdir,
        "--jobs",
        "2",
    ]
    slow = os.environ | {"FAKE_SLOW": "8"}
    first = subprocess.Popen(words, env=slow, stdout=subprocess.DEVNULL)
    _until(lambda: len(sweeps.steps(workdir).get("seed=1", [])) >= 12, workdir)
    first.kill()
    first.wait()
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert all("seed=3   done" in text for text in told)
    # Every step of every run once: what was stopped had saved, what was done was left alone.
    found = sweeps.steps(workdir)
    assert found == {f"seed={i}": list(range(1, 41)) for i in range(4)}


def _until(holds, workdir):
    for _ in range(3000):
        if (workdir / "starts.txt").exists() and holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came so far")


def test_a_real_sweep_killed_and_started_again_ends_as_if_undisturbed(tmp_path):
    """Two real runs of two steps; SIGKILL comes when the second one has just begun."""
    file = sweeps.study(
        tmp_path,
        "return seeds(2)",
        more="""
_config = get_config
def get_config():
    config = _config()
    config.model.update(width=8, depth=1, heads=1)
    config.train.update(batch_size=64, steps=2, epochs=None, log_every=1, tensorboard=False)
    config.checkpoint.every = "1 steps"
    config.data.image_size = 4
    return config
""",
    )
    workdir = tmp_path / "runs"
    words = [sys.executable, "-m", "pit_jax.cli", "sweep", str(file), "--workdir", str(workdir)]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    env = os.environ | {"XLA_FLAGS": flags}
    first = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(workdir.glob("seed=1*/status.json")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 points, 1 done" in done.stdout
    for path in workdir.glob("seed=*"):
        assert json.loads((path / "status.json").read_text())["state"] == "done"
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        logged = [row["step"] for row in rows if "train/loss" in row]
        assert logged == [1, 2]
    starts = [len(json.loads((p / "env.json").read_text())) for p in sorted(workdir.glob("seed=*"))]
    assert starts[0] == 1  # what was done is not run again
