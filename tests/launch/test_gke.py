"""`pit-jax launch --target gke`: a cluster that takes or refuses it, and looking after it."""

import os
import pathlib

import pytest
import yaml

from pit_jax import cli, configfile
from pit_jax.launch import gke, jobset, money, records, startup, upload
from pit_jax.rundir import RunDir

from .fake_cluster import CONFIG, TOKEN, FakeCluster, words, write_kubeconfig
from .fake_cluster import cluster as cluster

FITS = {"fits": True, "hbm_peak_bytes": 2 << 30, "hbm_limit_bytes": 15 << 30}
FOUND = {"steps": {"train": FITS}, "chip_hours": 16.0, "cost": None}


# Created ---------------------------------------------------------------------------------


@pytest.fixture
def ready(cluster, monkeypatch, tmp_path) -> FakeCluster:
    """The cluster on loopback, a preflight that knows its answer, and nobody at a terminal."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(money, "preflight", lambda *args: FOUND)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    return cluster


def launched(bucket: str, *more: str) -> int:
    return cli.run(words(bucket, "--name", "pit", *more))


def created(cluster: FakeCluster) -> list[dict]:
    return [body for method, _, body in cluster.calls if method == "POST"]


def condition(cluster: FakeCluster, kind: str) -> None:
    (found,) = cluster.jobsets.values()
    found["status"] = {"conditions": [{"type": kind, "status": "True"}]}


def test_yes_uploads_the_config_and_creates_the_jobset(ready, bucket, capsys):
    assert launched(bucket, "--yes", "--namespace", "ml", "--config.train.steps=7") == 0
    (sent,) = created(ready)
    record = upload.record(RunDir(bucket))
    assert sent == record["request"]
    assert sent["metadata"]["labels"][jobset.LABEL] == record["id"]
    assert list(ready.jobsets) == [("ml", "pit")]
    told = {name: record[name] for name in ("target", "context", "namespace", "accelerator")}
    assert told == {
        "target": "gke",
        "context": "here",
        "namespace": "ml",
        "accelerator": "v5litepod-16",
    }
    (known,) = records.all_of()
    assert known.items() <= record.items()
    config = configfile.load(record["config"])
    assert config == configfile.load(CONFIG, ["--config.train.steps=7"])
    kept = yaml.safe_load((RunDir(bucket).path / "launch" / "jobset.yaml").read_text())
    assert kept == sent
    out = capsys.readouterr().out
    assert "16 at least" in out
    assert "pit-jax launch status pit" in out


def test_the_data_is_where_the_config_looks_for_it(ready, bucket):
    (RunDir(bucket).path / "data" / "set.txt").write_text("x")
    assert launched(f"{bucket}/run", "--yes", "--data", f"{bucket}/data") == 0
    assert configfile.load(f"{bucket}/run/launch/config.json").data.dir == startup.DATA_DIR


def test_data_that_is_not_there_is_said_first(ready, bucket, capsys):
    assert launched(f"{bucket}/run", "--yes", "--data", f"{bucket}/data") == 2
    assert "nothing lies there" in capsys.readouterr().err
    assert not created(ready)


def test_what_the_pods_cannot_read_is_refused(ready, bucket, capsys):
    assert launched(bucket, "--yes", "--config.init_from=runs/earlier") == 2
    assert "is on this machine and not on the workers" in capsys.readouterr().err
    assert not ready.calls


def test_a_run_that_is_done_books_nothing(ready, bucket, monkeypatch, capsys):
    monkeypatch.setattr(upload, "finished", lambda run, config: "it is done")
    assert launched(bucket, "--yes") == 0
    assert capsys.readouterr().out == "it is done\n"
    assert not ready.calls


def test_nothing_happens_without_a_yes(ready, bucket, capsys):
    assert launched(bucket) == 2
    captured = capsys.readouterr()
    assert "chip-hours" in captured.out
    assert "add --yes" in captured.err
    assert not created(ready)
    assert not RunDir(bucket).path.exists()


def test_what_does_not_fit_ends_with_4(ready, bucket, monkeypatch, capsys):
    large = {"steps": {"train": FITS | {"fits": False}}, "chip_hours": 1.0}
    monkeypatch.setattr(money, "preflight", lambda *args: large)
    assert launched(bucket, "--yes") == 4
    assert not created(ready)


@pytest.mark.parametrize(
    ("code", "message", "exit_code", "line"),
    [
        (403, 'jobsets is forbidden: User "me" cannot create', 2, "forbids it: jobsets is forb"),
        (409, 'jobsets "pit" already exists', 2, "there is or was another JobSet of this name"),
        (422, "admission webhook denied:\nreplicas", 2, "refuses it: admission webhook denied: r"),
        (400, 'strict decoding error: unknown field "spec.x"', 2, "has a JobSet before 0.10"),
        (503, "the server is not ready", 5, "is in trouble: the server is not ready"),
        (429, "too many requests", 5, "is in trouble: too many requests"),
        (422, "long " * 1000, 2, "refuses it: long long"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_no_launch(
    code, message, exit_code, line, ready, bucket, capsys
):
    ready.fail("POST", code, message)
    assert launched(bucket, "--yes") == exit_code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert len(err) < 600
    assert line in err
    # What did not answer may have created it, and is kept to be looked at and stopped.
    assert bool(upload.record(RunDir(bucket))) == bool(records.all_of()) == (exit_code == 5)


def test_a_cluster_without_jobset_says_so(ready, bucket, capsys):
    ready.installed = False
    assert launched(bucket, "--yes") == 2
    assert "here has no JobSet controller" in capsys.readouterr().err
    assert upload.record(RunDir(bucket)) == {}


def test_a_namespace_that_is_not_there_is_named(ready, bucket, capsys):
    assert launched(bucket, "--yes", "--namespace", "nowhere") == 2
    assert "--namespace nowhere: there is none in here" in capsys.readouterr().err


def test_a_stranger_is_told_to_log_in(ready, bucket, tmp_path, capsys):
    path = tmp_path / "kubeconfig"
    path.write_text(path.read_text().replace(TOKEN, "old"))
    assert launched(bucket, "--yes") == 2
    assert "here does not know you: gcloud auth login" in capsys.readouterr().err


def user(path: pathlib.Path, **given: object) -> None:
    """Writes another user into a kubeconfig."""
    found = yaml.safe_load(path.read_text())
    found["users"][0]["user"] = given
    path.write_text(yaml.safe_dump(found))


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("echo 'please log in' >&2; echo at once >&2; exit 1", "please log in at once"),
        ("echo nonsense", "failed to decode"),
    ],
)
def test_a_program_that_gives_no_credentials_is_quoted(
    script, line, ready, bucket, tmp_path, capfd, caplog
):
    program = {"command": "sh", "args": ["-c", script], "interactiveMode": "Never"}
    version = "client.authentication.k8s.io/v1beta1"
    user(tmp_path / "kubeconfig", exec={"apiVersion": version, **program})
    assert launched(bucket, "--yes") == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert line in err
    assert "gcloud auth login" in err
    assert not caplog.records  # the client would print it once more
    assert not ready.calls


def test_a_token_that_is_none_is_not_shown(ready, bucket, tmp_path, capsys):
    user(tmp_path / "kubeconfig", token=f"{TOKEN}\nand more")
    assert launched(bucket, "--yes") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "token of your kubeconfig" in err
    assert TOKEN not in err


def test_a_broken_connection_says_what_broke(ready, bucket, tmp_path, capsys):
    write_kubeconfig(tmp_path / "kubeconfig", ready.url.replace("http", "https"))
    assert launched(bucket, "--yes") == 5
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "SSL" in err


@pytest.mark.parametrize("answer", ["<html>please log in</html>", "[]", "{}"])
def test_what_is_no_cluster_is_not_taken_for_one(answer, ready, bucket, monkeypatch, capsys):
    monkeypatch.setattr("tests.launch.fake_cluster._Handler._found", lambda *_: (200, answer))
    assert launched(bucket, "--yes") == 5
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "the answer is no JobSet" in err


@pytest.mark.parametrize("text", [None, "", "a: [", "contexts: 3", "\0"])
def test_without_a_kubeconfig_one_line_says_what_to_do(text, ready, bucket, tmp_path, capsys):
    path = tmp_path / "kubeconfig"
    path.unlink() if text is None else path.write_text(text)
    assert launched(bucket, "--yes") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "gcloud container clusters get-credentials CLUSTER" in err


def test_the_context_is_of_the_kubeconfig(ready, bucket, capsys):
    assert launched(bucket, "--yes", "--context", "elsewhere") == 2
    assert "--context 'elsewhere': your kubeconfig names no cluster" in capsys.readouterr().err
    assert launched(bucket, "--yes", "--context", "there") == 0
    assert upload.record(RunDir(bucket))["context"] == "there"


def test_a_cluster_that_does_not_answer_is_said_at_once(ready, bucket, tmp_path, capsys):
    write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:9")
    assert launched(bucket, "--yes") == 5
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "the cluster does not answer" in err


# Looked after ----------------------------------------------------------------------------


def test_its_state_is_that_of_the_jobset(ready, bucket):
    assert launched(bucket, "--yes") == 0
    record = records.find("pit")
    assert gke.state(record) == "WAITING"
    (found,) = ready.jobsets.values()
    jobs = found["spec"]["replicatedJobs"]
    jobs[0]["replicas"] = 2
    for told, state in (
        ({"ready": 1}, "WAITING"),
        ({"ready": 2}, "ACTIVE"),
        ({"ready": 1, "succeeded": 1}, "ACTIVE"),
    ):
        found["status"] = {
            "conditions": [{"type": "Failed", "status": "False"}],
            "replicatedJobsStatus": [{"name": "slice", **told}],
        }
        assert gke.state(record) == state
    found["spec"]["suspend"] = True
    assert gke.state(record) == "SUSPENDED"
    for kind in ("Completed", "Failed"):
        condition(ready, kind)
        assert gke.state(record) == kind.upper()
    assert gke.state({**record, "id": "another"}) is None
    ready.jobsets.clear()
    assert gke.state(record) is None


def test_it_is_asked_for_where_it_was_launched(ready, bucket, tmp_path):
    assert launched(bucket, "--yes", "--namespace", "ml", "--context", "there") == 0
    record = records.find("pit")
    path = tmp_path / "kubeconfig"
    found = yaml.safe_load(path.read_text())
    elsewhere = {"name": "elsewhere", "cluster": {"server": "http://127.0.0.1:9"}}
    found["clusters"].append(elsewhere)
    found["contexts"][0]["context"]["cluster"] = "elsewhere"
    path.write_text(yaml.safe_dump(found))
    assert gke.state(record) == "WAITING"
    assert gke.delete(record)


def test_stop_deletes_the_jobset_of_that_launch_alone(ready, bucket, capsys):
    assert launched(bucket, "--yes") == 0
    record = records.find("pit")
    assert not gke.delete({**record, "id": "another"})
    assert cli.run(["launch", "stop", "pit", "--yes"]) == 0
    (body,) = [body for method, _, body in ready.calls if method == "DELETE"]
    assert body["propagationPolicy"] == "Foreground"  # the pods first, which save
    assert gke.state(record) is None
    assert not gke.delete(record)
    assert launched(bucket, "--yes") == 0  # and it goes on


def test_list_and_status_show_it(ready, bucket, capsys):
    assert launched(bucket, "--yes") == 0
    capsys.readouterr()
    assert cli.run(["launch", "list"]) == 0
    assert "WAITING" in capsys.readouterr().out
    assert cli.run(["launch", "status", "pit"]) == 0
    assert "WAITING" in capsys.readouterr().out


def test_a_second_launch_is_refused_while_the_first_lives(ready, bucket, capsys):
    assert launched(bucket, "--yes") == 0
    assert launched(bucket, "--yes") == 2
    assert "belongs to the launch pit, which has not ended" in capsys.readouterr().err
    assert launched(f"{bucket}/other", "--yes") == 2
    assert "there is a JobSet of this name in default" in capsys.readouterr().err
    assert len(ready.jobsets) == 1


def test_a_jobset_that_has_ended_makes_room(ready, bucket, monkeypatch, capsys):
    assert launched(bucket, "--yes") == 0
    condition(ready, "Failed")
    ready.lasting = 3
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert launched(f"{bucket}/other", "--yes") == 0
    assert len(created(ready)) == 2
    condition(ready, "Completed")
    assert launched(f"{bucket}/other", "--yes") == 0  # the same directory goes on


def test_one_that_is_being_deleted_is_waited_for(ready, bucket, monkeypatch, capsys):
    assert launched(bucket, "--yes") == 0
    assert gke.delete(records.find("pit"))
    ready.lasting = 1000
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    monkeypatch.setattr("time.monotonic", lambda: 10.0 * len(pauses))
    assert not gke.alive(records.find("pit"))
    assert launched(bucket, "--yes") == 5
    assert "still being deleted: try again" in capsys.readouterr().err
    ready.lasting = 3
    pauses.clear()
    assert launched(bucket, "--yes") == 0


def test_somebody_else_s_jobset_is_left_alone(ready, bucket, capsys):
    ready.jobsets["default", "pit"] = {"metadata": {"name": "pit", "uid": "1"}, "spec": {}}
    condition(ready, "Completed")
    assert launched(bucket, "--yes") == 2
    assert [method for method, _, _ in ready.calls] == ["GET"]


def test_no_credential_is_written_anywhere(ready, bucket, tmp_path, capsys):
    assert launched(bucket, "--yes") == 0
    captured = capsys.readouterr()
    written = [captured.out, captured.err]
    written += [path.read_text() for path in (tmp_path / "state").rglob("*.json")]
    run = RunDir(bucket).path
    for folder in (run, run / "launch"):
        written += [one.read_text() for one in folder.iterdir() if one.suffix]
    assert len(written) >= 6
    assert not [text for text in written if TOKEN in text]
