"""`pit-jax launch --sweep`: what it asks, creates and leaves out."""

import re
import shlex
import types

import pytest

from pit_jax import cli
from pit_jax.launch import decision, money, queue, sweeps, upload, watch, worker
from pit_jax.rundir import RunDir
from pit_jax.study import sweep

from .fake_tpu import service as service
from .test_fleet import quick as quick
from .test_fleet import study as study

LAUNCH = ["--target", "tpu", "--accelerator", "v5litepod-8", "--zone", "us-west4-a"]
LAUNCH += ["--project", "my-project"]


def test_names_are_short_and_differ():
    long = "a" * 37 + "-bc"
    names = {sweeps.name_of(long, number) for number in range(2000)}
    assert len(names) == 2000
    assert max(map(len, names)) == 40
    assert sweeps.name_of(long, 10) == "a" * 37 + "-10"


@pytest.fixture
def compiled(monkeypatch):
    """Preflight without a compiler: which configs it was asked about."""
    seen = []

    def preflight(config, where, price, anyway):
        seen.append(config)
        step = {"fits": True, "hbm_peak_bytes": 2**30, "hbm_limit_bytes": 2**34}
        return {"steps": {"train": step}, "chip_hours": 2.0}

    monkeypatch.setattr(money, "preflight", preflight)
    return seen


