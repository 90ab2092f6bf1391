"""`pit-jax launch --target tpu`: refused, confirmed, created."""

import io
import json
import os
import pathlib
import shlex
import uuid

import grpc
import pytest
from google.cloud.tpu_v2 import types

from pit_jax import cli, configfile
from pit_jax.launch import money, queue, records, startup, upload, watch, wheel
from pit_jax.launch.request import Request
from pit_jax.rundir import RunDir

from .fake_tpu import FakeTpu
from .fake_tpu import service as service

CONFIG = str(pathlib.Path(__file__).parent.parent.parent / "configs" / "digits.py") + ":pit"
GIB = 2**30
FITS = {"fits": True, "hbm_peak_bytes": 2 * GIB, "hbm_limit_bytes": int(15.75 * GIB)}
FOUND = {"steps": {"train": FITS}, "chip_hours": 16.0, "cost": None}


def words(workdir: str, *more: str) -> list[str]:
    line = f"launch --config {CONFIG} --workdir {workdir} --target tpu --accelerator v5litepod-8"
    return [*shlex.split(line), "--zone", "us-west4-a", *more]


@pytest.fixture
def cloud(service, monkeypatch, tmp_path) -> FakeTpu:
    """The service on loopback, a preflight that knows its answer, and nobody at a terminal."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(money, "preflight", lambda *args: FOUND)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    return service


def created(cloud: FakeTpu) -> list:
    """The messages that arrived."""
    return [one for one in cloud.requests if isinstance(one, types.CreateQueuedResourceRequest)]


def launched(bucket: str, *more: str) -> int:
    return cli.run(words(bucket, "--project", "my-project", "--name", "pit", *more))


def test_what_is_mistyped_is_told_before_credentials_are_looked_for(monkeypatch, capsys):
    monkeypatch.setattr("google.auth.default", lambda **_: pytest.fail("looked for credentials"))
    place = "gs://my-bucket/pit"
    for more, said in (
        (["--accelerator", "v5litepod-3"], "there is no accelerator 'v5litepod-3'"),
        (["--config.train.stepz=7"], "did you mean config.train.steps"),
    ):
        assert cli.run(words(place, *more)) == 2
        assert said in capsys.readouterr().err


def test_yes_uploads_everything_and_creates_the_resource(cloud, bucket, capsys):
    assert launched(bucket, "--yes", "--config.train.steps=7") == 0
    (sent,) = created(cloud)
    run = RunDir(bucket)
    record = upload.record(run)
    request = Request.from_json(record["request"])
    assert sent.queued_resource == request.to_message()
    assert (sent.parent, sent.queued_resource_id) == (request.parent, "pit")
    assert {name: record[name] for name in ("id", "name", "target", "project", "zone")} == {
        "id": request.id,
        "name": "pit",
        "target": "tpu",
        "project": "my-project",
        "zone": "us-west4-a",
    }
    (known,) = records.all_of()  # on this machine, so that the name is enough
    assert known.items() <= record.items()
    config = configfile.load(record["config"])  # as a worker will
    assert config == configfile.load(CONFIG, ["--config.train.steps=7"])
    files = {path.name: path for path in (run.path / "launch").iterdir()}
    assert files["startup.sh"].read_text() == request.script
    (name,) = [name for name in files if name.endswith(".whl")]
    assert f"\nWHEEL={name}\n" in request.script
    assert files[name].read_bytes()[:2] == b"PK"
    assert "jax==" in files["constraints.txt"].read_text()
    out = capsys.readouterr().out
    assert "16 at least, 2.0 h on this slice" in out
    for action in ("status", "logs", "stop", "watch"):
        assert f"pit-jax launch {action} pit" in out


def test_a_wheel_that_is_not_the_one_asked_for_is_not_sent(cloud, bucket, monkeypatch, capsys):
    names = iter(["pit_jax-0.1.0+g1a2b3c4-py3-none-any.whl"])
    monkeypatch.setattr(wheel, "file_name", lambda: next(names))
    assert launched(bucket, "--yes") == 2
    assert "changed while it was packed" in capsys.readouterr().err
    assert not created(cloud)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_happens_without_a_yes(cloud, bucket, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert launched(bucket) == 2
    printed = capsys.readouterr()
    price, _, question = printed.out.partition("create pit in my-project, us-west4-a? [y/N]")
    assert "chip-hours" in price
    assert question
    assert printed.err == "pit-jax: nothing was created\n"
    assert not created(cloud)
    assert not RunDir(bucket).path.exists()
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert launched(bucket) == 0
    assert created(cloud)


def test_a_name_that_is_about_to_be_free_is_waited_for(cloud, bucket, capsys):
    assert launched(bucket, "--yes") == 0
    assert cli.run(["launch", "stop", "pit", "--yes"]) == 0
    capsys.readouterr()
    cloud.deleting = 1000
    assert launched(bucket, "--yes") == 5
    assert "pit is still being deleted: try again in a minute" in capsys.readouterr().err
    cloud.resources.clear()
    assert launched(bucket, "--yes") == 0


def test_what_does_not_fit_ends_with_4_before_anything_is_there(cloud, bucket, monkeypatch, capsys):
    large = {"steps": {"train": FITS | {"fits": False}}, "chip_hours": 1.0}
    monkeypatch.setattr(money, "preflight", lambda *args: large)
    assert launched(bucket, "--yes") == 4
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert not RunDir(bucket).path.exists()
    assert launched(bucket, "--yes", "--anyway") == 0
    assert created(cloud)


def test_a_resource_that_is_refused_leaves_no_launch_behind(cloud, bucket, capsys):
    cloud.fail("CreateQueuedResource", grpc.StatusCode.RESOURCE_EXHAUSTED, "quota exceeded")
    assert launched(bucket, "--yes") == 2
    assert "quota" in capsys.readouterr().err
    assert upload.record(RunDir(bucket)) == {}
    assert not records.all_of()
    assert launched(bucket, "--yes") == 0


def test_a_service_that_does_not_answer_may_have_created_it(cloud, bucket, monkeypatch, capsys):
    def silent(self, asked):
        raise queue.Unreachable("Cloud TPU was not reached")

    monkeypatch.setattr(queue.Client, "create", silent)
    assert launched(bucket, "--yes") == 5
    assert upload.record(RunDir(bucket))["name"] == "pit"
    assert records.find("pit")  # so that it can be looked at and stopped


def test_one_that_was_taken_and_may_not_be_looked_at_is_a_launch(cloud, bucket):
    cloud.slow_operations = 1
    cloud.fail("GetOperation", grpc.StatusCode.PERMISSION_DENIED, "tpu.operations.get denied")
    assert launched(bucket, "--yes") == 0
    assert upload.record(RunDir(bucket))["name"] == records.find("pit")["name"]


def test_a_second_launch_into_the_directory_is_refused_while_the_first_lives(cloud, bucket, capsys):
    assert launched(bucket, "--yes") == 0
    assert launched(bucket, "--yes") == 2
    assert "belongs to the launch pit, which has not ended" in capsys.readouterr().err
    cloud.resources.clear()  # gone
    assert launched(bucket, "--yes") == 0


def test_another_run_in_the_directory_is_refused_before_it_is_compiled(
    cloud, bucket, resolved, monkeypatch, capsys
):
    RunDir(bucket).write_config(resolved)
    monkeypatch.setattr(money, "preflight", lambda *args: pytest.fail("compiled"))
    assert launched(bucket, "--yes") == 2
    assert "already holds another run" in capsys.readouterr().err


def test_a_run_that_is_done_is_not_booked_again(cloud, bucket, capsys):
    run = RunDir(bucket)
    run.write_config(configfile.load(CONFIG))
    run.write_status(state="done", step=9)
    assert launched(bucket, "--yes") == 0
    assert capsys.readouterr().out == f"{bucket} is done: step 9\n"
    assert not cloud.calls


def test_what_the_workers_cannot_reach_is_refused(cloud, bucket, capsys):
    assert launched(bucket, "--yes", "--config.resume=runs/earlier") == 2
    assert "is on this machine and not on the workers" in capsys.readouterr().err


def test_data_that_is_not_there_is_refused(cloud, bucket, capsys):
    assert launched(bucket, "--yes", "--data", f"{bucket}/data") == 2
    assert "nothing lies there" in capsys.readouterr().err
    (RunDir(bucket).path / "data" / "set.txt").write_text("x")
    assert launched(f"{bucket}/run", "--yes", "--data", f"{bucket}/data") == 0
    (sent,) = created(cloud)
    script = sent.queued_resource.tpu.node_spec[0].node.metadata["startup-script"]
    assert f"\nDATA={bucket}/data\nDATA_MODE=stage\n" in script
    assert configfile.load(f"{bucket}/run/launch/config.json").data.dir == startup.DATA_DIR


@pytest.mark.parametrize(("exit_code", "state"), [(0, "done"), (3, "failed")])
def test_watch_stays_until_the_run_has_ended_and_ends_as_it_did(
    exit_code, state, cloud, bucket, monkeypatch, capsys
):
    def finish():
        run = RunDir(bucket)
        status = {"state": state, "exit_code": exit_code, "final": True, "reason": "as it is"}
        run.write("status.json", json.dumps({**status, "launch": upload.record(run)["id"]}))

    cloud.histories["pit"] = [["PROVISIONING", "ACTIVE", finish, "ACTIVE"]]
    now = [0.0]  # an hour a look

    def watched(found):
        return real(found, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + 3600))

    real = watch.watch
    monkeypatch.setattr(watch, "watch", watched)
    assert launched(bucket, "--yes", "--watch") == exit_code
    assert cloud.count("DeleteQueuedResource") == 1
    assert ("as it is" in capsys.readouterr().err) == bool(exit_code)


def test_without_credentials_one_line_says_what_to_do(cloud, bucket, monkeypatch, capsys):
    from google.auth import exceptions

    def nobody():
        raise exceptions.DefaultCredentialsError("...")

    monkeypatch.setattr("google.auth.default", nobody)
    assert cli.run(words(bucket, "--yes")) == 2
    assert "gcloud auth application-default login" in capsys.readouterr().err
    monkeypatch.setattr("google.auth.default", lambda: (None, None))
    assert cli.run(words(bucket, "--yes")) == 2
    assert "--project is missing" in capsys.readouterr().err
    monkeypatch.setattr("google.auth.default", lambda: (None, "my-project"))
    assert cli.run(words(bucket, "--yes")) == 0


def test_no_credential_is_written_anywhere(cloud, bucket, tmp_path, monkeypatch, capsys):
    """Neither keys in files nor tokens in the environment: not in files, metadata or output."""
    secrets = [f"sEcReT{uuid.uuid4().hex}" for _ in range(6)]
    key = tmp_path / "key.json"
    key.write_text(json.dumps({"type": "service_account", "private_key": secrets[0]}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    names = ("CLOUDSDK_AUTH_ACCESS_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")
    for name, secret in zip(names, secrets[1:5], strict=True):
        monkeypatch.setenv(name, secret)
    leaky = f"git+https://me:{secrets[5]}@github.com/a/b"
    assert launched(bucket, "--yes", "--requirement", leaky) == 2
    assert launched(bucket, "--yes") == 0
    printed = capsys.readouterr()
    written = [path.read_bytes() for path in everything(RunDir(bucket).path)]
    assert len(written) == 5
    sent = [type(one).serialize(one) for one in created(cloud)]
    everywhere = b"".join([*written, *sent, printed.out.encode(), printed.err.encode()])
    for secret in [*secrets, str(key)]:
        assert secret.encode() not in everywhere
    assert b"sEcReT" not in everywhere


def everything(folder) -> list:
    found = []
    for path in folder.iterdir():
        found += everything(path) if path.is_dir() else [path]
    return found
