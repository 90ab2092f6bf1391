"""Run directories that were damaged, edited or made by hand: compared as far as they go."""

import csv
import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pit_jax import cli, configfile
from pit_jax.study.collect import collect

from .fake_runs import ENVIRONMENT, fake_run, fake_sweep

DEEP, HUGE = "[" * 100_000, "1" + "0" * 400
ROW = '{"step": 50, "time": 1767225700.0, "train/loss": 0.5, "eval/accuracy": 0.5'


def status(**fields):
    return json.dumps({"state": "done", "step": 40, "result": {"eval/accuracy": 0.5}} | fields)


def start(**fields):
    return json.dumps([ENVIRONMENT | fields])


DAMAGE = {
    "status.json": [
        "[1]",
        '"done"',
        DEEP,
        status(step="x"),
        status(state=[1]),
        status(exit_code="x", total=[], step=True),
        *(status(result=result) for result in ([1, 2], "good", 5, {"eval/accuracy": "0.9"})),
        *(status(result={"eval/accuracy": value}) for value in (1e308, -1e308, float("nan"))),
        status().replace("0.5", HUGE),
        status(result={"eval/accuracy": 0.5, "eval/\0\ud800": 1}),
    ],
    "env.json": [
        "{}",
        '["a", 1, null]',
        DEEP,
        start(commit=5, versions="abc", devices=5, uncommitted=[], command=5),
        start(uncommitted={}, versions={"jax": [1]}, devices=[1, 2], command=None, time=5),
        start(device_count="many", cost={"parameters": "many"}, python=3.1, platform=7),
        start(cost={"parameters": 1}).replace('"parameters": 1', f'"parameters": {HUGE}'),
        start(time="0001-01-01T00:00:00", cost=[1]),
    ],
    "metrics.jsonl": [
        DEEP,
        f'{ROW}, "perf/images_per_s": "fast"}}\n',
        f'{ROW}, "perf/images_per_s": null, "time": null}}\n',
        f'{ROW}, "time": "x", "train/loss": "x"}}\n',
        f'{ROW}, "train/loss": {HUGE}}}\n',
        f'{{"step": {HUGE}}}\n',
        f'{ROW}, "train/loss": 1e308}}\n{ROW}, "step": 60, "train/loss": -1e308}}\n',
    ],
    "records/locality-2.json": [DEEP, "[1]", f'{{"a": {HUGE}}}', '{"a": 1e308, "b": "x"}'],
}


def compared(capsys, tmp_path, directory):
    """Compares with every output; returns what was printed."""
    outputs = {f"--{flag}": tmp_path / f"x.{end}" for flag, end in
               (("csv", "csv"), ("json", "json"), ("plot", "svg"), ("out", "html"))}  # fmt: skip
    words = [str(word) for pair in outputs.items() for word in pair]
    code = cli.run(["compare", str(directory), *words])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    ElementTree.parse(outputs["--plot"])
    json.loads(outputs["--json"].read_text())
    return " ".join(printed.out.split())


@pytest.mark.parametrize("name", DAMAGE)
def test_values_of_a_wrong_type_are_left_out_and_named(tmp_path, capsys, name):
    for seed in range(3):
        fake_run(tmp_path / "s" / f"whole{seed}", 0.6 + 0.1 * seed, seed)
    for seed, content in enumerate(DAMAGE[name]):
        run = fake_run(tmp_path / "s" / f"bad{seed}", 0.5, seed, model__patch=2)
        run.write(name, content.encode(errors="surrogatepass"))
    said = compared(capsys, tmp_path, tmp_path / "s")
    assert "PiT 3 70.00" in said
    if name != "records/locality-2.json":
        assert f"bad0: {name}" in said