def test_a_dry_run_shows_points_and_one_request(study, capsys, monkeypatch, tmp_path):
    """Without credentials, network and service."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none"))
    words = ["launch", "--sweep", str(study), "--workdir", "gs://bucket/a-sweep", *LAUNCH]
    assert cli.run([*words, "--dry-run", "--at-once", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("patch=") >= 4
    assert "4 launches, 3 at once; the first one" in printed
    assert "queuedResources/a-sweep-0" in printed
    assert "a-sweep-1" not in printed
    *_, last = printed.split("\n\n")
    assert last.startswith("a-sweep-0 in my-project, us-west4-a\n  slice  ")
    words = last[last.index("pit-jax preflight") :].replace("\\\n", "")
    expected = f"pit-jax preflight --config {study} --topology v5e-8 --config.model.patch=1"
    assert shlex.split(words) == [*expected.split(), "--config.train.seed=0"]


def test_what_a_dry_run_of_a_sweep_would_refuse_is_said_once_and_last(study, capsys):
    words = ["launch", "--sweep", str(study), "--workdir", "gs://bucket/a-sweep", *LAUNCH]
    assert cli.run([*words, "--dry-run", "--config.train.wandb=mine"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("note: ") == 1
    assert " ".join(printed.split()).endswith("leave it empty; and 3 more")


def test_a_point_of_another_config_is_compiled_from_that(tmp_path):
    (tmp_path / "other.py").write_text("")
    needs = {"init_from": None}
    entry = {"config": "other.py:x", "label": "A", "init_from": "run:B", "model.patch": 2}
    point = types.SimpleNamespace(overrides=entry, needs=needs)
    found = sweeps._by_hand(f"{tmp_path}/study.py:paper", point)
    assert found == (f"{tmp_path}/other.py:x", ["--config.model.patch=2"])
    entry["config"] = "elsewhere/other.py:x"
    assert sweeps._by_hand(f"{tmp_path}/study.py", point)[0] == "elsewhere/other.py:x"


def test_shards_in_a_dry_run(study, capsys):
    words = ["launch", "--sweep", f"{study}:needs", "--workdir", "gs://bucket/a-sweep", *LAUNCH]
    override = "--config.train.steps=5"
    assert cli.run([*words, "--dry-run", "--shards", "2", override]) == 0
    printed = capsys.readouterr().out
    assert "4 points on 2 slices" in printed
    assert re.search(r"  launch/study/ +[0-9,]+ bytes\n", printed)
    [line] = [line.strip() for line in printed.splitlines() if "ARGUMENTS=(" in line]
    words = shlex.split(line.removeprefix("ARGUMENTS=(").removesuffix(")"))
    args = worker.parser().parse_args(words)
    assert args.sweep.endswith("launch/study/experiments/study.py:needs")
    assert (args.shard, args.directory) == ("0/2", "gs://bucket/a-sweep")
    assert args.workdir == "gs://bucket/a-sweep/shards/0-of-2"
    assert args.override == [override]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--shards", "2", "--accelerator", "v5litepod-16"], "worked through by one host"),
        (["--shards", "2", "--slices", "2"], "worked through by one host"),
        (["--shards", "2", "--at-once", "2"], "--at-once is for one launch a point"),
        (["--name=-x"], "lower-case letters"),
        (["--config.model.patch=3"], "point 0"),
        (["--workdir", "runs/here"], "gs://"),
    ],
)
def test_what_is_refused(study, capsys, more, told):
    words = ["launch", "--sweep", str(study), "--workdir", "gs://bucket/a-sweep", *LAUNCH]
    assert cli.run([*words, "--dry-run", *more]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_a_sweep_in_a_bucket(service, study, bucket, compiled, capsys, monkeypatch):
    """From the command line to the end, with a real storage server."""
    place = f"{bucket}/sweep"

    def ends(index):
        _, found, directory = sweep.read(str(study), place)
        run = directory.run(found[index])
        run.write_config(found[index].config)
        launch = upload.record(run)["id"]
        run.write_status(state="done", exit_code=0, final=True, launch=launch)

    for index in range(4):
        life = ["ACTIVE", lambda index=index: ends(index), "ACTIVE"]
        service.histories[f"sweep-{index}"] = [life]
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    monkeypatch.setattr(decision, "GRACE_S", 0.0)
    words = ["launch", "--sweep", str(study), "--workdir", place, *LAUNCH]
    words += ["--requirement", "pit_jax==0.1", "--price-per-chip-hour", "1.5"]
    assert cli.run(words) == 2
    assert "add --yes" in capsys.readouterr().err
    assert service.calls == []
    assert cli.run([*words, "--yes"]) == 0
    printed = capsys.readouterr().out
    assert len(compiled) == 2  # a patch each, not a seed each
    assert "all 4 points: chip-hours 8 at least, price 12.00 at least" in printed
    assert service.count("CreateQueuedResource") == 4
    capsys.readouterr()
    assert cli.run([*words, "--yes"]) == 0
    assert "4 points, 4 done" in capsys.readouterr().out
    assert service.count("CreateQueuedResource") == 4


def test_shards_in_a_bucket(service, study, bucket, compiled, capsys):
    place = f"{bucket}/sweep"
    words = ["launch", "--sweep", str(study), "--workdir", place, *LAUNCH, "--shards", "2"]
    words += ["--requirement", "pit_jax==0.1", "--yes", "--name", "x"]
    assert cli.run(words) == 0
    assert sorted(service.resources) == ["x-0", "x-1"]
    record = upload.record(RunDir(f"{place}/shards/1-of-2"))
    assert (record["name"], record["sweep"]) == ("x-1", place)
    assert (RunDir(f"{place}/shards/1-of-2").path / "launch/study/experiments/study.py").exists()
    capsys.readouterr()
    assert cli.run(words) == 0  # they are there already
    assert service.count("CreateQueuedResource") == 2
    _, found, directory = sweep.read(str(study), place)
    assert watch.saved(RunDir(record["workdir"]), record) == 0
    own = [point for point in found if point.directory in record["points"]]
    (other, *_) = [point for point in found if point not in own]
    directory.run(other).write_status(state="done")  # the other shard's progress
    assert watch.saved(RunDir(record["workdir"]), record) == 0
    directory.run(own[0]).write_status(state="done")
    assert watch.saved(RunDir(record["workdir"]), record) == 1


@pytest.fixture
def asked(monkeypatch):
    """The questions that were answered with yes."""
    questions = []
    monkeypatch.setattr(money, "check_answer", lambda yes: None)
    monkeypatch.setattr(money, "confirm", lambda question, yes: questions.append(question))
    return questions


def test_only_shards_that_have_something_to_do_are_created(
    service, study, bucket, compiled, asked, capsys
):
    place = f"{bucket}/sweep"
    words = ["launch", "--sweep", str(study), "--workdir", place, *LAUNCH, "--shards", "3"]
    words += ["--requirement", "pit_jax==0.1", "--name", "x"]
    _, found, directory = sweep.read(str(study), place)
    for index in (1, 3):  # all of shard 1, and half of shard 0
        directory.run(found[index]).write_config(found[index].config)
        directory.run(found[index]).write_status(state="done")
    assert cli.run(words) == 0
    assert asked == ["create 2 slices in my-project, us-west4-a?"]
    assert sorted(service.resources) == ["x-0", "x-2"]
    del service.resources["x-2"]
    assert cli.run(words) == 0
    assert asked[1:] == ["create 1 slice in my-project, us-west4-a?"]
    assert [config.model.patch for config in compiled[2:]] == [found[2].config.model.patch]
    assert "x-0 is there already" in capsys.readouterr().out
    assert cli.run(words) == 0  # nothing is asked where nothing is created
    assert len(asked) == 2
    assert sorted(service.resources) == ["x-0", "x-2"]


def test_no_slice_is_created_for_a_shard_without_points(study, capsys):
    words = ["launch", "--sweep", f"{study}:needs", "--workdir", "gs://bucket/a-sweep", *LAUNCH]
    assert cli.run([*words, "--dry-run", "--shards", "8"]) == 0
    assert "4 points on 2 slices" in capsys.readouterr().out  # three start from each other


@pytest.mark.parametrize("more", [["--shards", "1"], ["--at-once", "1"]])
def test_of_which_sweep_a_launch_is_stands_in_its_record_before_it_exists(
    service, study, bucket, compiled, asked, capsys, monkeypatch, more
):
    def killed(client, request):
        raise KeyboardInterrupt

    monkeypatch.setattr(queue.Client, "create", killed)
    place = f"{bucket}/sweep"
    words = ["launch", "--sweep", str(study), "--workdir", place, *LAUNCH, *more]
    assert cli.run([*words, "--requirement", "pit_jax==0.1"]) == 130
    _, found, directory = sweep.read(str(study), place)
    if more[0] == "--shards":
        record = upload.record(RunDir(f"{place}/shards/0-of-1"))
        assert record["sweep"] == place
        assert record["points"] == [point.directory for point in found]
    else:
        assert upload.record(directory.run(found[0]))["point_of"] == place


def test_a_sweep_file_without_a_sweep(tmp_path, capsys):
    (tmp_path / "x.py").write_text("from pit_jax import config\nget_config = config.base\n")
    words = ["launch", "--sweep", str(tmp_path / "x.py"), "--workdir", "gs://b-x/s", *LAUNCH]
    assert cli.run([*words, "--dry-run"]) == 2
    assert "defines no sweep()" in capsys.readouterr().err
