"""`pit-jax launch --target gke`: created in a cluster, and looked after; see test_cluster.py."""

import io

import yaml

from pit_jax import cli, configfile
from pit_jax.launch import gke, jobset, money, records, startup, upload
from pit_jax.rundir import RunDir

from .fake_cluster import CONFIG, FITS, TOKEN, condition, created, launched
from .fake_cluster import cluster as cluster
from .fake_cluster import ready as ready


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# Created ---------------------------------------------------------------------------------


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


def test_nothing_happens_without_a_yes(ready, bucket, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert launched(bucket) == 2
    captured = capsys.readouterr()
    assert "chip-hours" in captured.out.partition("create JobSet pit in here")[0]
    assert captured.err == "pit-jax: nothing was created\n"
    assert not created(ready)
    assert not RunDir(bucket).path.exists()


def test_what_does_not_fit_ends_with_4(ready, bucket, monkeypatch, capsys):
    large = {"steps": {"train": FITS | {"fits": False}}, "chip_hours": 1.0}
    monkeypatch.setattr(money, "preflight", lambda *args: large)
    assert launched(bucket, "--yes") == 4
    assert not created(ready)


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
