"""What lies beside a run before any worker exists."""

import concurrent.futures
import contextlib
import pathlib

import pytest

from pit_jax import configfile
from pit_jax.config import assign
from pit_jax.errors import ConfigError, StorageError
from pit_jax.launch import records, upload
from pit_jax.lease_store import Bucket
from pit_jax.rundir import RunDir

ID = "0123456789ab"


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir(tmp_path / "run")


def launched(run: RunDir, **fields) -> dict:
    return upload.write_record(run, id=ID, name="pit", target="tpu", **fields)


def test_the_record_says_where_the_config_is_and_comes_back_whole(run):
    made = launched(run, request={"name": "pit"})
    assert upload.record(run) == made
    assert made["schema"] == 1
    assert made["workdir"] == str(run.path)
    assert made["config"] == f"{run.path}/launch/config.json"
    assert made["created"].endswith("+00:00")
    upload.forget(run, "f" * 12, {})  # another's
    assert upload.record(run) == made
    upload.forget(run, ID, {})
    assert upload.record(run) == {}
    upload.forget(run, ID, {})


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "\x00"])
def test_a_record_that_is_none_is_no_launch(run, text):
    run.write("launch.json", text)
    assert upload.record(run) == {}


def test_what_is_noted_at_once_is_all_kept(run):
    launched(run)
    names = [f"field-{number}" for number in range(12)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: upload.note(run, ID, **{name: 1}), names))
    assert {name for name in upload.record(run) if name.startswith("field")} == set(names)
    assert upload.note(run, "f" * 12, stopped="now")["id"] == ID
    assert "stopped" not in upload.record(run)


def test_in_a_bucket_too_nothing_is_undone(bucket, monkeypatch):
    run = RunDir(f"{bucket}/run")
    assert upload.note(run, ID, stopped="now") == {}
    launched(run)
    replace = Bucket.replace

    def stopped_meanwhile(store, content, version):
        monkeypatch.setattr(Bucket, "replace", replace)
        upload.note(run, ID, stopped="now")
        return store.replace(content, version)

    monkeypatch.setattr(Bucket, "replace", stopped_meanwhile)
    upload.note(run, ID, watch={"pending": True})
    found = upload.record(run)
    assert (found["stopped"], found["watch"]) == ("now", {"pending": True})
    upload.forget(run, ID, {})
    assert upload.record(run) == {}


