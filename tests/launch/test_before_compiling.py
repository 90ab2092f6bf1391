"""What can be refused without compiling, is: a person has not to wait for it."""

import os
import pathlib
import socket

import pytest
from google.auth import exceptions

from pit_jax import cli, waiting
from pit_jax.errors import ConfigError, StorageError
from pit_jax.launch import money, upload

from . import fake_cluster, test_sweeps, test_tpu
from .fake_cluster import cluster as cluster
from .fake_tpu import service as service
from .test_fleet import study as study
from .test_queue import asked

TARGETS = ("tpu", "gke", "launches", "shards")


class Launch:
    """A launch of one target into `place`, and how often anything was compiled for it."""

    def __init__(self, target: str, place: str, study: pathlib.Path):
        self.target, self.place, self.study = target, place, study
        self.compiled = 0

    def preflight(self, *args):
        self.compiled += 1
        return test_tpu.FOUND

    def run(self, *more: str) -> int:
        if self.target == "gke":
            words = fake_cluster.words(self.place)
        elif self.target == "tpu":
            words = test_tpu.words(self.place, "--project", "my-project")
        else:
            words = ["launch", "--sweep", str(self.study), "--workdir", self.place]
            words += [*test_sweeps.LAUNCH, "--requirement", "pit_jax==0.1"]
            words += ["--shards", "2"] if self.target == "shards" else []
        return cli.run([*words, "--name", "pit", *more])


@pytest.fixture(params=TARGETS)
def launch(request, service, cluster, bucket, study, monkeypatch, tmp_path) -> Launch:
    """All is well, nobody is at a terminal, and the question is answered with no."""

    def confirm(question, yes):
        raise ConfigError("no")

    made = Launch(request.param, f"{bucket}/run", study)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    monkeypatch.setattr(money, "preflight", made.preflight)
    monkeypatch.setattr(money, "confirm", confirm)
    return made


def refused(launch: Launch, capsys, *more: str) -> str:
    """The one line of a refusal before anything was compiled."""
    assert launch.run(*more) == 2
    assert not launch.compiled
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "http" not in error
    return error


def test_where_all_is_well_it_is_compiled_before_the_question(launch, capsys):
    assert launch.run("--yes") == 2
    assert launch.compiled
    assert capsys.readouterr().err == "pit-jax: no\n"


def test_nobody_is_there_to_ask(launch, service, cluster, capsys):
    launch.place = "gs://no-such-bucket-1/x"  # which is not asked for
    assert "nobody is here to ask" in refused(launch, capsys)
    assert not service.calls
    assert not cluster.calls


def test_there_are_no_credentials(launch, monkeypatch, capsys):
    def nobody(*args, **kwargs):
        raise exceptions.DefaultCredentialsError("...")

    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setattr("google.auth.default", nobody)
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("asked the network"))
    error = refused(launch, capsys, "--yes")
    assert error.endswith("credentials here: gcloud auth application-default login\n")


def test_credentials_have_run_out(launch, monkeypatch, capsys):
    def old(*args, **kwargs):
        raise exceptions.RefreshError("invalid_grant: Token has been expired or revoked.")

    monkeypatch.setattr("google.cloud.storage.Client.list_blobs", old)
    error = refused(launch, capsys, "--yes")
    assert error.endswith("are not taken: gcloud auth application-default login\n")


def test_there_is_no_such_bucket(launch, capsys):
    launch.place = "gs://no-such-bucket-1/x"
    assert refused(launch, capsys, "--yes") == (
        "pit-jax: there is no bucket no-such-bucket-1: gcloud storage buckets create"
        " gs://no-such-bucket-1 --location=REGION\n"
    )


def test_the_name_is_taken(launch, service, cluster, capsys):
    name = "pit-1" if launch.target in ("launches", "shards") else "pit"
    service.add(asked(name, id="f" * 12))
    cluster.jobsets["default", name] = {"metadata": {"name": name, "uid": "1"}, "spec": {}}
    error = refused(launch, capsys, "--yes")
    assert f"--name {name}: " in error
    assert f"pit-jax launch stop {name}" in error


# A bucket that does not answer -----------------------------------------------------------


@pytest.fixture
def silent(bucket, monkeypatch):
    """A server that takes connections and says nothing."""
    monkeypatch.setattr(upload, "CHANGE_S", 0.15)
    monkeypatch.setattr(upload, "REACH_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield


def test_somebody_who_waits_is_told_why(silent, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "SILENT_S", 0.02)
    monkeypatch.setattr(waiting, "_HEARD", set())
    with pytest.raises(StorageError, match=r"gs://my-bucket: .* does not answer .*a network"):
        upload.check_there("gs://my-bucket/run")
    said = capsys.readouterr().err
    assert said.startswith("waiting for gs://my-bucket to answer: is there a network")
    assert said.count("\n") == 1


def test_of_a_bucket_that_answers_nothing_is_said(bucket, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "_HEARD", set())
    upload.check_there(bucket)
    assert capsys.readouterr().err == ""
