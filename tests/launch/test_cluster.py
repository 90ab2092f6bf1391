"""The client of a cluster: what it refuses in one line, and a name that is taken."""

import io
import pathlib

import pytest
import yaml

from pit_jax.launch import gke, money, records, upload
from pit_jax.rundir import RunDir

from .fake_cluster import FITS, TOKEN, condition, created, launched, write_kubeconfig
from .fake_cluster import cluster as cluster
from .fake_cluster import ready as ready

# What goes wrong ------------------------------------------------------------------------


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
    assert "token in your kubeconfig" in err
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


# A name that is taken --------------------------------------------------------------------


def test_a_jobset_that_has_ended_makes_room(ready, bucket, monkeypatch, capsys):
    assert launched(bucket, "--yes") == 0
    condition(ready, "Failed")
    ready.lasting = 3
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert launched(f"{bucket}/", "--yes") == 0
    assert len(created(ready)) == 2
    condition(ready, "Completed")
    assert launched(bucket, "--yes") == 0
    assert len(created(ready)) == 3


@pytest.mark.parametrize("ends_with", [2, 4])
def test_what_has_ended_is_kept_until_the_yes(ends_with, ready, bucket, monkeypatch, capsys):
    """Its pods and their logs go with it."""
    assert launched(bucket, "--yes") == 0
    condition(ready, "Failed")
    before = dict(ready.jobsets)
    capsys.readouterr()
    if ends_with == 4:
        large = {"steps": {"train": FITS | {"fits": False}}, "chip_hours": 1.0}
        monkeypatch.setattr(money, "preflight", lambda *args: large)
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert launched(bucket) == ends_with
    captured = capsys.readouterr()
    if ends_with == 2:
        assert "create JobSet pit in here, default in place of the one before? [y" in captured.out
        assert captured.err.endswith("nothing was created\n")
    assert "DELETE" not in [method for method, _, _ in ready.calls]
    assert ready.jobsets == before
    assert "deletionTimestamp" not in before["default", "pit"]["metadata"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_that_has_ended_in_another_directory_is_kept(ready, bucket, monkeypatch, capsys):
    assert launched(bucket, "--yes") == 0
    condition(ready, "Completed")
    monkeypatch.setattr(money, "preflight", lambda *args: pytest.fail("compiled"))
    for whose in (f", of '{bucket}',", ""):
        assert launched(f"{bucket}/other", "--yes") == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"--name pit: a JobSet of this name{whose} has ended in default" in err
        assert "kubectl delete jobset pit --context here --namespace default" in err
        (found,) = ready.jobsets.values()
        found["metadata"].pop("annotations", None)  # as of an earlier version
    assert "DELETE" not in [method for method, _, _ in ready.calls]


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