# Of what is created ----------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch, tmp_path) -> pathlib.Path:
    """Where this machine keeps its records."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return records.folder()


def fields(number: int = 0, **more) -> dict:
    place = {"project": "p", "zone": "z"}
    return {"id": f"{number:012x}", "name": "pit", "target": "tpu", **place, **more}


def test_what_is_refused_is_taken_back_for_what_was_there_before(run, kept):
    def refused(meanwhile=lambda: None):
        with upload.recorded(run, **fields(2)):
            meanwhile()
            raise ConfigError("it exists already")

    first = upload.write_record(run, **fields(1))
    with pytest.raises(ConfigError):
        refused()
    assert upload.record(run) == first
    with pytest.raises(ConfigError):  # another launch at the same time
        refused(lambda: upload.write_record(run, **fields(3)))
    assert upload.record(run)["id"] == fields(3)["id"]


def test_what_is_asked_for_once_more_keeps_what_was_noted(run, kept):
    with upload.recorded(run, **fields(1)) as first:
        pass
    upload.note(run, first["id"], stopped="now")
    with upload.recorded(run, **first) as again:
        assert again == {**first, "stopped": "now"}
    with pytest.raises(ConfigError), upload.recorded(run, **first):
        raise ConfigError("refused")
    assert upload.record(run) == {}


@pytest.mark.parametrize("error", [None, StorageError("the answer was lost")])
def test_a_machine_that_cannot_keep_a_record_says_so(run, kept, capsys, error):
    kept.parent.parent.mkdir()
    kept.parent.write_text("")  # a file where a directory should be
    with contextlib.suppress(StorageError), upload.recorded(run, **fields()) as made:
        if error:
            raise error
    assert upload.record(run) == made
    said = capsys.readouterr().err
    assert said.startswith("note: this machine's record of pit is not written: ")
    assert said.count("\n") == 1


def test_files_are_put_whole(run, tmp_path):
    (tmp_path / "w.whl").write_bytes(b"\0wheel")
    upload.put(run, {"config.json": "{}", "w.whl": tmp_path / "w.whl", "study/a/b.py": b"x"})
    launch = pathlib.Path(run.path) / "launch"
    assert (launch / "config.json").read_text() == "{}"
    assert (launch / "w.whl").read_bytes() == b"\0wheel"
    assert (launch / "study/a/b.py").read_bytes() == b"x"


# Whose directory it is -------------------------------------------------------------------


def test_a_new_directory_is_free(run, resolved):
    upload.check_free(run, resolved, alive=lambda before: pytest.fail("nothing to ask about"))


def test_another_run_in_it_is_refused(run, resolved):
    run.write_config(resolved)
    upload.check_free(run, resolved, alive=lambda before: "ACTIVE")
    assign(resolved, "optim.lr", 0.5)
    with pytest.raises(ConfigError, match=r"another run: config\.optim\.lr"):
        upload.check_free(run, resolved, alive=lambda before: "ACTIVE")


def test_a_launch_that_has_not_ended_is_refused_by_name(run, resolved):
    launched(run)
    run.write_status(state="running", step=3)
    with pytest.raises(ConfigError, match="belongs to the launch pit, which has not ended"):
        upload.check_free(run, resolved, alive=lambda before: "ACTIVE" * (before["id"] == ID))


def test_a_launch_that_has_failed_is_to_be_stopped_first(run, resolved):
    launched(run)
    with pytest.raises(ConfigError, match=r"has FAILED.*: pit-jax launch stop pit, mend, launch"):
        upload.check_free(run, resolved, alive=lambda before: "FAILED")


def test_a_launch_whose_slice_is_gone_may_be_launched_again(run, resolved):
    launched(run)
    upload.check_free(run, resolved, alive=lambda before: "")


def test_a_launch_that_was_stopped_or_is_final_is_not_asked_about(run, resolved):
    launched(run, stopped=True)
    upload.check_free(run, resolved, alive=lambda before: "ACTIVE")
    launched(run)
    run.write("status.json", f'{{"state": "done", "final": true, "launch": "{ID}"}}')
    upload.check_free(run, resolved, alive=lambda before: "ACTIVE")
    # What was final was an earlier launch.
    run.write("status.json", '{"state": "done", "final": true, "launch": "ffffffffffff"}')
    with pytest.raises(ConfigError, match="has not ended"):
        upload.check_free(run, resolved, alive=lambda before: "ACTIVE")


def test_a_run_that_is_done_says_what_it_came_to_and_a_longer_one_goes_on(run, resolved):
    assert upload.finished(run, resolved) == ""
    run.write_config(resolved)
    run.write_status(state="running", step=10)
    assert upload.finished(run, resolved) == ""
    run.write_status(state="done", step=10, result={"eval/accuracy": 0.5})
    assert upload.finished(run, resolved) == f"{run.path} is done: step 10, accuracy 0.5"
    assign(resolved, "train.steps", 20)
    assert upload.finished(run, resolved) == ""


# What the workers reach ------------------------------------------------------------------


def test_digits_need_nothing(resolved):
    assert upload.check_reachable(resolved, "tpu") == []


def test_data_has_to_be_brought(resolved):
    assign(resolved, "data.name", "cifar100")
    (line,) = upload.check_reachable(resolved, "tpu")
    needed = "'cifar100' lies nowhere on the workers: give --data gs://..."
    assert line.endswith(f"{needed} or --data-disk DISK")
    (line,) = upload.check_reachable(resolved, "gke")
    assert line.endswith(needed)
    assert upload.check_reachable(resolved, "tpu", "/opt/pit_jax/data") == []
    assign(resolved, "data.name", "imagenet2012@64")
    assert upload.check_reachable(resolved, "tpu")


@pytest.mark.parametrize("field", ["init_from", "resume", "eval.reference", "eval.features"])
def test_files_of_this_machine_are_named(resolved, field):
    assign(resolved, field, "runs/earlier")
    (line,) = upload.check_reachable(resolved, "tpu")
    assert line.startswith(f"config.{field}=runs/earlier is on this machine")
    for place in ("gs://bucket/runs/earlier", "/opt/pit_jax/data/reference.npz"):
        assign(resolved, field, place)
        assert upload.check_reachable(resolved, "tpu", "/opt/pit_jax/data") == []


def test_a_key_that_the_workers_lack_is_not_asked_for(resolved):
    assign(resolved, "train.wandb", "project")
    (line,) = upload.check_reachable(resolved, "tpu")
    assert "leave it empty" in line


def test_a_local_work_directory_is_refused():
    with pytest.raises(ConfigError, match="gs://BUCKET/DIRECTORY"):
        upload.check_bucket("runs/pit", "tpu")


# A study's files -------------------------------------------------------------------------


def test_a_study_comes_with_the_configs_beside_it(tmp_path, monkeypatch):
    for name in ("experiments/demo.py", "experiments/other.py", "configs/digits.py", "x/no.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    folder, spec, files = upload.study("experiments/demo.py:tiny")
    assert (folder, spec) == ("study", "experiments/demo.py:tiny")
    assert {name: path.read_text() for name, path in files.items()} == {
        f"study/{name}": name
        for name in ("experiments/demo.py", "experiments/other.py", "configs/digits.py")
    }
    assert upload.study("experiments/demo.py")[1] == "experiments/demo.py"
    with pytest.raises(ConfigError, match="no study file"):
        upload.study("experiments/none.py:x")


def test_the_uploaded_config_is_the_resolved_one(resolved):
    assert configfile.from_json(upload.config_text(resolved)) == resolved
