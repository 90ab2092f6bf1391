"""What `pit-jax launch list` shows of launches, and of sweeps that were launched."""

import json
import threading

import pytest

from pit_jax import cli, files
from pit_jax.launch import listing, records, tpu, upload
from pit_jax.rundir import RunDir

from .fake_tpu import service as service
from .test_commands import at_work, state
from .test_commands import launched as launched
from .test_commands import quick as quick
from .test_queue import ID, asked

LONG = "pixels-vs-patches-imagenet-28-seed-10"


def test_the_list_fits_80_columns_and_shows_what_each_is_doing(service, launched, capsys):
    at_work(launched())
    state(service, "pit", "ACTIVE")
    launched(LONG, 2, accelerator="v5litepod-256", slices=2)
    state(service, LONG, "WAITING_FOR_RESOURCES")
    assert cli.run(["launch", "list"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    [line] = [line for line in printed.splitlines() if line.startswith(" pit ")]
    assert line.split()[:8] == [
        *("pit", "v5litepod-16", "ACTIVE", "running", "120/50k", "85.1", "%", "0"),
    ]
    assert "WAITING" in printed
    assert "2x v5litepod-256" in printed


def test_without_an_evaluation_the_loss_is_shown(service, launched, capsys):
    run = launched()
    run.write("metrics.jsonl", '{"step": 3, "time": 1.0, "train/loss": 1.25}\n')
    cli.run(["launch", "list"])
    assert "loss 1.25" in capsys.readouterr().out


def test_what_is_gone_stays_in_the_list(service, launched, capsys):
    launched().write_status(state="done", exit_code=0, final=True, launch=ID)
    service.resources.clear()
    cli.run(["launch", "list"])
    [line] = [x for x in capsys.readouterr().out.splitlines() if x.startswith(" pit ")]
    assert line.split()[2:4] == ["gone", "done"]


def test_the_status_of_an_earlier_launch_is_not_shown(service, launched, capsys):
    launched().write_status(state="failed", exit_code=2, final=True, launch="f" * 12)
    cli.run(["launch", "list"])
    assert "failed" not in capsys.readouterr().out


def test_the_cloud_out_of_reach(service, launched, capsys):
    at_work(launched())
    service.stop()
    assert cli.run(["launch", "list"]) == 0
    printed = capsys.readouterr().out
    assert "120/50k" in printed
    assert "note: my-project, us-west4-a: Cloud TPU was not reached" in printed
    [line] = [line for line in printed.splitlines() if line.startswith(" pit ")]
    assert line.split()[2] == "?"


def test_a_directory_out_of_reach(service, launched, capsys, tmp_path):
    launched()
    (tmp_path / "pit" / "status.json").mkdir()
    assert cli.run(["launch", "list"]) == 0
    assert "note: pit: " in capsys.readouterr().out


def test_launches_of_other_machines_are_listed_with_a_place(service, launched, capsys, tmp_path):
    script = f"#!/bin/bash\nWORKDIR={tmp_path}/pit\n"
    at_work(launched(known=False, script=script))
    assert cli.run(["launch", "list"]) == 0
    assert "no launches are known here" in capsys.readouterr().out
    cli.run(["launch", "list", "--project", "my-project", "--zone", "us-west4-a"])
    printed = capsys.readouterr().out
    assert "pit " in printed
    assert "v5litepod-16" in printed
    assert "120/50k" in printed


def test_a_list_without_launches_says_where_it_looked(service, launched, capsys):
    place = ["--project", "my-project", "--zone", "us-west4-a"]

    def listed(*words):
        assert cli.run(["launch", "list", *words]) == 0
        return capsys.readouterr().out

    assert "--target local has its directory: pit-jax launch status" in listed()
    assert listed(*place) == "no launches are known in my-project, us-west4-a\n"
    assert listed(*place[:2]).startswith("note: --project and --zone, both, look for launches")
    service.stop()
    [line] = listed(*place).splitlines()
    assert "Cloud TPU was not reached" in line


def test_no_line_of_a_list_is_blank_or_ends_so(service, launched, capsys):
    launched()
    cli.run(["launch", "list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line == line.rstrip() != "" for line in lines)


def test_resources_of_others_are_not_listed(service, capsys):
    service.add(asked())
    service.resources["pit"].tpu.node_spec[0].node.labels = {}
    cli.run(["launch", "list", "--project", "my-project", "--zone", "us-west4-a"])
    assert "no launches" in capsys.readouterr().out


# Sweeps ----------------------------------------------------------------------------------

LABELS = [f"model=pit, patch={patch}, seed={seed}" for patch in (1, 2) for seed in (0, 1)]
DIRECTORIES = [f"{label.replace(', ', ',')}-{n:08x}" for n, label in enumerate(LABELS)]


@pytest.fixture
def swept(service, tmp_path):
    """A sweep of four points in the directory `sweep`: launches its shards, or its points."""
    place = tmp_path / "sweep"
    named = zip(LABELS, DIRECTORIES, strict=True)
    points = [{"label": label, "directory": directory} for label, directory in named]

    def make(shards: int = 0) -> list[RunDir]:
        RunDir(place).write("sweep.json", json.dumps({"points": points}))
        share = {f"shards/{n}-of-{shards}": DIRECTORIES[n::shards] for n in range(shards)}
        runs = []
        for number, path in enumerate(share or DIRECTORIES):
            more = {"sweep": str(place), "points": share[path]} if share else {}
            run = RunDir(place / path)
            request = asked(f"x-{number}", id=f"{number:012x}", accelerator="v5litepod-8")
            fields = tpu.described(request) | (more or {"point_of": str(place)})
            records.keep(upload.write_record(run, **fields))
            service.add(request)
            runs.append(run)
        return runs

    return make


def began(place, number: int, state: str, accuracy: float) -> None:
    run = RunDir(place / DIRECTORIES[number])
    run.write_status(state=state, step=10, total=10)
    run.write("metrics.jsonl", f'{{"step": 10, "time": 1.0, "eval/accuracy": {accuracy}}}\n')


def listed(capsys) -> list[str]:
    capsys.readouterr()
    assert cli.run(["launch", "list"]) == 0
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_shard_tells_how_many_of_its_points_are_done_and_what_they_came_to(
    service, swept, launched, capsys, tmp_path
):
    at_work(launched())
    for run in swept(2):
        run.write_status(state="running", final=False)
    place = tmp_path / "sweep"
    began(place, 0, "done", 0.71)
    began(place, 2, "running", 0.62)
    began(place, 1, "done", 0.83)
    began(place, 3, "done", 0.94)
    lines = listed(capsys)
    start = lines.index(f"{place} (v5litepod-8): 3 of 4 points done")
    assert max(len(line) for line in lines if not line.startswith(str(place))) <= 80
    assert any(line.startswith(" pit ") for line in lines[:start])
    text = "\n".join(lines[start + 1 :])
    cells = [line.split() for line in lines[start:] if line.strip()]
    first = next(n for n, line in enumerate(cells) if line[0] == "x-0")
    second = next(n for n, line in enumerate(cells) if line[0] == "x-1")
    assert cells[first][1:5] == ["CREATING", "running", "1/2", "points"]
    assert cells[second][1:5] == ["CREATING", "running", "2/2", "points"]
    of_first = " ".join(word for line in cells[first + 1 : second] for word in line)
    assert "71.0 %" in of_first
    assert "62.0 %" in of_first
    assert "83.0 %" not in of_first
    assert "94.0 %" in text
    assert text.count("patch=1") == text.count("patch=2") == 2


def test_the_launches_of_a_sweeps_points_stand_together(swept, launched, capsys, tmp_path):
    runs = swept()
    at_work(launched("between"))
    began(tmp_path / "sweep", 1, "done", 0.83)
    at_work(runs[2], f"{2:012x}")
    lines = listed(capsys)
    start = lines.index(f"{tmp_path / 'sweep'} (v5litepod-8): 1 of 4 points done")
    assert not any(" between " in line for line in lines[start:])
    assert any(" between " in line for line in lines[:start])
    for number, result in ((1, "83.0 %"), (2, "85.1 %")):
        [line] = [line for line in lines[start:] if line.startswith(f" x-{number} ")]
        assert result in line
    text = "\n".join(lines[start:])
    assert text.count("patch=1") == text.count("patch=2") == 2


def test_what_other_launches_of_a_sweep_have_done_is_shown_too(service, swept, capsys, tmp_path):
    swept(2)
    (records.folder() / "x-1.json").unlink()
    del service.resources["x-1"]
    began(tmp_path / "sweep", 3, "done", 0.94)
    text = "\n".join(listed(capsys))
    assert "1 of 4 points done" in text
    assert "0/2 points" in text
    assert "94.0 %" in text


@pytest.mark.parametrize(
    ("field", "value"), [("points", 7), ("points", [7]), ("points", None), ("sweep", [])]
)
def test_a_damaged_record_of_a_shard(swept, capsys, field, value):
    for run in swept(2):
        fields = {**upload.record(run), field: value}
        upload.write_record(run, **fields)
        records.keep(fields)
    assert " x-1 " in "\n".join(listed(capsys))


def test_a_sweep_that_says_nothing_of_its_points(swept, capsys, tmp_path):
    swept(2)
    began(tmp_path / "sweep", 0, "done", 0.71)
    (tmp_path / "sweep" / "sweep.json").write_text("{")
    text = "\n".join(listed(capsys))
    assert "1/2 points" in text
    assert "71.0 %" in text


# What does not answer --------------------------------------------------------------------


@pytest.mark.parametrize("silent", ["shards", "sweep", "runs"])
def test_a_directory_that_does_not_answer_is_not_waited_for(
    swept, launched, capsys, monkeypatch, tmp_path, silent
):
    at_work(launched())
    swept(2)
    place = str(tmp_path / "sweep")
    monkeypatch.setattr(listing, "ANSWER_S", 0.2)
    before, asked, answers = {*threading.enumerate()}, [], threading.Event()
    told = files.told

    def slowly(path, *words):
        path = str(path)
        asked.append(path)
        if path == place if silent == "sweep" else silent in path:
            answers.wait(10)
        return told(path, *words)

    if silent == "runs":
        silent = DIRECTORIES[1]
    monkeypatch.setattr(files, "told", slowly)
    try:
        lines = listed(capsys)
        assert any("120/50k" in line for line in lines)
        named = f"x-1: {place}/shards/1-of-2" if silent == "shards" else place
        assert f"note: {named} did not answer in 0 s" in lines
        # What is silent is asked nothing more.
        assert silent != "shards" or place not in asked
        assert silent != "sweep" or not any(DIRECTORIES[0] in path for path in asked)
        # No process waits for such threads at its end.
        assert all(thread.daemon for thread in {*threading.enumerate()} - before)
    finally:
        answers.set()
