"""Runs on gs://, against a real storage server: the same bits and rows as on a disk."""

import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath

from pit_jax import cli, configfile, files, rows, rundir, validation
from pit_jax.checkpoint import Checkpoints
from pit_jax.errors import ConfigError, StorageError
from pit_jax.train import train

from . import gcs

STEPS = 15


def prepared(tiny):
    """The tiny digits, saved and evaluated often, with the best checkpoint beside the last."""
    tiny.train.update(steps=STEPS, tensorboard=True)
    tiny.eval.every = tiny.checkpoint.every = "5 steps"
    tiny.checkpoint.update(keep=2, keep_best=1)
    return validation.resolve(tiny)


def parameters(place, step: int = STEPS) -> list[np.ndarray]:
    saved = Checkpoints(rundir.RunDir(place))
    try:
        assert saved.verify(step) == []
        return jax.tree.leaves(saved.read(step)["params"])
    finally:
        saved.close()


def same_bits(place, other) -> None:
    pairs = zip(parameters(place), parameters(other), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def results(place) -> list[dict]:
    """The rows without what depends on the machine and on restarts."""
    found = rundir.RunDir(place).rows()
    return [
        {k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")}
        for row in found
        if "event" not in row
    ]


def names(place) -> set[str]:
    """Of all files in a directory, without what differs from one run to another."""
    found = set()
    for root, _, listed in epath.Path(place).walk():
        below = str(root).partition("/run")[2].strip("/")
        if not below.startswith("checkpoints"):
            found |= {f"{below}/{name}".strip("/") for name in listed if name[0] != "."}
    return {name.partition(".tfevents.")[0] for name in found}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run on a disk and in a bucket."""
    from .conftest import tiny

    config = prepared(tiny.__wrapped__())
    disk = tmp_path_factory.mktemp("bucket") / "run"
    with pytest.MonkeyPatch.context() as patch:
        place = gcs.fresh(patch) + "/run"
        train(config, disk)
        train(config, place)
        yield str(disk), place, config


def test_a_run_leaves_the_same_as_on_a_disk(runs):
    disk, place, _ = runs
    same_bits(disk, place)
    assert results(place) == results(disk)
    assert [row["step"] for row in results(place)] == list(range(1, STEPS + 1))
    assert names(place) == names(disk)
    assert {"config.json", "metrics.jsonl", "status.json", "events/events.out"} <= names(place)
    here, there = (rundir.RunDir(path).status() for path in (disk, place))
    assert {k: v for k, v in there.items() if k != "time"} == {
        k: v for k, v in here.items() if k != "time"
    }
    kept = [Checkpoints(rundir.RunDir(path)).steps() for path in (disk, place)]
    assert kept[0] == kept[1]
    assert len(kept[0]) >= 2


def test_its_events_can_be_read(runs):
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (epath.Path(runs[1]) / "events").iterdir()
    content, tags = path.read_bytes(), set()
    while content:  # length u64, its sum u32, the event, its sum u32
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        tags |= {value.tag for value in event.summary.value}
        content = content[16 + length :]
    assert {"train/loss", "eval/accuracy"} <= tags


def test_it_is_shown_compared_evaluated_and_done(runs, tmp_path, capsys):
    _, place, config = runs

    def run(*line: str) -> str:
        code = cli.run(line)
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    accuracy = rundir.RunDir(place).evaluation(STEPS)["eval/accuracy"]
    assert f"eval/accuracy              {accuracy:.6g}" in run("eval", "--workdir", place)
    assert "16" in run("show", "--config", f"{place}/config.json")
    page = tmp_path / "report.html"
    assert str(page) in run("compare", place, "--out", str(page))
    assert f"done: step {STEPS} of {STEPS}" in run(
        "train", "--config", f"{place}/config.json", "--workdir", place
    )
    assert configfile.load(f"{place}/config.json").to_dict() == config.to_dict()


def test_a_killed_run_goes_on_to_the_same_bits(runs, bucket, tmp_path):
    disk, _, config = runs
    place = f"{bucket}/run"
    file = tmp_path / "config.json"
    file.write_text(configfile.to_json(config))
    command = [sys.executable, "-m", "pit_jax.cli", "train", "--config", str(file)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, "--workdir", place], **quiet)
    try:
        deadline = time.monotonic() + 120
        first = epath.Path(place) / "manifests" / "5.json"
        while not first.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
    run = rundir.RunDir(place)
    begun = Checkpoints(run).steps()
    assert begun[-1] < STEPS
    assert [row["step"] for row in run.rows()][: begun[-1]] == list(range(1, begun[-1] + 1))
    train(config, place)
    same_bits(disk, place)
    assert results(place) == results(disk)
    assert run.status()["attempt"] == 2


def test_a_flipped_byte_is_refused_and_the_one_before_used(runs, bucket):
    disk, _, config = runs
    place = f"{bucket}/run"
    for path in pathlib.Path(disk).rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            files.write(f"{place}/{path.relative_to(disk)}", path.read_bytes())
    newest = epath.Path(place) / "checkpoints" / str(STEPS)
    damaged = max((newest / "ocdbt.process_0" / "d").iterdir(), key=lambda p: p.stat().length)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    saved = Checkpoints(rundir.RunDir(place))
    with pytest.raises(StorageError, match=r"has changed \(SHA-256 differs\)"):
        saved.require_intact(STEPS)
    saved.close()
    train(config, place)
    same_bits(disk, place)
    aside = epath.Path(place) / "corrupt" / f"{STEPS}-0"
    assert {p.name for p in aside.iterdir()} >= {"_METADATA", "commit_success.txt"}


# What a directory in a bucket does with what is written ------------------------------


def test_rows_are_written_at_most_once_a_minute_and_at_a_flush(bucket, monkeypatch):
    run, reader = rundir.RunDir(f"{bucket}/run"), rundir.RunDir(f"{bucket}/run")
    for step in (1, 2):
        run.append_row({"step": step})
    assert reader.rows() == []
    assert [row["step"] for row in run.rows()] == [1, 2]  # its own writer knows them
    run.flush()
    assert [row["step"] for row in reader.rows()] == [1, 2]
    run.append_row({"step": 3})
    assert len(reader.rows()) == 2
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + rows.FLUSH_S + 1)
    run.append_row({"step": 4})
    assert [row["step"] for row in reader.rows()] == [1, 2, 3, 4]
    run.append_row({"step": 5})
    assert len(reader.rows()) == 4


def test_rows_that_could_not_be_written_are_kept(bucket, monkeypatch):
    run = rundir.RunDir(f"{bucket}/run")
    run.append_row({"step": 1})

    def fails(*anything):
        raise RuntimeError("the driver's own type")

    with monkeypatch.context() as patch:
        patch.setattr(epath.gpath.PosixGPath, "write_bytes", fails)
        with pytest.raises(StorageError, match=r"metrics.jsonl could not be written: the driver"):
            run.flush_rows()
    run.append_row({"step": 2})
    run.flush_rows()
    assert [row["step"] for row in rundir.RunDir(f"{bucket}/run").rows()] == [1, 2]


def test_rows_go_on_where_the_object_ended(bucket):
    place = f"{bucket}/run"
    first = rundir.RunDir(place)
    for step in (1, 2, 3):
        first.append_row({"step": step})
    first.flush()
    second = rundir.RunDir(place)
    second.cut_rows(2)
    second.append_row({"step": 3, "train/loss": 0.5})
    second.flush()
    found = rundir.RunDir(place).rows()
    assert found == [
        {"step": 1},
        {"step": 2},
        {"event": "resume", "step": 2},
        {"step": 3, "train/loss": 0.5},
    ]


def test_folders_of_libraries_are_copied_as_they_change(bucket):
    run = rundir.RunDir(f"{bucket}/run")
    folder = run.local("profile")
    assert folder == run.local("profile")
    os.makedirs(f"{folder}/plugins")
    for text in ("one", "longer"):
        with open(f"{folder}/plugins/trace", "w") as file:
            file.write(text)
        run.flush()
        assert (run.path / "profile" / "plugins" / "trace").read_text() == text
    del run
    gc.collect()
    assert not os.path.exists(folder)


def test_a_directory_may_hold_what_a_launch_put_there(bucket, resolved):
    run = rundir.RunDir(f"{bucket}/run")
    for name in ("launch.json", "launch/config.json", "logs/slice-0-worker-0.log", "status.json"):
        run.write(name, "{}")
    run.create()
    assert not run.exists()
    run.write("thesis.tex", "")
    with pytest.raises(ConfigError, match=r"holds no run but other files \(thesis.tex"):
        run.create()
    run.write_config(resolved)
    run.create()


def test_a_bucket_that_is_not_there_is_refused_and_not_made(bucket):
    place = "gs://pit-jax-misspelt/run"
    with pytest.raises(ConfigError, match=r"--workdir gs://pit-jax-misspelt/run cannot be written"):
        rundir.RunDir(place).create()
    assert not epath.Path("gs://pit-jax-misspelt").exists()


def test_what_fails_half_way_leaves_the_old_object(bucket):
    place = f"{bucket}/file"
    files.write(place, "old")

    def half() -> None:
        with files.whole(place) as temporary:
            temporary.write_text("ne")
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        half()
    assert epath.Path(place).read_text() == "old"
    with files.whole(place) as temporary:
        temporary.write_text("new")
    assert epath.Path(place).read_text() == "new"
    assert [p.name for p in epath.Path(bucket).iterdir()] == ["file"]


def test_what_another_process_writes_is_seen_at_once(bucket):
    run = rundir.RunDir(f"{bucket}/run")
    run.write("status.json", json.dumps({"state": "running"}))
    assert [p.name for p in run.path.iterdir()] == ["status.json"]  # a listing, to be remembered
    program = "import sys; from pit_jax import files; files.write(sys.argv[1], sys.argv[2])"
    for place, text in (("status.json", '{"state": "done"}'), ("config.json", "{}")):
        words = [sys.executable, "-c", program, f"{bucket}/run/{place}", text]
        subprocess.run(words, check=True)
    assert run.status()["state"] == "done"
    assert run.exists()


def test_drivers_own_types_of_errors_are_told_in_one_line(tmp_path):
    with (
        pytest.raises(StorageError, match=r"^gs://b/x could not be read: two lines$"),
        files.told("gs://b/x", "read"),
    ):
        raise RuntimeError("two\nlines")
    with pytest.raises(RuntimeError), files.told(tmp_path / "x"):  # a bug
        raise RuntimeError("two\nlines")