@pytest.mark.parametrize("name", ["status.json", "env.json", "metrics.jsonl"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    """A directory in its place, as the superuser may read any file."""
    for seed in range(2):
        run = fake_run(tmp_path / f"run{seed}", 0.5, seed)
    (run.path / name).unlink()
    (run.path / name).mkdir()
    found = collect([tmp_path])
    assert f"left unread: {run.path / name} could not be read: Is a directory" in found.notes
    assert len(found.runs) == (1 if name == "status.json" else 2)


def test_records_pictures_and_a_sweep_that_cannot_be_read_are_named(tmp_path):
    run = fake_run(tmp_path / "run", 0.5)
    (run.path / "records" / "locality-1.json").mkdir(parents=True)
    (run.path / "pictures").write_text("no folder")
    (tmp_path / "sweep.json").mkdir()
    found = collect([tmp_path])
    assert len(found.runs) == 1
    assert any("locality-1.json could not be read" in note for note in found.notes)
    assert any("sweep.json could not be read" in note for note in found.notes)


def test_a_config_that_cannot_be_read_names_its_path_once(tmp_path, capsys):
    run = fake_run(tmp_path / "run", 0.5)
    for content in (None, DEEP, '{"a.b": 1}', "{"):
        (run.path / "config.json").unlink()
        if content is None:
            (run.path / "config.json").mkdir()
        else:
            (run.path / "config.json").write_text(content)
        assert cli.run(["compare", str(run.path)]) == 2
        err = capsys.readouterr().err
        assert (err.count("\n"), err.count("config.json")) == (1, 1)
        if content is None:
            (run.path / "config.json").rmdir()
            (run.path / "config.json").write_text("")


def test_a_picture_that_would_unpack_to_more_than_the_memory_is_left_out(tmp_path, capsys):
    run = fake_run(tmp_path / "run", 0.5)
    (run.path / "pictures").mkdir()
    Image.new("1", (20_000, 20_000)).save(run.path / "pictures" / "x-1.png")
    run.write_picture(1, "y", np.zeros((4, 4, 3), np.uint8))
    compared(capsys, tmp_path, run.path)
    page = (tmp_path / "x.html").read_text()
    assert "x-1.png of run cannot be read" in page
    assert page.count("data:image/png") == 1


def test_labels_made_by_hand_are_text_that_can_be_shown(tmp_path, capsys):
    labels = ["a\0b", "\x1b[31mred", "\ud800x", "two\nlines", "=1+1"]
    for index in range(len(labels)):
        fake_run(tmp_path / "s" / f"run{index}", 0.5, model__width=8 * (index + 1))
    fake_sweep(tmp_path / "s", {label: f"run{i}" for i, label in enumerate(labels)})
    # Labels with "=" alone are made up by sweeps, and would give way to the fields.
    described = json.loads((tmp_path / "s" / "sweep.json").read_text())
    described["points"][4]["label"] = "@SUM(1)"
    described["published"] = [{"label": "x", "metric": "eval/accuracy", "value": float("nan")}]
    (tmp_path / "s" / "sweep.json").write_text(json.dumps(described))
    said = compared(capsys, tmp_path, tmp_path / "s")
    assert "a�b" in said
    assert "1 of its published numbers are not numbers" in said
    page = (tmp_path / "x.html").read_text()
    assert not {"\0", "\x1b", "\ud800"} & set(page)
    rows = list(csv.reader(io.StringIO((tmp_path / "x.csv").read_text())))
    assert [row[0] for row in rows[1:]] == ["a�b", "�[31mred", "�x", "two lines", "'@SUM(1)"]
    assert rows[1][rows[0].index("eval/accuracy")] == "0.5"


def test_what_was_logged_stays_as_it_is_when_a_run_goes_on(tmp_path):
    run = fake_run(tmp_path / "run", 0.5, steps=1)
    run.append_row({"step": 20, "odd/text": "x"})
    run.write("env.json", json.dumps([{"commit": 5}]))
    run.cut_rows(20)
    run.add_environment(ENVIRONMENT)
    assert '"odd/text": "x"' in (run.path / "metrics.jsonl").read_text()
    assert json.loads((run.path / "env.json").read_text())[0] == {"commit": 5}
    assert run.rows()[1] == {"step": 20}
    assert configfile.from_json((run.path / "config.json").read_text()) == run.config()
